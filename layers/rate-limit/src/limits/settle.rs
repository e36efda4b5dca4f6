//! What becomes of what a request took, when it has ended.

use std::{sync::Arc, time::Duration};

use palisade_core::{classify::Verdict, head::RequestHead, settle::End, time};
use tokio::time::Instant;

use super::{Limit, Limits, Order, order::Share};
use crate::{
    central::{Change, Plan},
    cost::{Account, Tokens},
    rule::Strategy,
    store::Payer,
};

/// The longest that a bucket is kept empty because a service said so.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);

impl Limits {
    /// Settles what can be settled when the verdict is known.
    pub(crate) fn settle(self: &Arc<Self>, order: &mut Order, end: &End, now: Instant) {
        let at = self.nanos(now);
        let unworked = matches!(end.verdict, Verdict::Refused(_) | Verdict::Unsent);
        let overloaded = match end.verdict {
            Verdict::Overload { retry_after } => Some(retry_after),
            _ => None,
        };
        let mut changes = Vec::new();
        for index in 0..self.limits.len() {
            let limit = &self.limits[index];
            let bit = limit.bit();
            if (order.taken | order.taken_away) & bit == 0 {
                continue;
            }
            limit.follow_end(self, end, at);
            self.grow_late(order, index, at);
            let share = order.shares[index];
            let drain = overloaded.filter(|_| limit.rule.drains);
            let used = limit.used(order, end, unworked);
            if used == share.cost && drain.is_none() {
                continue;
            }
            if order.taken & bit != 0 {
                let (grown, since) = order.grown(index);
                let store = limit.counts(order.pools & bit != 0);
                store.change(share.payer, order.epoch, |meter, count, is_in| {
                    if !is_in {
                        // Nothing goes back to a count that began after a reset.
                    } else if limit.rule.settles() {
                        // Each window gets back no more than was taken from it.
                        let first = share.cost - grown;
                        meter.settle(count, first, used.min(first), order.at, at);
                        meter.settle(count, grown, used.saturating_sub(first), since, at);
                    } else {
                        meter.give_back(count, share.cost - used.min(share.cost), order.at, at);
                    }
                    if let Some(retry_after) = drain {
                        let retry_after = retry_after.map(|delay| delay.min(LONGEST_DRAIN));
                        meter.drain(count, retry_after.map(nanos), at);
                    }
                });
                if used < share.cost {
                    self.stir(limit, share.payer);
                }
            }
            if order.taken_away & bit != 0
                && let Some(change) = limit.change(share, order, used)
            {
                changes.push(Change {
                    drain: drain.is_some(),
                    ..change
                });
            }
        }
        self.tell(changes);
    }

    /// Gives back what is held until the very end.
    pub(crate) fn end(&self, order: &Order) {
        if !self.limits.iter().any(Limit::is_in_flight) {
            return;
        }
        let at = self.nanos(time::now());
        let mut changes = Vec::new();
        for (limit, share) in order.taken(&self.limits) {
            if !limit.is_in_flight() {
                continue;
            }
            if order.taken & limit.bit() != 0 {
                self.give_back_here(limit, share, order, at);
            }
            if order.taken_away & limit.bit() != 0 {
                changes.extend(limit.change(*share, order, 0));
            }
        }
        self.tell(changes);
    }

    /// Gives back all: the request goes no further. What the store has counted, or may have, stands; but a place that
    /// nobody would give back later.
    pub(crate) fn cancel(&self, order: &Order) {
        self.cancel_here(order);
        self.release_places(order);
    }

    /// Gives back what was taken in this process.
    pub(crate) fn cancel_here(&self, order: &Order) {
        let at = self.nanos(time::now());
        for (limit, share) in order.applying(&self.limits) {
            if order.taken & limit.bit() != 0 {
                self.give_back_here(limit, share, order, at);
                let is_pool = order.pools & limit.bit() != 0;
                limit.counts(is_pool).uncount(share.payer);
            }
        }
    }

    fn give_back_here(&self, limit: &Limit, share: &Share, order: &Order, at: u64) {
        limit.counts(order.pools & limit.bit() != 0).change(
            share.payer,
            order.epoch,
            |meter, count, is_in| {
                if is_in {
                    meter.give_back(count, share.cost, order.at, at);
                }
            },
        );
        self.stir(limit, share.payer);
    }

    /// Leaves changes to the store's upkeep.
    pub(super) fn tell(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        if let Some(central) = &self.central {
            // Begun here, so that the store hears of it also if there is no room for the job.
            let settled = central.settle(changes);
            // Not settled, what was reserved stands: too much is counted, never too little.
            let _ = central.run(Box::pin(async move {
                let _ = settled.await;
            }));
        }
    }
}

impl Limit {
    /// What a request costs, and its account if that is settled at its end.
    #[inline]
    pub(super) fn cost(
        &self,
        head: &RequestHead<'_>,
        payer: Payer,
        key: u64,
        order: &mut Order,
    ) -> u64 {
        if self.rule.settles() {
            let cost = self.rule.cost.as_ref().map_or(1, |cost| cost(head));
            return match cost {
                0 => 0,
                _ => self.reserve(head, key, order),
            };
        }
        self.fixed_cost(head, payer, order.at)
    }

    /// What a request costs whose end changes nothing about that.
    #[inline]
    pub(super) fn fixed_cost(&self, head: &RequestHead<'_>, payer: Payer, at: u64) -> u64 {
        let cost = self.rule.cost.as_ref().map_or(1, |cost| cost(head));
        match &self.rule.warm_up {
            // What fits in the end is not refused for good at the start.
            Some(warm_up) => {
                let most = self.holds(payer.tier()).max(cost);
                warm_up.cost(cost, at).min(most)
            }
            None => cost,
        }
    }

    fn reserve(&self, head: &RequestHead<'_>, key: u64, order: &mut Order) -> u64 {
        let tokens = head.extensions.get::<Tokens>();
        let completion = match (tokens, &self.learner) {
            (Some(tokens), Some(learner)) => self.rule.estimate.completion(tokens, key, learner),
            _ => 0,
        };
        let account = Account::new(&self.rule.unit, tokens, completion);
        let cost = account.reserved();
        let extra = order.extra();
        extra.keys[self.index] = key;
        extra.accounts[self.index] = Some(account);
        cost
    }

    /// What was used in the end.
    fn used(&self, order: &mut Order, end: &End, unworked: bool) -> u64 {
        let share = order.shares[self.index];
        if self.is_in_flight() {
            return share.cost;
        }
        let extra = order.get_extra();
        if let Some(extra) = extra
            && let Some(account) = &extra.accounts[self.index]
        {
            if let (Some(learner), Some(model), Some(completion)) =
                (&self.learner, account.model(), account.completion(end))
            {
                learner.learn(extra.keys[self.index], model, completion);
            }
            return account.actual(end);
        }
        // A bucket refills meanwhile.
        let gives_back = unworked && self.rule.strategy != Strategy::TokenBucket;
        if gives_back { 0 } else { share.cost }
    }

    /// By the plan that it was taken by. `None` if the store was not asked.
    pub(super) fn change(&self, share: Share, order: &Order, used: u64) -> Option<Change> {
        Some(Change {
            rule: self.rule.name.clone(),
            subject: order.subject(self.index),
            plan: order.plan(self.index)?,
            ticket: order.ticket(),
            at: order.answer(self.index).map_or(0, |answer| answer.at),
            reserved: share.cost,
            used,
            drain: false,
        })
    }

    /// How the store counts this rule; `None` if it is closed.
    pub(super) fn plan(&self, tier: u8) -> Option<Plan> {
        self.numbers.load().meter(tier).plan()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
