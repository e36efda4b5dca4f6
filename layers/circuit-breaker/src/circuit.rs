//! The state machine, with no clock, no lock and no I/O of its own.

use std::{mem, time::Duration};

use palisade_core::{classify::Verdict, settle::End};
use tokio::time::Instant;

use crate::{
    CircuitOpen,
    cooldown::{Cooldown, Random},
    glance::Glance,
    probes::Probes,
    tally::Tally,
};

/// A request that is given up before any data and after this long was slow.
///
/// Without it a service that accepts and never answers would not be found by callers in a hurry.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// How long a circuit stays open at most because a header asks for it.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What a circuit does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// They pass, and how they end is counted.
    Closed,
    /// They are refused until the cool-down is over.
    Open,
    /// A few pass as probes, the others are refused.
    HalfOpen,
}

impl CircuitState {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Leave to send one request, and the epoch it was given in.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) epoch: u64,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Holds a place among the probes.
    Probing,
    Waiting,
    /// Data have come; a probe has passed.
    Answered,
    /// It has said all it had to say.
    Over,
}

impl Admission {
    /// Into a circuit that is closed in this epoch.
    pub(crate) fn closed(epoch: u64) -> Self {
        let stage = Stage::Waiting;
        Self { epoch, stage }
    }
}

/// What the end of one request tells a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Well,
    Ill,
    Busy(Option<Duration>),
    Nothing,
}

impl Says {
    pub(crate) fn of(end: &End, stage: Stage) -> Self {
        match end.verdict {
            Verdict::Success => Self::Well,
            Verdict::Failure | Verdict::TimedOut | Verdict::Unsent => Self::Ill,
            Verdict::Overload { retry_after } => Self::Busy(retry_after),
            // A caller may leave a stream that flows at any time.
            Verdict::Canceled if stage != Stage::Answered && end.age >= SLOW_AFTER => Self::Ill,
            // The caller's own faults, refusals further in, and verdicts that are not known here.
            _ => Self::Nothing,
        }
    }
}

/// Opens when its tally is too bad, and lets probes through after a cool-down.
#[derive(Debug)]
pub(crate) struct Circuit {
    pub(crate) tally: Tally,
    pub(crate) cooldown: Cooldown,
    /// How many must pass.
    pub(crate) probes: u32,
    /// How long a probe is waited for.
    pub(crate) patience: Duration,
    random: Random,
    state: State,
    /// Tells verdicts apart that are about an earlier state. Closing keeps it: what happens to the body of a probe
    /// that has passed counts in the closed circuit.
    epoch: u64,
    /// Since it was closed.
    reopenings: u32,
    opened: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen(Probes),
    ForcedClosed,
    ForcedOpen,
}

impl Circuit {
    pub(crate) fn new(tally: Tally, cooldown: Duration, seed: u64) -> Self {
        Self {
            tally,
            cooldown: Cooldown::new(cooldown),
            probes: 1,
            patience: Duration::from_secs(10),
            random: Random::new(seed),
            state: State::Closed,
            epoch: 0,
            reopenings: 0,
            opened: 0,
        }
    }

    pub(crate) fn admit(&mut self, now: Instant) -> Result<Admission, CircuitOpen> {
        self.catch_up(now);
        let stage = match &mut self.state {
            State::Closed | State::ForcedClosed => Stage::Waiting,
            State::Open { until } => return Err(CircuitOpen::until(*until - now)),
            State::HalfOpen(probes) if probes.has_room() => {
                probes.send(now);
                Stage::Probing
            }
            State::HalfOpen(_) | State::ForcedOpen => return Err(CircuitOpen::for_now()),
        };
        let epoch = self.epoch;
        Ok(Admission { epoch, stage })
    }

    /// A probe passes here.
    pub(crate) fn first_data(&mut self, admission: &mut Admission) {
        let stage = mem::replace(&mut admission.stage, Stage::Answered);
        if stage == Stage::Probing && admission.epoch == self.epoch {
            self.pass();
        }
    }

    /// Hears how a request has ended, once: what is said after that changes nothing.
    pub(crate) fn settle(&mut self, admission: &mut Admission, says: Says, now: Instant) {
        let stage = mem::replace(&mut admission.stage, Stage::Over);
        if stage == Stage::Over || admission.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed => self.count(says, now),
            State::HalfOpen(_) => self.hear_probe(says, stage, now),
            State::Open { .. } | State::ForcedOpen | State::ForcedClosed => {}
        }
    }

    /// Hears that nobody will ever say how a request has ended.
    pub(crate) fn give_back(&mut self, admission: &mut Admission) {
        let stage = mem::replace(&mut admission.stage, Stage::Over);
        if stage == Stage::Probing
            && admission.epoch == self.epoch
            && let State::HalfOpen(probes) = &mut self.state
        {
            probes.give_back();
        }
    }

    pub(crate) fn force_open(&mut self) {
        self.enter(State::ForcedOpen);
    }

    pub(crate) fn force_closed(&mut self) {
        self.enter(State::ForcedClosed);
    }

    /// Forgets what was counted and lets requests through.
    pub(crate) fn release(&mut self) {
        self.close();
        self.epoch += 1;
    }

    pub(crate) fn state(&self) -> CircuitState {
        match self.state {
            State::Closed | State::ForcedClosed => CircuitState::Closed,
            State::Open { .. } | State::ForcedOpen => CircuitState::Open,
            State::HalfOpen(_) => CircuitState::HalfOpen,
        }
    }

    pub(crate) fn is_forced(&self) -> bool {
        matches!(self.state, State::ForcedOpen | State::ForcedClosed)
    }

    /// How often it has opened by itself.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Until a request would pass as a probe, when that is known.
    pub(crate) fn next_probe_in(&self, now: Instant) -> Option<Duration> {
        match &self.state {
            State::Open { until } => Some(until.saturating_duration_since(now)),
            State::HalfOpen(probes) if probes.has_room() || probes.are_lost(now) => {
                Some(Duration::ZERO)
            }
            _ => None,
        }
    }

    /// What is to be seen from outside; times are told by `clock`.
    pub(crate) fn glance(&self, clock: impl Fn(Instant) -> u64) -> Glance {
        match &self.state {
            State::Closed => Glance::Closed {
                epoch: self.epoch,
                hears_success: !self.tally.ignores_success(),
            },
            State::ForcedClosed => Glance::Closed {
                epoch: self.epoch,
                hears_success: false,
            },
            State::ForcedOpen => Glance::ForcedOpen,
            State::HalfOpen(probes) if probes.has_room() => Glance::Room,
            State::HalfOpen(probes) => Glance::Full {
                until: clock(probes.lost_at()),
            },
            State::Open { until } => Glance::Open {
                until: clock(*until),
            },
        }
    }

    /// Does what time has brought about.
    fn catch_up(&mut self, now: Instant) {
        match &mut self.state {
            State::Open { until } if now >= *until => {
                let probes = Probes::new(self.probes, self.patience, now);
                self.enter(State::HalfOpen(probes));
            }
            State::HalfOpen(probes) if probes.are_lost(now) => {
                probes.give_up();
                self.epoch += 1;
            }
            _ => {}
        }
    }

    fn count(&mut self, says: Says, now: Instant) {
        match says {
            Says::Well => self.tally.success(),
            Says::Ill => self.tally.failure(),
            Says::Busy(_) => self.tally.overload(),
            Says::Nothing => return,
        }
        if self.tally.is_too_bad() {
            self.open(says, now);
        }
    }

    fn hear_probe(&mut self, says: Says, stage: Stage, now: Instant) {
        match says {
            Says::Ill | Says::Busy(_) => self.open(says, now),
            // It has passed already, while others are still out.
            _ if stage != Stage::Probing => {}
            Says::Well => self.pass(),
            Says::Nothing => {
                if let State::HalfOpen(probes) = &mut self.state {
                    probes.give_back();
                }
            }
        }
    }

    fn pass(&mut self) {
        if let State::HalfOpen(probes) = &mut self.state
            && probes.pass()
        {
            self.close();
        }
    }

    fn open(&mut self, says: Says, now: Instant) {
        let pause = match says {
            // Zero, or a date that is past, is no time to stay open for: every request would be a probe.
            Says::Busy(Some(asked)) if !asked.is_zero() => asked.min(LONGEST_RETRY_AFTER),
            _ => self.cooldown.pause(self.reopenings, self.random.draw()),
        };
        self.reopenings = self.reopenings.saturating_add(1);
        self.opened += 1;
        self.enter(State::Open { until: now + pause });
    }

    fn close(&mut self) {
        self.tally.clear();
        self.reopenings = 0;
        self.state = State::Closed;
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
