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
    peek::PeekedBody,
    replay::ReplayBody,
    spare::Spare,
    time,
    timer::Timer,
};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    handle::count,
    limits::{Now, Until},
    plan::{Peek, Plan, Step},
    policy::{Policy, Repeat},
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
    type Response = Response<PeekedBody<R>>;
    type Error = BoxError;
    type Future = RetryFuture<S, C, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let policy = &self.policy;
        count(&policy.stats.requests);
        policy.metrics.register();
        let (now, head) = (Now::new(time::now), RequestHead::from(&request));
        let until = Until::new(policy.limits(), &now);
        let repeat = policy.repeat(&head);
        if repeat == Repeat::Never {
            policy.paid(policy.budget.pay_for(&head));
            let alarm = Alarm::at(until.attempt(&now));
            return RetryFuture {
                state: State::Called {
                    inner: self.inner.call(request.map(ReplayBody::plain)),
                    judge: None,
                },
                alarm,
                until,
                plan: None,
            };
        }
        let purse = policy.budget.purse(&head);
        policy.paid(purse.pay());
        let clone = self.inner.clone();
        // The one that was ready is the one that is called.
        let service = mem::replace(&mut self.inner, clone);
        let (mut plan, request) = Plan::new(
            service,
            &self.classify,
            policy,
            repeat,
            purse,
            &until,
            request,
        );
        let alarm = Alarm::at(until.attempt(&now));
        RetryFuture {
            state: plan.call(request, &now),
            alarm,
            until,
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
    fn call(
        &mut self,
        request: Request<ReplayBody<B>>,
        now: &Now,
    ) -> State<S::Future, C::Judge, R> {
        self.begin(now);
        let judge = Some(self.classify.start(&RequestHead::from(&request)));
        let inner = self.service.call(request);
        State::Called { inner, judge }
    }

    fn call_again(&mut self, now: &Now) -> State<S::Future, C::Judge, R> {
        count(&self.policy.stats.retries);
        self.policy.metrics.retry(self.because());
        let request = self.request();
        self.call(request, now)
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
    /// The end of the wait, or of the time that what runs is given.
    alarm: Alarm,
    until: Until,
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
    Waiting,
    Readying,
    Over,
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
    type Output = Result<Response<PeekedBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (mut state, alarm, plan) = (this.state, this.alarm, this.plan);
        loop {
            // What is awaited is asked before the clock: at the same instant it is not too late.
            let step = match state.as_mut().project() {
                StateProj::Called { inner, judge } => {
                    let answer = match inner.poll(cx) {
                        Poll::Ready(Ok(answer)) => Ok(answer),
                        Poll::Ready(Err(error)) => Err(error.into()),
                        Poll::Pending => {
                            ready!(alarm.poll(cx));
                            Err(this.until.elapsed())
                        }
                    };
                    // Out of the future, so that nobody asks a judge that has panicked.
                    let Some((plan, judge)) = plan.as_mut().zip(judge.take()) else {
                        state.set(State::Over);
                        *alarm = Alarm::at(None);
                        return Poll::Ready(match answer {
                            Ok(answer) => Ok(answer.map(PeekedBody::plain)),
                            Err(error) => Err(error),
                        });
                    };
                    plan.heard(judge, answer)
                }
                StateProj::Peeking { peek: slot } => {
                    let peek = slot.as_mut().expect("polled after a panic");
                    let verdict = match peek.body.poll(cx, &mut peek.judge) {
                        Poll::Ready(verdict) => Ok(verdict),
                        Poll::Pending => {
                            ready!(alarm.poll(cx));
                            Err(this.until.elapsed())
                        }
                    };
                    let (peek, plan) = (slot.take(), plan.as_mut());
                    let (mut peek, plan) = peek.zip(plan).expect("a plan is there until the end");
                    match verdict {
                        Ok(verdict) => plan.peeked(peek, verdict),
                        Err(error) => plan.failed(&mut peek.judge, error),
                    }
                }
                StateProj::Waiting => {
                    ready!(alarm.poll(cx));
                    *alarm = Alarm::at(this.until.over());
                    state.set(State::Readying);
                    continue;
                }
                StateProj::Readying => {
                    let again = plan.as_mut().expect("a plan is there until the end");
                    match again.service.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {
                            let now = Now::new(time::now);
                            *alarm = Alarm::at(this.until.attempt(&now));
                            state.set(again.call_again(&now));
                            continue;
                        }
                        // A service that cannot become ready is done for, says Tower.
                        Poll::Ready(Err(error)) => Step::Done(Err(error.into())),
                        Poll::Pending => {
                            ready!(alarm.poll(cx));
                            Step::Done(Err(this.until.elapsed()))
                        }
                    }
                }
                StateProj::Over => panic!("polled after completion"),
            };
            match step {
                Step::Peek(peek) => state.set(State::Peeking { peek: Some(peek) }),
                Step::Wait(Some(at)) => {
                    // Drops what is left of the attempt: before the wait, and before another one begins.
                    state.set(State::Waiting);
                    *alarm = Alarm::at(Some(at));
                }
                Step::Wait(None) => {
                    state.set(State::Readying);
                    *alarm = Alarm::at(this.until.over());
                }
                Step::Done(answer) => {
                    state.set(State::Over);
                    *alarm = Alarm::at(None);
                    // There will be no other attempt: one that was answered keeps the request's body.
                    if let Some(plan) = plan.take()
                        && answer.is_ok()
                    {
                        plan.body.leave();
                    }
                    return Poll::Ready(answer);
                }
            }
        }
    }
}

/// A time, and what waits for it once somebody has to.
struct Alarm {
    at: Option<Instant>,
    timer: Option<Spare<Timer>>,
}

impl Alarm {
    #[inline]
    fn at(at: Option<Instant>) -> Self {
        Self { at, timer: None }
    }

    /// Never ready without a time.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else {
            return Poll::Pending;
        };
        self.timer.get_or_insert_default().pin().poll(cx, at)
    }
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
