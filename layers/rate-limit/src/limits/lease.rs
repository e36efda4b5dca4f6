//! Rules that spend here what was taken from the store before.
//!
//! A process holds at most one live lease of a payer. What it holds was counted in the store when it was granted, and is
//! lost when the lease ends; so what passes exceeds the quota by no more than the leases hold, or than comes back while
//! one lasts.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{head::RequestHead, time};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, timeout},
};

use super::{Limit, Limits, Order};
use crate::{
    central::{Ask, Central, Plan, Subject},
    meter::{Full, Meter},
    numbers::{Numbers, Tier},
    store::{Payer, Store},
};

/// When the quota is short a lease is not asked for more often, or a payer without quota would cost more trips than
/// without leases.
const AT_LEAST: u64 = Duration::from_millis(20).as_nanos() as u64;

const LONGEST_FLIGHT: Duration = Duration::from_secs(1);

/// What a rule has leased.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) pools: Store,
    batch: u32,
    strict: bool,
    lasts: u64,
    /// Those that are being asked for.
    flying: Mutex<HashMap<Payer, Arc<Flying>>>,
}

/// A lease that is being asked for.
#[derive(Debug, Default)]
struct Flying {
    landed: Arc<Notify>,
    failed: AtomicBool,
}

/// Somebody waits for it.
struct Passenger {
    flying: Arc<Flying>,
    landed: OwnedNotified,
}

impl Leases {
    pub(super) fn new(
        capacity: Option<usize>,
        numbers: &Numbers,
        batch: u32,
        strict: bool,
        central: &Arc<dyn Central>,
    ) -> Self {
        let lasts = u64::try_from(central.lease_for().as_nanos()).unwrap_or(u64::MAX);
        let pools = Arc::new(Self::numbers(numbers, batch, lasts));
        Self {
            pools: match capacity {
                Some(capacity) => Store::keyed(capacity, &pools),
                None => Store::unkeyed(&pools),
            },
            batch,
            strict,
            lasts,
            flying: Mutex::default(),
        }
    }

    fn numbers(numbers: &Numbers, batch: u32, lasts: u64) -> Numbers {
        Numbers::new(numbers.tiers().iter().map(|tier| Tier {
            name: tier.name.clone(),
            quota: tier.quota,
            meter: Meter::pool(tier.meter.holds(), batch, lasts, AT_LEAST),
        }))
    }

    pub(super) fn renew(&self, numbers: &Numbers, at: u64) {
        let numbers = Self::numbers(numbers, self.batch, self.lasts);
        self.pools.renew(&Arc::new(numbers), at);
    }

    /// How many are taken at once: no more than a quarter of the quota for all processes together.
    pub(super) fn batch(&self, limit: &Limit, tier: u8, processes: u64) -> u64 {
        let quarter = limit.holds(tier) / processes.max(1).saturating_mul(4);
        quarter.min(self.batch.into())
    }

    /// The plan of the store, which leaves out what leases may exceed it by if the rule is strict.
    fn plan(&self, plan: Plan, batch: u64, processes: u64) -> Plan {
        if !self.strict {
            return plan;
        }
        let held = batch.saturating_mul(processes);
        match plan {
            Plan::TokenBucket { interval, burst } => Plan::TokenBucket {
                interval,
                burst: burst.saturating_sub(held.min(self.lasts.div_ceil(interval))),
            },
            Plan::FixedWindow { limit, window } => Plan::FixedWindow {
                limit: limit.saturating_sub(held),
                window,
            },
            Plan::SlidingWindow {
                limit,
                window,
                tick,
            } => Plan::SlidingWindow {
                limit: limit.saturating_sub(held),
                window,
                tick,
            },
            plan => plan,
        }
    }

    /// The flight that a payer waits for, and whether it has to be started.
    fn board(&self, payer: Payer) -> (Passenger, bool) {
        let mut all = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = !all.contains_key(&payer);
        let flying = all.entry(payer).or_default().clone();
        // Under the lock, so that no landing is missed.
        let landed = flying.landed.clone().notified_owned();
        (Passenger { flying, landed }, is_first)
    }

    fn land(&self, payer: Payer, failed: bool) {
        let mut all = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flying) = all.remove(&payer) {
            flying.failed.store(failed, Relaxed);
            flying.landed.notify_waiters();
        }
    }
}

/// Ends a flight also if what carries it out is dropped.
struct Flight {
    limits: Arc<Limits>,
    index: usize,
    payer: Payer,
    /// Until the store has answered.
    failed: bool,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(leases) = &self.limits.limits[self.index].leases {
            leases.land(self.payer, self.failed);
        }
    }
}

impl Limits {
    /// Asks for the next leases before those that were taken from are used up.
    #[inline]
    pub(super) fn refill_early(
        self: &Arc<Self>,
        head: &RequestHead<'_>,
        order: &Order,
        now: Instant,
    ) {
        if order.pools == 0 {
            return;
        }
        let at = self.nanos(now);
        for (limit, share) in order.taken(&self.limits) {
            let is_low = order.pools & limit.bit() != 0
                && limit
                    .counts(true)
                    .read(share.payer, |meter, count| meter.is_low(count, at));
            if !is_low {
                continue;
            }
            let Some(central) = &self.central else {
                return;
            };
            let key = limit.rule.key.as_ref().and_then(|key| key.key(head));
            let subject = match key {
                Some(key) if share.payer != Payer::SHARED => central.subject(&key),
                _ => Subject::SHARED,
            };
            self.lease(limit, share.payer, subject, share.cost);
        }
    }

    /// Asks for leases that are used up, and waits for them. Those that the store did not answer for are returned.
    pub(super) async fn refill(self: &Arc<Self>, order: &Order) -> u8 {
        let (mut flights, mut failed) = (Vec::new(), 0);
        for (limit, share) in order.applying(&self.limits) {
            if order.dry & limit.bit() == 0 {
                continue;
            }
            let subject = match share.payer {
                Payer::SHARED => Subject::SHARED,
                _ => order.subject(limit.index),
            };
            match self.lease(limit, share.payer, subject, share.cost) {
                Some(passenger) => flights.push((limit.bit(), passenger)),
                None => failed |= limit.bit(),
            }
        }
        for (bit, Passenger { flying, landed }) in flights {
            // If its upkeep was stopped, the store keeps no deadline.
            let lost = timeout(LONGEST_FLIGHT, landed).await.is_err();
            if lost || flying.failed.load(Relaxed) {
                failed |= bit;
            }
        }
        failed
    }

    /// Asks for a lease unless that was done, and tells when it is there. Every flight ends with the store's deadline.
    fn lease(
        self: &Arc<Self>,
        limit: &Limit,
        payer: Payer,
        subject: Subject,
        cost: u64,
    ) -> Option<Passenger> {
        let (Some(central), Some(leases)) = (&self.central, &limit.leases) else {
            return None;
        };
        let (passenger, is_first) = leases.board(payer);
        if is_first {
            let flight = Flight {
                limits: self.clone(),
                index: limit.index,
                payer,
                failed: true,
            };
            let job = flight.fetch(central.clone(), subject, cost);
            if !central.run(Box::pin(job)) {
                return None;
            }
        }
        Some(passenger)
    }
}

impl Flight {
    async fn fetch(mut self, central: Arc<dyn Central>, subject: Subject, cost: u64) {
        let limit = &self.limits.limits[self.index];
        let Some(leases) = &limit.leases else {
            return;
        };
        let (tier, processes) = (self.payer.tier(), central.replicas().max(1));
        let batch = leases.batch(limit, tier, processes);
        let Some(plan) = limit.plan(tier) else {
            return;
        };
        // The lease ends by the time from before it was asked for: early, never late.
        let at = self.limits.nanos(time::now());
        let left = leases.pools.read(self.payer, |meter, count| {
            meter.standing(count, at).remaining
        });
        let ask = Ask {
            rule: limit.rule.name.clone(),
            subject,
            plan: leases.plan(plan, batch, processes),
            cost,
            ticket: 0,
        };
        let want = batch.max(cost).saturating_sub(left).max(1);
        let Ok(grant) = central.lease(ask, want).await else {
            return;
        };
        let now = self.limits.nanos(time::now());
        let wait = match grant.answer.full {
            Some(Full::For(wait)) => wait,
            _ => 0,
        };
        leases
            .pools
            .change_or_seat(self.payer, now, |meter, count| {
                meter.deposit(count, (grant.granted, want), wait, at, now);
            });
        limit.mirror(self.payer, &grant.answer.standing, now);
        limit.metrics.leased(grant.granted);
        self.failed = false;
    }
}
