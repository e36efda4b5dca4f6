use std::sync::Arc;

use palisade_core::time;

use super::{ThrottleSettings, meter::accepted, shared::Shared};
use crate::Mode;

/// Looks at a throttle and steers it from outside. Clones are about the same throttle.
///
/// ```
/// use palisade_circuit_breaker::{Mode, Throttle};
///
/// let handle = Throttle::new().handle();
/// handle.set_mode(Mode::Shadow);
/// let snapshot = handle.snapshot();
/// assert_eq!((snapshot.mode, snapshot.chance), (Mode::Shadow, 0.0));
/// ```
#[derive(Clone, Debug)]
pub struct ThrottleHandle {
    shared: Arc<Shared>,
}

/// A throttle at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ThrottleSnapshot {
    /// Requests remembered, with those that were refused and without those that are under way.
    pub requests: u64,
    /// Of them, those that were accepted.
    pub accepted: u64,
    /// The share of requests that is refused, 0 to 1.
    pub chance: f64,
    /// Requests that were refused, ever.
    pub refused_total: u64,
    /// Requests that passed in shadow mode and would have been refused, ever.
    pub shadowed_total: u64,
    /// Whether it refuses.
    pub mode: Mode,
}

impl ThrottleHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The name that the throttle was given, `throttle` if none.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// The throttle as it is now.
    pub fn snapshot(&self) -> ThrottleSnapshot {
        let now = time::now();
        let (refused_total, shadowed_total) = self.shared.refusals();
        let mode = self.shared.mode();
        self.shared.meter(|meter| {
            let sums = meter.sums(now);
            ThrottleSnapshot {
                requests: sums.calls,
                accepted: accepted(sums),
                chance: meter.chance(now),
                refused_total,
                shadowed_total,
                mode,
            }
        })
    }

    /// The settings in use.
    pub fn settings(&self) -> ThrottleSettings {
        self.shared.meter(|meter| meter.settings().clone())
    }

    /// Goes by other settings from now on. What was counted is kept, as far as it is in the window.
    pub fn update(&self, settings: ThrottleSettings) {
        let now = time::now();
        self.shared.change(now, |meter| meter.update(settings, now));
    }

    /// Forgets all requests, and so refuses none for now. Those under way are heard.
    pub fn reset(&self) {
        self.shared.change(time::now(), |meter| meter.clear());
    }

    /// Refuses from now on, or only counts what it would refuse.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.set_mode(mode);
    }
}
