use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project::pin_project;

use crate::{
    cut::{Cut, Next},
    fault::reset,
};

/// The response body of a service with faults: as the service sent it, unless one strikes.
#[pin_project]
pub struct ChaosBody<B> {
    #[pin]
    source: Source<B>,
    cut: Option<Box<Cut>>,
}

#[pin_project(project = SourceProj)]
enum Source<B> {
    Service(#[pin] B),
    /// Of an answer that the service did not give, or over.
    Made(Option<Bytes>),
}

impl<B> ChaosBody<B> {
    pub(crate) fn service(body: B, cut: Option<Box<Cut>>) -> Self {
        let source = Source::Service(body);
        Self { source, cut }
    }

    pub(crate) fn made(data: Bytes) -> Self {
        let data = Some(data).filter(|data| !data.is_empty());
        let (source, cut) = (Source::Made(data), None);
        Self { source, cut }
    }
}

impl<B> Body for ChaosBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if let Some(cut) = this.cut {
            match ready!(cut.poll(cx)) {
                Next::Read => {}
                Next::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Next::Abort(injected) => {
                    // The service is let go at once.
                    this.source.set(Source::Made(None));
                    *this.cut = None;
                    return Poll::Ready(Some(Err(reset(injected).into())));
                }
            }
        }
        let frame = match this.source.project() {
            SourceProj::Service(body) => ready!(body.poll_frame(cx)),
            SourceProj::Made(data) => {
                return Poll::Ready(data.take().map(|data| Ok(Frame::data(data))));
            }
        };
        let frame = match (frame, this.cut) {
            (Some(Ok(frame)), Some(cut)) => frame.map_data(|data| cut.pass(data)),
            (Some(Ok(frame)), None) => frame,
            (Some(Err(error)), _) => return Poll::Ready(Some(Err(error.into()))),
            (None, _) => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let cut = self.cut.as_ref();
        !cut.is_some_and(|cut| cut.goes_on())
            && match &self.source {
                Source::Service(body) => body.is_end_stream(),
                Source::Made(data) => data.is_none(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            Source::Service(body) => body.size_hint(),
            Source::Made(data) => {
                let size = data.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(size as u64)
            }
        };
        let held = self.cut.as_ref().map_or(0, |cut| cut.held());
        let mut all = SizeHint::new();
        if let Some(upper) = rest.upper() {
            all.set_upper(upper.saturating_add(held));
        }
        all.set_lower(rest.lower().saturating_add(held));
        all
    }
}

impl<B> fmt::Debug for ChaosBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosBody")
            .field("cut", &self.cut.is_some())
            .finish_non_exhaustive()
    }
}
