use http::{HeaderMap, StatusCode};

use super::{Classify, Http, Judge, Verdict};
use crate::{
    head::{RequestHead, ResponseHead},
    retry_after::{Pushback, pushback},
};

/// Judges gRPC by `grpc-status`, in the trailers or in the head of an answer without a body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

impl Classify for Grpc {
    type Judge = GrpcJudge;

    fn start(&self, _: &RequestHead<'_>) -> GrpcJudge {
        GrpcJudge
    }
}

/// The judge of [`Grpc`].
#[derive(Clone, Copy, Debug)]
pub struct GrpcJudge;

impl Judge for GrpcJudge {
    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        if head.status != StatusCode::OK {
            // A proxy answered: it does not speak gRPC.
            return Http.head(head);
        }
        by_status(head.headers)
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Verdict {
        // A call without a status was cut off.
        trailers.and_then(by_status).unwrap_or(Verdict::Failure)
    }
}

fn by_status(headers: &HeaderMap) -> Option<Verdict> {
    let status = headers.get("grpc-status")?.to_str().ok();
    let retry_after = pushback(headers).and_then(Pushback::delay);
    Some(match status.and_then(|status| status.parse::<u8>().ok()) {
        Some(0) => Verdict::Success,
        Some(1) => Verdict::Canceled,
        // INVALID_ARGUMENT to PERMISSION_DENIED, FAILED_PRECONDITION, OUT_OF_RANGE, UNAUTHENTICATED.
        Some(3 | 5 | 6 | 7 | 9 | 11 | 16) => Verdict::CallerFault,
        Some(4) => Verdict::TimedOut,
        Some(8) => Verdict::Overload { retry_after },
        // UNAVAILABLE is also what a broken connection looks like.
        Some(14) if retry_after.is_some() => Verdict::Overload { retry_after },
        _ => Verdict::Failure,
    })
}
