//! A request that was not over in time.

use std::{error::Error, fmt, time::Duration};

use palisade_core::reject::{Reason, Rejected};

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elapsed {
    /// How much time there was since the call; zero when the service was not called.
    pub after: Duration,
    /// What had not come by then.
    pub awaited: Awaited,
}

/// What a request was waiting for when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Awaited {
    /// To be sent at all: the deadline had passed before the service was called.
    Call,
    /// The head of the answer.
    Head,
    /// The first data of the answer.
    FirstData,
    /// The end of the answer.
    End,
}

impl Elapsed {
    pub(crate) fn new(after: Duration, awaited: Awaited) -> Self {
        Self { after, awaited }
    }

    /// Finds the timeout in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source())
            .find_map(|error| error.downcast_ref())
    }

    pub(crate) fn reason(self) -> Reason {
        match self.awaited {
            Awaited::Call => Reason::DeadlineExceeded,
            Awaited::Head | Awaited::FirstData | Awaited::End => Reason::TimedOut,
        }
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.after;
        match self.awaited {
            Awaited::Call => f.write_str("deadline passed before the call"),
            Awaited::Head => write!(f, "no answer after {after:?}"),
            Awaited::FirstData => write!(f, "no data after {after:?}"),
            Awaited::End => write!(f, "answer not complete after {after:?}"),
        }
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for Rejected {
    fn from(error: Elapsed) -> Self {
        Self::new(error.reason(), error)
    }
}
