//! Timeouts for one attempt.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Extensions, Request, Response};
use http_body::Body;
use palisade_core::{BoxError, deadline::Deadline, quantile::Quantile, time};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    adaptive::{Timeout, Tracked},
    body::DeadlineBody,
    error::Limit,
    future::DeadlineFuture,
    handle::{Handle, Look, Quick, Settings, Shared, sealed},
    life::{Life, Pings},
    limits::{After, Limits},
    tally::{Mode, Tally},
    watch::Watch,
};

/// Fails attempts that are silent for too long, or take too long.
///
/// The clock runs from the call. Inside a retry that is right, as the body of the request is in memory or on its way
/// from there. Where the body comes from a slow caller, the time that it takes to send it counts too: there only
/// [`idle`](Timeouts::idle), which waits for nothing but the answer, and the deadline of the request are fit.
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::{AttemptTimeoutLayer, Timeouts};
/// use tower::Layer;
///
/// let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
/// let timeouts = Timeouts::none().first_byte(2 * second).idle(5 * second).total(minute);
/// let layer = AttemptTimeoutLayer::new(timeouts);
/// let service = layer.layer("any service");
/// assert_eq!(layer.handle().get(), timeouts);
/// # assert!(format!("{service:?}").contains("any service"));
/// ```
#[derive(Clone)]
pub struct AttemptTimeoutLayer {
    shared: Arc<Shared<Timeouts>>,
}

/// The timeouts of an attempt: each alone or together, and none at first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timeouts {
    first_byte: Option<Timeout>,
    idle: Option<Duration>,
    total: Option<Timeout>,
    pings: Pings,
    keep: Keep,
}

/// Whether an attempt keeps to the deadline of its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Keep {
    #[default]
    Own,
    Deadline,
}

impl Timeouts {
    /// No timeout.
    pub fn none() -> Self {
        Self::default()
    }

    /// Up to the first data of the answer that are not empty, since the call. An answer may take its time from then
    /// on, and is never cut by this; one without data has to be over by then.
    #[must_use]
    pub fn first_byte(mut self, timeout: impl Into<Timeout>) -> Self {
        self.first_byte = Some(timeout.into());
        self
    }

    /// Between data, once the first have come: as long as the reader waits for more, so that one who comes late finds
    /// what is there.
    #[must_use]
    pub fn idle(mut self, timeout: Duration) -> Self {
        self.idle = Some(timeout);
        self
    }

    /// Up to the end of the answer, since the call.
    #[must_use]
    pub fn total(mut self, timeout: impl Into<Timeout>) -> Self {
        self.total = Some(timeout.into());
        self
    }

    /// Also by the [`Deadline`](palisade_core::deadline::Deadline) in the extensions of the request, where a deadline
    /// layer puts it that [tells others](crate::Propagate::Extension): as if the first data had to be there by then, if
    /// that is sooner.
    ///
    /// A gate around the attempt then hears of a timeout where it would hear that the caller has left, which finds a
    /// service that never answers also behind deadlines far shorter than any timeout. Not where callers set the
    /// deadline: one who is in a hurry would count against a service that is well.
    #[must_use]
    pub fn within_deadline(mut self) -> Self {
        self.keep = Keep::Deadline;
        self
    }

    /// Whether comments of event streams count as data, for the first and for those between; they do otherwise.
    #[must_use]
    pub fn pings(mut self, pings: Pings) -> Self {
        self.pings = pings;
        self
    }
}

#[derive(Debug)]
pub struct State {
    timeouts: Timeouts,
    first_byte: Option<Tracked>,
    total: Option<Tracked>,
}

impl sealed::Settings for Timeouts {
    type State = State;

    fn start(&self, before: Option<&State>) -> State {
        let of = |timeout: Option<Timeout>, before: Option<&Tracked>| {
            timeout.map(|timeout| Tracked::new(timeout, before))
        };
        let first_byte = before.and_then(|before| before.first_byte.as_ref());
        let total = before.and_then(|before| before.total.as_ref());
        State {
            timeouts: *self,
            first_byte: of(self.first_byte, first_byte),
            total: of(self.total, total),
        }
    }

    fn of(state: &State) -> Self {
        state.timeouts
    }

    fn quick(&self) -> Quick {
        let fixed = |timeout| match timeout {
            Some(Timeout::Fixed(timeout)) => After::new(timeout),
            Some(Timeout::Adaptive(_)) | None => After::NEVER,
        };
        let idle = self.idle.map_or(After::NEVER, After::new);
        let is_adaptive = |timeout| matches!(timeout, Some(Timeout::Adaptive(_)));
        Quick {
            spans: [fixed(self.first_byte), idle, fixed(self.total)],
            more: is_adaptive(self.first_byte)
                || is_adaptive(self.total)
                || self.pings != Pings::default()
                || self.keep == Keep::Deadline,
        }
    }

    fn look(state: &State, now: Instant) -> Look {
        let get = |tracked: &Option<Tracked>| tracked.as_ref().map(|tracked| tracked.get(now));
        Look {
            first_byte: get(&state.first_byte),
            total: get(&state.total),
            ..Look::default()
        }
    }
}

impl Settings for Timeouts {}

impl AttemptTimeoutLayer {
    /// Fails attempts by these timeouts.
    pub fn new(timeouts: Timeouts) -> Self {
        let tally = Tally::new("attempt_timeout".into(), Mode::Enforce);
        let shared = Shared::new(&timeouts, tally);
        Self { shared }
    }

    /// Fails an attempt whose first data has not come `limit` after the call; from then on it may take its time.
    pub fn first_byte(limit: impl Into<Timeout>) -> Self {
        Self::new(Timeouts::none().first_byte(limit))
    }

    /// Fails nothing and counts what it would have failed.
    #[must_use]
    pub fn shadow(self) -> Self {
        let name = self.shared.tally.name.clone();
        self.with(Tally::new(name, Mode::Shadow))
    }

    /// Names the layer in metrics; `attempt_timeout` otherwise.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        let mode = self.shared.tally.mode();
        self.with(Tally::new(name.into(), mode))
    }

    /// Looks at the layer and its clones, and steers them. Taken last: a setter makes another layer.
    pub fn handle(&self) -> Handle<Timeouts> {
        Handle::new(self.shared.clone())
    }

    fn with(mut self, tally: Tally) -> Self {
        self.shared = Shared::new(&self.shared.get(), tally);
        self
    }

    #[inline]
    fn limits(&self, extensions: &Extensions, now: Instant) -> Limits {
        let Shared {
            tally,
            state,
            quick,
        } = &*self.shared;
        tally.arrive();
        let mut limits = Limits::new(now, Limit::Total);
        match quick.get() {
            Some(spans) => [limits.first, limits.idle, limits.whole] = spans,
            None => state.load().adapt(&mut limits, tally, extensions),
        }
        limits
    }
}

impl State {
    fn adapt(&self, limits: &mut Limits, tally: &Tally, extensions: &Extensions) {
        let now = limits.since;
        limits.life = Life::new(self.timeouts.pings);
        limits.idle = self.timeouts.idle.map_or(After::NEVER, After::new);
        if let Some((by, samples)) = by(&self.first_byte, Limit::FirstByte, now, tally) {
            (limits.first, limits.samples.first) = (by, samples);
        }
        if let Some((by, samples)) = by(&self.total, Limit::Total, now, tally) {
            (limits.whole, limits.samples.whole) = (by, samples);
        }
        if self.timeouts.keep == Keep::Deadline
            && let Some(deadline) = extensions.get::<Deadline>()
        {
            limits.first = limits.first.min(After::new(deadline.remaining(now)));
        }
    }
}

/// When a timeout ends the request, and who wants to know how long it takes.
fn by(
    tracked: &Option<Tracked>,
    limit: Limit,
    now: Instant,
    tally: &Tally,
) -> Option<(After, Option<Arc<Quantile>>)> {
    let tracked = tracked.as_ref()?;
    let timeout = tracked.get(now);
    if tracked.samples.is_some() {
        tally.timeout(limit, timeout);
    }
    Some((After::new(timeout), tracked.samples.clone()))
}

impl<S> Layer<S> for AttemptTimeoutLayer {
    type Service = AttemptTimeout<S>;

    fn layer(&self, inner: S) -> AttemptTimeout<S> {
        let layer = self.clone();
        AttemptTimeout { inner, layer }
    }
}

/// A service whose attempts fail when they are silent for too long, or take too long.
#[derive(Clone, Debug)]
pub struct AttemptTimeout<S> {
    inner: S,
    layer: AttemptTimeoutLayer,
}

impl<S, R, B> Service<Request<R>> for AttemptTimeout<S>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Response = Response<DeadlineBody<B>>;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let limits = self.layer.limits(request.extensions(), time::now());
        let watch = Watch::new(&self.layer.shared.tally, limits);
        DeadlineFuture::new(self.inner.call(request), watch)
    }
}

impl fmt::Debug for AttemptTimeoutLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptTimeoutLayer")
            .field("timeouts", &self.shared.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
    };

    use palisade_core::ratio::Ratio;

    use super::*;
    use crate::adaptive::Adaptive;

    #[test]
    fn no_attempt_is_without_a_timeout_while_they_are_changed() {
        let second = Duration::from_secs(1);
        let (first, total) = (
            Timeouts::none().first_byte(second),
            Timeouts::none().total(second),
        );
        let adaptive = Adaptive::between(second, 2 * second).quantile(Ratio::HALF);
        for (one, other) in [
            (first, total),
            (first, Timeouts::none().first_byte(adaptive)),
        ] {
            let layer = AttemptTimeoutLayer::new(one);
            let (handle, is_done) = (layer.handle(), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        handle.set(other);
                        handle.set(one);
                    }
                    is_done.store(true, Relaxed);
                });
                let mut without = 0;
                while !is_done.load(Relaxed) {
                    without += u32::from(layer.limits(&Extensions::new(), time::now()).is_free());
                }
                assert_eq!(without, 0);
            });
        }
    }
}
