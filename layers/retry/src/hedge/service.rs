use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Classify, Http},
    head::RequestHead,
    peek::PeekedBody,
    time,
};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower_service::Service;

use super::{
    attempt::{Answer, Run},
    policy::Policy,
    race::Race,
    tape::HedgeBody,
};

/// A service that is asked a second time when it takes long.
#[derive(Clone)]
pub struct Hedge<S, C = Http> {
    inner: S,
    classify: C,
    policy: Arc<Policy>,
}

impl<S, C> Hedge<S, C> {
    pub(crate) fn new(inner: S, classify: C, policy: Arc<Policy>) -> Self {
        Self {
            inner,
            classify,
            policy,
        }
    }
}

impl<S, C, B, R> Service<Request<B>> for Hedge<S, C>
where
    S: Service<Request<HedgeBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<PeekedBody<R>>;
    type Error = BoxError;
    type Future = HedgeFuture<S, C, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let head = RequestHead::from(&request);
        let Some(chance) = self.policy.arrive(&head) else {
            let inner = self.inner.call(request.map(HedgeBody::plain));
            return HedgeFuture {
                first: Run::Called { inner, judge: None },
                sleep: None,
                race: None,
            };
        };
        let judge = Some(self.classify.start(&head));
        let (race, request) = Race::new(
            &self.inner,
            &self.classify,
            &self.policy,
            chance,
            request,
            time::now(),
        );
        let inner = self.inner.call(request);
        HedgeFuture {
            first: Run::Called { inner, judge },
            sleep: race.due().map(sleep_until),
            race: Some(race),
        }
    }
}

/// The future of [`Hedge`]. Dropped, it drops all attempts.
#[pin_project]
pub struct HedgeFuture<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>>,
    C: Classify,
{
    #[pin]
    first: Run<S::Future, C::Judge, R>,
    /// Until the next hedge is due.
    #[pin]
    sleep: Option<Sleep>,
    /// `None` when the request may be sent only once, and when it is over.
    race: Option<Race<S, C, B, R>>,
}

impl<S, C, B, R> Future for HedgeFuture<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Answer<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<R>> {
        let mut this = self.project();
        let Some(race) = this.race.as_mut() else {
            let ended = this.first.as_mut().poll(cx, || false);
            return ended.map(|ended| ended.answer);
        };
        let mut answer = None;
        if !this.first.is_over()
            && let Poll::Ready(ended) = this.first.as_mut().poll(cx, || race.holds())
        {
            this.first.set(Run::Over);
            answer = race.first(ended);
        }
        let answer = loop {
            let first_runs = !this.first.is_over();
            if let Some(answer) = answer.take().or_else(|| race.poll_hedges(cx, first_runs)) {
                break answer;
            }
            if race.poll_next(cx, this.sleep.as_mut()).is_pending() {
                return Poll::Pending;
            }
        };
        // Whoever has lost is dropped now, and not when the caller drops the future.
        this.first.set(Run::Over);
        *this.race = None;
        Poll::Ready(answer)
    }
}

impl<S: fmt::Debug, C: fmt::Debug> fmt::Debug for Hedge<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("inner", &self.inner)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}

impl<S, C, B, R> fmt::Debug for HedgeFuture<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>>,
    C: Classify,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeFuture").finish_non_exhaustive()
    }
}
