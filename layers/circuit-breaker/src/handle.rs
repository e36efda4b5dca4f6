use std::{sync::Arc, time::Duration};

use palisade_core::time;

use crate::{CircuitState, Mode, Saved, Settings, shared::Shared};

/// Looks at a circuit and steers it from outside. Clones are about the same circuit.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::{CircuitBreakerLayer, CircuitState};
///
/// let layer = CircuitBreakerLayer::consecutive(5, Duration::from_secs(10));
/// let handle = layer.handle();
/// handle.force_open();
/// assert_eq!(handle.snapshot().state, CircuitState::Open);
/// assert!(handle.snapshot().forced);
/// handle.release();
/// assert_eq!(handle.snapshot().state, CircuitState::Closed);
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// A circuit at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state, as the metrics tell it: open until a probe is sent, half-open until the probes have passed or one
    /// has failed.
    pub state: CircuitState,
    /// Failures counted, in the window or else in a row.
    pub failures: u32,
    /// The calls that they were counted among: as many for a row.
    pub calls: u32,
    /// Slow calls among them.
    pub slow_calls: u32,
    /// Failures in a row.
    pub in_a_row: u32,
    /// How often the circuit has opened by itself.
    pub opened_total: u64,
    /// Until the next request passes as a probe: zero when one would now, `None` when that depends on the probes that
    /// are out, and while the circuit is closed or forced.
    pub next_probe_in: Option<Duration>,
    /// Somebody has said so, and nothing that is counted changes it.
    pub forced: bool,
    /// Requests that were refused.
    pub refused_total: u64,
    /// Requests that passed in shadow mode and would have been refused.
    pub shadowed_total: u64,
    /// Whether it refuses.
    pub mode: Mode,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The name that the circuit was given, `circuit_breaker` if none.
    pub fn name(&self) -> &str {
        self.shared.common().name()
    }

    /// The circuit as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let now = time::now();
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (refused_total, shadowed_total) = self.shared.refusals();
        self.shared.look(|circuit| {
            let sums = circuit.tally().sums(now);
            Snapshot {
                state: circuit.state(),
                failures: number(sums.failures),
                calls: number(sums.calls),
                slow_calls: number(sums.slow),
                in_a_row: circuit.tally().in_a_row(),
                opened_total: circuit.opened(),
                next_probe_in: circuit.next_probe_in(now),
                forced: circuit.is_forced(),
                refused_total,
                shadowed_total,
                mode: self.shared.common().mode(),
            }
        })
    }

    /// The settings in use.
    pub fn settings(&self) -> Settings {
        self.shared.look(|circuit| circuit.settings().clone())
    }

    /// Goes by other settings: from the next call counted, the next opening and the next probe sent on.
    ///
    /// The state stays as it is, and so does what was counted: of a smaller window what fits, and nothing if a window
    /// of calls becomes one of time or the other way round.
    pub fn update(&self, settings: Settings) {
        self.shared
            .configure(|circuit| circuit.update(settings, time::now()));
    }

    /// Refuses from now on, or only counts what it would refuse. Of a keyed breaker, for all keys.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.common().set_mode(mode);
    }

    /// The circuit as it can be kept over a restart.
    pub fn save(&self) -> Saved {
        let now = time::now();
        self.shared.look(|circuit| circuit.save(now))
    }

    /// Makes it what was saved, whatever numbers that has: an open circuit stays open for what was left, up to twice
    /// its longest cool-down or 10 minutes. Requests that are under way are not heard.
    pub fn restore(&self, saved: &Saved) {
        let now = time::now();
        self.shared.change(|circuit| circuit.restore(saved, now));
    }

    /// Refuses every request until told otherwise.
    pub fn force_open(&self) {
        self.shared.change(|circuit| circuit.force_open());
    }

    /// Lets every request through, and counts none, until told otherwise.
    pub fn force_closed(&self) {
        self.shared.change(|circuit| circuit.force_closed());
    }

    /// Gives the decision back to the circuit, which starts closed and afresh, also if it was not forced.
    pub fn release(&self) {
        self.shared.change(|circuit| circuit.release());
    }
}
