use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use palisade_core::{BoxError, deadline::Deadline, time};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    body::DeadlineBody,
    error::Awaited,
    layer::{DeadlineLayer, Propagate},
    limit::{Limit, Scope},
    timer::Timer,
};

/// A service whose requests end at their deadline.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> DeadlineService<S> {
    pub(crate) fn new(inner: S, layer: DeadlineLayer) -> Self {
        Self { inner, layer }
    }
}

impl<S, R, B> Service<Request<R>> for DeadlineService<S>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<DeadlineBody<B>>;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        let now = time::now();
        let limit = self.layer.limit(&request, now);
        if limit.at.is_some_and(|at| at <= now) {
            return DeadlineFuture::refused(limit);
        }
        self.layer.tell(&mut request, &limit);
        DeadlineFuture::new(self.inner.call(request), limit)
    }
}

impl DeadlineLayer {
    fn limit<R>(&self, request: &Request<R>, now: Instant) -> Limit {
        let header = self.header.as_ref();
        let asked = header.and_then(|header| header.read(request.headers()));
        let own = earlier(asked.or(self.or), self.at_most);
        let own = own.and_then(|own| now.checked_add(own));
        let outer = request.extensions().get().map(|&Deadline(at)| at);
        let at = earlier(own, outer);
        Limit {
            at,
            after: at.map_or_else(Default::default, |at| at.saturating_duration_since(now)),
            scope: Scope::Whole,
            metrics: self.metrics.clone(),
        }
    }

    fn tell<R>(&self, request: &mut Request<R>, limit: &Limit) {
        let Some(at) = limit.at else {
            return;
        };
        match &self.propagate {
            Propagate::Nothing => return,
            Propagate::Extension => {}
            Propagate::Header(header) => header.write(request.headers_mut(), limit.after),
        }
        request.extensions_mut().insert(Deadline(at));
    }
}

fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The future of [`DeadlineService`] and of [`AttemptTimeout`](crate::AttemptTimeout).
#[pin_project]
pub struct DeadlineFuture<F> {
    #[pin]
    state: State<F>,
    limit: Limit,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Called {
        #[pin]
        inner: F,
        #[pin]
        timer: Timer,
    },
    Refused,
    Over,
}

impl<F> DeadlineFuture<F> {
    pub(crate) fn new(inner: F, limit: Limit) -> Self {
        let timer = Timer::new();
        let state = State::Called { inner, timer };
        Self { state, limit }
    }

    fn refused(limit: Limit) -> Self {
        let state = State::Refused;
        Self { state, limit }
    }
}

impl<F, B, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<DeadlineBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let limit = this.limit;
        let awaited = match this.state.as_mut().project() {
            StateProj::Called { inner, timer } => {
                if let Poll::Ready(answer) = inner.poll(cx) {
                    let answer = answer.map_err(Into::into)?;
                    return Poll::Ready(Ok(
                        answer.map(|body| DeadlineBody::new(body, limit.clone()))
                    ));
                }
                let Some(at) = limit.at else {
                    return Poll::Pending;
                };
                ready!(timer.poll(cx, at));
                Awaited::Head
            }
            StateProj::Refused => Awaited::Call,
            StateProj::Over => panic!("polled after completion"),
        };
        // What is late lets go of what it holds, also when this future is kept.
        this.state.set(State::Over);
        Poll::Ready(Err(limit.elapsed(awaited)))
    }
}

impl<F> fmt::Debug for DeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineFuture").finish_non_exhaustive()
    }
}
