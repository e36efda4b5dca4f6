//! What a layer and its services share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{cost::Cost, head::RequestHead, signal::Signal};
use tokio::time::Instant;

use super::{
    delay::{Delay, Kind, LEAST},
    metrics::Metrics,
    share::{Share, Trust},
    times::Times,
};
use crate::{
    budget::Budget,
    policy::{Repeat, Repeatable},
};

/// Whether hedges are sent. What answers take is learnt in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// They are counted where they would have been sent, as if the body of each request were there and every service
    /// ready.
    Shadow,
    /// They are not.
    Off,
}

#[derive(Clone)]
pub(crate) struct Policy {
    /// In all, the first included.
    pub(crate) attempts: usize,
    pub(crate) delay: Delay,
    pub(crate) budget: Option<Budget>,
    pub(crate) repeatable: Repeatable,
    pub(crate) keep_up_to: usize,
    pub(crate) mode: Arc<AtomicU8>,
    /// None is sent while one of these is set.
    pub(crate) paused_by: Vec<Signal>,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) metrics: Metrics,
}

pub(crate) struct State {
    pub(crate) share: Share,
    pub(crate) trust: Trust,
    pub(crate) times: Option<Times>,
}

impl State {
    pub(crate) fn new(delay: &Delay, ratio: f64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            share: Share::new(ratio),
            trust: Trust::new(),
            times: delay.times(),
        }))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) won: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) held_back: [AtomicU64; Why::ALL.len()],
    /// Microseconds.
    pub(crate) shadowed_for: AtomicU64,
}

/// Why a hedge that was due is not sent, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The share or the budget is used up.
    Budget,
    /// A signal says so.
    Paused,
    /// Attempts fail.
    Failing,
    /// The service has to be waited for.
    NotReady,
    /// The body is too large, or not all of it has come.
    Body,
    /// The server asks not to be asked again.
    Pushback,
    /// Nothing is sent in shadow mode.
    Shadow,
}

impl Why {
    pub(crate) const ALL: [Self; 7] = [
        Self::Budget,
        Self::Paused,
        Self::Failing,
        Self::NotReady,
        Self::Body,
        Self::Pushback,
        Self::Shadow,
    ];

    #[cfg(feature = "metrics")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Paused => "paused",
            Self::Failing => "failing",
            Self::NotReady => "not_ready",
            Self::Body => "body",
            Self::Pushback => "pushback",
            Self::Shadow => "shadow",
        }
    }
}

/// What a request that may be sent more than once has to expect.
pub(crate) struct Chance {
    /// After how long it is due for a hedge, if ever.
    pub(crate) delay: Option<Duration>,
    pub(crate) cost: f64,
    pub(crate) mode: Mode,
}

impl Policy {
    /// `None` for a request that may be sent only once.
    pub(crate) fn arrive(&self, head: &RequestHead<'_>) -> Option<Chance> {
        self.stats.requests.fetch_add(1, Relaxed);
        self.metrics.register();
        if self.repeatable.allows(head) != Repeat::Always {
            return None;
        }
        let cost = head.extensions.get::<Cost>().map_or(1.0, |cost| cost.get());
        // Asked before the lock is taken.
        let asked = match &self.delay.0 {
            Kind::By(delay) => delay(head).map(|delay| delay.max(LEAST)),
            Kind::Fixed(_) | Kind::Learnt { .. } => None,
        };
        let mut state = self.state();
        state.share.deposit(cost);
        let learnt = state.times.as_ref().and_then(Times::known);
        let trusts = state.trust.is_there();
        drop(state);
        Some(Chance {
            delay: asked.or_else(|| self.delay.now(learnt)).filter(|_| trusts),
            cost,
            mode: self.mode(),
        })
    }

    /// Hears how an attempt has ended, if it has, and what the first has taken, or at least has taken so far.
    pub(crate) fn heard(&self, has_failed: Option<bool>, took: Option<(Duration, Instant)>) {
        let mut state = self.state();
        if let Some(has_failed) = has_failed {
            state.trust.note(has_failed);
        }
        let (Some(times), Some((took, now))) = (&mut state.times, took) else {
            return;
        };
        let before = times.known();
        times.record(took, now);
        let known = times.known();
        drop(state);
        if known != before {
            self.metrics.delay(self.delay.now(known));
        }
    }

    /// Whether somebody wants to know how long a first attempt takes.
    pub(crate) fn times(&self, mode: Mode) -> bool {
        matches!(self.delay.0, Kind::Learnt { .. }) || mode == Mode::Shadow
    }

    /// Whether there might be a hedge of this cost now.
    pub(crate) fn might(&self, cost: f64) -> Result<(), Why> {
        if self.is_paused() {
            return Err(Why::Paused);
        }
        let state = self.state();
        if self.mode() != Mode::Enforce || !state.trust.is_there() {
            return Err(Why::Failing);
        }
        if state.share.has(cost) {
            Ok(())
        } else {
            Err(Why::Budget)
        }
    }

    /// Pays for a hedge, all of it or nothing.
    pub(crate) fn pay(&self, head: &RequestHead<'_>, cost: f64) -> bool {
        if !self.state().share.withdraw(cost) {
            return false;
        }
        let budget = self.budget.as_ref();
        let paid = budget.is_none_or(|budget| budget.withdraw_for(head, 1));
        if !paid {
            self.state().share.give_back(cost);
        }
        paid
    }

    pub(crate) fn held_back(&self, why: Why) {
        self.stats.held_back[why as usize].fetch_add(1, Relaxed);
        self.metrics.held_back(why);
    }

    /// Counts a hedge that would have been sent for a request that took this much longer than its delay.
    pub(crate) fn shadowed(&self, cost: f64, late: Duration) {
        if self.is_paused() {
            return self.held_back(Why::Paused);
        }
        if !self.state().share.withdraw(cost) {
            return;
        }
        self.held_back(Why::Shadow);
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.stats.shadowed_for.fetch_add(micros, Relaxed);
    }

    /// Counts a hedge that is sent.
    pub(crate) fn sent(self: &Arc<Self>) -> Sent {
        self.stats.sent.fetch_add(1, Relaxed);
        self.metrics.sent();
        Sent {
            policy: self.clone(),
            won: false,
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        mode(&self.mode)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused_by.iter().any(Signal::is_set)
    }

    /// Nobody's code runs under it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn mode(at: &AtomicU8) -> Mode {
    match at.load(Relaxed) {
        0 => Mode::Enforce,
        1 => Mode::Shadow,
        _ => Mode::Off,
    }
}

/// A hedge that runs. It has lost unless it is told that it has won.
pub(crate) struct Sent {
    policy: Arc<Policy>,
    won: bool,
}

impl Sent {
    pub(crate) fn won(mut self) {
        self.won = true;
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let Policy { stats, metrics, .. } = &*self.policy;
        let counter = if self.won { &stats.won } else { &stats.lost };
        counter.fetch_add(1, Relaxed);
        metrics.settled(self.won);
    }
}
