//! The circuit behind its lock, and what is known without taking it.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{self, AtomicU8, Ordering},
    },
    time::Duration,
};

use palisade_core::{classify::Verdict, gate::Outlook, settle::End};
use tokio::time::Instant;

use crate::{
    CircuitOpen,
    circuit::{Admission, Circuit, CircuitState, Says, Stage},
    common::Common,
    glance::Glance,
    settings::Settings,
    sync::{AtomicU64, Mutex},
};

#[cfg(test)]
#[cfg(loom)]
mod interleavings;
#[cfg(test)]
#[cfg(not(loom))]
mod model;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

#[derive(Debug)]
pub(crate) struct Shared {
    /// The [`Glance`] at the circuit after its last change.
    glance: AtomicU64,
    /// From when on a call is slow, in nanoseconds.
    late: atomic::AtomicU64,
    origin: Instant,
    circuit: Mutex<Circuit>,
    common: Arc<Common>,
    /// Whether the gauges count it: not yet, yes, no more.
    counted: AtomicU8,
    refused: atomic::AtomicU64,
    shadowed: atomic::AtomicU64,
}

impl Shared {
    pub(crate) fn new(settings: Settings, seed: u64, common: Arc<Common>, origin: Instant) -> Self {
        let circuit = Circuit::new(settings, seed);
        Self {
            // Nothing in a new circuit has a time.
            glance: AtomicU64::new(circuit.glance(|_| 0).pack()),
            late: atomic::AtomicU64::new(late(&circuit)),
            origin,
            circuit: Mutex::new(circuit),
            common,
            counted: AtomicU8::new(0),
            refused: atomic::AtomicU64::new(0),
            shadowed: atomic::AtomicU64::new(0),
        }
    }

    pub(crate) fn common(&self) -> &Common {
        &self.common
    }

    /// Sets parameters, which nobody sees from outside.
    pub(crate) fn configure(&self, act: impl FnOnce(&mut Circuit)) {
        self.look(|circuit| {
            act(circuit);
            self.late.store(late(circuit), Ordering::Relaxed);
            self.publish(circuit);
        });
    }

    pub(crate) fn look<T>(&self, act: impl FnOnce(&mut Circuit) -> T) -> T {
        // No user code runs in a circuit, so a poisoned one is still a whole one.
        act(&mut self.circuit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut Circuit) -> T) -> T {
        self.look(|circuit| {
            let before = circuit.state();
            self.join(before);
            let done = act(circuit);
            self.publish(circuit);
            // Under the lock, so that the last one written is the last one entered.
            if self.counted.load(Ordering::Relaxed) == 1 {
                self.common.meters.enter(before, circuit.state());
            }
            done
        })
    }

    /// Is counted by the gauges no longer.
    pub(crate) fn leave(&self) {
        self.look(|circuit| {
            if self.counted.swap(2, Ordering::Relaxed) == 1 {
                self.common.meters.leave(circuit.state());
            }
        });
    }

    fn join(&self, state: CircuitState) {
        if self.counted.load(Ordering::Relaxed) == 0 {
            self.common.register();
            self.common.meters.join(state);
            self.counted.store(1, Ordering::Release);
        }
    }

    fn publish(&self, circuit: &Circuit) {
        let glance = circuit.glance(|instant| self.nanos(instant));
        self.glance.store(glance.pack(), Ordering::Release);
    }

    #[inline]
    pub(crate) fn admit(&self, now: Instant) -> Result<Admission, CircuitOpen> {
        match self.glance() {
            // The epoch tells should the circuit change right now.
            Glance::Closed { epoch, .. } if self.is_counted() => Ok(Admission::closed(epoch)),
            glance => self.admit_otherwise(glance, now),
        }
    }

    /// Apart, so that the path of a closed circuit is short.
    #[inline(never)]
    fn admit_otherwise(&self, glance: Glance, now: Instant) -> Result<Admission, CircuitOpen> {
        if !self.is_counted() {
            self.change(|_| ());
        }
        let admitted = match glance {
            Glance::Closed { epoch, .. } => return Ok(Admission::closed(epoch)),
            // A storm of refusals does not get into the way of the probe that would end it.
            Glance::Open { until } if self.nanos(now) < until => {
                Err(CircuitOpen::until(self.instant(until) - now))
            }
            Glance::Full { until } if self.nanos(now) < until => Err(CircuitOpen::for_now()),
            Glance::ForcedOpen => Err(CircuitOpen::for_now()),
            Glance::Room | Glance::Full { .. } | Glance::Open { .. } => {
                self.change(|circuit| circuit.admit(now))
            }
        };
        admitted.or_else(|open| self.refuse(open))
    }

    /// Whether the gauges know it, or there are none.
    #[inline]
    fn is_counted(&self) -> bool {
        !cfg!(feature = "metrics") || self.counted.load(Ordering::Acquire) != 0
    }

    fn refuse(&self, open: CircuitOpen) -> Result<Admission, CircuitOpen> {
        if self.common.is_shadow() {
            self.shadowed.fetch_add(1, Ordering::Relaxed);
            self.common.meters.shadow();
            return Ok(Admission::unheard());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.common.meters.refuse();
        Err(open)
    }

    pub(crate) fn outlook(&self, now: Instant) -> Outlook {
        match self.glance() {
            Glance::Closed { .. } => Outlook::Admits,
            _ if self.common.is_shadow() => Outlook::Admits,
            Glance::ForcedOpen => Outlook::Held,
            Glance::Open { until } if self.nanos(now) < until => Outlook::Refuses {
                until: Some(self.instant(until)),
            },
            Glance::Full { until } if self.nanos(now) < until => Outlook::Refuses { until: None },
            Glance::Room | Glance::Full { .. } | Glance::Open { .. } => Outlook::Probes,
        }
    }

    /// Hears of the first data of an answer, `age` after its request was admitted.
    #[inline]
    pub(crate) fn first_data(&self, admission: &mut Admission, age: Duration, now: Instant) {
        match admission.stage {
            Stage::Probing => {
                let slow = self.is_slow(age);
                self.change(|circuit| circuit.first_data(admission, slow, now));
            }
            Stage::Waiting => {
                admission.stage = Stage::Answered;
                admission.slow = self.is_slow(age);
            }
            Stage::Answered | Stage::Over => {}
        }
    }

    #[inline]
    pub(crate) fn settle(&self, admission: &mut Admission, end: &End, now: Instant) {
        if !self.settle_quietly(admission, end.verdict) {
            self.settle_otherwise(admission, end, now);
        }
    }

    /// Whether nothing is to be changed by this verdict, and so by no other.
    #[inline]
    pub(crate) fn settle_quietly(&self, admission: &mut Admission, verdict: Verdict) -> bool {
        match admission.stage {
            Stage::Over => true,
            Stage::Probing => false,
            Stage::Waiting | Stage::Answered => {
                let is_quiet = verdict == Verdict::Success && self.ignores_success(admission);
                if is_quiet {
                    admission.stage = Stage::Over;
                }
                is_quiet
            }
        }
    }

    #[inline(never)]
    fn settle_otherwise(&self, admission: &mut Admission, end: &End, now: Instant) {
        let stage = admission.stage;
        let mut says = Says::of(end, stage, |age| self.is_slow(age));
        // Before anything is changed: should it panic, the guard gives its place back.
        if says != Says::Nothing && self.common.ignores(end) {
            says = Says::Nothing;
        }
        if stage != Stage::Probing && says == Says::Nothing {
            admission.stage = Stage::Over;
            return;
        }
        if stage != Stage::Answered {
            admission.slow = self.is_slow(end.age);
        }
        self.change(|circuit| circuit.settle(admission, says, now));
    }

    #[inline]
    pub(crate) fn give_back(&self, admission: &mut Admission) {
        if admission.stage == Stage::Probing {
            self.change(|circuit| circuit.give_back(admission));
        }
    }

    /// Whether the good end of a request that is no probe would change nothing, as most do not.
    #[inline]
    fn ignores_success(&self, admission: &Admission) -> bool {
        match self.glance() {
            Glance::Closed {
                epoch,
                hears_success,
            } => !hears_success || epoch != admission.epoch,
            _ => false,
        }
    }

    /// Whether little is lost when it is forgotten.
    pub(crate) fn rests(&self, idle: bool, now: Instant) -> bool {
        self.look(|circuit| circuit.rests(idle, now))
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.look(|circuit| circuit.is_forced())
    }

    /// How many were refused, and how many would have been.
    pub(crate) fn refusals(&self) -> (u64, u64) {
        let (refused, shadowed) = (&self.refused, &self.shadowed);
        (
            refused.load(Ordering::Relaxed),
            shadowed.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn glance(&self) -> Glance {
        Glance::unpack(self.glance.load(Ordering::Acquire))
    }

    fn is_slow(&self, age: Duration) -> bool {
        age.as_nanos() >= self.late.load(Ordering::Relaxed).into()
    }

    fn nanos(&self, instant: Instant) -> u64 {
        let nanos = instant.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos).map_or(Glance::LAST, |nanos| nanos.min(Glance::LAST))
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.leave();
    }
}

fn late(circuit: &Circuit) -> u64 {
    u64::try_from(circuit.settings().slow_after.as_nanos()).unwrap_or(u64::MAX)
}
