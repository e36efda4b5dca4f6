use std::{error::Error, fmt, time::Duration};

use palisade_core::reject::{Reason, Rejected};

/// The circuit is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitOpen {
    /// Until a probe may pass; unknown while one is out, and while the circuit is forced open.
    pub remaining: Option<Duration>,
}

impl CircuitOpen {
    pub(crate) fn until(remaining: Duration) -> Self {
        Self {
            remaining: Some(remaining),
        }
    }

    pub(crate) fn for_now() -> Self {
        Self { remaining: None }
    }
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remaining {
            Some(remaining) => write!(f, "circuit open for another {remaining:.1?}"),
            None => f.write_str("circuit open"),
        }
    }
}

impl Error for CircuitOpen {}

impl From<CircuitOpen> for Rejected {
    fn from(error: CircuitOpen) -> Self {
        let rejected = Self::new(Reason::CircuitOpen, error);
        match error.remaining {
            Some(remaining) => rejected.retry_after(remaining),
            None => rejected,
        }
    }
}
