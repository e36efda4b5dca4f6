//! A request ends when its response body ends, not when its head arrives.
//!
//! A guard lives from admission to that end. It hears the [`Verdict`] once, as soon as it is known, and
//! is dropped when the request is over: a permit only needs its `Drop`, a breaker only [`Settle::settle`].

use std::{
    cell::LazyCell,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::time::Instant;

use crate::{
    BoxError,
    classify::{Judge, Usage, Verdict},
    head::ResponseHead,
    reject::Rejected,
    time,
};

/// Held while a request is in flight.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a guard",
    note = "implement `Settle`; a permit that only needs its `Drop` leaves `settle` empty"
)]
pub trait Settle: Send + 'static {
    /// Whether [`decorate`](Self::decorate) has anything to add.
    const DECORATES: bool = false;

    /// Adds to the headers of the answer, or of the refusal of a layer further in. Called at most once.
    fn decorate(&mut self, _headers: &mut HeaderMap) {}

    /// Hears of the first data of the answer. Called at most once, and never after the verdict.
    fn first_data(&mut self, _now: Instant) {}

    /// Hears the verdict, while the body goes on. Called exactly once, unless [`finish`](Self::finish) is.
    fn settle(&mut self, end: &End, now: Instant);

    /// Hears the verdict as the request ends: the guard is dropped next. Exactly one of this and
    /// [`settle`](Self::settle) is called.
    #[inline]
    fn finish(&mut self, end: &End, now: Instant) {
        self.settle(end, now);
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// What the attempt says about the service.
    pub verdict: Verdict,
    /// The tokens used, as far as the answer told before it ended.
    pub usage: Option<Usage>,
    /// The time since admission.
    pub age: Duration,
}

/// Read at most once per poll, and only by what needs it.
type Now = LazyCell<Instant>;

/// A guard and, until the verdict is known, the judge that will find it.
///
/// Must exist before the service is called, so that a panic in there settles the guard. Dropped without an
/// answer it tells the guard [`Verdict::Canceled`].
pub struct Watch<G: Settle, J: Judge> {
    guard: Option<G>,
    judge: Option<J>,
    since: Instant,
    answered: bool,
    bodiless: bool,
}

impl<G: Settle, J: Judge> Watch<G, J> {
    /// Holds `guard` for a request that was admitted at `since`.
    #[inline]
    pub fn new(guard: G, judge: J, since: Instant) -> Self {
        Self {
            guard: Some(guard),
            judge: Some(judge),
            since,
            answered: false,
            bodiless: false,
        }
    }

    /// Whether the answer ends with its head whatever its body says: servers drop the body of an answer to HEAD unread.
    #[inline]
    #[must_use]
    pub fn asked_with(mut self, method: &Method) -> Self {
        self.bodiless = method == Method::HEAD;
        self
    }

    /// Hears the head, and goes on inside the body.
    #[inline]
    pub fn answer<B: Body>(mut self, mut response: Response<B>) -> Response<ResponseBody<B, G, J>> {
        let now = Now::new(time::now);
        let head = ResponseHead::from(&response);
        if let Some(verdict) = self.judge.as_mut().and_then(|judge| judge.head(&head)) {
            self.tell(&now, verdict);
        }
        if G::DECORATES
            && let Some(guard) = &mut self.guard
        {
            guard.decorate(response.headers_mut());
        }
        if self.bodiless || response.body().is_end_stream() {
            self.end(&now, None);
        }
        response.map(|inner| ResponseBody { inner, watch: self })
    }

    /// Hears that there will be no more. A [`Rejected`] gets the headers that the answer would have got.
    pub fn fail(&mut self, error: &mut BoxError) {
        let now = Now::new(time::now);
        if G::DECORATES
            && let Some(guard) = &mut self.guard
            && let Some(rejected) = error.downcast_mut::<Rejected>()
        {
            guard.decorate(rejected.headers_mut());
        }
        self.break_off(&now, &**error);
    }

    fn break_off(&mut self, now: &Now, error: &(dyn Error + 'static)) {
        if let Some(verdict) = self.judge.as_mut().map(|judge| judge.error(error)) {
            self.finish(now, verdict);
        }
        self.guard = None;
    }

    fn data(&mut self, now: &Now, data: &[u8]) {
        if J::READS_DATA
            && let Some(verdict) = self.judge.as_mut().and_then(|judge| judge.data(data))
        {
            self.tell(now, verdict);
        }
        let (Some(judge), Some(guard)) = (&self.judge, &mut self.guard) else {
            return;
        };
        if !self.answered && !data.is_empty() && judge.begun() {
            self.answered = true;
            guard.first_data(**now);
        }
    }

    #[inline]
    fn end(&mut self, now: &Now, trailers: Option<&HeaderMap>) {
        if let Some(verdict) = self.judge.as_mut().map(|judge| judge.end(trailers)) {
            self.finish(now, verdict);
        }
        self.guard = None;
    }

    fn tell(&mut self, now: &Now, verdict: Verdict) {
        if let Some(end) = self.over(now, verdict)
            && let Some(guard) = &mut self.guard
        {
            guard.settle(&end, **now);
        }
    }

    fn finish(&mut self, now: &Now, verdict: Verdict) {
        // Both are taken first, so that a guard that panics is not told again by the drop.
        if let Some(end) = self.over(now, verdict)
            && let Some(mut guard) = self.guard.take()
        {
            guard.finish(&end, **now);
        }
    }

    fn over(&mut self, now: &Now, verdict: Verdict) -> Option<End> {
        // Asked before it is taken: should it panic, the drop still tells the guard.
        let judge = self.judge.as_ref()?;
        // Asking a judge that has just panicked could panic again, and so abort.
        let usage = if thread::panicking() {
            None
        } else {
            judge.usage()
        };
        self.judge = None;
        let age = now.saturating_duration_since(self.since);
        Some(End {
            verdict,
            usage,
            age,
        })
    }
}

impl<G: Settle, J: Judge> Drop for Watch<G, J> {
    fn drop(&mut self) {
        if self.judge.is_some() {
            self.finish(&Now::new(time::now), Verdict::Canceled);
        }
    }
}

/// A response body that settles its guard.
#[pin_project]
pub struct ResponseBody<B, G: Settle, J: Judge> {
    #[pin]
    inner: B,
    watch: Watch<G, J>,
}

impl<B, G, J> Body for ResponseBody<B, G, J>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    G: Settle,
    J: Judge,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let now = Now::new(time::now);
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let error = error.into();
                this.watch.break_off(&now, &*error);
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                this.watch.end(&now, None);
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            this.watch.data(&now, data);
        }
        // A reader that knows the length may never poll for `None`.
        if frame.is_trailers() || this.inner.is_end_stream() {
            this.watch.end(&now, frame.trailers_ref());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// By hand: derived, it would ask users' guards for Debug to unwrap a response.
impl<G: Settle, J: Judge> fmt::Debug for Watch<G, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("judged", &self.judge.is_none())
            .field("held", &self.guard.is_some())
            .finish_non_exhaustive()
    }
}

impl<B, G: Settle, J: Judge> fmt::Debug for ResponseBody<B, G, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}
