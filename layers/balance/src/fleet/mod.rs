//! Which endpoint is the cheapest, and which may be picked at all. No clock, no lock, no I/O.

use std::{sync::Arc, time::Duration};

use palisade_core::gate::Outlook;
use tokio::time::Instant;

use crate::{
    LoadReport,
    coin::Coin,
    eject::Ejection,
    load::Norm,
    panic::Panic,
    peers::Peers,
    size::Usual,
    slot::{Clock, Doubtful, Duty, Flight, Slot, Standing, Ticket},
    snapshot::{EndpointState, Health},
    strategy::{
        Strategy,
        price::{Adaptive, Field, Pricing, Untold, next_turn},
    },
};

mod ends;
#[cfg(test)]
mod ends_tests;
mod field;
mod flights;
mod levels;
#[cfg(test)]
mod levels_tests;
#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod plain_tests;
mod scan;
mod seek;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod work_tests;

pub(crate) use self::ends::{Change, Ended};
use self::{
    flights::Flights,
    levels::{Levels, Ring},
    scan::{Belief, Scan, Tally},
};

/// With fewer endpoints than this, what speaks against one is never overruled, and none is ejected.
pub(super) const ENOUGH: u32 = 3;
/// So many endpoints are looked at for a choice.
const SCAN: usize = 64;

/// What a fleet asks of what it keeps for each endpoint.
pub(crate) trait Item {
    /// Whether a gate says when it is out; otherwise the fleet ejects it for failures.
    fn is_gated(&self) -> bool;

    /// Of its name: the same in all processes.
    fn hash(&self) -> u64;

    /// What its gate says. Called while the fleet is locked.
    fn outlook(&self, now: Instant) -> Outlook;
}

/// All endpoints of a set. `T` is what the shell keeps beside each.
#[derive(Debug)]
pub(crate) struct Fleet<T> {
    pub(crate) strategy: Strategy,
    pub(crate) panic: Panic,
    /// Where this fleet is looked at from: what is there is near.
    zone: Option<Arc<str>>,
    rules: Ejection,
    born: Instant,
    slots: Vec<Option<Slot<T>>>,
    flights: Flights,
    levels: Levels,
    /// What a fleet that is too large to be looked at as a whole, or has levels, was like when it was last counted.
    tally: Tally,
    count_due: u64,
    /// As the last pick has found.
    panics: bool,
    belief: Belief,
    peers: Peers,
    usual: Usual,
    /// Where the next scan begins, so that ties go round.
    first: usize,
    /// When the turn that was taken last began.
    round: f64,
    coin: Coin,
}

/// How much a request wants an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Yes,
    /// Only if there is no other.
    Last,
    No,
}

/// What is known of a request that wants an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    /// The hash of what should stay together.
    pub(crate) affinity: Option<u64>,
    /// How much work it is, relative to the others.
    pub(crate) cost: Option<f64>,
    /// Whether it wants all endpoints, so that a scan need not ask.
    pub(crate) wants_all: bool,
}

impl<T: Item> Fleet<T> {
    pub(crate) fn new(now: Instant, mut coin: Coin) -> Self {
        Self {
            strategy: Strategy::default(),
            panic: Panic::default(),
            zone: None,
            rules: Ejection::default(),
            born: now,
            slots: Vec::new(),
            flights: Flights::default(),
            levels: Levels::new(coin.share()),
            tally: Tally::default(),
            count_due: 0,
            panics: false,
            belief: Belief::Full,
            peers: Peers::new(),
            usual: Usual::default(),
            first: coin.toss() as usize % SCAN,
            round: 0.0,
            coin,
        }
    }

    pub(crate) fn insert(
        &mut self,
        item: T,
        weight: f64,
        max_in_flight: u32,
        now: Instant,
    ) -> &mut Slot<T> {
        let now = self.clock(now).now;
        let mut slot = Slot::new(item, weight, max_in_flight, &self.rules, now);
        // Its turn is now, and it has missed none.
        slot.turn = self.round - slot.stride(now);
        let vacant = self.slots.iter().position(Option::is_none);
        let at = vacant.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.peers.reserve(self.slots.len());
        self.levels.reserve(self.slots.len());
        self.count_due = 0;
        self.slots[at].insert(slot)
    }

    /// The one that has not left, if there is one.
    pub(crate) fn find(&mut self, which: impl Fn(&T) -> bool) -> Option<&mut Slot<T>> {
        let is = |slot: &&mut Slot<T>| slot.duty != Duty::Leaving && which(&slot.item);
        self.slots.iter_mut().flatten().find(is)
    }

    pub(crate) fn born(&self) -> Instant {
        self.born
    }

    /// All, those that leave too.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter().flatten()
    }

    /// Takes it out of choice; the slot is free when the last attempt has ended, or now.
    pub(crate) fn remove(&mut self, which: impl Fn(&T) -> bool) -> Option<Ended<T>> {
        let is = |slot: &Slot<T>| slot.duty != Duty::Leaving && which(&slot.item);
        let vacate = self
            .slots
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(is))?;
        self.levels.stale = true;
        self.count_due = 0;
        if let Some(slot) = vacate.as_mut().filter(|slot| slot.load.in_flight() > 0) {
            slot.duty = Duty::Leaving;
            return Some(Ended::Stays { reopened: false });
        }
        vacate.take().map(|slot| Ended::Gone(slot.item))
    }

    /// Picks the cheapest endpoint that is wanted. On failure: when looking again may help.
    #[inline(always)]
    pub(crate) fn pick(
        &mut self,
        now: Instant,
        need: &Need,
        want: impl Fn(&T) -> Want,
    ) -> Result<(&T, Ticket), Option<Instant>> {
        let clock = self.clock(now);
        if self.peers.is_due(clock.now) {
            let all = self.slots.iter().flatten();
            // Beside one that is heavy and out, all others would hardly ever be drawn.
            let all = all.map(|slot| {
                let plays = slot.is_in_play();
                let stride = if plays {
                    slot.stride(clock.now)
                } else {
                    f64::INFINITY
                };
                (&slot.load, stride)
            });
            self.peers.refresh(all, clock.now);
        }
        let mut found = self.seek(&clock, need, &want);
        if found.1.is_none() {
            found = self.seek_again(found, &clock, need, &want);
        }
        let (until, chosen) = found;
        let Some((at, doubtful)) = chosen else {
            return Err((until != u64::MAX).then(|| self.instant(until)));
        };
        Ok(self.start(at, doubtful, need, &clock))
    }

    /// Starts at one certain endpoint, if it may be picked, as the last pick has found.
    pub(crate) fn claim(
        &mut self,
        which: impl Fn(&T) -> bool,
        need: &Need,
        now: Instant,
    ) -> Option<Ticket> {
        let clock = self.clock(now);
        let at = self
            .slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|slot| which(&slot.item)))?;
        let slot = self.slots[at].as_mut()?;
        let doubtful = match slot.standing(&clock) {
            Standing::Able | Standing::Due => Doubtful::No,
            Standing::Out { .. } if self.belief == Belief::Advice => Doubtful::Yes,
            Standing::Out { .. } | Standing::Barred => return None,
        };
        if slot.is_full() {
            return None;
        }
        Some(self.start(at, doubtful, need, &clock).1)
    }

    /// What it looks like, and when a probe may pass.
    pub(crate) fn states(
        &mut self,
        now: Instant,
    ) -> impl Iterator<Item = (&Slot<T>, EndpointState, Option<Duration>)> {
        let clock = self.clock(now);
        self.sort();
        self.slots.iter_mut().flatten().map(move |slot| {
            let (state, retry_in) = slot.state(&clock);
            (&*slot, state, retry_in)
        })
    }

    /// The endpoint of an attempt, and its state if it has not left.
    pub(crate) fn state_of(
        &mut self,
        ticket: &Ticket,
        now: Instant,
    ) -> (&T, Option<EndpointState>) {
        let clock = self.clock(now);
        let (slot, _) = self.of(ticket);
        let state = (slot.duty != Duty::Leaving).then(|| slot.state(&clock).0);
        (&slot.item, state)
    }

    /// One that has not left, and its state.
    pub(crate) fn state_by(
        &mut self,
        which: impl Fn(&T) -> bool,
        now: Instant,
    ) -> Option<(&T, EndpointState)> {
        let clock = self.clock(now);
        let slot = self.find(which)?;
        let state = slot.state(&clock).0;
        Some((&slot.item, state))
    }

    /// A handle on the endpoint of an attempt that has just begun, to be given back with its end.
    #[inline]
    pub(crate) fn lend(&mut self, ticket: &Ticket) -> T
    where
        T: Clone,
    {
        self.of(ticket).0.lend()
    }

    /// The endpoint of an attempt.
    pub(crate) fn item(&self, ticket: &Ticket) -> &T {
        let flight = self.flights.get(ticket.flight);
        let slot = self.slots[flight.slot].as_ref().expect("in flight");
        &slot.item
    }

    pub(crate) fn set_health(
        &mut self,
        which: impl Fn(&T) -> bool,
        health: Health,
        now: Instant,
    ) -> bool {
        let now = self.clock(now).now;
        self.find(which)
            .map(|slot| slot.set_health(health, now))
            .is_some()
    }

    pub(crate) fn resume(&mut self, which: impl Fn(&T) -> bool, now: Instant) -> bool {
        let now = self.clock(now).now;
        self.find(which).map(|slot| slot.resume(now)).is_some()
    }

    /// What an endpoint has said of itself. Says whether there is such an endpoint.
    pub(crate) fn report(
        &mut self,
        which: impl Fn(&T) -> bool,
        report: &LoadReport,
        now: Instant,
    ) -> bool {
        let now = self.clock(now).now;
        self.find(which)
            .map(|slot| slot.load.report(*report, now))
            .is_some()
    }

    /// What the endpoint of an attempt has said of itself.
    pub(crate) fn report_of(&mut self, ticket: &Ticket, report: &LoadReport, now: Instant) {
        let now = self.clock(now).now;
        self.of(ticket).0.load.report(*report, now);
    }

    /// Of so few none is ejected: who was when there were more is back if there is no other. Says whether one is.
    fn spare(&mut self, clock: &Clock) -> bool {
        let mut tally = Tally::default();
        for slot in self.slots.iter_mut().flatten() {
            let standing = slot.standing(clock);
            tally.count(slot.duty, standing);
        }
        if !tally.is_too_few_and_all_out() {
            return false;
        }
        let all = self.slots.iter_mut().flatten();
        all.fold(false, |back, slot| back | slot.let_back(clock.now))
    }

    fn scan(
        &mut self,
        found: &mut Scan,
        ring: Ring,
        clock: &Clock,
        field: &Field,
        want: &impl Fn(&T) -> Want,
    ) {
        let strategy = self.strategy;
        // The default has loops of its own, without questions for each endpoint.
        match (strategy, &field.usually) {
            (Strategy::Adaptive, None) => {
                self.scan_by(found, ring, clock, field, want, &Untold);
            }
            (Strategy::Adaptive, Some(_)) => {
                self.scan_by(found, ring, clock, field, want, &Adaptive);
            }
            _ => self.scan_by(found, ring, clock, field, want, &strategy),
        }
    }

    /// Never inlined: then the price is.
    #[inline(never)]
    fn scan_by(
        &mut self,
        found: &mut Scan,
        ring: Ring,
        clock: &Clock,
        field: &Field,
        want: &impl Fn(&T) -> Want,
        pricing: &impl Pricing,
    ) {
        // What most endpoints change is in registers meanwhile.
        let (mut tally, mut able) = (found.tally, found.able());
        let (mut done, end) = (ring.first, ring.first + ring.number);
        while done < end {
            let stretch = self.levels.stretch(ring, done..end);
            done += stretch.len();
            for (at, slot) in (stretch.start..).zip(&mut self.slots[stretch]) {
                let Some(slot) = slot else {
                    continue;
                };
                // As nearly all are: nothing but the price is left to ask.
                if field.wants_all && slot.is_plain() {
                    tally.count_able();
                    if !slot.is_full() {
                        let view = slot.view(clock.now, false, field);
                        able.offer(at, pricing.of(&view, slot.weight));
                    }
                    continue;
                }
                let standing = slot.standing(clock);
                tally.count(slot.duty, standing);
                found.note(standing);
                if standing == Standing::Barred || slot.is_full() {
                    continue;
                }
                let last = match want(&slot.item) {
                    Want::Yes => false,
                    Want::Last => true,
                    Want::No => continue,
                };
                let doubtful = matches!(standing, Standing::Out { .. });
                let price = if standing == Standing::Due {
                    // A probe costs one request, once; waiting for it to be cheap could take for ever.
                    0.0
                } else {
                    pricing.of(&slot.view(clock.now, doubtful, field), slot.weight)
                };
                if standing == Standing::Able && !last {
                    able.offer(at, price);
                } else {
                    found.offer(at, price, standing, last);
                }
            }
        }
        found.put_back(tally, able);
    }

    // Forced, like all that a choice calls once: calls and what they hand over by memory were a twentieth of it.
    #[inline(always)]
    fn start(&mut self, at: usize, doubtful: Doubtful, need: &Need, clock: &Clock) -> (&T, Ticket) {
        let slot = self.slots[at].as_mut().expect("found by a scan");
        // Start-time fair queueing, by Goyal, Vin and Cheng: turns are as long as shares are small.
        let stride = self.strategy.turn(slot.stride(clock.now), slot.weight);
        let begin = next_turn(slot.turn, self.round, stride);
        slot.turn = begin;
        self.round = begin;
        let size = self.usual.size(need.cost);
        self.usual.note(need.cost);
        let norm = Norm {
            latency: self.peers.median(),
            lasts: self.usual.lasts(),
            streams: self.usual.streams(),
            place: self.usual.place(),
        };
        let flight = slot.start(at, doubtful, size, &norm, clock.now);
        let flight = self.flights.start(flight);
        (&slot.item, Ticket { flight, doubtful })
    }

    fn of(&mut self, ticket: &Ticket) -> (&mut Slot<T>, &mut Flight) {
        let flight = self.flights.get_mut(ticket.flight);
        let slot = self.slots[flight.slot].as_mut().expect("in flight");
        (slot, flight)
    }

    fn clock(&self, now: Instant) -> Clock {
        Clock::new(self.born, now)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.born + Duration::from_nanos(nanos)
    }
}
