use std::{
    fmt, mem,
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
    head::RequestHead,
};
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use crate::{
    body::RetryBody,
    handle::count,
    plan::{Peek, Plan, Step},
    policy::{Policy, Repeat},
    replay::ReplayBody,
};

/// A service whose failed attempts are made again.
#[derive(Clone)]
pub struct Retry<S, C = Http> {
    inner: S,
    classify: C,
    policy: Arc<Policy>,
}

impl<S, C> Retry<S, C> {
    pub(crate) fn new(inner: S, classify: C, policy: Arc<Policy>) -> Self {
        Self {
            inner,
            classify,
            policy,
        }
    }
}

impl<S, C, B, R> Service<Request<B>> for Retry<S, C>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<RetryBody<R>>;
    type Error = BoxError;
    type Future = RetryFuture<S, C, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let policy = &self.policy;
        count(&policy.stats.requests);
        policy.budget.deposit();
        let repeat = policy.repeat(&RequestHead::from(&request));
        if repeat == Repeat::Never {
            let inner = self.inner.call(request.map(ReplayBody::plain));
            return RetryFuture {
                state: State::Called { inner, judge: None },
                plan: None,
            };
        }
        let clone = self.inner.clone();
        // The one that was ready is the one that is called.
        let service = mem::replace(&mut self.inner, clone);
        let (mut plan, request) = Plan::new(service, &self.classify, policy, repeat, request);
        RetryFuture {
            state: plan.call(request),
            plan: Some(plan),
        }
    }
}

impl<S, C, B, R> Plan<S, C, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>>,
    C: Classify,
    B: Body,
{
    fn call(&mut self, request: Request<ReplayBody<B>>) -> State<S::Future, C::Judge, R> {
        let judge = Some(self.classify.start(&RequestHead::from(&request)));
        let inner = self.service.call(request);
        State::Called { inner, judge }
    }

    fn call_again(&mut self) -> State<S::Future, C::Judge, R> {
        count(&self.policy.stats.retries);
        self.policy.metrics.retry(self.because);
        let request = self.request();
        self.call(request)
    }
}

/// The future of [`Retry`]. Dropped, it drops the attempt that runs and takes the request's body away from it.
#[pin_project]
pub struct RetryFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>>,
    C: Classify,
{
    #[pin]
    state: State<S::Future, C::Judge, R>,
    /// `None` when the request may not be sent again, or will not.
    plan: Option<Plan<S, C, B>>,
}

#[pin_project(project = StateProj)]
enum State<F, J, R> {
    Called {
        #[pin]
        inner: F,
        judge: Option<J>,
    },
    /// An event stream has begun: it is an answer once it has data.
    Peeking {
        peek: Option<Peek<J, R>>,
    },
    Waiting {
        #[pin]
        sleep: Sleep,
    },
    Readying,
}

impl<F, J, R> State<F, J, R> {
    fn wait(until: Option<Instant>) -> Self {
        until.map_or(Self::Readying, |at| Self::Waiting {
            sleep: sleep_until(at),
        })
    }
}

impl<S, C, B, R> Future for RetryFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<RetryBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Called { inner, judge } => {
                    let answer = ready!(inner.poll(cx)).map_err(Into::into);
                    // Out of the future, so that nobody asks a judge that has panicked.
                    let Some((plan, judge)) = this.plan.as_mut().zip(judge.take()) else {
                        return Poll::Ready(answer.map(|answer| answer.map(RetryBody::plain)));
                    };
                    match plan.heard(judge, answer) {
                        Step::Done(answer) => return Poll::Ready(finish(this.plan, answer)),
                        Step::Peek(peek) => State::Peeking { peek: Some(peek) },
                        Step::Wait(until) => State::wait(until),
                    }
                }
                StateProj::Peeking { peek: slot } => {
                    let peek = slot.as_mut().expect("polled after a panic");
                    let verdict = ready!(peek.body.poll(cx, &mut peek.judge));
                    let (peek, plan) = (slot.take(), this.plan.as_mut());
                    let (peek, plan) = peek.zip(plan).expect("a plan is there until the end");
                    match plan.peeked(peek, verdict) {
                        Step::Done(answer) => return Poll::Ready(finish(this.plan, answer)),
                        Step::Peek(peek) => State::Peeking { peek: Some(peek) },
                        Step::Wait(until) => State::wait(until),
                    }
                }
                StateProj::Waiting { sleep } => {
                    ready!(sleep.poll(cx));
                    State::Readying
                }
                StateProj::Readying => {
                    let plan = this.plan.as_mut().expect("polled after completion");
                    match ready!(plan.service.poll_ready(cx)) {
                        Ok(()) => plan.call_again(),
                        // A service that cannot become ready is done for, says Tower.
                        Err(error) => return Poll::Ready(finish(this.plan, Err(error.into()))),
                    }
                }
            };
            state.set(next);
        }
    }
}

/// There will be no other attempt: the one that was made keeps the request's body.
fn finish<S, C, B: Body, T>(plan: &mut Option<Plan<S, C, B>>, answer: T) -> T {
    if let Some(plan) = plan.take() {
        plan.body.leave();
    }
    answer
}

impl<S: fmt::Debug, C: fmt::Debug> fmt::Debug for Retry<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("inner", &self.inner)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}

impl<S, C, B, R> fmt::Debug for RetryFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>>,
    C: Classify,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
