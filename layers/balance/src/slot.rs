//! One endpoint of a fleet: whether it may be picked, and what the ends of its attempts say about that.

use std::{mem, time::Duration};

use palisade_core::gate::Outlook;

use crate::{
    fleet::Item,
    load::Load,
    snapshot::{EndpointState, Health},
};

/// Failures in a row, as Envoy and linkerd count them.
const EJECT_AFTER: u32 = 5;
const EJECT_FOR: f64 = 1e9;
const EJECT_AT_MOST: f64 = 60e9;
/// After this long without an end another request may probe.
const PROBE_TIMEOUT: u64 = 10_000_000_000;
/// How often that doubles at most while probes are lost, so that who answers later than that is found to work.
const DOUBLINGS: u32 = 5;
const SLOW_START: u64 = 10_000_000_000;
const SLOW_START_FROM: f64 = 0.1;

#[derive(Debug)]
pub(crate) struct Slot<T> {
    pub(crate) item: T,
    pub(crate) load: Load,
    pub(crate) weight: f64,
    /// One over the weight: a scan multiplies.
    stride: f64,
    pub(crate) max_in_flight: u32,
    /// When its next turn in the round begins, if it was there for the last.
    pub(crate) turn: f64,
    pub(crate) duty: Duty,
    pub(crate) health: Health,
    state: State,
    /// What its gate said last.
    seen: Outlook,
    /// Counts state changes, so that a verdict from an earlier state is told apart.
    epoch: u64,
    /// Failures in a row.
    row: u32,
    /// Probes in a row without an end.
    lost: u32,
    /// Ejections since it last worked for as long as a slow start takes.
    grown: i32,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) ejections: u64,
}

/// What an operator wants of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Serving,
    /// Out of choice until further notice.
    Suspended,
    /// Out of choice, and out of the set when its last attempt has ended.
    Leaving,
}

/// What the failures of an endpoint without a gate have led to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Active { since: u64 },
    Ejected { until: u64 },
    Probing { until: u64 },
}

/// Whether the next request may go there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Able,
    /// It gets the next request, whose end decides about those after it.
    Due,
    /// Its failures speak against it, until this time if that passes by itself.
    Out {
        until: Option<u64>,
    },
    /// Somebody said so.
    Barred,
}

/// Proof of one attempt at one endpoint. Its slot cannot be given away while the attempt is in flight.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) slot: usize,
    attempt: u32,
    epoch: u64,
    answered: bool,
    pub(crate) doubtful: Doubtful,
}

/// Whether an endpoint was picked although its gate or its failures speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubtful {
    No,
    Yes,
}

/// What a failure was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// It counts against the endpoint.
    Failed,
    /// It only asks to be left alone.
    Overloaded {
        /// For so many nanoseconds.
        asked: Option<u64>,
    },
}

impl<T: Item> Slot<T> {
    pub(crate) fn new(item: T, weight: f64, max_in_flight: u32, now: u64) -> Self {
        Self {
            item,
            load: Load::new(now),
            weight,
            stride: 1.0 / weight,
            max_in_flight,
            turn: 0.0,
            duty: Duty::Serving,
            health: Health::Healthy,
            state: State::Active { since: now },
            seen: Outlook::Admits,
            epoch: 0,
            row: 0,
            lost: 0,
            grown: 0,
            requests: 0,
            failures: 0,
            ejections: 0,
        }
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.load.in_flight() >= self.max_in_flight
    }

    /// How long its turns are: one over its weight, more in slow start.
    #[inline]
    pub(crate) fn stride(&self, now: u64) -> f64 {
        match self.state {
            State::Active { since } => self.stride * slow_start(now.saturating_sub(since)),
            State::Ejected { .. } | State::Probing { .. } => self.stride,
        }
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
        if self.item.is_gated() {
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
        match self.state {
            State::Active { .. } => Standing::Able,
            State::Ejected { until } | State::Probing { until } if until <= clock.now => {
                Standing::Due
            }
            State::Ejected { until } | State::Probing { until } => {
                Standing::Out { until: Some(until) }
            }
        }
    }

    /// Asks the gate; says whether it lets more through than before.
    pub(crate) fn look(&mut self, clock: &Clock) -> bool {
        if !self.item.is_gated() {
            return false;
        }
        let outlook = self.item.outlook(clock.instant);
        let before = mem::replace(&mut self.seen, outlook);
        if before == outlook {
            return false;
        }
        if outlook == Outlook::Admits {
            self.reinstate(clock.now);
        }
        matches!(outlook, Outlook::Admits | Outlook::Probes)
    }

    /// Whether it is ejected, or about to show that it should not be.
    pub(crate) fn is_out(&self) -> bool {
        !matches!(self.state, State::Active { .. })
    }

    pub(crate) fn start(
        &mut self,
        slot: usize,
        doubtful: Doubtful,
        peers: f64,
        now: u64,
    ) -> Ticket {
        if doubtful == Doubtful::No && self.is_out() {
            self.lost = match self.state {
                State::Probing { .. } => DOUBLINGS.min(self.lost + 1),
                _ => 0,
            };
            let until = now.saturating_add(PROBE_TIMEOUT << self.lost);
            self.enter(State::Probing { until });
        }
        self.requests += 1;
        Ticket {
            slot,
            attempt: self.load.start(peers, now),
            epoch: self.epoch,
            answered: false,
            doubtful,
        }
    }

    /// The first data have come: a probe has passed, whatever becomes of its body.
    pub(crate) fn first_data(&mut self, ticket: &mut Ticket, now: u64) -> bool {
        let waited = self.answered(ticket, now);
        if let Some(waited) = waited {
            self.load.sample(waited, now);
        }
        let passed = self.pass(ticket, now);
        if passed {
            ticket.epoch = self.epoch;
        }
        passed
    }

    /// For how long somebody waited for the answer, the first time that this is asked.
    pub(crate) fn answered(&mut self, ticket: &mut Ticket, now: u64) -> Option<f64> {
        if ticket.answered {
            return None;
        }
        ticket.answered = true;
        Some(self.load.heard(ticket.attempt, now))
    }

    pub(crate) fn worked(&mut self, ticket: &Ticket, waited: Option<f64>, now: u64) -> bool {
        if let Some(waited) = waited {
            self.load.sample(waited, now);
        }
        if ticket.epoch != self.epoch {
            return false;
        }
        self.row = 0;
        if let State::Active { since } = self.state
            && now.saturating_sub(since) > SLOW_START
        {
            self.grown = 0;
        }
        self.pass(ticket, now)
    }

    /// Says whether that ejects it.
    pub(crate) fn failed(&mut self, ticket: &Ticket, fault: Fault, verge: &Verge) -> bool {
        self.failures += 1;
        self.load.penalise(verge.penalty, verge.now);
        if ticket.epoch != self.epoch || self.item.is_gated() {
            return false;
        }
        let probing = match self.state {
            State::Active { .. } => false,
            State::Probing { .. } => ticket.doubtful == Doubtful::No,
            // It is out already.
            State::Ejected { .. } => return false,
        };
        let pause = match fault {
            Fault::Failed => {
                self.row += 1;
                let enough = self.row >= EJECT_AFTER && verge.room;
                (probing || enough).then(|| self.pause(verge.chance))
            }
            Fault::Overloaded { asked: Some(asked) } => (probing || verge.room).then_some(asked),
            Fault::Overloaded { asked: None } => probing.then_some(EJECT_FOR as u64),
        };
        let Some(pause) = pause else {
            return false;
        };
        self.row = 0;
        self.grown += 1;
        self.ejections += 1;
        let until = verge.now.saturating_add(pause);
        self.enter(State::Ejected { until });
        true
    }

    /// Nothing was learnt: if it was the probe, another may go.
    pub(crate) fn free_probe(&mut self, ticket: &Ticket, now: u64) -> bool {
        let freed = self.is_probe(ticket);
        if freed {
            self.enter(State::Ejected { until: now });
        }
        freed
    }

    /// Nobody waits for the answer any more, and nothing was learnt.
    pub(crate) fn give_back(&mut self, ticket: &mut Ticket, now: u64) -> bool {
        if self.answered(ticket, now).is_none() {
            return false;
        }
        self.requests -= 1;
        self.free_probe(ticket, now)
    }

    pub(crate) fn set_health(&mut self, health: Health, now: u64) {
        let before = mem::replace(&mut self.health, health);
        if health == Health::Unhealthy {
            return;
        }
        match self.state {
            // A long ejection must not outlive the outage.
            State::Ejected { .. } => self.state = State::Ejected { until: now },
            State::Active { .. } if before == Health::Unhealthy => self.reinstate(now),
            State::Active { .. } => self.load.forgive(now),
            State::Probing { .. } => {}
        }
    }

    /// Back at its duty, slowly.
    pub(crate) fn resume(&mut self, now: u64) {
        self.duty = Duty::Serving;
        if let State::Active { .. } = self.state {
            self.reinstate(now);
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
            Standing::Out { .. } if matches!(self.state, State::Probing { .. }) => {
                (EndpointState::Probing, None)
            }
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

    fn pass(&mut self, ticket: &Ticket, now: u64) -> bool {
        let passed = self.is_probe(ticket);
        if passed {
            self.reinstate(now);
        }
        passed
    }

    fn is_probe(&self, ticket: &Ticket) -> bool {
        let probing = matches!(self.state, State::Probing { .. });
        probing && ticket.epoch == self.epoch && ticket.doubtful == Doubtful::No
    }

    fn reinstate(&mut self, now: u64) {
        self.row = 0;
        self.load.forgive(now);
        self.enter(State::Active { since: now });
    }

    fn pause(&self, chance: f64) -> u64 {
        let grown = EJECT_FOR * 2f64.powi(self.grown);
        (grown.min(EJECT_AT_MOST) * (0.5 + chance)) as u64
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
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

/// What a failing endpoint meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verge {
    /// What the failure costs, in nanoseconds of latency.
    pub(crate) penalty: f64,
    /// Whether one more may be ejected.
    pub(crate) room: bool,
    /// Between 0 and 1.
    pub(crate) chance: f64,
    pub(crate) now: u64,
}

/// How much longer the turns of an endpoint are so long after it came or came back.
///
/// By the root: twice as long after a quarter of the time, as Envoy with an aggression of 2.
#[inline]
fn slow_start(age: u64) -> f64 {
    if age >= SLOW_START {
        return 1.0;
    }
    let done = age as f64 / SLOW_START as f64;
    1.0 / done.sqrt().max(SLOW_START_FROM)
}
