use http::{HeaderMap, StatusCode};

use super::{Classify, Judge, Verdict};
use crate::{
    head::{RequestHead, ResponseHead},
    retry_after::retry_after,
    time::wall_clock,
};

/// Judges plain HTTP: 429 and 503 are overload, other 5xx a failure, other 4xx the caller's fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

impl Classify for Http {
    type Judge = Self;

    fn start(&self, _: &RequestHead<'_>) -> Self {
        Self
    }
}

impl Judge for Http {
    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        match head.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some(Verdict::Overload {
                    retry_after: retry_after(head.headers, wall_clock()),
                })
            }
            status if status.is_server_error() => Some(Verdict::Failure),
            status if status.is_client_error() => Some(Verdict::CallerFault),
            // A 200 only says that the body has started.
            _ => None,
        }
    }

    fn end(&mut self, _: Option<&HeaderMap>) -> Verdict {
        Verdict::Success
    }
}

/// Judges by a closure over the head; what it leaves open is a success once the body has ended.
impl<F> Classify for F
where
    F: Fn(&ResponseHead<'_>) -> Option<Verdict> + Clone + Send + Sync + 'static,
{
    type Judge = ByHead<F>;

    fn start(&self, _: &RequestHead<'_>) -> ByHead<F> {
        ByHead(self.clone())
    }
}

/// The judge of a closure.
#[derive(Clone, Copy, Debug)]
pub struct ByHead<F>(F);

impl<F: Fn(&ResponseHead<'_>) -> Option<Verdict>> Judge for ByHead<F> {
    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        (self.0)(head)
    }

    fn end(&mut self, _: Option<&HeaderMap>) -> Verdict {
        Verdict::Success
    }
}
