//! One endpoint of a fleet: whether it may be picked, and what the ends of its attempts say about that.

use std::{mem, sync::Arc, time::Duration};

use palisade_core::gate::Outlook;

pub(crate) use crate::eject::{Fault, Standing, Verge};
use crate::{
    eject::{Admitted, Ejection, EjectionReason, Machine},
    fleet::Item,
    load::{Attempt, Load, Norm},
    size::Size,
    snapshot::{EndpointState, Health},
    strategy::price::{Field, View},
};

#[derive(Debug)]
pub(crate) struct Slot<T> {
    pub(crate) item: T,
    /// Handles on the item that attempts have given back: to lend one again takes no atomic operation.
    spare: Vec<T>,
    pub(crate) load: Load,
    pub(crate) weight: f64,
    /// One over the weight: a scan multiplies.
    stride: f64,
    pub(crate) max_in_flight: u32,
    /// Of the item.
    pub(crate) hash: u64,
    /// Of the item: a scan does not follow the pointer to it.
    gated: bool,
    /// When its last turn in the round began.
    pub(crate) turn: f64,
    pub(crate) duty: Duty,
    pub(crate) health: Health,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) priority: u32,
    /// Which level that makes, from 0.
    pub(crate) level: u32,
    pub(crate) machine: Machine,
    /// What its gate said last.
    seen: Outlook,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
}

/// What an operator wants of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Serving,
    /// Out of choice until further notice.
    Suspended,
    /// Out of choice until the list that it comes from says otherwise.
    Withdrawn,
    /// Out of choice, and out of the set when its last attempt has ended.
    Leaving,
}

/// Proof of one attempt at one endpoint. Its slot cannot be given away while the attempt is in flight.
///
/// Small, as it moves from hand to hand with the request: what is known of the attempt is kept by the fleet.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) flight: u32,
    pub(crate) doubtful: Doubtful,
}

/// What is known of an attempt in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) slot: usize,
    attempt: Attempt,
    admitted: Admitted,
    answered: bool,
}

/// Whether an endpoint was picked although its gate or its failures speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubtful {
    No,
    Yes,
}

impl Flight {
    /// For how long somebody waited for the answer, and how long it has lasted.
    pub(crate) fn lasted(&self, now: u64) -> (f64, f64) {
        self.attempt.lasted(now)
    }
}

impl<T: Item> Slot<T> {
    pub(crate) fn new(
        item: T,
        weight: f64,
        max_in_flight: u32,
        rules: &Ejection,
        now: u64,
    ) -> Self {
        Self {
            hash: item.hash(),
            gated: item.is_gated(),
            item,
            spare: Vec::new(),
            load: Load::new(now),
            weight,
            stride: 1.0 / weight,
            max_in_flight,
            turn: 0.0,
            duty: Duty::Serving,
            health: Health::Healthy,
            zone: None,
            priority: 0,
            level: 0,
            machine: Machine::new(rules, now),
            seen: Outlook::Admits,
            requests: 0,
            failures: 0,
        }
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.load.in_flight() >= self.max_in_flight
    }

    /// How long its turns are: one over its weight, more in slow start.
    #[inline]
    pub(crate) fn stride(&self, now: u64) -> f64 {
        self.stride * self.machine.slow_start(now)
    }

    /// What a strategy may look at.
    #[inline]
    pub(crate) fn view<'a>(&'a self, now: u64, doubtful: bool, field: &'a Field) -> View<'a> {
        View {
            load: &self.load,
            stride: self.stride(now),
            turn: self.turn,
            hash: self.hash,
            doubtful,
            field,
        }
    }

    /// Whether it is [able](Standing::Able) without any doubt, as nearly all are nearly always.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        let serves = (self.duty == Duty::Serving) & (self.health == Health::Healthy);
        // One jump for all of it: a scan asks each endpoint.
        serves & !self.gated & !self.machine.is_out()
    }

    pub(crate) fn set_weight(&mut self, weight: f64) {
        self.weight = weight;
        self.stride = 1.0 / weight;
    }

    #[inline]
    pub(crate) fn standing(&mut self, clock: &Clock) -> Standing {
        if self.duty != Duty::Serving || self.health == Health::Unhealthy {
            return Standing::Barred;
        }
        if self.gated {
            self.look(clock);
            return match self.seen {
                Outlook::Admits => Standing::Able,
                Outlook::Probes => Standing::Due,
                Outlook::Refuses { until } => Standing::Out {
                    // A time that has passed is no time to wait for.
                    until: until
                        .map(|until| clock.nanos(until))
                        .filter(|&until| until > clock.now),
                },
                Outlook::Held => Standing::Barred,
            };
        }
        self.machine.standing(clock.now)
    }

    /// Whether it takes part, as far as is known without asking its gate.
    pub(crate) fn is_in_play(&self) -> bool {
        let serves = self.duty == Duty::Serving && self.health == Health::Healthy;
        let admits = matches!(self.seen, Outlook::Admits | Outlook::Probes);
        serves && admits && !self.machine.keeps_out()
    }

    /// A handle on the item, for an attempt under way.
    #[inline]
    pub(crate) fn lend(&mut self) -> T
    where
        T: Clone,
    {
        self.spare.pop().unwrap_or_else(|| {
            // Room for all that are lent, so that an end never allocates.
            self.spare.reserve(self.load.in_flight() as usize);
            self.item.clone()
        })
    }

    /// What was lent for an attempt that is over.
    #[inline]
    pub(crate) fn take_back(&mut self, lent: T) {
        self.spare.push(lent);
    }

    /// It takes no more part in this attempt.
    pub(crate) fn end(&mut self, flight: &Flight) {
        self.load.end(&flight.attempt);
    }

    /// Its answer was over after so long, where answers stream for `usual` nanoseconds.
    #[inline]
    pub(crate) fn streamed(&mut self, flight: &Flight, whole: f64, usual: f64) {
        self.load.streamed(&flight.attempt, whole, usual);
    }

    /// It was given up after so long.
    pub(crate) fn censored(&mut self, flight: &Flight, waited: f64, now: u64) {
        self.load.censored(&flight.attempt, waited, now);
    }

    /// Asks the gate; says whether it lets more through than before.
    #[inline]
    pub(crate) fn look(&mut self, clock: &Clock) -> bool {
        if !self.gated {
            return false;
        }
        let outlook = self.item.outlook(clock.instant);
        let before = mem::replace(&mut self.seen, outlook);
        if before == outlook {
            return false;
        }
        match outlook {
            Outlook::Admits => self.rise(clock.now),
            Outlook::Refuses { .. } | Outlook::Held if before == Outlook::Admits => {
                self.machine.note_gate(clock.now);
            }
            _ => {}
        }
        matches!(outlook, Outlook::Admits | Outlook::Probes)
    }

    /// Whether it is ejected, or about to show that it should not be.
    pub(crate) fn is_out(&self) -> bool {
        self.machine.is_out()
    }

    #[inline(always)]
    pub(crate) fn start(
        &mut self,
        slot: usize,
        doubtful: Doubtful,
        size: Size,
        norm: &Norm,
        now: u64,
    ) -> Flight {
        let admitted = self.machine.start(doubtful == Doubtful::Yes, now);
        self.requests += 1;
        Flight {
            slot,
            attempt: self.load.start(size, norm, now),
            admitted,
            answered: false,
        }
    }

    /// The first data have come: a probe has passed, whatever becomes of its body.
    pub(crate) fn first_data(&mut self, flight: &mut Flight, now: u64) -> bool {
        let waited = self.answered(flight, now);
        if let Some(waited) = waited {
            self.load.sample(&flight.attempt, waited, now);
        }
        let passed = self.machine.answered(&mut flight.admitted, now);
        self.back(passed, now)
    }

    /// For how long somebody waited for the answer, the first time that this is asked.
    #[inline]
    pub(crate) fn answered(&mut self, flight: &mut Flight, now: u64) -> Option<f64> {
        if flight.answered {
            return None;
        }
        flight.answered = true;
        Some(self.load.heard(&mut flight.attempt, now))
    }

    #[inline]
    pub(crate) fn worked(&mut self, flight: &Flight, waited: Option<f64>, now: u64) -> bool {
        if let Some(waited) = waited {
            self.load.sample(&flight.attempt, waited, now);
        }
        let passed = self.machine.worked(flight.admitted, now);
        self.back(passed, now)
    }

    /// Says what it is ejected for, if that ejects it.
    pub(crate) fn failed(
        &mut self,
        flight: &Flight,
        fault: Fault,
        verge: &Verge<'_>,
    ) -> Option<EjectionReason> {
        self.failures += 1;
        self.load.penalise(verge.penalty, verge.now);
        if self.gated {
            return None;
        }
        self.machine.failed(flight.admitted, fault, verge)
    }

    /// Nothing was learnt: if it was the probe, another may go, from then on.
    pub(crate) fn free_probe(&mut self, flight: &Flight, from: u64) -> bool {
        self.machine.free_probe(flight.admitted, from)
    }

    /// Nobody waits for the answer any more, and nothing was learnt.
    #[inline]
    pub(crate) fn give_back(&mut self, flight: &mut Flight, now: u64) -> bool {
        if self.answered(flight, now).is_none() {
            return false;
        }
        self.requests -= 1;
        self.free_probe(flight, now)
    }

    pub(crate) fn set_health(&mut self, health: Health, now: u64) {
        let before = mem::replace(&mut self.health, health);
        if health == Health::Unhealthy {
            return;
        }
        if before == Health::Unhealthy && !self.machine.keeps_out() {
            self.rise(now);
        } else if self.is_out() {
            // A long ejection must not outlive the outage.
            self.machine.hurry(now);
        } else {
            self.load.forgive(now);
        }
    }

    /// Other rules of ejection hold from now on.
    pub(crate) fn obey(&mut self, rules: &Ejection, now: u64) {
        let out = self.is_out();
        self.machine.obey(rules, now);
        self.back(out && !self.is_out(), now);
    }

    /// Back though it has not shown that it works. Says whether it was out for its failures.
    pub(crate) fn let_back(&mut self, now: u64) -> bool {
        let serves = self.duty == Duty::Serving && self.health == Health::Healthy;
        let back = serves && self.machine.keeps_out();
        if back {
            self.rise(now);
        }
        back
    }

    /// Back at its duty, slowly.
    pub(crate) fn resume(&mut self, now: u64) {
        self.duty = Duty::Serving;
        if !self.machine.keeps_out() {
            self.rise(now);
        }
    }

    pub(crate) fn state(&mut self, clock: &Clock) -> (EndpointState, Option<Duration>) {
        if self.duty != Duty::Serving {
            return (EndpointState::Draining, None);
        }
        if self.health == Health::Unhealthy {
            return (EndpointState::Unhealthy, None);
        }
        match self.standing(clock) {
            Standing::Due => (EndpointState::Probing, None),
            // The probe is out.
            Standing::Out { until: None } => (EndpointState::Probing, None),
            Standing::Out { .. } if self.machine.is_probing() => (EndpointState::Probing, None),
            Standing::Out { until } => {
                let retry_in = until.map(|until| Duration::from_nanos(until - clock.now));
                (EndpointState::Ejected, retry_in)
            }
            Standing::Barred => (EndpointState::Ejected, None),
            Standing::Able if self.stride(clock.now) > self.stride => {
                (EndpointState::SlowStart, None)
            }
            Standing::Able => (EndpointState::Serving, None),
        }
    }

    /// It has been away, and gets more and more.
    fn rise(&mut self, now: u64) {
        self.machine.rise(now);
        self.back(true, now);
    }

    /// What it failed at is forgotten when it is back.
    fn back(&mut self, back: bool, now: u64) -> bool {
        if back {
            self.load.forgive(now);
        }
        back
    }
}

/// One reading of the clock, in both its forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) born: tokio::time::Instant,
    pub(crate) instant: tokio::time::Instant,
    /// Nanoseconds since `born`.
    pub(crate) now: u64,
}

impl Clock {
    #[inline]
    pub(crate) fn new(born: tokio::time::Instant, instant: tokio::time::Instant) -> Self {
        let now = instant.saturating_duration_since(born).as_nanos() as u64;
        Self { born, instant, now }
    }

    fn nanos(&self, at: tokio::time::Instant) -> u64 {
        at.saturating_duration_since(self.born).as_nanos() as u64
    }
}
