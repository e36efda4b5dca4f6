//! Circuit breakers that are no layers, made services.

use std::{
    error::Error,
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use failsafe::{
    Any,
    futures::{CircuitBreaker, ResponseFuture},
};
use http::{Request, Response};
use http_body_util::Empty;
use recloser::{AnyError, AsyncRecloser, RecloserFuture};
use tower::Service;

/// Fails at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

impl<B> Service<Request<B>> for Broken {
    type Response = Response<Empty<Bytes>>;
    type Error = Self;
    type Future = Ready<Result<Self::Response, Self>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Err(Self))
    }
}

/// `recloser`, around a service that is always ready.
pub(crate) struct Recloser<S>(pub(crate) AsyncRecloser, pub(crate) S);

impl<S, R> Service<R> for Recloser<S>
where
    S: Service<R>,
{
    type Response = S::Response;
    type Error = recloser::Error<S::Error>;
    type Future = RecloserFuture<S::Future, AnyError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.1.poll_ready(cx).map_err(recloser::Error::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.0.call(self.1.call(request))
    }
}

/// `failsafe`, around a service that is always ready.
pub(crate) struct Failsafe<C, S>(pub(crate) C, pub(crate) S);

impl<C, S, R> Service<R> for Failsafe<C, S>
where
    C: CircuitBreaker,
    S: Service<R>,
{
    type Response = S::Response;
    type Error = failsafe::Error<S::Error>;
    type Future = ResponseFuture<S::Future, C::FailurePolicy, C::Instrument, Any>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.1.poll_ready(cx).map_err(failsafe::Error::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.0.call(self.1.call(request))
    }
}
