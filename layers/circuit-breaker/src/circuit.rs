//! The state machine, with no clock, no lock and no I/O of its own.

use std::{mem, time::Duration};

use palisade_core::{classify::Verdict, settle::End};
use tokio::time::Instant;

use crate::{
    CircuitOpen,
    cooldown::{self, Random},
    glance::Glance,
    probes::{Probes, Word},
    settings::Settings,
    tally::Tally,
};

mod saved;

pub use self::saved::{Saved, SavedState};

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
    /// Its first data took long.
    pub(crate) slow: bool,
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
        Self::at(epoch, Stage::Waiting)
    }

    /// Of a request that passes although it should not: nobody listens to it.
    pub(crate) fn unheard() -> Self {
        Self::at(0, Stage::Over)
    }

    fn at(epoch: u64, stage: Stage) -> Self {
        Self {
            epoch,
            stage,
            slow: false,
        }
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
    /// A caller who leaves at an age that is slow tells of the service.
    #[inline]
    pub(crate) fn of(end: &End, stage: Stage, is_slow: impl FnOnce(Duration) -> bool) -> Self {
        match end.verdict {
            Verdict::Success => Self::Well,
            Verdict::Failure | Verdict::TimedOut | Verdict::Unsent => Self::Ill,
            Verdict::Overload { retry_after } => Self::Busy(retry_after),
            // A caller may leave a stream that flows at any time.
            Verdict::Canceled if stage != Stage::Answered && is_slow(end.age) => Self::Ill,
            // The caller's own faults, refusals further in, and verdicts that are not known here.
            _ => Self::Nothing,
        }
    }
}

/// Opens when its tally is too bad, and lets probes through after a cool-down.
#[derive(Debug)]
pub(crate) struct Circuit {
    settings: Settings,
    tally: Tally,
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
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        let settings = settings.reasonable();
        Self {
            tally: Tally::new(&settings),
            settings,
            random: Random::new(seed),
            state: State::Closed,
            epoch: 0,
            reopenings: 0,
            opened: 0,
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Goes by other settings from the next count, the next opening and the next probe on.
    pub(crate) fn update(&mut self, settings: Settings, now: Instant) {
        let settings = settings.reasonable();
        self.tally.update(&self.settings, &settings, now);
        self.settings = settings;
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.random = Random::new(seed);
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
        Ok(Admission::at(self.epoch, stage))
    }

    /// A probe passes here, unless it took too long.
    pub(crate) fn first_data(&mut self, admission: &mut Admission, slow: bool, now: Instant) {
        if matches!(admission.stage, Stage::Answered | Stage::Over) {
            return;
        }
        let stage = mem::replace(&mut admission.stage, Stage::Answered);
        admission.slow = slow;
        let is_half_open = matches!(self.state, State::HalfOpen(_));
        // One that is out when the others have closed it counts at its end.
        if stage != Stage::Probing || admission.epoch != self.epoch || !is_half_open {
            return;
        }
        if slow && self.minds_slow_calls() {
            admission.stage = Stage::Over;
            self.hear_probe(Says::Ill, stage, now);
        } else {
            self.hear_probe(Says::Well, stage, now);
        }
    }

    /// Hears how a request has ended, once: what is said after that changes nothing.
    pub(crate) fn settle(&mut self, admission: &mut Admission, says: Says, now: Instant) {
        let stage = mem::replace(&mut admission.stage, Stage::Over);
        if stage == Stage::Over || admission.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed => self.count(says, admission.slow, now),
            State::HalfOpen(_) => {
                let is_slow = says == Says::Well && admission.slow && self.minds_slow_calls();
                let says = if is_slow { Says::Ill } else { says };
                self.hear_probe(says, stage, now);
            }
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

    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// How often it has opened by itself.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Until a request would pass, when that is known.
    pub(crate) fn next_probe_in(&self, now: Instant) -> Option<Duration> {
        match &self.state {
            State::Open { until } => Some(until.saturating_duration_since(now)),
            State::HalfOpen(probes) if probes.are_overdue(now) => {
                (probes.last_word() == Word::Works).then_some(Duration::ZERO)
            }
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
                until: clock(probes.changes_at()),
            },
            State::Open { until } => Glance::Open {
                until: clock(*until),
            },
        }
    }

    /// Whether calls that work, but slowly, are held against the service.
    pub(crate) fn minds_slow_calls(&self) -> bool {
        self.settings.slow_share.is_some()
    }

    /// Whether little is lost when it is forgotten: it is closed, or idle and the next request would pass anyway.
    pub(crate) fn rests(&self, idle: bool, now: Instant) -> bool {
        match &self.state {
            State::Closed => true,
            State::Open { until } => idle && now >= *until,
            State::HalfOpen(_) => idle,
            State::ForcedOpen | State::ForcedClosed => false,
        }
    }

    /// Does what time has brought about.
    fn catch_up(&mut self, now: Instant) {
        match &mut self.state {
            State::Open { until } if now >= *until => {
                let probes = Probes::new(&self.settings, now);
                self.enter(State::HalfOpen(probes));
            }
            State::HalfOpen(probes) if probes.are_overdue(now) => match probes.last_word() {
                Word::Works => self.close(),
                Word::Fails | Word::Unsure => self.open(Says::Ill, now),
            },
            State::HalfOpen(probes) if probes.are_lost(now) => {
                probes.give_up();
                self.epoch += 1;
            }
            _ => {}
        }
    }

    fn count(&mut self, says: Says, slow: bool, now: Instant) {
        match says {
            Says::Well => self.tally.success(slow, now),
            Says::Ill => self.tally.failure(slow, now),
            Says::Busy(_) => self.tally.overload(slow, now),
            Says::Nothing => return,
        }
        if self.tally.is_too_bad() {
            self.open(says, now);
        }
    }

    fn hear_probe(&mut self, says: Says, stage: Stage, now: Instant) {
        let State::HalfOpen(probes) = &mut self.state else {
            return;
        };
        let is_out = stage == Stage::Probing;
        let word = match says {
            Says::Ill | Says::Busy(_) if is_out => probes.fail(),
            Says::Ill | Says::Busy(_) => probes.fail_later(),
            Says::Well if is_out => probes.pass(),
            Says::Nothing if is_out => {
                probes.give_back();
                Word::Unsure
            }
            // It has passed already, while others are still out.
            Says::Well | Says::Nothing => Word::Unsure,
        };
        match word {
            Word::Works => self.close(),
            Word::Fails => self.open(says, now),
            Word::Unsure => {}
        }
    }

    fn open(&mut self, says: Says, now: Instant) {
        let pause = match says {
            // Zero, or a date that is past, is no time to stay open for: every request would be a probe.
            Says::Busy(Some(asked)) if !asked.is_zero() => asked.min(LONGEST_RETRY_AFTER),
            _ => cooldown::pause(&self.settings, self.reopenings, &mut self.random),
        };
        self.reopenings = self.reopenings.saturating_add(1);
        self.opened = self.opened.saturating_add(1);
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
mod schedules;
#[cfg(test)]
mod tests;
