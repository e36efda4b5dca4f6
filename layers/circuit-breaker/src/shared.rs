//! The circuit behind its lock, and what is known without taking it.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::{OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use palisade_core::{gate::Outlook, settle::End, time};
use tokio::time::Instant;

use crate::{
    CircuitOpen,
    circuit::{Admission, Circuit, Says, Stage},
    glance::Glance,
    metrics::Meters,
    sync::{AtomicU64, Mutex},
    tally::Tally,
};

#[cfg(test)]
#[cfg(loom)]
mod interleavings;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

const DEFAULT_NAME: &str = "circuit_breaker";

#[derive(Debug)]
pub(crate) struct Shared {
    circuit: Mutex<Circuit>,
    /// The [`Glance`] at the circuit after its last change.
    glance: AtomicU64,
    origin: Instant,
    name: OnceLock<Cow<'static, str>>,
    meters: Meters,
}

impl Shared {
    pub(crate) fn new(tally: Tally, cooldown: Duration) -> Self {
        let origin = time::now();
        let seed = RandomState::new().hash_one(origin);
        let circuit = Circuit::new(tally, cooldown, seed);
        Self {
            // Nothing in a new circuit has a time.
            glance: AtomicU64::new(circuit.glance(|_| 0).pack()),
            circuit: Mutex::new(circuit),
            origin,
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

    /// Sets parameters, which nobody sees from outside.
    pub(crate) fn configure(&self, act: impl FnOnce(&mut Circuit)) {
        self.look(act);
    }

    pub(crate) fn look<T>(&self, act: impl FnOnce(&mut Circuit) -> T) -> T {
        // No user code runs in a circuit, so a poisoned one is still a whole one.
        act(&mut self.circuit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut Circuit) -> T) -> T {
        self.look(|circuit| {
            self.meters.register(|| self.name(), circuit.state());
            let before = circuit.state();
            let done = act(circuit);
            let glance = circuit.glance(|instant| self.nanos(instant));
            self.glance.store(glance.pack(), Ordering::Release);
            // Under the lock, so that the last one written is the last one entered.
            self.meters.enter(before, circuit.state());
            done
        })
    }

    #[inline]
    pub(crate) fn admit(&self, now: Instant) -> Result<Admission, CircuitOpen> {
        if !self.meters.are_registered() {
            self.change(|_| ());
        }
        let admitted = match self.glance() {
            // The epoch tells should the circuit change right now.
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
        if admitted.is_err() {
            self.meters.refuse();
        }
        admitted
    }

    pub(crate) fn outlook(&self, now: Instant) -> Outlook {
        match self.glance() {
            Glance::Closed { .. } => Outlook::Admits,
            Glance::ForcedOpen => Outlook::Held,
            Glance::Open { until } if self.nanos(now) < until => Outlook::Refuses {
                until: Some(self.instant(until)),
            },
            Glance::Full { until } if self.nanos(now) < until => Outlook::Refuses { until: None },
            Glance::Room | Glance::Full { .. } | Glance::Open { .. } => Outlook::Probes,
        }
    }

    #[inline]
    pub(crate) fn first_data(&self, admission: &mut Admission) {
        if admission.stage == Stage::Probing {
            self.change(|circuit| circuit.first_data(admission));
        } else if admission.stage == Stage::Waiting {
            admission.stage = Stage::Answered;
        }
    }

    #[inline]
    pub(crate) fn settle(&self, admission: &mut Admission, end: &End, now: Instant) {
        let says = Says::of(end, admission.stage);
        if admission.stage != Stage::Probing && self.ignores(admission, says) {
            admission.stage = Stage::Over;
            return;
        }
        self.change(|circuit| circuit.settle(admission, says, now));
    }

    #[inline]
    pub(crate) fn give_back(&self, admission: &mut Admission) {
        if admission.stage == Stage::Probing {
            self.change(|circuit| circuit.give_back(admission));
        }
    }

    /// Whether what a request that is no probe says would change nothing, as most of what is said.
    fn ignores(&self, admission: &Admission, says: Says) -> bool {
        match (says, self.glance()) {
            (Says::Nothing, _) => true,
            (
                Says::Well,
                Glance::Closed {
                    epoch,
                    hears_success,
                },
            ) => !hears_success || epoch != admission.epoch,
            _ => false,
        }
    }

    fn glance(&self) -> Glance {
        Glance::unpack(self.glance.load(Ordering::Acquire))
    }

    fn nanos(&self, instant: Instant) -> u64 {
        let nanos = instant.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos).map_or(Glance::LAST, |nanos| nanos.min(Glance::LAST))
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }
}
