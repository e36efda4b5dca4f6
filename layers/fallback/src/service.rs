use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Classify, Http},
    head::{RequestHead, ResponseHead},
    replay::ReplayBody,
};
use pin_project::pin_project;
use tower_service::Service;

use crate::{
    FallbackBody,
    body::Another,
    outcome::{Heard, Holding},
    plan::{Chain, Next, Plan},
    policy::Policy,
};

/// A service that has alternatives.
pub struct Fallback<S, B, C = Http> {
    inner: S,
    classify: C,
    policy: Arc<Policy<B>>,
}

impl<S, B, C> Fallback<S, B, C> {
    pub(crate) fn new(inner: S, classify: C, policy: Arc<Policy<B>>) -> Self {
        Self {
            inner,
            classify,
            policy,
        }
    }
}

impl<S, B, C, R> Service<Request<B>> for Fallback<S, B, C>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    C: Classify<Judge: Send>,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<FallbackBody<R>>;
    type Error = BoxError;
    type Future = FallbackFuture<S::Future, B, C, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.policy.arrive();
        let judge = self.classify.start(&RequestHead::from(&request));
        let (plan, request) = Plan::new(&self.policy, &self.classify, request);
        match plan.forced() {
            Some(Next::Ask(at)) => FallbackFuture::new(State::Asking {
                chain: plan.ask(at),
            }),
            Some(Next::Given(response)) => FallbackFuture::new(State::Given {
                response: Some(response),
            }),
            Some(Next::Pass | Next::Exhausted) | None => {
                let inner = self.inner.call(request);
                let judge = Some(judge);
                FallbackFuture {
                    state: State::Called { inner, judge },
                    plan: Some(plan),
                }
            }
        }
    }
}

/// The future of [`Fallback`]. Dropped, it drops what runs and takes the request's body away from it.
#[pin_project]
pub struct FallbackFuture<F, B, C: Classify, R> {
    #[pin]
    state: State<F, C::Judge, R>,
    /// `None` once the service has answered.
    plan: Option<Plan<B, C>>,
}

#[pin_project(project = StateProj)]
enum State<F, J, R> {
    Called {
        #[pin]
        inner: F,
        judge: Option<J>,
    },
    /// The answer has begun, and counts as one once it has data.
    Holding {
        holding: Holding<J, R>,
    },
    Asking {
        chain: Chain,
    },
    Given {
        response: Option<Box<Response<Another>>>,
    },
}

impl<F, B, C: Classify, R> FallbackFuture<F, B, C, R> {
    fn new(state: State<F, C::Judge, R>) -> Self {
        Self { state, plan: None }
    }
}

impl<F, B, C, R, E> Future for FallbackFuture<F, B, C, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    C: Classify<Judge: Send>,
    B: Body + Send + 'static,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<FallbackBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        loop {
            let outcome = match state.as_mut().project() {
                StateProj::Called { inner, judge } => {
                    let answer = ready!(inner.poll(cx)).map_err(Into::into);
                    // Out of the future, so that nobody asks a judge that has panicked.
                    let judge = judge.take().expect("polled after completion");
                    let plan = this.plan.as_ref().expect("a plan is there until the end");
                    let holds = |head: &ResponseHead<'_>| plan.policy.holds_back::<C::Judge>(head);
                    match Heard::new(judge, answer, holds) {
                        Heard::Judged(outcome) => outcome,
                        Heard::Holding(holding) => {
                            state.set(State::Holding { holding });
                            continue;
                        }
                    }
                }
                StateProj::Holding { holding } => ready!(holding.poll(cx)),
                StateProj::Asking { chain } => {
                    let answer = ready!(chain.as_mut().poll(cx));
                    return Poll::Ready(answer.map(|answer| answer.map(FallbackBody::another)));
                }
                StateProj::Given { response } => {
                    let response = response.take().expect("polled after completion");
                    return Poll::Ready(Ok((*response).map(FallbackBody::another)));
                }
            };
            let mut plan = this.plan.take().expect("polled after completion");
            let next = plan.next(0, outcome.failure(None));
            match next {
                Next::Pass | Next::Exhausted => {
                    let answer = outcome.pass();
                    plan.leave(&answer);
                    return Poll::Ready(answer.map(|answer| answer.map(FallbackBody::first)));
                }
                Next::Given(response) => {
                    outcome.discard();
                    return Poll::Ready(Ok((*response).map(FallbackBody::another)));
                }
                Next::Ask(at) => {
                    outcome.discard();
                    state.set(State::Asking {
                        chain: plan.ask(at),
                    });
                }
            }
        }
    }
}

impl<S: Clone, B, C: Clone> Clone for Fallback<S, B, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            classify: self.classify.clone(),
            policy: self.policy.clone(),
        }
    }
}

impl<S: fmt::Debug, B, C: fmt::Debug> fmt::Debug for Fallback<S, B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("inner", &self.inner)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}

impl<F, B, C: Classify, R> fmt::Debug for FallbackFuture<F, B, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackFuture").finish_non_exhaustive()
    }
}
