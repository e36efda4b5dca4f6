//! A request ends when its response body ends, not when its head arrives.
//!
//! A guard lives from admission to that end. It hears the [`Verdict`] once, as soon as it is known, and
//! is dropped when the request is over: a permit only needs its `Drop`, a breaker only [`Settle::settle`].

use std::{
    cell::LazyCell,
    error::Error,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::time::Instant;

use crate::{
    BoxError,
    classify::{Judge, Verdict},
    head::ResponseHead,
    reject::Rejected,
    time,
};

mod end;

pub use self::end::End;

/// Held while a request is in flight.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a guard",
    note = "implement `Settle`; a permit that only needs its `Drop` leaves `settle` empty"
)]
pub trait Settle: Send + 'static {
    /// Whether [`decorate`](Self::decorate) has anything to add.
    const DECORATES: bool = false;

    /// Whether [`progress`](Self::progress) wants to hear how far the answer has come.
    const FOLLOWS: bool = false;

    /// Whether [`first_data`](Self::first_data) does anything, for which a clock is read.
    const AWAITS_DATA: bool = true;

    /// Adds to the headers of the answer, or of the refusal of a layer further in. Called at most once.
    fn decorate(&mut self, _headers: &mut HeaderMap) {}

    /// Hears the headers of the answer as the service sent them, and later its trailers: each before the verdict that
    /// it may bring.
    fn hear(&mut self, _headers: &HeaderMap) {}

    /// Hears of the first data of the answer. Called at most once, never after the verdict, and never unless
    /// [`AWAITS_DATA`](Self::AWAITS_DATA).
    fn first_data(&mut self, _now: Instant) {}

    /// Hears how many [pieces](Judge::streamed) the answer has had, after data that brought new ones: while the answer
    /// goes on, before the verdict, and never unless [`FOLLOWS`](Self::FOLLOWS).
    ///
    /// # Errors
    ///
    /// A refusal ends the body: the data that brought the pieces are handed on, then comes the refusal as the error of
    /// the body, and the guard hears [`Verdict::Refused`]. The inner body is dropped at once, so that the service can
    /// stop.
    fn progress(&mut self, _streamed: u64, _now: Instant) -> Result<(), Rejected> {
        Ok(())
    }

    /// Hears the verdict alone: `true` if that is all it needs of the end, for which no clock is read then. As it is,
    /// `false`.
    ///
    /// Called at most once, before [`settle`](Self::settle) and [`finish`](Self::finish). After `true`, neither need
    /// follow, and one that does all the same, because a gate beside this one has asked for it, must change nothing.
    #[inline]
    fn settle_untimed(&mut self, _verdict: Verdict) -> bool {
        false
    }

    /// Hears the verdict, while the body goes on. Called exactly once, unless [`finish`](Self::finish) is, or
    /// [`settle_untimed`](Self::settle_untimed) was enough.
    fn settle(&mut self, end: &End, now: Instant);

    /// Hears the verdict as the request ends: the guard is dropped next. Exactly one of this and
    /// [`settle`](Self::settle) is called, unless [`settle_untimed`](Self::settle_untimed) was enough.
    #[inline]
    fn finish(&mut self, end: &End, now: Instant) {
        self.settle(end, now);
    }
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
    /// Whether the guard was asked if the verdict alone is enough.
    asked: bool,
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
            asked: false,
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
        self.hear(&mut response);
        response.map(|inner| ResponseBody::new(inner, self))
    }

    /// As [`answer`](Self::answer), from where a future keeps it: moved only if the answer goes on, and gone from there
    /// in any case, so that a judge that panics settles the guard here and now.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[inline]
    pub(crate) fn answer_from<B: Body>(
        slot: &mut Option<Self>,
        mut response: Response<B>,
    ) -> Response<ResponseBody<B, G, J>> {
        let slot = Emptied(slot);
        let watch = slot.0.as_mut().expect("polled after completion");
        watch.hear(&mut response);
        let watch = watch.leave();
        response.map(|inner| ResponseBody::new(inner, watch))
    }

    /// What goes on; nothing is moved of what has ended.
    #[inline]
    fn leave(&mut self) -> Self {
        let (guard, judge) = match self.guard {
            None => (None, None),
            Some(_) => (self.guard.take(), self.judge.take()),
        };
        Self {
            guard,
            judge,
            since: self.since,
            answered: self.answered,
            bodiless: self.bodiless,
            asked: self.asked,
        }
    }

    #[inline]
    fn hear<B: Body>(&mut self, response: &mut Response<B>) {
        let now = Now::new(time::now);
        if let Some(guard) = &mut self.guard {
            guard.hear(response.headers());
        }
        let head = ResponseHead::from(&*response);
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

    /// Hears data. Whether they brought pieces that the guard is to hear of.
    #[inline]
    fn data(&mut self, now: &Now, data: &[u8]) -> bool {
        let before = self.streamed();
        if J::READS_DATA
            && let Some(verdict) = self.judge.as_mut().and_then(|judge| judge.data(data))
        {
            self.tell(now, verdict);
        }
        let (Some(judge), Some(guard)) = (&self.judge, &mut self.guard) else {
            return false;
        };
        if G::AWAITS_DATA && !self.answered && !data.is_empty() && judge.begun() {
            self.answered = true;
            guard.first_data(**now);
        }
        self.streamed() > before
    }

    /// How far the answer has come, if the guard follows it.
    #[inline]
    fn streamed(&self) -> u64 {
        match &self.judge {
            Some(judge) if G::FOLLOWS => judge.streamed(),
            _ => 0,
        }
    }

    /// Tells the guard how far the answer has come: its refusal of more.
    fn progress(&mut self, now: &Now) -> Option<Rejected> {
        let streamed = self.streamed();
        let rejected = self.guard.as_mut()?.progress(streamed, **now).err()?;
        self.finish(now, Verdict::Refused(rejected.reason()));
        Some(rejected)
    }

    #[inline]
    fn end(&mut self, now: &Now, trailers: Option<&HeaderMap>) {
        if let (Some(guard), Some(trailers)) = (&mut self.guard, trailers) {
            guard.hear(trailers);
        }
        if let Some(verdict) = self.judge.as_mut().map(|judge| judge.end(trailers)) {
            self.finish(now, verdict);
        }
        self.guard = None;
    }

    fn tell(&mut self, now: &Now, verdict: Verdict) {
        if self.heard(verdict) {
            return;
        }
        if let Some(end) = self.over(now, verdict)
            && let Some(guard) = &mut self.guard
        {
            guard.settle(&end, **now);
        }
    }

    fn finish(&mut self, now: &Now, verdict: Verdict) {
        if self.heard(verdict) {
            self.guard = None;
            return;
        }
        // Gone whatever happens; and the judge is already, so that a guard that panics is not told again by the drop.
        let Some(end) = self.over(now, verdict) else {
            return;
        };
        let guard = Emptied(&mut self.guard);
        if let Some(guard) = guard.0 {
            guard.finish(&end, **now);
        }
    }

    /// Tells the guard the verdict: whether that was all it needs.
    #[inline]
    fn heard(&mut self, verdict: Verdict) -> bool {
        // One that panics here has not been told, and is told by the drop: not here, as it could panic again, whether
        // the drop is part of the panic or comes long after it.
        let enough = self.judge.is_some()
            && !mem::replace(&mut self.asked, true)
            && !thread::panicking()
            && self
                .guard
                .as_mut()
                .is_some_and(|guard| guard.settle_untimed(verdict));
        if enough {
            self.judge = None;
        }
        enough
    }

    fn over(&mut self, now: &Now, verdict: Verdict) -> Option<End> {
        // Asked before it is taken: should it panic, the drop still tells the guard.
        let judge = self.judge.as_ref()?;
        // Asking a judge that has just panicked could panic again, and so abort.
        let (usage, streamed) = if thread::panicking() {
            (None, 0)
        } else {
            (judge.usage(), judge.streamed())
        };
        self.judge = None;
        let age = now.saturating_duration_since(self.since);
        Some(End {
            verdict,
            usage,
            streamed,
            age,
        })
    }
}

/// Empties a place when it is done with, also while a panic unwinds: what was in it need not be moved for that.
struct Emptied<'a, T>(&'a mut Option<T>);

impl<T> Drop for Emptied<'_, T> {
    #[inline]
    fn drop(&mut self) {
        *self.0 = None;
    }
}

impl<G: Settle, J: Judge> Drop for Watch<G, J> {
    #[inline]
    fn drop(&mut self) {
        if self.judge.is_some() {
            // A judge may panic as it is asked: its guard hears of the end all the same.
            Cancel(self).tell();
        }
    }
}

/// The caller left before the verdict.
struct Cancel<'a, G: Settle, J: Judge>(&'a mut Watch<G, J>);

impl<G: Settle, J: Judge> Cancel<'_, G, J> {
    fn tell(&mut self) {
        self.0.finish(&Now::new(time::now), Verdict::Canceled);
    }
}

impl<G: Settle, J: Judge> Drop for Cancel<'_, G, J> {
    fn drop(&mut self) {
        if self.0.judge.is_some() {
            self.tell();
        }
    }
}

/// A response body that settles its guard.
///
/// A guard that [follows](Settle::FOLLOWS) the answer can end it with a [`Rejected`].
#[pin_project]
pub struct ResponseBody<B, G: Settle, J: Judge> {
    #[pin]
    source: Source<B>,
    watch: Watch<G, J>,
}

#[pin_project(project = SourceProj)]
enum Source<B> {
    Open {
        #[pin]
        inner: B,
    },
    /// The guard has refused the rest, and the reader is still to hear so.
    Cut { error: Option<BoxError> },
}

impl<B, G: Settle, J: Judge> ResponseBody<B, G, J> {
    #[inline]
    fn new(inner: B, watch: Watch<G, J>) -> Self {
        let source = Source::Open { inner };
        Self { source, watch }
    }
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

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let mut inner = match this.source.as_mut().project() {
            SourceProj::Open { inner } => inner,
            SourceProj::Cut { error } => return Poll::Ready(error.take().map(Err)),
        };
        let frame = ready!(inner.as_mut().poll_frame(cx));
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
        let more = match frame.data_ref() {
            Some(data) => this.watch.data(&now, data),
            None => false,
        };
        // A reader that knows the length may never poll for `None`.
        if frame.is_trailers() || inner.is_end_stream() {
            this.watch.end(&now, frame.trailers_ref());
        } else if G::FOLLOWS
            && more
            && let Some(rejected) = this.watch.progress(&now)
        {
            let error = Some(rejected.into());
            this.source.set(Source::Cut { error });
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Open { inner } => inner.is_end_stream(),
            Source::Cut { error } => error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Open { inner } => inner.size_hint(),
            // Not zero while the error is still to come: a reader could take that for a good end.
            Source::Cut { error: Some(_) } => SizeHint::default(),
            Source::Cut { error: None } => SizeHint::with_exact(0),
        }
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
