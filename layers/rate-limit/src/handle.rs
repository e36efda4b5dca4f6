//! Looking at a limit, and resetting it, while requests come in.

use std::{fmt, sync::Arc, time::Duration};

use palisade_core::{head::RequestHead, key::Key, time};

use crate::{
    limits::{Limit, Limits},
    rule::{Rule, Strategy},
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

    /// Gives this key all of its quota again, by one rule or by all that have keys: how many held it.
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

    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.limits.limits.iter().map(|limit| &limit.rule)
    }

    /// What the rules hold and have done. Locks one shard after the other, so the sums are those of no one instant.
    pub fn snapshot(&self) -> Snapshot {
        let rules = self.limits.limits.iter().map(|limit| {
            let totals = limit.store.totals();
            RuleSnapshot {
                rule: limit.rule.name.clone(),
                keys: limit.store.held(),
                capacity: limit.store.capacity(),
                bytes: limit.store.bytes(),
                admitted: totals.admitted,
                refused: totals.refused,
            }
        });
        Snapshot {
            rules: rules.collect(),
        }
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
}
