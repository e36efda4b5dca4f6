//! Turning errors into responses, so that the stack above never fails.

mod answer;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use pin_project::pin_project;
use tower_layer::{Layer, Stack};
use tower_service::Service;

use self::answer::Answer;
use crate::{BoxError, head::RequestHead};

/// Answers errors in the words that the caller understands.
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
{
    type Response = Response<Either<ResBody, Full<Bytes>>>;
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
{
    type Output = Result<Response<Either<B, Full<Bytes>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match self.project().state.project() {
            StateProj::Called { inner, answer } => match ready!(inner.poll(cx)) {
                Ok(response) => response.map(Either::Left),
                Err(error) => answer.error(&*error.into()).map(Either::Right),
            },
            StateProj::Answered { response } => {
                let response = response.take().expect("polled after completion");
                response.map(Either::Right)
            }
        };
        Poll::Ready(Ok(response))
    }
}
