//! One rule, its numbers, and what was used of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use palisade_core::reject::{Reason, Rejected};

use super::{adapting::Adapting, away::Away, lease::Leases, order::Share, tiers::Tiers};
use crate::{
    central::Central,
    cost::Learner,
    error::{CostExceedsQuota, RateLimited},
    meter::{Full, Standing},
    metrics::Metrics,
    numbers::Numbers,
    quota::{Quota, QuotaError},
    rule::{Mode, Place, Rule, RuleError, Strategy},
    store::{Payer, Store, Totals},
};

/// A rule and what was used of it.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(super) index: usize,
    pub(crate) rule: Rule,
    /// As they are now, for all processes together.
    pub(super) numbers: ArcSwap<Numbers>,
    pub(super) tiers: Tiers,
    /// What was used in this process. Of a rule that is counted in the store: what it may use without it.
    pub(crate) store: Store,
    /// Set if the rule is counted in the store.
    pub(super) away: Option<Away>,
    pub(super) leases: Option<Leases>,
    pub(super) adapting: Option<Adapting>,
    pub(super) learner: Option<Learner>,
    pub(super) shadow: AtomicBool,
    pub(super) shadowed: AtomicU64,
    pub(super) metrics: Metrics,
}

impl Limit {
    pub(super) fn new(
        index: usize,
        rule: Rule,
        layer: &Arc<str>,
        central: Option<&Arc<dyn Central>>,
    ) -> Result<Self, RuleError> {
        let wrong = |error| RuleError::Quota(rule.name.clone(), error);
        let adapting = (rule.strategy == Strategy::Adaptive)
            .then(|| Adapting::new(&rule.adaptive, rule.quota.limit()))
            .transpose()
            .map_err(|error| RuleError::Adaptive(rule.name.clone(), error))?;
        let following = adapting.as_ref().map(Adapting::following);
        let numbers = Arc::new(Numbers::of(&rule, following).map_err(wrong)?);
        let central = central.filter(|_| rule.place != Place::Here);
        let here = match central {
            None => numbers.clone(),
            Some(_) => {
                numbers.check_shared().map_err(wrong)?;
                let share = adapting.as_ref().map(Adapting::following_share);
                Arc::new(Numbers::of(&rule, share).map_err(wrong)?)
            }
        };
        let capacity = rule.seats();
        let store = match rule.key {
            Some(_) => Store::keyed(capacity, &here),
            None => Store::unkeyed(&here),
        };
        let leases = match (rule.place, central) {
            (Place::Leased { batch, strict }, Some(central)) => Some(Leases::new(
                rule.key.is_some().then_some(capacity),
                &numbers,
                batch,
                strict,
                central,
            )),
            _ => None,
        };
        Ok(Self {
            index,
            tiers: Tiers::new(&rule),
            away: central.map(|_| Away::new()),
            leases,
            adapting,
            learner: rule.settles().then(Learner::default),
            shadow: AtomicBool::new(rule.mode == Mode::Shadow),
            shadowed: AtomicU64::new(0),
            metrics: Metrics::new(layer, &rule.name),
            store,
            numbers: ArcSwap::new(numbers),
            rule,
        })
    }

    /// Keys with a count of their own; one with a lease may have another for what it uses without the store.
    pub(crate) fn held(&self) -> usize {
        let leased = self.leases.as_ref().map_or(0, |leases| leases.pools.held());
        self.store.held().max(leased)
    }

    pub(crate) fn bytes(&self) -> usize {
        let leased = self
            .leases
            .as_ref()
            .map_or(0, |leases| leases.pools.bytes());
        self.store.bytes() + leased
    }

    pub(crate) fn totals(&self) -> Totals {
        let leased = self.leases.as_ref().map(|leases| leases.pools.totals());
        self.store.totals() + leased.unwrap_or_default()
    }

    #[inline]
    pub(super) fn bit(&self) -> u8 {
        1 << self.index
    }

    /// Where is counted what is taken in this process.
    #[inline]
    pub(super) fn counts(&self, from_pool: bool) -> &Store {
        match &self.leases {
            Some(leases) if from_pool => &leases.pools,
            _ => &self.store,
        }
    }

    pub(super) fn needs_guard(&self) -> bool {
        self.rule.strategy != Strategy::TokenBucket
            || self.rule.drains
            || self.away.is_some()
            || self.rule.settles()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.rule.strategy == Strategy::InFlight
    }

    pub(crate) fn is_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shadow.store(mode == Mode::Shadow, Relaxed);
    }

    pub(super) fn shadowed(&self) {
        self.shadowed.fetch_add(1, Relaxed);
        self.metrics.shadowed();
    }

    pub(crate) fn times_shadowed(&self) -> u64 {
        self.shadowed.load(Relaxed)
    }

    pub(crate) fn quota(&self, tier: u8) -> Quota {
        let mut quota = self.numbers.load().tier(tier).quota;
        if let Some(adapting) = &self.adapting {
            quota = quota.with_limit(adapting.now());
        }
        quota
    }

    pub(crate) fn holds(&self, tier: u8) -> u64 {
        self.numbers.load().meter(tier).holds()
    }

    /// The most that such a quota can ever give at once.
    pub(crate) fn held_by(&self, quota: Quota) -> u64 {
        quota.allowed_burst().unwrap_or(quota.limit())
    }

    pub(super) fn standing_here(&self, payer: Payer, at: u64) -> Standing {
        self.store
            .read(payer, |meter, count| meter.standing(count, at))
    }

    pub(super) fn standing_leased(&self, payer: Payer, at: u64) -> Standing {
        self.counts(true)
            .read(payer, |meter, count| meter.standing(count, at))
    }

    /// Counts to other quotas from now on, one for each tier.
    pub(super) fn renew(&self, quotas: &[Quota], at: u64) -> Result<(), QuotaError> {
        let old = self.numbers.load();
        let following = self.adapting.as_ref().map(Adapting::following);
        let strategy = self.rule.strategy;
        let numbers = Arc::new(old.with(strategy, following, quotas.iter().copied())?);
        if let Some(away) = &self.away {
            numbers.check_shared()?;
            let share = self.share_of(&numbers, away.processes())?;
            self.store.renew(&Arc::new(share), at);
        } else {
            self.store.renew(&numbers, at);
        }
        if let Some(leases) = &self.leases {
            leases.renew(&numbers, at);
        }
        self.numbers.store(numbers);
        if let Some(away) = &self.away {
            away.forget_all();
        }
        Ok(())
    }

    /// What this process may use without the store.
    pub(super) fn share_of(
        &self,
        numbers: &Numbers,
        processes: u64,
    ) -> Result<Numbers, QuotaError> {
        let share = self.adapting.as_ref().map(Adapting::following_share);
        let quotas = numbers.tiers().iter();
        let quotas = quotas.map(|tier| tier.quota.divided_by(processes));
        numbers.with(self.rule.strategy, share, quotas)
    }

    /// Nanoseconds that so much takes to come back, evenly.
    pub(super) fn nanos_for(&self, share: Share, cost: u64) -> u64 {
        let quota = self.quota(share.payer.tier());
        let nanos = u128::from(cost) * u128::from(quota.nanos()) / u128::from(quota.limit().max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// How long until there is room after those before have taken so much: exactly of a bucket, and at least of windows.
    pub(super) fn wait_behind(&self, share: Share, before: u64, at: u64) -> Full {
        let full = self.store.read(share.payer, |meter, count| {
            let alone = meter.take(count, share.cost, at);
            if before == 0 || alone == Err(Full::Forever) || self.is_in_flight() {
                return alone;
            }
            if self.rule.strategy == Strategy::TokenBucket {
                let mut count = count.clone();
                meter.charge(&mut count, before, at);
                return meter.take(&count, share.cost, at);
            }
            // What there is goes first, then so many turns of all that it holds, and the last in the one after.
            let (all, holds) = (before.saturating_add(share.cost), meter.holds().max(1));
            let left = meter.standing(count, at).remaining;
            let turns = (all - left.min(all)).div_ceil(holds).saturating_sub(1);
            let last = all - turns * holds;
            let window = self.quota(share.payer.tier()).nanos();
            let first = match meter.take(count, last.min(holds), at) {
                Err(Full::For(wait)) => wait,
                _ => 0,
            };
            match first.saturating_add(turns.saturating_mul(window)) {
                0 => alone,
                wait => Err(Full::For(wait)),
            }
        });
        full.map_or_else(|full| full, |_| Full::For(0))
    }

    pub(super) fn reject(&self, full: Full, share: Share, standing: Standing) -> Rejected {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);

        let name = &self.rule.name;
        let tier = share.payer.tier();
        let rule = name.clone();
        match full {
            Full::For(nanos) => {
                let quota = self.quota(tier);
                let retry_after = Duration::from_nanos(nanos);
                let reason = if self.rule.strategy != Strategy::TokenBucket && quota.window() >= DAY
                {
                    Reason::QuotaExhausted
                } else {
                    Reason::RateLimited
                };
                let limited = RateLimited {
                    rule,
                    cost: share.cost,
                    limit: quota.limit(),
                    remaining: standing.remaining,
                    retry_after,
                };
                Rejected::new(reason, limited)
                    .retry_after(retry_after)
                    .violates(name.clone())
            }
            Full::Forever => CostExceedsQuota {
                rule,
                cost: share.cost,
                holds: self.holds(tier),
            }
            .into(),
        }
    }
}
