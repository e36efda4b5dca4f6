//! Rules that are counted in a store that other processes share.

use std::{
    sync::{
        Arc, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{
    head::RequestHead,
    reject::{Reason, Rejected},
    time,
};
use tokio::time::Instant;

use super::{Limit, Limits, Order, Refusal, Step, order::Share};
use crate::{
    central::{Answer, Ask, Central, Subject},
    denied::Denied,
    error::{StoreError, StoreUnavailable},
    gate::Reservation,
    meter::{Full, Standing},
    rule::{OnStoreError, Strategy},
    store::Payer,
};

/// After which a caller may try a rule again that refuses while the store is down.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What a rule that is counted in the store knows in this process.
#[derive(Debug)]
pub(super) struct Away {
    denied: Denied,
    /// Among so many processes the quota is divided here.
    processes: AtomicU64,
    /// Until then the share of this process is held too: what passed without the store is not known to it.
    ceiling: AtomicU64,
}

/// How the store decided.
pub(super) enum Asked {
    Taken(Reservation),
    /// There is no room; nothing is held any more.
    Refused(Order, Refusal),
    /// It cannot be asked, and a rule refuses then.
    Rejected(Rejected),
}

impl Away {
    pub(super) fn new() -> Self {
        Self {
            denied: Denied::new(),
            processes: AtomicU64::new(1),
            ceiling: AtomicU64::new(0),
        }
    }

    pub(super) fn processes(&self) -> u64 {
        self.processes.load(Relaxed)
    }

    pub(super) fn forget(&self, payer: Payer) {
        self.denied.forget(payer);
    }

    pub(super) fn forget_all(&self) {
        self.denied.forget_all();
    }
}

/// The store cannot be asked, and this rule refuses then.
#[derive(Debug)]
pub(super) struct NoStore<'a>(&'a Limit);

impl Limits {
    /// Decides where each rule is counted.
    #[inline]
    pub(super) fn route(&self, order: &mut Order, now: Instant) -> Result<(), NoStore<'_>> {
        match &self.central {
            Some(central) => self.route_by(central, order, now),
            None => Ok(()),
        }
    }

    fn route_by(
        &self,
        central: &Arc<dyn Central>,
        order: &mut Order,
        now: Instant,
    ) -> Result<(), NoStore<'_>> {
        let (is_up, processes) = (central.is_up(), central.replicas().max(1));
        let at = self.nanos(now);
        (order.here, order.pools, order.away, order.fallen) = (0, 0, 0, 0);
        for limit in &self.limits {
            if order.shares[limit.index].cost == 0 {
                continue;
            }
            let bit = limit.bit();
            let tier = order.shares[limit.index].payer.tier();
            let Some(away) = limit.away.as_ref().filter(|_| limit.plan(tier).is_some()) else {
                order.here |= bit;
                continue;
            };
            self.divide_by(limit, processes, at);
            if limit.is_shadow() {
                order.here |= bit;
            } else if !is_up {
                self.fall_back(limit, order)?;
                // One question without an answer is no outage: it may have been counted, and few follow it.
                if limit.rule.on_store_error == OnStoreError::LocalShare {
                    let window = limit.quota(tier).nanos();
                    away.ceiling.fetch_max(at.saturating_add(window), Relaxed);
                }
            } else if at >= away.ceiling.load(Relaxed)
                && let Some(leases) = &limit.leases
                && leases.batch(limit, tier, processes) > 1
            {
                order.pools |= bit;
            } else {
                order.away |= bit;
                if at < away.ceiling.load(Relaxed) {
                    order.here |= bit;
                }
            }
        }
        Ok(())
    }

    /// What a rule does without the store.
    fn fall_back<'a>(&self, limit: &'a Limit, order: &mut Order) -> Result<(), NoStore<'a>> {
        order.fallen |= limit.bit();
        match limit.rule.on_store_error {
            OnStoreError::Allow => {}
            OnStoreError::Deny => return Err(NoStore(limit)),
            OnStoreError::LocalShare => order.here |= limit.bit(),
        }
        Ok(())
    }

    /// Reports what was decided without the store, of a request that is more than looked at.
    #[inline]
    pub(super) fn fell_back(&self, order: &Order) {
        if order.fallen == 0 {
            return;
        }
        for (limit, _) in order.applying(&self.limits) {
            if order.fallen & limit.bit() != 0 {
                limit.metrics.fell_back(limit.rule.on_store_error);
            }
        }
    }

    pub(super) fn refuse_without_store(&self, NoStore(limit): NoStore<'_>) -> Rejected {
        let rule = limit.rule.name.clone();
        limit.metrics.fell_back(limit.rule.on_store_error);
        limit.metrics.refused(Reason::StoreUnavailable);
        Rejected::new(
            Reason::StoreUnavailable,
            StoreUnavailable { rule: rule.clone() },
        )
        .retry_after(TRY_AGAIN)
        .violates(rule)
    }

    /// Counts a refusal by the store, once for a request, however often it tries.
    pub(super) fn count_refused(&self, order: &mut Order, index: usize) {
        let limit = &self.limits[index];
        if order.refused & limit.bit() == 0 {
            order.refused |= limit.bit();
            limit.store.count(order.shares[index].payer, false);
        }
    }

    /// The longest of the waits that the store has named a moment ago.
    #[inline]
    pub(super) fn denied(&self, order: &Order) -> Option<Refusal> {
        if order.away == 0 {
            return None;
        }
        let refusals = self.away(order).filter_map(|(limit, share)| {
            let away = limit.away.as_ref()?;
            if share.cost > limit.most(share.payer.tier()) {
                // There is never room for it, which is not a matter of waiting.
                return None;
            }
            let (wait, _) = away.denied.find(share.payer, share.cost, order.at)?;
            Some(Refusal {
                index: limit.index,
                full: Full::For(wait),
            })
        });
        refusals.reduce(|a, b| self.longer(a, b))
    }

    /// How the store has said that a payer stands who was refused a moment ago.
    pub(super) fn standing_denied(&self, limit: &Limit, share: Share, at: u64) -> Option<Standing> {
        let away = limit.away.as_ref()?;
        let (_, standing) = away.denied.find(share.payer, share.cost, at)?;
        Some(standing)
    }

    /// Writes down what the store will need to know, while the head of the request is at hand.
    pub(super) fn address(&self, head: &RequestHead<'_>, order: &mut Order) {
        let Some(central) = &self.central else {
            return;
        };
        let mut subjects = [Subject::SHARED; crate::Rule::MOST];
        let mut payers = [None; crate::Rule::MOST];
        // Also those that the store is not asked for now: when the request has waited, it may be.
        for limit in self.limits.iter().filter(|limit| limit.away.is_some()) {
            if let Some(extract) = &limit.rule.key
                && let Some(key) = extract.key(head)
            {
                subjects[limit.index] = central.subject(&key);
                payers[limit.index] = Some(self.paid_by(limit, &key));
            }
        }
        let extra = order.extra();
        (extra.subjects, extra.payers) = (subjects, payers);
        extra.ticket = rand::random();
    }

    /// Asks the store for all that is counted there. Dropped meanwhile, what is held here is given back.
    pub(super) async fn ask(self: &Arc<Self>, mut reservation: Reservation) -> Asked {
        let Some(central) = &self.central else {
            return Asked::Taken(reservation);
        };
        let Some(order) = reservation.order() else {
            return Asked::Taken(reservation);
        };
        let asks = match self.asks(order) {
            Ok(asks) => asks,
            Err(refusal) => return Asked::Refused(reservation.give_back(), refusal),
        };
        let asked = central.take(asks).await;
        match asked {
            Ok(answers) => {
                let now = self.nanos(time::now());
                let mut refusal = None;
                let places: Vec<usize> = self.away(order).map(|(limit, _)| limit.index).collect();
                for (index, answer) in places.into_iter().zip(answers.rules) {
                    order.extra().answers[index] = Some(answer);
                    let limit = &self.limits[index];
                    let found = limit.heard(order.shares[index], &answer, now);
                    refusal = match (refusal, found) {
                        (Some(a), Some(b)) => Some(self.longer(a, b)),
                        (a, b) => a.or(b),
                    };
                }
                match refusal {
                    None => {
                        order.taken_away = order.away;
                        self.admitted(order);
                        for (limit, share) in self.away(order) {
                            // Else that was done when it was taken here.
                            if order.taken & limit.bit() == 0 {
                                limit.store.count(share.payer, true);
                            }
                        }
                        Asked::Taken(reservation)
                    }
                    Some(refusal) => {
                        self.count_refused(order, refusal.index);
                        Asked::Refused(reservation.give_back(), refusal)
                    }
                }
            }
            Err(error) => self.without(&error, reservation),
        }
    }

    /// Decides without the store, which has been asked for nothing or has not answered.
    fn without(self: &Arc<Self>, error: &StoreError, mut reservation: Reservation) -> Asked {
        let Some(order) = reservation.order() else {
            return Asked::Taken(reservation);
        };
        let now = time::now();
        if *error != StoreError::Down {
            self.release_places(order);
        }
        let away = order.away;
        if let Err(rejected) = self.do_without(away, order) {
            return Asked::Rejected(rejected);
        }
        self.fell_back(order);
        match self.try_step(order, now) {
            Step::Refused(refusal) | Step::Line(refusal) | Step::Dry(refusal) => {
                Asked::Refused(reservation.give_back(), refusal)
            }
            Step::Taken | Step::Ask => Asked::Taken(reservation),
        }
    }

    /// Does what these rules do without the store.
    pub(super) fn do_without(&self, rules: u8, order: &mut Order) -> Result<(), Rejected> {
        order.away &= !rules;
        order.pools &= !rules;
        order.fallen = 0;
        for limit in &self.limits {
            if rules & limit.bit() != 0 {
                let fallen = self.fall_back(limit, order);
                fallen.map_err(|none| self.refuse_without_store(none))?;
            }
        }
        Ok(())
    }

    /// Gives back places in flight that the store may have given, though it did not say so.
    pub(super) fn release_places(&self, order: &Order) {
        let in_flight = |limit: &Limit| limit.rule.strategy == Strategy::InFlight;
        let changes = self.away(order).filter(|(limit, _)| in_flight(limit));
        let changes = changes.filter_map(|(limit, share)| limit.change(*share, order, 0));
        self.tell(changes.collect());
    }

    /// The rules that are counted in the store.
    pub(super) fn away<'a>(
        &'a self,
        order: &'a Order,
    ) -> impl Iterator<Item = (&'a Limit, &'a Share)> {
        let applying = order.applying(&self.limits);
        applying.filter(|(limit, _)| order.away & limit.bit() != 0)
    }

    /// Or the rule that has been closed since, and so is not counted in the store.
    fn asks(&self, order: &mut Order) -> Result<Vec<Ask>, Refusal> {
        let mut asks = Vec::new();
        for limit in &self.limits {
            let (index, share) = (limit.index, order.shares[limit.index]);
            if order.away & limit.bit() == 0 {
                continue;
            }
            let tier = share.payer.tier();
            let Some(plan) = limit.plan(tier) else {
                let full = Full::For(limit.quota(tier).nanos());
                return Err(Refusal { index, full });
            };
            order.extra().plans[index] = Some(plan);
            asks.push(Ask {
                rule: limit.rule.name.clone(),
                subject: order.subject(index),
                plan,
                cost: share.cost,
                ticket: order.ticket(),
            });
        }
        Ok(asks)
    }

    /// Divides among so many processes what may be used without the store.
    fn divide_by(&self, limit: &Limit, processes: u64, at: u64) {
        let Some(away) = &limit.away else {
            return;
        };
        if away.processes() == processes {
            return;
        }
        // One after the other, or shares of an earlier quota could come last. While somebody else changes something, the
        // next request is soon enough.
        let _changing = match self.changing.try_lock() {
            Ok(changing) => changing,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Some(adapting) = &limit.adapting {
            adapting.divide_by(processes);
        }
        // Shares of what can be kept can be kept.
        if let Ok(numbers) = limit.share_of(&limit.numbers.load(), processes) {
            limit.store.renew(&Arc::new(numbers), at);
        }
        away.processes.store(processes, Relaxed);
    }
}

impl Limit {
    /// Keeps what the store has said, for when it says nothing any more.
    fn heard(&self, share: Share, answer: &Answer, now: u64) -> Option<Refusal> {
        let away = self.away.as_ref()?;
        let Answer { full, standing, .. } = answer;
        self.mirror(share.payer, standing, now);
        let full = match ((*full)?, &self.adapting) {
            // Not yet.
            (Full::Forever, Some(adapting)) if share.cost <= adapting.most() => {
                Full::For(self.quota(share.payer.tier()).nanos())
            }
            (full, _) => full,
        };
        // Of places in flight it is a guess.
        if let Full::For(wait) = full
            && !self.is_in_flight()
        {
            away.denied
                .note(share.payer, share.cost, *standing, wait, now);
        }
        Some(Refusal {
            index: self.index,
            full,
        })
    }

    /// Has used its share of what all processes have, so that the share left is known when the store is not.
    pub(super) fn mirror(&self, payer: Payer, standing: &Standing, now: u64) {
        let (Some(away), OnStoreError::LocalShare) = (&self.away, self.rule.on_store_error) else {
            return;
        };
        let used = self.holds(payer.tier()).saturating_sub(standing.remaining);
        let used = used / away.processes().max(1);
        if used > 0 {
            self.store.change_or_seat(payer, now, |meter, count| {
                meter.raise(count, used, now);
            });
        }
    }

    /// No request may cost more, however long it waits.
    fn most(&self, tier: u8) -> u64 {
        match &self.adapting {
            Some(adapting) => adapting.most(),
            None => self.holds(tier),
        }
    }
}
