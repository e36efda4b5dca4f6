//! What the error types of clients say.

use std::{error::Error, io};

use super::Verdict;

/// The verdict of one error in a chain, if it is of a type that says something.
pub(super) fn verdict(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return io(error);
    }
    #[cfg(feature = "tonic")]
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        return grpc(status);
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
