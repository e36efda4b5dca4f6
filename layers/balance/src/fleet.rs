//! Which endpoint is the cheapest, and which may be picked at all. No clock, no lock, no I/O.

use std::time::Duration;

use palisade_core::{classify::Verdict, gate::Outlook, settle::End};
use tokio::time::Instant;

use crate::{
    coin::Coin,
    peers::Peers,
    slot::{Clock, Doubtful, Duty, Fault, Slot, Standing, Ticket, Verge},
    snapshot::{EndpointState, Health},
    strategy::{Strategy, View, next_turn},
};

#[cfg(test)]
mod tests;

/// Of a hundred endpoints, at most this many are out because they failed.
const CEILING: u32 = 30;
/// With fewer endpoints than this, what speaks against one is never overruled, and none is ejected.
const ENOUGH: u32 = 3;
/// So many endpoints are looked at for a choice.
const SCAN: usize = 64;
const RETRY_AFTER_AT_MOST: Duration = Duration::from_secs(300);

/// What a fleet asks of what it keeps for each endpoint.
pub(crate) trait Item {
    /// Whether a gate says when it is out; otherwise the fleet ejects it for failures.
    fn is_gated(&self) -> bool;

    /// What its gate says. Called while the fleet is locked.
    fn outlook(&self, now: Instant) -> Outlook;
}

/// All endpoints of a set. `T` is what the shell keeps beside each.
#[derive(Debug)]
pub(crate) struct Fleet<T> {
    pub(crate) strategy: Strategy,
    born: Instant,
    slots: Vec<Option<Slot<T>>>,
    peers: Peers,
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

/// What the end of an attempt has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) ejected: bool,
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
    pub(crate) fn new(now: Instant, mut coin: Coin) -> Self {
        Self {
            strategy: Strategy::default(),
            born: now,
            slots: Vec::new(),
            peers: Peers::new(),
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
        let slot = Slot::new(item, weight, max_in_flight, self.clock(now).now);
        let vacant = self.slots.iter().position(Option::is_none);
        let at = vacant.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.peers.reserve(self.slots.len());
        self.slots[at].insert(slot)
    }

    /// The one that has not left, if there is one.
    pub(crate) fn find(&mut self, which: impl Fn(&T) -> bool) -> Option<&mut Slot<T>> {
        let is = |slot: &&mut Slot<T>| slot.duty != Duty::Leaving && which(&slot.item);
        self.slots.iter_mut().flatten().find(is)
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
        if let Some(slot) = vacate.as_mut().filter(|slot| slot.load.in_flight() > 0) {
            slot.duty = Duty::Leaving;
            return Some(Ended::Stays { reopened: false });
        }
        vacate.take().map(|slot| Ended::Gone(slot.item))
    }

    /// Picks the cheapest endpoint that is wanted. On failure: when looking again may help.
    pub(crate) fn pick(
        &mut self,
        now: Instant,
        want: impl Fn(&T) -> Want,
    ) -> Result<(&T, Ticket), Option<Instant>> {
        let clock = self.clock(now);
        if self.peers.is_due(clock.now) {
            let typical = self.slots.iter().flatten();
            self.peers
                .refresh(typical.filter_map(|slot| slot.load.typical()), clock.now);
        }
        let len = self.slots.len();
        let mut found = Scan::default();
        if len > SCAN {
            self.first = self.coin.toss() as usize % len;
            self.scan(&mut found, self.first, SCAN, &clock, &want);
        }
        if found.best().is_none() {
            self.first = if self.first + 1 < len {
                self.first + 1
            } else {
                0
            };
            found = Scan::default();
            self.scan(&mut found, self.first, len, &clock, &want);
        }
        let Some((at, doubtful)) = found.best() else {
            return Err((found.until != u64::MAX).then(|| self.instant(found.until)));
        };
        Ok(self.start(at, doubtful, &clock))
    }

    /// Starts at one certain endpoint, if it may be picked.
    pub(crate) fn claim(&mut self, which: impl Fn(&T) -> bool, now: Instant) -> Option<Ticket> {
        let clock = self.clock(now);
        let at = self
            .slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|slot| which(&slot.item)))?;
        let slot = self.slots[at].as_mut()?;
        let able = matches!(slot.standing(&clock), Standing::Able | Standing::Due);
        if !able || slot.is_full() {
            return None;
        }
        Some(self.start(at, Doubtful::No, &clock).1)
    }

    /// The first data have come. Says whether more requests may pass than before.
    pub(crate) fn first_data(&mut self, ticket: &mut Ticket, now: Instant) -> bool {
        let clock = self.clock(now);
        let slot = self.of(ticket);
        slot.first_data(ticket, clock.now) | slot.look(&clock)
    }

    /// Hears the verdict.
    pub(crate) fn settle(&mut self, ticket: &mut Ticket, end: &End, now: Instant) -> Change {
        let clock = self.clock(now);
        let slot = self.of(ticket);
        let waited = slot.answered(ticket, clock.now);
        let mut change = Change::default();
        match end.verdict {
            Verdict::Success | Verdict::CallerFault => {
                change.reopened = slot.worked(ticket, waited, clock.now);
            }
            Verdict::Failure | Verdict::Unsent => {
                change.ejected = self.failed(ticket, 0.0, Fault::Failed, &clock);
            }
            Verdict::TimedOut => {
                let waited = waited.unwrap_or(0.0);
                change.ejected = self.failed(ticket, waited, Fault::Failed, &clock);
            }
            Verdict::Overload { retry_after } => {
                let asked =
                    retry_after.map(|asked| asked.min(RETRY_AFTER_AT_MOST).as_nanos() as u64);
                let fault = Fault::Overloaded { asked };
                change.ejected = self.failed(ticket, asked.unwrap_or(0) as f64, fault, &clock);
            }
            Verdict::Canceled => change = self.canceled(ticket, waited, &clock),
            // `Refused`: it never saw the request.
            _ => change.reopened = slot.free_probe(ticket, clock.now),
        }
        change.reopened |= self.of(ticket).look(&clock);
        change
    }

    /// The body has ended, or without a verdict: nothing was sent.
    pub(crate) fn end(&mut self, ticket: &mut Ticket, now: Instant) -> Ended<T> {
        let clock = self.clock(now);
        let slot = self.of(ticket);
        let mut reopened = slot.give_back(ticket, clock.now);
        slot.load.end(clock.now);
        if slot.duty != Duty::Leaving || slot.load.in_flight() > 0 {
            reopened |= slot.look(&clock);
            return Ended::Stays { reopened };
        }
        let slot = self.slots[ticket.slot].take().expect("in flight");
        Ended::Gone(slot.item)
    }

    /// What it looks like, and when a probe may pass.
    pub(crate) fn states(
        &mut self,
        now: Instant,
    ) -> impl Iterator<Item = (&Slot<T>, EndpointState, Option<Duration>)> {
        let clock = self.clock(now);
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
        let slot = self.of(ticket);
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

    /// The endpoint of an attempt.
    pub(crate) fn item(&self, ticket: &Ticket) -> &T {
        let slot = self.slots[ticket.slot].as_ref().expect("in flight");
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

    /// The failure costs what failures cost, and no less than `least`.
    fn failed(&mut self, ticket: &Ticket, least: f64, fault: Fault, clock: &Clock) -> bool {
        let verge = Verge {
            penalty: self.peers.penalty().max(least),
            room: self.room(),
            chance: self.coin.share(),
            now: clock.now,
        };
        self.of(ticket).failed(ticket, fault, &verge)
    }

    fn canceled(&mut self, ticket: &Ticket, waited: Option<f64>, clock: &Clock) -> Change {
        let mut change = Change::default();
        let Some(waited) = waited else {
            return change;
        };
        if waited >= self.peers.penalty() {
            // Who accepts and never answers is found by callers that give up.
            change.ejected = self.failed(ticket, waited, Fault::Failed, clock);
            return change;
        }
        let slot = self.of(ticket);
        slot.load.censored(waited, clock.now);
        change.reopened = slot.free_probe(ticket, clock.now);
        change
    }

    fn scan(
        &mut self,
        found: &mut Scan,
        first: usize,
        len: usize,
        clock: &Clock,
        want: &impl Fn(&T) -> Want,
    ) {
        let all = self.slots.len();
        let wrapped = (first + len).saturating_sub(all);
        let (peers, penalty) = (self.peers.median(), self.peers.penalty());
        for at in (first..(first + len).min(all)).chain(0..wrapped) {
            let Some(slot) = &mut self.slots[at] else {
                continue;
            };
            let standing = slot.standing(clock);
            found.count(slot.duty, standing);
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
                self.strategy.price(&View {
                    load: &slot.load,
                    stride: slot.stride(clock.now),
                    turn: slot.turn,
                    round: self.round,
                    doubtful,
                    penalty,
                    peers,
                    now: clock.now,
                })
            };
            found.offer(at, price, doubtful, last);
        }
    }

    fn start(&mut self, at: usize, doubtful: Doubtful, clock: &Clock) -> (&T, Ticket) {
        let slot = self.slots[at].as_mut().expect("found by a scan");
        // Start-time fair queueing, by Goyal, Vin and Cheng: turns are as long as shares are small.
        let stride = slot.stride(clock.now);
        let begin = next_turn(slot.turn, self.round, stride);
        slot.turn = begin + stride;
        self.round = begin;
        let ticket = slot.start(at, doubtful, self.peers.median(), clock.now);
        (&slot.item, ticket)
    }

    /// Whether one more may be ejected.
    fn room(&self) -> bool {
        let serving = |slot: &&Slot<T>| slot.duty == Duty::Serving;
        let all = self.slots.iter().flatten().filter(serving);
        let (out, of) = all.fold((0, 0), |(out, of), slot| {
            (out + u32::from(slot.is_out()), of + 1)
        });
        of >= ENOUGH && out < allowed(of)
    }

    fn of(&mut self, ticket: &Ticket) -> &mut Slot<T> {
        self.slots[ticket.slot].as_mut().expect("in flight")
    }

    fn clock(&self, now: Instant) -> Clock {
        Clock::new(self.born, now)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.born + Duration::from_nanos(nanos)
    }
}

/// How many of so many may be out because they failed.
fn allowed(of: u32) -> u32 {
    (of * CEILING / 100).max(1)
}

/// What was seen of the endpoints, and the cheapest of each kind.
#[derive(Debug)]
struct Scan {
    of: u32,
    able: u32,
    out: u32,
    /// Wanted, and wanted last.
    able_best: [Best; 2],
    doubtful_best: [Best; 2],
    until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Best {
    at: usize,
    price: f64,
}

impl Best {
    const NONE: Self = Self {
        at: usize::MAX,
        price: f64::INFINITY,
    };

    #[inline]
    fn offer(&mut self, at: usize, price: f64) {
        if price < self.price {
            *self = Self { at, price };
        }
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            of: 0,
            able: 0,
            out: 0,
            able_best: [Best::NONE; 2],
            doubtful_best: [Best::NONE; 2],
            until: u64::MAX,
        }
    }
}

impl Scan {
    #[inline]
    fn count(&mut self, duty: Duty, standing: Standing) {
        self.of += u32::from(duty == Duty::Serving);
        match standing {
            Standing::Able | Standing::Due => self.able += 1,
            Standing::Out { until } => {
                self.out += 1;
                self.until = self.until.min(until.unwrap_or(u64::MAX));
            }
            Standing::Barred => {}
        }
    }

    #[inline]
    fn offer(&mut self, at: usize, price: f64, doubtful: bool, last: bool) {
        let best = if doubtful {
            &mut self.doubtful_best
        } else {
            &mut self.able_best
        };
        best[usize::from(last)].offer(at, price);
    }

    /// Too many are out for each of them to be believed: the fault may be elsewhere, and the rest cannot carry it all.
    fn doubts(&self) -> bool {
        self.of >= ENOUGH && (self.out > allowed(self.of) || self.able * 2 < self.of)
    }

    fn best(&self) -> Option<(usize, Doubtful)> {
        let doubts = self.doubts();
        for (able, doubtful) in self.able_best.iter().zip(&self.doubtful_best) {
            if doubts && doubtful.price < able.price {
                return Some((doubtful.at, Doubtful::Yes));
            }
            if able.price < f64::INFINITY {
                return Some((able.at, Doubtful::No));
            }
        }
        None
    }
}
