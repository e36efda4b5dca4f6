use std::{sync::Arc, time::Duration};

use palisade_core::time;

use crate::{CircuitState, shared::Shared};

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
    /// Failures counted, in a row or in the window.
    pub failures: u32,
    /// The calls that they were counted among: as many for a row.
    pub calls: u32,
    /// How often the circuit has opened by itself.
    pub opened_total: u64,
    /// Until the next request passes as a probe: zero when one would now, `None` when that depends on the probes that
    /// are out, and while the circuit is closed or forced.
    pub next_probe_in: Option<Duration>,
    /// Somebody has said so, and nothing that is counted changes it.
    pub forced: bool,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The name that the circuit was given, `circuit_breaker` if none.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// The circuit as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let now = time::now();
        self.shared.look(|circuit| Snapshot {
            state: circuit.state(),
            failures: circuit.tally.failures(),
            calls: circuit.tally.calls(),
            opened_total: circuit.opened(),
            next_probe_in: circuit.next_probe_in(now),
            forced: circuit.is_forced(),
        })
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
