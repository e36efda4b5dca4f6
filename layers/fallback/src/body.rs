use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, peek::PeekedBody};
use pin_project::pin_project;

/// The response body of a service that has alternatives: that of whoever has served.
#[pin_project]
pub struct FallbackBody<R> {
    #[pin]
    kind: Kind<R>,
}

#[pin_project(project = KindProj)]
enum Kind<R> {
    First(#[pin] PeekedBody<R>),
    Another(Another),
}

/// The body of an alternative.
pub(crate) enum Another {
    /// Boxed, so that services of all types go into one chain.
    Service(PeekedBody<BoxBody>),
    Given(Given),
}

/// The body of a service among the alternatives.
pub(crate) type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// What is there from the start.
pub(crate) struct Given {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Given {
    pub(crate) fn new(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        let data = Some(data).filter(|data| !data.is_empty());
        Self { data, trailers }
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        let data = self.data.take().map(Frame::data);
        data.or_else(|| self.trailers.take().map(Frame::trailers))
    }

    fn is_over(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let size = self.data.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(size as u64)
    }
}

impl<R> FallbackBody<R> {
    pub(crate) fn first(body: PeekedBody<R>) -> Self {
        let kind = Kind::First(body);
        Self { kind }
    }

    pub(crate) fn another(body: Another) -> Self {
        let kind = Kind::Another(body);
        Self { kind }
    }
}

impl<R> Body for FallbackBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::First(body) => body.poll_frame(cx),
            KindProj::Another(Another::Service(body)) => Pin::new(body).poll_frame(cx),
            KindProj::Another(Another::Given(given)) => Poll::Ready(given.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::First(body) => body.is_end_stream(),
            Kind::Another(Another::Service(body)) => body.is_end_stream(),
            Kind::Another(Another::Given(given)) => given.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::First(body) => body.size_hint(),
            Kind::Another(Another::Service(body)) => body.size_hint(),
            Kind::Another(Another::Given(given)) => given.size_hint(),
        }
    }
}

impl<R> fmt::Debug for FallbackBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::First(_) => "first",
            Kind::Another(Another::Service(_)) => "another service",
            Kind::Another(Another::Given(_)) => "given",
        };
        f.debug_tuple("FallbackBody").field(&kind).finish()
    }
}
