//! A request that was not over in time, or could not have been.

use std::{error::Error, fmt, time::Duration};

use palisade_core::reject::{Reason, Rejected};

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elapsed {
    /// The limit that was reached.
    pub limit: Limit,
    /// How long that is: since the call, for [`Limit::Idle`] since the answer fell silent, for [`Limit::Connect`] since
    /// it was begun. Zero when the service was not called.
    pub after: Duration,
    /// What had not come by then.
    pub awaited: Awaited,
}

/// What limits a request. Of several that are reached at the same instant, the first in this order speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// The time that a connection may take.
    Connect,
    /// The time up to the first data of the answer.
    FirstByte,
    /// The time that the answer may be silent once it has begun.
    Idle,
    /// The time for a whole attempt.
    Total,
    /// The deadline of the request.
    Deadline,
}

impl Limit {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::Idle => "idle",
            Self::Total => "total",
            Self::Deadline => "deadline",
        }
    }
}

/// What a request was waiting for when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Awaited {
    /// To be sent at all: the deadline had passed before the service was called.
    Call,
    /// A connection.
    Connection,
    /// The head of the answer.
    Head,
    /// The first data of the answer.
    FirstData,
    /// More data of the answer.
    Data,
    /// The end of the answer.
    End,
}

impl Elapsed {
    /// Finds the timeout in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source())
            .find_map(|error| error.downcast_ref())
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.after;
        match self.awaited {
            Awaited::Call => f.write_str("deadline passed before the call"),
            Awaited::Connection => write!(f, "no connection after {after:?}"),
            Awaited::Head => write!(f, "no answer after {after:?}"),
            Awaited::FirstData => write!(f, "no data after {after:?}"),
            Awaited::Data => write!(f, "no more data for {after:?}"),
            Awaited::End => write!(f, "answer not complete after {after:?}"),
        }
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for Rejected {
    fn from(error: Elapsed) -> Self {
        let reason = match error.awaited {
            Awaited::Call => Reason::DeadlineExceeded,
            _ => Reason::TimedOut,
        };
        Self::new(reason, error)
    }
}

/// Less time is left than the service needs for half of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hopeless {
    /// What was left of the deadline.
    pub remaining: Duration,
    /// What half of the requests of late have taken.
    pub median: Duration,
}

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { remaining, median } = self;
        write!(f, "{remaining:?} left for what mostly takes {median:?}")
    }
}

impl Error for Hopeless {}

impl From<Hopeless> for Rejected {
    fn from(error: Hopeless) -> Self {
        Self::new(Reason::DeadlineExceeded, error)
    }
}
