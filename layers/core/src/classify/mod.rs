//! Deciding what one attempt says about the service behind it.

mod cause;
mod grpc;
mod http;
mod sse;

use std::{error::Error, time::Duration};

use ::http::HeaderMap;

pub use self::{
    cause::Unsent,
    grpc::{Grpc, GrpcJudge},
    http::{ByHead, Http},
    sse::{Sse, SseJudge},
};
use crate::{
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected, chain},
};

/// What one attempt says about the service behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The service did its work.
    Success,
    /// The service is to blame.
    Failure,
    /// The service has more work than it can take.
    Overload {
        /// How long the service asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The caller is to blame; the service is fine.
    CallerFault,
    /// The service did not answer in time.
    TimedOut,
    /// The service was not reached: no byte of the request was sent.
    Unsent,
    /// A layer further in refused the request, so the service never saw it.
    Refused(Reason),
    /// The caller left before the end, so nobody knows.
    Canceled,
}

impl Verdict {
    /// Judges an error by its type, and by the types of what caused it.
    ///
    /// What palisade refused itself never counts against a service. That no byte was sent is found in errors of
    /// `std::io`, and with the features of those names in errors of `hyper`, `h2`, `tonic` and `reqwest`.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        if let Some(rejected) = Rejected::find(error) {
            return match rejected.reason() {
                Reason::TimedOut => Self::TimedOut,
                reason => Self::Refused(reason),
            };
        }
        chain(error)
            .find_map(cause::verdict)
            .unwrap_or(Self::Failure)
    }

    /// The name in metrics: one of eight.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Overload { .. } => "overload",
            Self::CallerFault => "caller_fault",
            Self::TimedOut => "timed_out",
            Self::Unsent => "unsent",
            Self::Refused(_) => "refused",
            Self::Canceled => "canceled",
        }
    }
}

/// The tokens that a language model read and wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens of the completion.
    pub completion: u64,
}

/// Judges attempts. Every layer that reacts to how they end takes one of these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not judge attempts",
    note = "use `Http`, `Grpc`, `Sse` or a closure `|head: &ResponseHead<'_>| -> Option<Verdict>`"
)]
pub trait Classify: Clone + Send + Sync + 'static {
    /// Judges one answer.
    type Judge: Judge;

    /// Starts judging the answer to this request.
    fn start(&self, head: &RequestHead<'_>) -> Self::Judge;
}

/// Judges one answer, piece by piece. It is dropped as soon as it has reached a verdict.
pub trait Judge {
    /// Whether [`data`](Self::data) wants to see the body.
    const READS_DATA: bool = false;

    /// Judges by the head, or waits.
    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict>;

    /// Judges by a piece of the body, or waits.
    fn data(&mut self, _data: &[u8]) -> Option<Verdict> {
        None
    }

    /// Whether the data so far belong to the answer: a comment that keeps the connection open does not.
    fn begun(&self) -> bool {
        true
    }

    /// Judges by the end of the body.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> Verdict;

    /// Judges an error of the service or of its body.
    fn error(&mut self, error: &(dyn Error + 'static)) -> Verdict {
        Verdict::of(error)
    }

    /// Pieces of the answer so far: events of a stream that carry text, of about a token each.
    ///
    /// Never fewer than before. Counted while the answer comes, where [`usage`](Self::usage) is mostly told at its end.
    fn streamed(&self) -> u64 {
        0
    }

    /// The tokens used so far, if the answer has said so.
    fn usage(&self) -> Option<Usage> {
        None
    }
}
