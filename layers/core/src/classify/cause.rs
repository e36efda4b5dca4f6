//! What the error types of clients say.

use std::{error::Error, fmt, io};

use super::Verdict;
use crate::BoxError;
#[cfg(feature = "tonic")]
use crate::reject::chain;

/// An error that came before any byte of the request was sent: judged [`Verdict::Unsent`], whatever caused it.
///
/// For connectors that fail in their own words. [`source`](Error::source) is what caused it.
///
/// ```
/// use palisade_core::classify::{Unsent, Verdict};
///
/// assert_eq!(Verdict::of(&Unsent::new("no route")), Verdict::Unsent);
/// ```
#[derive(Debug)]
pub struct Unsent(BoxError);

impl Unsent {
    /// Says of an error that nothing was sent.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("request not sent")
    }
}

impl Error for Unsent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// The verdict of one error in a chain, if it is of a type that says something.
pub(super) fn verdict(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if error.is::<Unsent>() {
        return Some(Verdict::Unsent);
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return io(error);
    }
    #[cfg(feature = "tonic")]
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        return grpc(status);
    }
    #[cfg(feature = "tonic")]
    if error.is::<tonic::TimeoutExpired>() {
        return Some(Verdict::TimedOut);
    }
    #[cfg(feature = "hyper")]
    if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
        // A timeout while connecting is unsent too: it must be found before the cause is asked.
        return error.is_connect().then_some(Verdict::Unsent);
    }
    #[cfg(feature = "hyper")]
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        // The connection closed before the request was taken from the queue.
        return error.is_canceled().then_some(Verdict::Unsent);
    }
    #[cfg(feature = "reqwest")]
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return match error {
            error if error.is_connect() => Some(Verdict::Unsent),
            error if error.is_timeout() => Some(Verdict::TimedOut),
            _ => None,
        };
    }
    #[cfg(feature = "h2")]
    if let Some(error) = error.downcast_ref::<h2::Error>() {
        // The server says that it has not looked at the request.
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone =
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        return (refused || gone).then_some(Verdict::Unsent);
    }
    None
}

fn io(error: &io::Error) -> Option<Verdict> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => Some(Verdict::Unsent),
        io::ErrorKind::TimedOut => Some(Verdict::TimedOut),
        // An error may wrap another that says more.
        _ => None,
    }
}

#[cfg(feature = "tonic")]
fn grpc(status: &tonic::Status) -> Option<Verdict> {
    use tonic::Code;

    match status.code() {
        Code::Ok => Some(Verdict::Success),
        // A channel that obeys `grpc-timeout` says so when the time is over.
        Code::Cancelled if chain(status).any(|cause| cause.is::<tonic::TimeoutExpired>()) => {
            Some(Verdict::TimedOut)
        }
        Code::Cancelled => Some(Verdict::Canceled),
        Code::DeadlineExceeded => Some(Verdict::TimedOut),
        Code::ResourceExhausted => Some(Verdict::Overload { retry_after: None }),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unauthenticated => Some(Verdict::CallerFault),
        // Made from a broken connection, whose own error is further down the chain.
        Code::Unknown | Code::Unavailable | Code::Internal => None,
        Code::Aborted | Code::Unimplemented | Code::DataLoss => Some(Verdict::Failure),
    }
}

#[cfg(all(test, feature = "tonic"))]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_obeyed_grpc_timeout_was_not_canceled_by_its_caller() {
        let expired = tonic::TimeoutExpired(());
        assert_eq!(Verdict::of(&expired), Verdict::TimedOut);
        let status = tonic::Status::from_error(Box::new(expired));
        assert_eq!(status.code(), tonic::Code::Cancelled);
        assert_eq!(Verdict::of(&status), Verdict::TimedOut);
        let left = tonic::Status::cancelled("by the caller");
        assert_eq!(Verdict::of(&left), Verdict::Canceled);
    }
}
