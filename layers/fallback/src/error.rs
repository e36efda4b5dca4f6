use std::{error::Error, fmt};

use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
};

/// No alternative of a layer has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchAlternative(pub(crate) String);

impl fmt::Display for NoSuchAlternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no alternative is named {:?}", self.0)
    }
}

impl Error for NoSuchAlternative {}

/// The deadline passed while an alternative was waited for, which was not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTime;

impl fmt::Display for OutOfTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline passed before the alternative was ready")
    }
}

impl Error for OutOfTime {}

impl From<OutOfTime> for Rejected {
    fn from(error: OutOfTime) -> Self {
        Self::new(Reason::DeadlineExceeded, error)
    }
}

impl OutOfTime {
    pub(crate) fn boxed(self) -> BoxError {
        Rejected::from(self).into()
    }
}
