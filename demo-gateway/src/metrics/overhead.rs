//! What the gateway itself takes of a request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use palisade::time;
use pin_project::pin_project;

use super::Meters;
use crate::record::Entry;

/// Records, when dropped, and for whoever hears of the request after that, how long a request took the gateway: to the head of its answer, less what backends and the
/// caller's body were waited for; and then whatever it works on the body. To wait for the next event of a stream, or
/// for a caller who reads slowly, takes the gateway nothing.
pub(crate) struct Overhead {
    meters: Arc<Meters>,
    entry: Arc<Entry>,
    /// Of its answer, once there is one.
    status: Option<StatusCode>,
    own: Duration,
}

impl Overhead {
    pub(crate) fn new(meters: Arc<Meters>, entry: Arc<Entry>) -> Self {
        Self {
            meters,
            entry,
            status: None,
            own: Duration::ZERO,
        }
    }

    /// There is an answer.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.own = self.to_now();
        self.status = Some(status);
    }

    fn to_now(&self) -> Duration {
        let taken = time::now().saturating_duration_since(self.entry.since());
        let exchange = self.entry.exchange();
        taken.saturating_sub(exchange.map_or(Duration::ZERO, |it| it.waited()))
    }
}

impl Drop for Overhead {
    fn drop(&mut self) {
        if let Some(exchange) = self.entry.exchange()
            // Each of a batch has one of its own.
            && !exchange.is_batch()
        {
            let own = match self.status {
                Some(_) => self.own,
                None => self.to_now(),
            };
            self.meters.overhead.record(own);
            self.entry.took(own);
        }
        if !self.entry.is_item() {
            self.meters.answers.count(self.status);
        }
    }
}

/// The body of an answer, the work on which is measured.
#[pin_project]
pub(crate) struct Measured<B> {
    // Dropped first: the body tells of the request, and what dropping it takes is not worth another look at the clock.
    overhead: Overhead,
    #[pin]
    body: B,
}

impl<B> Measured<B> {
    pub(crate) fn new(body: B, overhead: Overhead) -> Self {
        Self { body, overhead }
    }
}

impl<B> Body for Measured<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let since = time::now();
        let frame = this.body.poll_frame(cx);
        this.overhead.own += time::now().saturating_duration_since(since);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
