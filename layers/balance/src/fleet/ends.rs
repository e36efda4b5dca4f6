//! What the ends of attempts lead to.

use std::time::Duration;

use palisade_core::{classify::Verdict, reject::Reason, settle::End};
use tokio::time::Instant;

use crate::{
    eject::EjectionReason,
    slot::{Clock, Duty, Fault, Slot, Ticket, Verge},
};

use super::{ENOUGH, Fleet, Item};

/// A caller that leaves sooner, or does not read what it gets, says nothing, however fast answers usually are.
const GIVES_UP_AFTER: f64 = 100e6;
const RETRY_AFTER_AT_MOST: Duration = Duration::from_secs(300);
/// After a probe whose caller left, nobody probes for so many times as long as that has taken: where each request is
/// hedged, one that hangs would get them all.
const LEFT_ALONE: f64 = 10.0;
const LEFT_ALONE_AT_MOST: f64 = 1e9;

/// What the end of an attempt has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) ejected: Option<EjectionReason>,
    /// More requests may pass than before.
    pub(crate) reopened: bool,
}

/// What the end of an attempt leaves behind.
pub(crate) enum Ended<T> {
    /// The endpoint, and whether more requests may pass than before.
    Stays { reopened: bool },
    /// Nothing: it was the last one of an endpoint that leaves.
    Gone(T),
}

impl<T: Item> Fleet<T> {
    /// The first data have come. Says whether more requests may pass than before.
    pub(crate) fn first_data(&mut self, ticket: &mut Ticket, now: Instant) -> bool {
        let clock = self.clock(now);
        let (slot, flight) = self.of(ticket);
        slot.first_data(flight, clock.now) | slot.look(&clock)
    }

    /// Hears the verdict.
    pub(crate) fn settle(&mut self, ticket: &mut Ticket, end: &End, now: Instant) -> Change {
        let clock = self.clock(now);
        let mut change = self.judge(ticket, end, &clock);
        change.reopened |= self.of(ticket).0.look(&clock);
        change
    }

    /// The body has ended, or without a verdict: nothing was sent.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn end(&mut self, ticket: &mut Ticket, now: Instant) -> Ended<T> {
        self.leave(ticket, &mut None, false, &self.clock(now))
    }

    /// Hears the verdict as the body ends, or without one that nothing was sent. Takes back what was lent, unless the
    /// endpoint has left.
    #[inline]
    pub(crate) fn finish(
        &mut self,
        ticket: &mut Ticket,
        lent: &mut Option<T>,
        end: Option<&End>,
        now: Instant,
    ) -> (Change, Ended<T>) {
        let clock = self.clock(now);
        let change = end.map(|end| self.judge(ticket, end, &clock));
        let change = change.unwrap_or_default();
        (change, self.leave(ticket, lent, change.reopened, &clock))
    }

    #[inline]
    fn judge(&mut self, ticket: &mut Ticket, end: &End, clock: &Clock) -> Change {
        let (slot, flight) = self.of(ticket);
        let waited = slot.answered(flight, clock.now);
        let mut change = Change::default();
        match end.verdict {
            Verdict::Success | Verdict::CallerFault => {
                change.reopened = slot.worked(flight, waited, clock.now);
                if end.verdict == Verdict::Success {
                    let (waited, whole) = flight.lasted(clock.now);
                    self.usual.lasted(waited, whole);
                    let usual = self.usual.lasts() * self.usual.streams();
                    let (slot, flight) = self.of(ticket);
                    slot.streamed(flight, whole, usual);
                }
            }
            Verdict::Failure | Verdict::Unsent => {
                change.ejected = self.failed(ticket, 0.0, Fault::Failed, clock);
            }
            Verdict::TimedOut => {
                let waited = waited.unwrap_or(0.0);
                change.ejected = self.failed(ticket, waited, Fault::Failed, clock);
            }
            Verdict::Overload { retry_after } => {
                // No time at all is not asked for.
                let asked = retry_after.filter(|asked| !asked.is_zero());
                let asked = asked.map(|asked| asked.min(RETRY_AFTER_AT_MOST).as_nanos() as u64);
                let fault = Fault::Overloaded { asked };
                change.ejected = self.failed(ticket, asked.unwrap_or(0) as f64, fault, clock);
            }
            Verdict::Canceled => change = self.canceled(ticket, waited, clock),
            // What is in front of it lets nobody through, and says so at once: that must attract nobody.
            Verdict::Refused(
                Reason::Overloaded
                | Reason::CircuitOpen
                | Reason::NoEndpoint
                | Reason::StoreUnavailable,
            ) => {
                let fault = Fault::Overloaded { asked: None };
                change.ejected = self.failed(ticket, 0.0, fault, clock);
            }
            // `Refused`: it never saw the request.
            _ => change.reopened = slot.free_probe(flight, clock.now),
        }
        change
    }

    /// Asks the gate last: should it panic, nothing is left behind.
    #[inline]
    fn leave(
        &mut self,
        ticket: &mut Ticket,
        lent: &mut Option<T>,
        mut reopened: bool,
        clock: &Clock,
    ) -> Ended<T> {
        let (slot, flight) = self.of(ticket);
        reopened |= slot.give_back(flight, clock.now);
        slot.end(flight);
        let at = flight.slot;
        self.flights.end(ticket.flight);
        let slot = self.slots[at].as_mut().expect("in flight");
        if slot.duty != Duty::Leaving || slot.load.in_flight() > 0 {
            if let Some(lent) = lent.take() {
                slot.take_back(lent);
            }
            reopened |= slot.look(clock);
            return Ended::Stays { reopened };
        }
        let slot = self.slots[at].take().expect("in flight");
        Ended::Gone(slot.item)
    }

    /// The failure costs what failures cost, and no less than `least`.
    fn failed(
        &mut self,
        ticket: &Ticket,
        least: f64,
        fault: Fault,
        clock: &Clock,
    ) -> Option<EjectionReason> {
        let rules = self.rules;
        let verge = Verge {
            rules: &rules,
            penalty: self.peers.penalty().max(least),
            room: self.room(),
            crowded: fault != Fault::Failed && self.is_crowded(),
            chance: self.coin.share(),
            now: clock.now,
        };
        let (slot, flight) = self.of(ticket);
        slot.failed(flight, fault, &verge)
    }

    fn canceled(&mut self, ticket: &Ticket, waited: Option<f64>, clock: &Clock) -> Change {
        let mut change = Change::default();
        let Some(waited) = waited else {
            return change;
        };
        if waited >= self.peers.penalty().max(GIVES_UP_AFTER) {
            // Who accepts and never answers is found by callers that give up.
            change.ejected = self.failed(ticket, waited, Fault::Failed, clock);
            return change;
        }
        let (slot, flight) = self.of(ticket);
        slot.censored(flight, waited, clock.now);
        let pause = (waited * LEFT_ALONE).min(LEFT_ALONE_AT_MOST) as u64;
        change.reopened = slot.free_probe(flight, clock.now.saturating_add(pause));
        change
    }

    /// Whether one more may be ejected.
    fn room(&self) -> bool {
        let serving = |slot: &&Slot<T>| slot.duty == Duty::Serving;
        let all = self.slots.iter().flatten().filter(serving);
        let (out, of) = all.fold((0, 0), |(out, of), slot| {
            (out + u32::from(slot.is_out()), of + 1)
        });
        of >= ENOUGH && out < self.rules.allowed(of)
    }

    /// Whether most endpoints say that they are overloaded.
    fn is_crowded(&self) -> bool {
        let serving = |slot: &&Slot<T>| slot.duty == Duty::Serving;
        let all = self.slots.iter().flatten().filter(serving);
        let (shed, of) = all.fold((0, 0), |(shed, of), slot| {
            (shed + u32::from(slot.machine.is_overloaded()), of + 1)
        });
        shed * 2 > of
    }
}
