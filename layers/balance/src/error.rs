use std::{error::Error, fmt, time::Duration};

use palisade_core::reject::{Reason, Rejected};

/// No endpoint could be picked in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEndpoint {
    /// When one may be back, if that is known.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no endpoint may be picked")
    }
}

impl Error for NoEndpoint {}

impl From<NoEndpoint> for Rejected {
    fn from(error: NoEndpoint) -> Self {
        let rejected = Self::new(Reason::NoEndpoint, error);
        match error.retry_after {
            Some(delay) => rejected.retry_after(delay),
            None => rejected,
        }
    }
}
