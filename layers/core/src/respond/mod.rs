//! Turning errors into responses, so that the stack above never fails.

mod answer;
mod body;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::Full;
use pin_project::pin_project;
use tower_layer::{Layer, Stack};
use tower_service::Service;

pub use self::body::RespondBody;
use self::{answer::Answer, body::Event};
use crate::{BoxError, head::RequestHead};

/// Answers errors in the words that the caller understands, also those that come when an answer has begun.
///
/// A body of `text/event-stream` that fails is ended with one more event, `event: error` with the error object as its
/// data and an empty line before it if another event was not over; a gRPC stream is ended with trailers that carry the
/// status. Whatever else fails stays an error, for a body that is cut short must not look whole: so does an event
/// stream that has said its length or its encoding, and gRPC-Web. The body that has failed is dropped before its
/// reader hears so.
///
/// What was sent cannot be taken back: a reader gets the half of an event that came before the failure, whose data may be
/// cut off, as an event of its own. And nothing happens to a body that nobody polls.
#[derive(Clone, Copy, Debug)]
pub struct RespondLayer(());

impl RespondLayer {
    /// Chooses by the request: gRPC for `application/grpc`, OpenAI's error object below `/v1`, RFC 9457
    /// problem details for all else.
    pub fn auto() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Respond {
            inner,
            broken: None,
        }
    }
}

/// The answer that [`RespondLayer`] gives to this request for this error: for servers that answer by hand.
///
/// ```
/// use palisade_core::{reject::{Reason, Rejected}, respond};
///
/// let request = http::Request::builder().uri("/v1/models").body(())?;
/// let full = Rejected::new(Reason::Overloaded, "no room");
/// let answer = respond::answer(&(&request).into(), &full);
/// assert_eq!(answer.status(), 503);
/// assert_eq!(answer.headers()["content-type"], "application/json");
/// # Ok::<(), http::Error>(())
/// ```
pub fn answer(head: &RequestHead<'_>, error: &(dyn Error + 'static)) -> Response<Full<Bytes>> {
    Answer::to(head).error(error)
}

/// The event with which [`RespondLayer`] ends a stream of events that fails for this error, without an empty line before
/// it: for servers that relay streams by hand.
///
/// ```
/// use palisade_core::{reject::{Reason, Rejected}, respond};
///
/// let request = http::Request::builder().uri("/v1/chat/completions").body(())?;
/// let late = Rejected::new(Reason::TimedOut, "no data after 5s");
/// let event = respond::event(&(&request).into(), &late);
/// assert!(event.starts_with(r#"event: error
/// data: {"error":{"message":"no data after 5s","type":"server_error","#));
/// assert!(event.ends_with("\n\n"));
/// # Ok::<(), http::Error>(())
/// ```
pub fn event(head: &RequestHead<'_>, error: &(dyn Error + 'static)) -> String {
    Event(&Answer::to(head).event(error)).to_string()
}

/// The answer of a gRPC service that ends a call with a status and no message: HTTP 200, trailers-only.
///
/// ```
/// use palisade_core::respond;
///
/// let answer = respond::grpc_status(14, "out for lunch, 100 %");
/// assert_eq!(answer.headers()["grpc-status"], "14");
/// assert_eq!(answer.headers()["grpc-message"], "out for lunch, 100 %25");
/// ```
pub fn grpc_status(code: u8, message: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer::grpc_status(headers, code, message);
    response
}

/// Lets one layer stand alone where a service must not fail.
pub trait LayerExt: Sized {
    /// Answers this layer's rejections, as axum's `Router::layer` asks for.
    fn responding(self) -> Stack<Self, RespondLayer> {
        Stack::new(self, RespondLayer::auto())
    }
}

impl<L> LayerExt for L {}

/// Answers errors in the words that the caller understands.
#[derive(Debug)]
pub struct Respond<S> {
    inner: S,
    /// Why the inner service will never be ready again.
    broken: Option<BoxError>,
}

impl<S: Clone> Clone for Respond<S> {
    fn clone(&self) -> Self {
        // A clone asks for readiness itself.
        Self {
            inner: self.inner.clone(),
            broken: None,
        }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Respond<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
    ResBody: Body,
{
    type Response = Response<RespondBody<ResBody>>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.broken.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.broken = Some(error.into());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let answer = Answer::to(&RequestHead::from(&request));
        let state = match &self.broken {
            Some(error) => State::Answered {
                response: Some(answer.error(&**error)),
            },
            None => State::Called {
                inner: self.inner.call(request),
                answer,
            },
        };
        RespondFuture { state }
    }
}

/// The future of [`Respond`].
#[pin_project]
#[derive(Debug)]
pub struct RespondFuture<F> {
    #[pin]
    state: State<F>,
}

#[pin_project(project = StateProj)]
#[derive(Debug)]
enum State<F> {
    Called {
        #[pin]
        inner: F,
        answer: Answer,
    },
    Answered {
        response: Option<Response<Full<Bytes>>>,
    },
}

impl<F, B, E> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body,
{
    type Output = Result<Response<RespondBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match self.project().state.project() {
            StateProj::Called { inner, answer } => match ready!(inner.poll(cx)) {
                Ok(response) => RespondBody::service(response, *answer),
                Err(error) => RespondBody::answer(answer.error(&*error.into())),
            },
            StateProj::Answered { response } => {
                let response = response.take().expect("polled after completion");
                RespondBody::answer(response)
            }
        };
        Poll::Ready(Ok(response))
    }
}
