//! A delay that one backend asks for is about that backend: while there is another, nobody has to wait.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderName, Request, Response, StatusCode,
    header::{Entry, RETRY_AFTER},
};
use tower::Service;

use crate::stack::Endpoints;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Where the delay is kept meanwhile.
const SET_ASIDE: HeaderName = HeaderName::from_static("palisade-retry-after");

/// Between retry and the balancer: sets `Retry-After` aside while there is another endpoint to try.
///
/// The balancer and the breakers below have seen it.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere<S> {
    inner: S,
    endpoints: Endpoints,
}

impl<S> Elsewhere<S> {
    pub(crate) fn new(inner: S, endpoints: Endpoints) -> Self {
        Self { inner, endpoints }
    }
}

impl<S, R, B> Service<Request<R>> for Elsewhere<S>
where
    S: Service<Request<R>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ElsewhereFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        ElsewhereFuture {
            inner: Box::pin(self.inner.call(request)),
            endpoints: self.endpoints.clone(),
        }
    }
}

pub(crate) struct ElsewhereFuture<F> {
    /// Boxed: each of the layers around would otherwise move an attempt while it makes its own future of it.
    inner: Pin<Box<F>>,
    endpoints: Endpoints,
}

impl<F, B, E> Future for ElsewhereFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let mut answer = ready!(this.inner.as_mut().poll(cx));
        if let Ok(response) = &mut answer
            && is_of_one_backend(response.status())
            && this.endpoints.len() > 1
        {
            set_aside(response.headers_mut());
        }
        Poll::Ready(answer)
    }
}

/// Whether another backend may well have room: what else comes with a delay is about the request.
fn is_of_one_backend(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    )
}

fn set_aside(headers: &mut HeaderMap) {
    headers.remove(RETRY_AFTER_MS);
    if let Some(delay) = headers.remove(RETRY_AFTER) {
        headers.insert(SET_ASIDE, delay);
    }
}

/// Whether a delay was set aside.
pub(crate) fn is_set_aside(headers: &HeaderMap) -> bool {
    headers.contains_key(SET_ASIDE)
}

/// Puts the delay back: what there was to try has been tried.
pub(crate) fn put_back(headers: &mut HeaderMap) {
    if let Some(delay) = headers.remove(SET_ASIDE)
        && let Entry::Vacant(place) = headers.entry(RETRY_AFTER)
    {
        place.insert(delay);
    }
}
