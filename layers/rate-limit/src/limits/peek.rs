//! Looking at what was used, forgetting it, and changing what it is counted to.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use palisade_core::{head::RequestHead, key::Key, time};
use tokio::time::Instant;

use super::{Limit, Limits};
use crate::{
    central::{Ask, Central, Subject},
    error::StoreError,
    handle::State,
    meter::Standing,
    quota::Quota,
    rule::RuleError,
    store::Payer,
};

impl Limits {
    /// How the rules stand that such a request has a key for, or that need none.
    pub(crate) fn peek(&self, head: &RequestHead<'_>, now: Instant) -> Vec<State> {
        let at = self.nanos(now);
        let payers = self.limits.iter();
        let payers = payers.map(|limit| (limit, self.payer(limit, head)));
        payers
            .filter_map(|(limit, payer)| Some(limit.state(payer.ok()??.0, at)))
            .collect()
    }

    pub(crate) fn peek_key(&self, limit: &Limit, key: &Key<'_>, now: Instant) -> State {
        limit.state(self.paid_by(limit, key), self.nanos(now))
    }

    /// Asks the store, where the rule is counted there.
    pub(crate) async fn peek_store(
        &self,
        limit: &Limit,
        key: &Key<'_>,
    ) -> Result<State, StoreError> {
        let payer = self.paid_by(limit, key);
        let (Some(central), Some(ask)) = (self.asked(limit), self.ask_for(limit, key)) else {
            return Ok(limit.state(payer, self.nanos(time::now())));
        };
        let answers = central.peek(vec![ask]).await?;
        let standing = answers.rules.first().map(|answer| answer.standing);
        let standing =
            standing.unwrap_or_else(|| limit.standing_here(payer, self.nanos(time::now())));
        Ok(limit.state_of(payer, standing))
    }

    /// Forgets what a key has used, here and in the store: whether it had used any.
    pub(crate) async fn forget_store(
        &self,
        limit: &Limit,
        key: Option<&Key<'_>>,
    ) -> Result<bool, StoreError> {
        let payer = key.map_or(Payer::SHARED, |key| self.paid_by(limit, key));
        let here = self.forget(limit, payer);
        let ask = match key {
            Some(key) => self.ask_for(limit, key),
            None => limit.ask(Subject::SHARED, payer),
        };
        let (Some(central), Some(ask)) = (self.asked(limit), ask) else {
            return Ok(here);
        };
        let forgotten = central.reset(vec![ask]).await?;
        // What was heard of it before may have come back meanwhile.
        self.forget(limit, payer);
        Ok(here || forgotten.contains(&true))
    }

    pub(crate) fn forget(&self, limit: &Limit, payer: Payer) -> bool {
        if let Some(away) = &limit.away {
            away.forget(payer);
        }
        // Places are held by requests that are there, whatever becomes of what is written down.
        if limit.is_in_flight() {
            return false;
        }
        let epoch = || self.epoch.fetch_add(1, Relaxed) + 1;
        if let Some(leases) = &limit.leases {
            leases.pools.forget(payer, epoch);
        }
        let forgotten = limit.store.forget(payer, epoch);
        self.stir(limit, payer);
        forgotten
    }

    /// Counts to another quota from now on; what was used is kept.
    pub(crate) fn update(
        &self,
        limit: &Limit,
        tier: Option<&str>,
        quota: Quota,
    ) -> Result<(), RuleError> {
        let wrong = |error| RuleError::Quota(limit.rule.name.clone(), error);
        if limit.adapting.is_some() {
            return Err(RuleError::CannotTier(limit.rule.name.clone()));
        }
        // One after the other, or the one would undo the other's.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = limit.numbers.load();
        if let Some(tier) = tier
            && !numbers
                .tiers()
                .iter()
                .any(|found| found.name.as_deref() == Some(tier))
        {
            return Err(RuleError::NoSuchTier(tier.into()));
        }
        let mut first = true;
        let is_meant = |name: Option<&str>| match tier {
            Some(tier) => name == Some(tier),
            // Everybody else's.
            None => std::mem::take(&mut first),
        };
        let mut is_meant = is_meant;
        let quotas: Vec<Quota> = numbers
            .tiers()
            .iter()
            .map(|found| {
                if is_meant(found.name.as_deref()) {
                    quota
                } else {
                    found.quota
                }
            })
            .collect();
        let at = self.nanos(time::now());
        limit.renew(&quotas, at).map_err(wrong)?;
        self.writer.renew(&self.limits);
        self.stir_all(limit);
        Ok(())
    }

    fn asked(&self, limit: &Limit) -> Option<&Arc<dyn Central>> {
        self.central.as_ref().filter(|_| limit.away.is_some())
    }

    fn ask_for(&self, limit: &Limit, key: &Key<'_>) -> Option<Ask> {
        let payer = self.paid_by(limit, key);
        let subject = match (&limit.rule.key, &self.central) {
            (Some(_), Some(central)) => central.subject(key),
            _ => Subject::SHARED,
        };
        limit.ask(subject, payer)
    }
}

impl Limit {
    fn ask(&self, subject: Subject, payer: Payer) -> Option<Ask> {
        Some(Ask {
            rule: self.rule.name.clone(),
            subject,
            plan: self.plan(payer.tier())?,
            cost: 1,
            ticket: 0,
        })
    }

    fn state(&self, payer: Payer, at: u64) -> State {
        self.state_of(payer, self.standing_here(payer, at))
    }

    fn state_of(&self, payer: Payer, standing: Standing) -> State {
        let quota = self.quota(payer.tier());
        State {
            rule: self.rule.name.clone(),
            strategy: self.rule.strategy,
            limit: quota.limit(),
            window: quota.window(),
            holds: self.holds(payer.tier()),
            remaining: standing.remaining,
            retry_after: Duration::from_nanos(standing.retry_after),
            reset_after: Duration::from_nanos(standing.reset_after),
        }
    }
}
