//! The meter behind its lock, and the chance that is known without taking it.

use std::{
    borrow::Cow,
    sync::{
        OnceLock, PoisonError,
        atomic::{self, AtomicBool, Ordering},
    },
    time::Duration,
};

use palisade_core::settle::End;
use tokio::time::Instant;

use super::{
    ThrottleSettings, Throttled,
    meter::{Meter, Word},
    metrics::Meters,
};
use crate::{
    cooldown::Random,
    settings::Mode,
    sync::{AtomicU64, Mutex},
};

#[cfg(test)]
#[cfg(loom)]
mod interleavings;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

const DEFAULT_NAME: &str = "throttle";

#[derive(Debug)]
pub(crate) struct Shared {
    /// The bits of the chance as of the last count. While it is zero a request is let through without the lock: as
    /// requests are forgotten it may only grow by what the next count finds out.
    chance: AtomicU64,
    state: Mutex<State>,
    shadow: AtomicBool,
    refused: atomic::AtomicU64,
    shadowed: atomic::AtomicU64,
    name: OnceLock<Cow<'static, str>>,
    meters: Meters,
}

#[derive(Debug)]
struct State {
    meter: Meter,
    random: Random,
}

/// What one request may still say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    /// It was counted as accepted.
    Answered,
    Over,
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: AtomicU64::new(0.0_f64.to_bits()),
            state: Mutex::new(State {
                meter: Meter::new(ThrottleSettings::default()),
                random: Random::new(seed),
            }),
            shadow: AtomicBool::new(false),
            refused: atomic::AtomicU64::new(0),
            shadowed: atomic::AtomicU64::new(0),
            name: OnceLock::new(),
            meters: Meters::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.name.get().map_or(DEFAULT_NAME, |name| name)
    }

    /// The first name stays.
    pub(crate) fn set_name(&self, name: Cow<'static, str>) {
        let _ = self.name.set(name);
    }

    pub(crate) fn seed(&self, seed: u64) {
        self.look(|state| state.random = Random::new(seed));
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.shadow.load(Ordering::Relaxed) {
            true => Mode::Shadow,
            false => Mode::Enforce,
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shadow.store(mode == Mode::Shadow, Ordering::Relaxed);
    }

    pub(crate) fn meter<T>(&self, read: impl FnOnce(&mut Meter) -> T) -> T {
        self.look(|state| read(&mut state.meter))
    }

    /// Changes what is counted, and so the chance.
    pub(crate) fn change(&self, now: Instant, act: impl FnOnce(&mut Meter)) {
        self.look(|state| {
            act(&mut state.meter);
            self.publish(state.meter.chance(now));
        });
    }

    /// Lets a request through that will be heard, or none that will not: it was refused, or would have been.
    #[inline]
    pub(crate) fn admit(&self, now: Instant) -> Result<Stage, Throttled> {
        self.meters.register(|| self.name());
        if self.chance() == 0.0 {
            return Ok(Stage::Waiting);
        }
        let Some(chance) = self.draw(now) else {
            return Ok(Stage::Waiting);
        };
        if self.mode() == Mode::Shadow {
            self.shadowed.fetch_add(1, Ordering::Relaxed);
            self.meters.shadow();
            return Ok(Stage::Over);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.meters.refuse();
        Err(Throttled { chance })
    }

    /// The chance by which this one is refused.
    fn draw(&self, now: Instant) -> Option<f64> {
        self.look(|state| {
            let chance = state.meter.chance(now);
            let is_refused = state.random.share() < chance;
            if is_refused {
                state.meter.refuse(now);
            }
            self.publish(state.meter.chance(now));
            is_refused.then_some(chance)
        })
    }

    pub(crate) fn first_data(&self, stage: &mut Stage, sent: Instant, now: Instant) {
        if *stage == Stage::Waiting {
            *stage = Stage::Answered;
            self.change(now, |meter| meter.count(true, sent, now));
        }
    }

    pub(crate) fn settle(&self, stage: &mut Stage, end: &End, sent: Instant, now: Instant) {
        let before = std::mem::replace(stage, Stage::Over);
        if before == Stage::Over {
            return;
        }
        // Without the time that gates before this one took.
        let age: Duration = end.age.min(now.saturating_duration_since(sent));
        let end = End { age, ..*end };
        let answered = before == Stage::Answered;
        self.look(|state| {
            let meter = &mut state.meter;
            match (Word::of(&end, answered, meter.settings()), answered) {
                (Word::Accepted, false) => meter.count(true, sent, now),
                (Word::Failed, false) => meter.count(false, sent, now),
                (Word::Failed, true) => meter.fail_later(sent, now),
                (Word::Accepted, true) | (Word::Nothing, _) => return,
            }
            self.publish(state.meter.chance(now));
        });
    }

    pub(crate) fn refusals(&self) -> (u64, u64) {
        let (refused, shadowed) = (&self.refused, &self.shadowed);
        (
            refused.load(Ordering::Relaxed),
            shadowed.load(Ordering::Relaxed),
        )
    }

    fn chance(&self) -> f64 {
        f64::from_bits(self.chance.load(Ordering::Acquire))
    }

    fn publish(&self, chance: f64) {
        self.chance.store(chance.to_bits(), Ordering::Release);
        // Under the lock, so that the last one written is the last one found.
        self.meters.set(chance);
    }

    fn look<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // No user code runs in a meter, so a poisoned one is still a whole one.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
