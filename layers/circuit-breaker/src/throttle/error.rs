use std::{error::Error, fmt};

use palisade_core::reject::{Reason, Rejected};

/// A throttle has refused the request by chance: too many of those before it have failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttled {
    /// The share of requests that is refused now, 0 to 1.
    pub chance: f64,
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.chance * 100.0;
        write!(f, "throttled with {percent:.0} % of the requests")
    }
}

impl Error for Throttled {}

impl From<Throttled> for Rejected {
    fn from(error: Throttled) -> Self {
        Self::new(Reason::Overloaded, error)
    }
}
