//! Looking at a limit, and resetting it, while requests come in.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderMap;
use palisade_core::{head::RequestHead, key::Key, reject::Rejected, time};

use crate::{
    error::StoreError,
    limits::{Limit, Limits},
    pace::Pacer,
    quota::Quota,
    rule::{Mode, Rule, RuleError, Strategy},
    store::Payer,
};

/// Looks at a limit, and resets it, while requests come in. Reading consumes nothing.
///
/// ```
/// use palisade_core::{gate::{Admit, Gate}, key::{self, Key}, time};
/// use palisade_rate_limit::{Quota, RateLimit};
///
/// let limit = RateLimit::new(Quota::per_minute(10)).key(key::header("x-user-id"));
/// let request = http::Request::builder().header("x-user-id", "alice").body(())?;
/// assert!(matches!(limit.admit(&(&request).into(), time::now()), Admit::Now(Ok(_))));
///
/// let (handle, alice) = (limit.handle(), Key::from("alice"));
/// assert_eq!(handle.peek("default", &alice).unwrap().remaining, 9);
/// assert_eq!(handle.reset(None, &alice), 1);
/// assert_eq!(handle.peek("default", &alice).unwrap().remaining, 10);
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    limits: Arc<Limits>,
}

impl Handle {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self { limits }
    }

    /// How this key stands with this rule: as untouched, if it is not held. `None` if there is no such rule.
    ///
    /// A rule without keys answers the same for each.
    pub fn peek(&self, rule: &str, key: &Key<'_>) -> Option<State> {
        let limit = self.find(rule)?;
        Some(self.limits.peek_key(limit, key, time::now()))
    }

    /// How the rules stand that such a request has a key for, or that need none, in their order.
    pub fn peek_all(&self, head: &RequestHead<'_>) -> Vec<State> {
        self.limits.peek(head, time::now())
    }

    /// Gives this key all of its quota again, by one rule or by all that have keys: how many held it. Places in flight
    /// stay taken, as the requests that hold them are there.
    pub fn reset(&self, rule: Option<&str>, key: &Key<'_>) -> usize {
        let named = |limit: &&Limit| rule.is_none_or(|rule| *limit.rule.name == *rule);
        let keyed = self
            .limits
            .limits
            .iter()
            .filter(|limit| limit.store.is_keyed());
        keyed
            .filter(named)
            .filter(|limit| self.limits.forget(limit, self.limits.paid_by(limit, key)))
            .count()
    }

    /// Gives back all of the quota that requests without a key share by this rule: whether any was used.
    pub fn reset_shared(&self, rule: &str) -> bool {
        let limit = self.find(rule);
        limit.is_some_and(|limit| self.limits.forget(limit, Payer::SHARED))
    }

    /// As [`peek`](Self::peek), by what all processes together have used if the rule is counted in a store: there
    /// `peek` only knows what was used without it.
    ///
    /// # Errors
    ///
    /// If the store cannot be asked.
    pub async fn peek_store(&self, rule: &str, key: &Key<'_>) -> Result<Option<State>, StoreError> {
        match self.find(rule) {
            Some(limit) => self.limits.peek_store(limit, key).await.map(Some),
            None => Ok(None),
        }
    }

    /// As [`reset`](Self::reset), also in the store. Other processes hear of it within a second. Dropped before its
    /// end, it may have reset some rules.
    ///
    /// # Errors
    ///
    /// If the store cannot be asked; what this process counts is reset all the same.
    pub async fn reset_store(
        &self,
        rule: Option<&str>,
        key: &Key<'_>,
    ) -> Result<usize, StoreError> {
        let (mut many, mut failed) = (0, None);
        for limit in &self.limits.limits {
            let is_meant = rule.is_none_or(|rule| *limit.rule.name == *rule);
            if !is_meant || limit.rule.key.is_none() {
                continue;
            }
            match self.limits.forget_store(limit, Some(key)).await {
                Ok(held) => many += usize::from(held),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(many), Err)
    }

    /// As [`reset_shared`](Self::reset_shared), also in the store.
    ///
    /// # Errors
    ///
    /// If the store cannot be asked; what this process counts is reset all the same.
    pub async fn reset_shared_store(&self, rule: &str) -> Result<bool, StoreError> {
        match self.find(rule) {
            Some(limit) => self.limits.forget_store(limit, None).await,
            None => Ok(false),
        }
    }

    /// Counts a rule to another quota from now on: what was used is kept. Of several processes, each has to be told.
    ///
    /// A bucket stays as long from full as it was, at most as long as the new one takes; windows of the same length
    /// keep what was used, and other windows take it over as used now.
    ///
    /// # Errors
    ///
    /// If there is no such rule, it is adaptive, or the quota cannot be kept; then nothing has changed.
    pub fn update(&self, rule: &str, quota: Quota) -> Result<(), RuleError> {
        self.limits.update(self.named(rule)?, None, quota)
    }

    /// As [`update`](Self::update), for the keys of a tier.
    ///
    /// # Errors
    ///
    /// If there is no such rule or tier, or the quota cannot be kept; then nothing has changed.
    pub fn update_tier(&self, rule: &str, tier: &str, quota: Quota) -> Result<(), RuleError> {
        self.limits.update(self.named(rule)?, Some(tier), quota)
    }

    /// Enforces a rule from now on, or only counts what it would refuse.
    ///
    /// # Errors
    ///
    /// If there is no such rule.
    pub fn set_mode(&self, rule: &str, mode: Mode) -> Result<(), RuleError> {
        let limit = self.named(rule)?;
        limit.set_mode(mode);
        self.limits.stir_all(limit);
        Ok(())
    }

    /// Refuses a request that a rule of this process has nothing left for, and that would not wait, and counts it as
    /// refused. Takes nothing: for who wants to know before the body of a request is read, and takes afterwards.
    ///
    /// # Errors
    ///
    /// The refusal that the request would meet.
    pub fn preview(&self, head: &RequestHead<'_>) -> Result<(), Rejected> {
        self.limits.preview(head, time::now())
    }

    /// Adds the headers that an answer to such a request would have now, by what this process knows. Takes nothing: for
    /// answers to requests that never come to the limit.
    pub fn describe(&self, head: &RequestHead<'_>, headers: &mut HeaderMap) {
        self.limits.describe(head, headers, time::now());
    }

    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.limits.limits.iter().map(|limit| &limit.rule)
    }

    /// What the rules hold and have done. Locks one shard after the other, so the sums are those of no one instant.
    pub fn snapshot(&self) -> Snapshot {
        let rules = self.limits.limits.iter().map(|limit| {
            let totals = limit.totals();
            RuleSnapshot {
                rule: limit.rule.name.clone(),
                keys: limit.held(),
                capacity: limit.store.capacity(),
                bytes: limit.bytes(),
                admitted: totals.admitted,
                refused: totals.refused,
                shadowed: limit.times_shadowed(),
                mode: match limit.is_shadow() {
                    true => Mode::Shadow,
                    false => Mode::Enforce,
                },
                quota: limit.quota(0),
            }
        });
        Snapshot {
            rules: rules.collect(),
            waiting: self.limits.pacer.as_ref().map_or(0, Pacer::waiting),
        }
    }

    fn named(&self, rule: &str) -> Result<&Limit, RuleError> {
        self.find(rule)
            .ok_or_else(|| RuleError::NoSuchRule(rule.into()))
    }

    fn find(&self, rule: &str) -> Option<&Limit> {
        let mut limits = self.limits.limits.iter();
        limits.find(|limit| *limit.rule.name == *rule)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rules()).finish()
    }
}

/// How a key stands with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The rule.
    pub rule: Arc<str>,
    /// How it counts.
    pub strategy: Strategy,
    /// How much in a window.
    pub limit: u64,
    /// How long a window is.
    pub window: Duration,
    /// The most that can be taken at once: the burst of a token bucket, else the limit.
    pub holds: u64,
    /// What can be taken now.
    pub remaining: u64,
    /// Until one can be taken: zero if one can now.
    pub retry_after: Duration,
    /// Until all can be taken, if nothing is before.
    pub reset_after: Duration,
}

/// What a limit holds and has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// By rule, in their order.
    pub rules: Vec<RuleSnapshot>,
    /// Requests that wait for their quota.
    pub waiting: usize,
}

/// What a rule holds and has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleSnapshot {
    /// The rule.
    pub rule: Arc<str>,
    /// Keys that have a count of their own.
    pub keys: usize,
    /// The most that can have one; 0 for a rule without keys.
    pub capacity: usize,
    /// The memory of the counts.
    pub bytes: usize,
    /// Requests that were let through and took from it.
    pub admitted: u64,
    /// Requests that it had no room for.
    pub refused: u64,
    /// Requests that it had no room for and let through, in shadow mode.
    pub shadowed: u64,
    /// Whether it is enforced now.
    pub mode: Mode,
    /// The quota as it is now, of who is in no tier.
    pub quota: Quota,
}
