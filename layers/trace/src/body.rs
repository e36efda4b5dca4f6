use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, classify::Judge, settle::ResponseBody};
use pin_project::{pin_project, pinned_drop};

use crate::guard::{Guard, Traced};

/// The body of [`Trace`](crate::Trace)'s answers. The span ends with it.
#[pin_project(PinnedDrop)]
pub struct TraceBody<B, J: Judge> {
    #[pin]
    source: Source<B, J>,
    /// Until it has ended.
    traced: Option<Arc<Traced>>,
}

#[pin_project(project = SourceProj)]
enum Source<B, J: Judge> {
    Off {
        #[pin]
        inner: B,
    },
    On {
        #[pin]
        inner: ResponseBody<B, Guard, J>,
    },
    /// It has ended.
    Gone,
}

impl<B, J: Judge> TraceBody<B, J> {
    pub(crate) fn off(inner: B) -> Self {
        Self {
            source: Source::Off { inner },
            traced: None,
        }
    }
}

impl<B, J> TraceBody<B, J>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    J: Judge,
{
    /// Expects to be called inside of the span.
    pub(crate) fn on(inner: ResponseBody<B, Guard, J>, traced: Arc<Traced>) -> Self {
        if inner.is_end_stream() {
            return Self {
                source: Source::Gone,
                traced: None,
            };
        }
        Self {
            source: Source::On { inner },
            traced: Some(traced),
        }
    }
}

impl<B, J> Body for TraceBody<B, J>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    J: Judge,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let mut inner = match this.source.as_mut().project() {
            SourceProj::Off { inner } => return inner.poll_frame(cx).map_err(Into::into),
            SourceProj::On { inner } => inner,
            SourceProj::Gone => return Poll::Ready(None),
        };
        let entered = this.traced.as_ref().map(|traced| traced.span.enter());
        let frame = ready!(inner.as_mut().poll_frame(cx));
        let goes_on = match &frame {
            Some(Ok(frame)) => !frame.is_trailers() && !inner.is_end_stream(),
            Some(Err(_)) | None => false,
        };
        if goes_on {
            return Poll::Ready(frame);
        }
        // Whoever still holds the body: the span ends now, and first what is inside of it.
        this.source.set(Source::Gone);
        drop(entered);
        *this.traced = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Off { inner } => inner.is_end_stream(),
            Source::On { inner } => inner.is_end_stream(),
            Source::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Off { inner } => inner.size_hint(),
            Source::On { inner } => inner.size_hint(),
            Source::Gone => SizeHint::with_exact(0),
        }
    }
}

#[pinned_drop]
impl<B, J: Judge> PinnedDrop for TraceBody<B, J> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Some(traced) = this.traced.take() {
            let _entered = traced.span.enter();
            this.source.set(Source::Gone);
        }
    }
}

impl<B, J: Judge> fmt::Debug for TraceBody<B, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceBody")
            .field("traced", &self.traced.is_some())
            .finish_non_exhaustive()
    }
}
