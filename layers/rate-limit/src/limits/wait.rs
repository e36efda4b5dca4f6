//! Requests that wait: for others before them, for time to pass, or for the store.

use std::{sync::Arc, time::Duration};

use palisade_core::{
    deadline::Deadline, gate::Admission, head::RequestHead, reject::Rejected, time,
};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Limit, Limits, Order, Refusal, Step, away::Asked};
use crate::{gate::Reservation, meter::Full, pace::InLine, store::Payer};

/// Who finds that others have taken each lease that came, for so long, is refused.
const LONGEST_REFILL: Duration = Duration::from_secs(1);

/// Longer than any request waits, and not too long to be added to an instant.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl Limits {
    /// Apart, so that requests that need not wait do not make room for it.
    #[cold]
    pub(super) fn wait_for(
        self: &Arc<Self>,
        step: Step,
        order: Order,
        head: &RequestHead<'_>,
        now: Instant,
    ) -> Admission<Reservation> {
        // Holds what was taken, also if it is never polled.
        let mut held = Reservation::held(self.clone(), order);
        if let Some(order) = held.order() {
            self.address(head, order);
        }
        let until = self.longest_wait(head, now);
        Box::pin(self.clone().later(held, step, until))
    }

    /// Waits: for others, for time to pass, or for the store. Dropped, it has taken nothing here.
    async fn later(
        self: Arc<Self>,
        held: Reservation,
        mut step: Step,
        until: Instant,
    ) -> Result<Reservation, Rejected> {
        let limits = &self;
        // Kept while it waits, given up with the future.
        let mut lines = Vec::new();
        let mut refills_until = None;
        let (mut order, mut asking) = match step {
            Step::Ask => (Order::default(), Some(held)),
            _ => (held.give_back(), None),
        };
        loop {
            match step {
                Step::Taken => return Ok(Reservation::new(self.clone(), order)),
                Step::Ask => {
                    let holding = asking.take();
                    let holding = holding.unwrap_or_else(|| Reservation::held(self.clone(), order));
                    match limits.ask(holding).await {
                        Asked::Taken(reservation) => return Ok(reservation.decided()),
                        Asked::Rejected(rejected) => return Err(rejected),
                        Asked::Refused(given_back, refusal) => {
                            order = given_back;
                            step = Step::Refused(refusal);
                        }
                    }
                }
                Step::Dry(refusal)
                    if refills_until.is_some_and(|until: Instant| until <= time::now()) =>
                {
                    step = Step::Refused(refusal);
                }
                Step::Dry(_) => {
                    // Others may have been quicker to take what came.
                    refills_until.get_or_insert_with(|| time::now() + LONGEST_REFILL);
                    let failed = limits.refill(&order).await;
                    order.dry = 0;
                    let now = time::now();
                    limits.do_without(failed, &mut order)?;
                    limits.fell_back(&order);
                    step = limits.try_step(&mut order, now);
                    continue;
                }
                Step::Refused(_) | Step::Line(_) => {}
            }
            let (Step::Refused(refusal) | Step::Line(refusal)) = step else {
                continue;
            };
            if let Err(refusal) = limits.wait(refusal, &order, until, &mut lines).await {
                return Err(limits.refuse(&refusal, &order, time::now()));
            }
            refills_until = None;
            order.begin_again();
            let now = time::now();
            if let Err(none) = limits.route(&mut order, now) {
                return Err(limits.refuse_without_store(none));
            }
            limits.fell_back(&order);
            step = match limits.line(&mut order, &lines) {
                Some(refusal) => Step::Line(refusal),
                None => limits.try_step(&mut order, now),
            };
        }
    }

    /// Waits for its turn in a line, and in front of it until there may be room. Refuses who would wait too long.
    async fn wait<'a>(
        &'a self,
        refusal: Refusal,
        order: &Order,
        until: Instant,
        lines: &mut Vec<InLine<'a>>,
    ) -> Result<(), Refusal> {
        let Some(pacer) = self.pacer.as_ref().filter(|_| self.waits(&refusal, order)) else {
            return Err(refusal);
        };
        let limit = &self.limits[refusal.index];
        let share = order.shares[refusal.index];
        let spot = (refusal.index, share.payer);
        let is_here = order.away & limit.bit() == 0 && order.pools & limit.bit() == 0;
        let now = time::now();
        // Of places in flight nobody knows when they come back.
        let too_long = |full: Full| match full {
            Full::For(_) if limit.is_in_flight() => until <= now,
            Full::For(nanos) => now + Duration::from_nanos(nanos) > until,
            Full::Forever => true,
        };
        let wait = |before| match refusal.full {
            _ if is_here => limit.wait_behind(share, before, self.nanos(time::now())),
            Full::For(nanos) => Full::For(nanos.saturating_add(limit.nanos_for(share, before))),
            Full::Forever => Full::Forever,
        };
        let refused = |full| {
            let full = match full {
                Full::For(nanos) => Full::For(nanos.max(1)),
                Full::Forever => full,
            };
            let index = refusal.index;
            Err(Refusal { index, full })
        };
        if let Some(line) = lines.iter().find(|line| line.spot == spot) {
            let Full::For(nanos) = refusal.full else {
                return Err(refusal);
            };
            if too_long(refusal.full) {
                return refused(refusal.full);
            }
            let over = until.min(now + Duration::from_nanos(nanos));
            if line.is_first() {
                // Others give back meanwhile, or somebody changes the limit.
                let _ = timeout_at(over, line.stirred()).await;
            } else {
                sleep_until(over).await;
            }
            return Ok(());
        }
        let further = !lines.is_empty();
        let Some(mut line) = pacer.join(spot, share.cost, further) else {
            return refused(wait(pacer.before(spot)));
        };
        let full = wait(line.before);
        if too_long(full) {
            return refused(full);
        }
        // In the order of the rules, by everyone, so that nobody waits in a circle. Who comes to a line by another way
        // is seen by newcomers, and waits only for the time that was named.
        if lines.iter().all(|held| held.spot.0 < spot.0)
            && timeout_at(until, line.advance()).await.is_err()
        {
            return refused(wait(0));
        }
        lines.push(line);
        Ok(())
    }

    /// Who would go ahead of others that wait for the same. Lines before the last one that it is in have been waited
    /// in, or never will be.
    #[inline]
    pub(super) fn line(&self, order: &mut Order, lines: &[InLine<'_>]) -> Option<Refusal> {
        let pacer = self.pacer.as_ref()?;
        if pacer.waiting() == 0 {
            return None;
        }
        let last = lines.iter().map(|line| line.spot.0).max();
        let later = last.map_or(0, |last| last + 1);
        for limit in &self.limits[later..] {
            let share = &mut order.shares[limit.index];
            if share.cost == 0 || limit.is_shadow() {
                continue;
            }
            if order.here & limit.bit() != 0 && pacer.has_line((limit.index, Payer::SHARED)) {
                // Who finds no seat stands in line with all others who have none.
                drop(limit.store.lock(&mut share.payer, order.at));
            }
            if pacer.has_line((limit.index, share.payer)) {
                return Some(Refusal {
                    index: limit.index,
                    full: Full::For(0),
                });
            }
        }
        None
    }

    pub(super) fn waits(&self, refusal: &Refusal, order: &Order) -> bool {
        let Some(pacer) = &self.pacer else {
            return false;
        };
        let limit = &self.limits[refusal.index];
        let is_open = limit.holds(order.shares[refusal.index].payer.tier()) > 0;
        is_open
            && match refusal.full {
                // A guess.
                Full::For(_) if limit.is_in_flight() => true,
                Full::For(nanos) => Duration::from_nanos(nanos) <= pacer.longest,
                Full::Forever => false,
            }
    }

    /// Something has come back to a payer: who waits for it tries again.
    #[inline]
    pub(super) fn stir(&self, limit: &Limit, payer: Payer) {
        if let Some(pacer) = &self.pacer {
            pacer.stir((limit.index, payer));
        }
    }

    /// A rule has changed for all.
    pub(crate) fn stir_all(&self, limit: &Limit) {
        if let Some(pacer) = &self.pacer {
            pacer.stir_all(limit.index);
        }
    }

    fn longest_wait(&self, head: &RequestHead<'_>, now: Instant) -> Instant {
        let longest = self
            .pacer
            .as_ref()
            .map_or(Duration::ZERO, |pacer| pacer.longest);
        let until = now.checked_add(longest).unwrap_or(now + FOREVER);
        match head.extensions.get() {
            Some(Deadline(deadline)) => until.min(*deadline),
            None => until,
        }
    }
}
