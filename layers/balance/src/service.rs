use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Classify, Http},
    gate::Gate,
    reject::Rejected,
    settle::{ResponseBody, Watch},
    time,
};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{BalanceLayer, Call, Endpoints, choose::Choosing, wait::Wait};

/// Sends each request to the endpoint that is cheapest now. Made by [`BalanceLayer`].
pub struct Balance<S, G: Gate = (), C = Http> {
    endpoints: Endpoints<S, G>,
    classify: C,
    patience: Duration,
    /// Set while this clone waits, and handed to the request, so that both wait no longer than one.
    deadline: Option<Instant>,
    wait: Option<(Pin<Box<Wait>>, Instant)>,
}

impl<S, G: Gate> Balance<S, G> {
    /// Picks by latency x work in flight / weight. [`BalanceLayer`] has more to set.
    pub fn adaptive(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::adaptive().layer(endpoints)
    }

    /// Picks one after the other.
    pub fn round_robin(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::round_robin().layer(endpoints)
    }

    /// Picks one after the other, by weight.
    pub fn weighted_round_robin(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::weighted_round_robin().layer(endpoints)
    }

    /// Picks by in-flight / weight.
    pub fn least_connections(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::least_connections().layer(endpoints)
    }

    /// Picks by latency x (1 + in-flight) / weight.
    pub fn least_response_time(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::least_response_time().layer(endpoints)
    }

    /// Picks any, by weight.
    pub fn random(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::random().layer(endpoints)
    }

    /// Picks by in-flight / weight between two that are drawn.
    pub fn p2c(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::p2c().layer(endpoints)
    }

    /// Picks by the request's [`Affinity`](crate::Affinity), while that endpoint has not too much to do.
    pub fn consistent_hash(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::consistent_hash().layer(endpoints)
    }

    /// Picks by what probes have found.
    pub fn prequal(endpoints: Endpoints<S, G>) -> Self {
        BalanceLayer::prequal().layer(endpoints)
    }
}

impl<S, G: Gate, C> Balance<S, G, C> {
    pub(crate) fn new(endpoints: Endpoints<S, G>, classify: C, patience: Duration) -> Self {
        Self {
            endpoints,
            classify,
            patience,
            deadline: None,
            wait: None,
        }
    }

    /// The set that it picks from.
    pub fn endpoints(&self) -> &Endpoints<S, G> {
        &self.endpoints
    }
}

impl<S, G: Gate, C: Clone> Clone for Balance<S, G, C> {
    fn clone(&self) -> Self {
        Self::new(self.endpoints.clone(), self.classify.clone(), self.patience)
    }
}

impl<S, G, C, ReqBody, ResBody> Service<Request<ReqBody>> for Balance<S, G, C>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    G: Gate,
    C: Classify,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<ResBody, Call<S, G>, C::Judge>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, G, C, ReqBody>;

    /// Ready unless a request has just found that no endpoint may be picked; then ready when one may, or
    /// when the wait is over and `call` would refuse.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.wait.is_none() {
            let shortage = &self.endpoints.0.shortage;
            let Some(until) = shortage.until() else {
                self.deadline = None;
                return Poll::Ready(Ok(()));
            };
            let now = time::now();
            let deadline = *self.deadline.get_or_insert(now + self.patience);
            let until = until.min(deadline);
            if until <= now {
                return Poll::Ready(Ok(()));
            }
            let wait = shortage.wait_to_be_ready(until);
            // Listens first and looks again, so that no end of the shortage falls between.
            if shortage.until().is_none() {
                return Poll::Ready(Ok(()));
            }
            self.wait = Some((wait, until));
        }
        if let Some((wait, until)) = &mut self.wait {
            ready!(wait.as_mut().poll(cx, *until));
            self.wait = None;
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let choosing = Choosing::new(
            self.endpoints.clone(),
            self.classify.clone(),
            self.patience,
            self.deadline.take(),
            request,
        );
        ResponseFuture {
            state: State::Choosing { choosing },
        }
    }
}

// By hand: derived, it would ask endpoints and gates for Debug.
impl<S, G: Gate, C> fmt::Debug for Balance<S, G, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance")
            .field("endpoints", &self.endpoints)
            .field("wait", &self.patience)
            .finish_non_exhaustive()
    }
}

/// A response future that picks an endpoint when it is polled, and settles the attempt.
#[pin_project]
pub struct ResponseFuture<S, G, C, ReqBody>
where
    S: Service<Request<ReqBody>> + Send + Sync + 'static,
    G: Gate,
    C: Classify,
{
    #[pin]
    state: State<S, G, C, ReqBody>,
}

#[pin_project(project = StateProj)]
#[allow(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for each request"
)]
enum State<S, G, C, ReqBody>
where
    S: Service<Request<ReqBody>> + Send + Sync + 'static,
    G: Gate,
    C: Classify,
{
    Choosing {
        choosing: Choosing<S, G, C, ReqBody>,
    },
    Called {
        #[pin]
        inner: S::Future,
        watch: Option<Watch<Call<S, G>, C::Judge>>,
    },
}

impl<S, G, C, ReqBody, ResBody> Future for ResponseFuture<S, G, C, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    G: Gate,
    C: Classify,
    ResBody: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<ResBody, Call<S, G>, C::Judge>>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.as_mut().project().state;
        // Here until the answer is waited for: most moves that this spares would follow one another.
        let mut fresh = None;
        if let StateProj::Choosing { choosing } = state.as_mut().project() {
            let mut service = match ready!(choosing.poll(cx, &mut fresh)) {
                Ok(service) => service,
                Err(none) => return Poll::Ready(Err(Rejected::from(none).into())),
            };
            let request = choosing.take_request();
            // The watch exists before the call, so that a panic in there settles the attempt.
            let inner = service.call(request);
            state.set(State::Called { inner, watch: None });
        }
        let StateProj::Called { inner, watch } = state.project() else {
            unreachable!("left above");
        };
        let Poll::Ready(answer) = inner.poll(cx) else {
            if fresh.is_some() {
                *watch = fresh;
            }
            return Poll::Pending;
        };
        // Out of the future, so that a judge that panics settles the attempt here and now.
        let mut watch = match fresh {
            Some(fresh) => fresh,
            None => watch.take().expect("polled after completion"),
        };
        Poll::Ready(match answer {
            Ok(response) => Ok(watch.answer(response)),
            Err(error) => {
                let mut error = error.into();
                watch.fail(&mut error);
                Err(error)
            }
        })
    }
}

impl<S, G, C, ReqBody> fmt::Debug for ResponseFuture<S, G, C, ReqBody>
where
    S: Service<Request<ReqBody>> + Send + Sync + 'static,
    G: Gate,
    C: Classify,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
