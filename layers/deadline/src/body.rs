use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, time};
use pin_project::pin_project;

use crate::{
    limit::{Limit, Scope},
    timer::Timer,
};

/// A response body that fails when its time is over.
#[pin_project]
pub struct DeadlineBody<B> {
    /// `None` once it was late: what it holds is let go there and then.
    #[pin]
    inner: Option<B>,
    #[pin]
    timer: Timer,
    limit: Limit,
}

impl<B> DeadlineBody<B> {
    pub(crate) fn new(inner: B, limit: Limit) -> Self {
        Self {
            inner: Some(inner),
            timer: Timer::new(),
            limit,
        }
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let limit = this.limit;
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        match inner.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(at) = limit.at else {
                    return Poll::Ready(Some(Ok(frame)));
                };
                if limit.scope == Scope::FirstData && has_data(&frame) {
                    limit.at = None;
                    this.timer.stop();
                    return Poll::Ready(Some(Ok(frame)));
                }
                // What ends with this frame has ended, and only something later than the limit is late.
                if frame.is_trailers() || inner.is_end_stream() || time::now() <= at {
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
            Poll::Ready(end) => return Poll::Ready(end.map(|error| error.map_err(Into::into))),
            Poll::Pending => {
                let Some(at) = limit.at else {
                    return Poll::Pending;
                };
                ready!(this.timer.poll(cx, at));
            }
        }
        this.inner.set(None);
        Poll::Ready(Some(Err(limit.elapsed(limit.awaited()))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.as_ref();
        inner.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

fn has_data<D: bytes::Buf>(frame: &Frame<D>) -> bool {
    frame.data_ref().is_some_and(|data| data.has_remaining())
}

impl<B> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody")
            .field("late", &self.inner.is_none())
            .finish_non_exhaustive()
    }
}
