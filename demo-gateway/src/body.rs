//! The body of an answer of the gateway.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use palisade::BoxError;
use pin_project::pin_project;
use serde::Serialize;

use crate::{api::openai::Farewell, errors, sse::Relay, stack::PipelineBody};

/// The body of an answer of the gateway.
#[pin_project(project = BodyProj)]
pub(crate) enum Body {
    /// Here as a whole.
    Full(#[pin] Full<Bytes>),
    /// As it comes from the layers.
    Passed(#[pin] PipelineBody),
    /// A stream of events.
    Events(#[pin] Relay<PipelineBody, Farewell>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            BodyProj::Full(body) => body.poll_frame(cx).map_err(|never| match never {}),
            BodyProj::Passed(body) => body.poll_frame(cx),
            BodyProj::Events(body) => body.poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Passed(body) => body.is_end_stream(),
            Self::Events(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Passed(body) => body.size_hint(),
            // Events come and go on their way.
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer of the gateway, as axum takes it.
pub(crate) type Answer = Response<Body>;

/// An answer that is here as a whole.
pub(crate) fn full(response: Response<Full<Bytes>>) -> Answer {
    response.map(Body::Full)
}

/// 200 with JSON.
pub(crate) fn json(value: &impl Serialize) -> Answer {
    text("application/json", errors::json(value))
}

/// 200 with text of some kind.
pub(crate) fn text(kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Body::Full(Full::new(text.into())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
