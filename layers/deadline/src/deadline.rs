use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use palisade_core::{BoxError, deadline::Deadline, time};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::DeadlineBody,
    error::Limit,
    future::{DeadlineFuture, Refusal},
    handle::{Handle, Look, Quick, Settings, Shared, sealed},
    header::TimeoutHeader,
    limits::{After, Limits},
    median::{Median, Need},
    tally::{Mode, Tally},
    watch::Watch,
};

/// Ends requests, heads and bodies, at their deadline.
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::{DeadlineLayer, Need, Propagate, TimeoutHeader};
/// use tower::Layer;
///
/// // What the caller asks for, but never more than a minute; the next server is told what is left, and not called if
/// // that is less than it mostly needs.
/// let layer = DeadlineLayer::from_header("grpc-timeout")
///     .or(Duration::from_secs(30))
///     .at_most(Duration::from_secs(60))
///     .refuse_below_median(Need::Whole)
///     .propagate(Propagate::Header(TimeoutHeader::grpc()));
/// let service = layer.layer("any service");
/// assert_eq!(layer.handle().get().at_most, Some(Duration::from_secs(60)));
/// # assert!(format!("{service:?}").contains("any service"));
/// ```
#[derive(Clone)]
pub struct DeadlineLayer {
    header: Option<TimeoutHeader>,
    propagate: Propagate,
    shared: Arc<Shared<Deadlines>>,
}

/// Who is told of the deadline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Propagate {
    /// Nobody. Nothing is allocated.
    #[default]
    Nothing,
    /// The layers further in: a [`Deadline`](palisade_core::deadline::Deadline) in the request's extensions. Costs
    /// one allocation, or three when the extensions were empty.
    Extension,
    /// Also the next server, by this header with what remains. Costs the value, and its place if there was none.
    Header(TimeoutHeader),
}

/// What a [`DeadlineLayer`] holds requests to, besides what they say themselves: to be set live through its
/// [`Handle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// For requests whose header says nothing: [`DeadlineLayer::or`].
    pub or: Option<Duration>,
    /// For all requests: [`DeadlineLayer::at_most`].
    pub at_most: Option<Duration>,
    /// Whether too little time is refused at once: [`DeadlineLayer::refuse_below_median`].
    pub refuse_below_median: Option<Need>,
}

#[derive(Debug)]
pub struct State {
    deadlines: Deadlines,
    median: Option<Arc<Median>>,
}

impl sealed::Settings for Deadlines {
    type State = State;

    fn start(&self, before: Option<&State>) -> State {
        let kept = before.and_then(|before| before.median.clone());
        let median = self.refuse_below_median.map(|need| {
            let kept = kept.filter(|kept| kept.need == need);
            kept.unwrap_or_else(|| Arc::new(Median::new(need)))
        });
        State {
            deadlines: *self,
            median,
        }
    }

    fn of(state: &State) -> Self {
        state.deadlines
    }

    fn quick(&self) -> Quick {
        Quick {
            spans: [span(self.or), span(self.at_most), After::NEVER],
            more: self.refuse_below_median.is_some(),
        }
    }

    fn look(state: &State, now: Instant) -> Look {
        let median = state.median.as_deref();
        Look {
            let_through: median.map_or(0, Median::let_through),
            median: median.and_then(|median| median.get(now)),
            ..Look::default()
        }
    }
}

impl Settings for Deadlines {}

impl State {
    /// Has the time of a request measured, unless it is refused for what is known.
    fn watch(&self, limits: &mut Limits, tally: &Tally, now: Instant) -> Option<Refusal> {
        let median = self.median.as_ref()?;
        limits.samples = median.samples();
        if limits.whole.is_never() {
            return None;
        }
        let hopeless = median.refuses(limits.whole.get(), now, tally);
        hopeless.map(Refusal::Hopeless)
    }
}

impl DeadlineLayer {
    /// Ends each request `limit` after its call.
    pub fn new(limit: Duration) -> Self {
        Self::start(None).or(limit)
    }

    /// Ends each request when its header says. Without a header that says something there is no deadline: see
    /// [`or`](Self::or).
    pub fn from_header(header: impl Into<TimeoutHeader>) -> Self {
        Self::start(Some(header.into()))
    }

    /// Tells the next server what is left of the deadline that a layer further out has set: by this header, which it
    /// replaces.
    ///
    /// Innermost, right in front of the client: the time that a request has spent in a queue or between two attempts is
    /// taken off. A header that was written further out still says what was left then.
    ///
    /// ```
    /// use std::time::Duration;
    /// use palisade_deadline::{DeadlineLayer, Propagate};
    ///
    /// let outer = DeadlineLayer::new(Duration::from_secs(30)).propagate(Propagate::Extension);
    /// let innermost = DeadlineLayer::forward("grpc-timeout");
    /// # let _ = (outer, innermost);
    /// ```
    pub fn forward(header: impl Into<TimeoutHeader>) -> Self {
        let header = header.into();
        Self::from_header(header.clone()).propagate(Propagate::Header(header))
    }

    fn start(header: Option<TimeoutHeader>) -> Self {
        Self {
            header,
            propagate: Propagate::Nothing,
            shared: Shared::new(
                &Deadlines::default(),
                Tally::new("deadline".into(), Mode::Enforce),
            ),
        }
    }

    /// Ends requests whose header says nothing `limit` after their call.
    #[must_use]
    pub fn or(self, limit: Duration) -> Self {
        self.with(|deadlines| deadlines.or = Some(limit))
    }

    /// Ends every request `limit` after its call at the latest, whatever its header asks for.
    #[must_use]
    pub fn at_most(self, limit: Duration) -> Self {
        self.with(|deadlines| deadlines.at_most = Some(limit))
    }

    /// Refuses a request at once when less time is left than half of the requests of the last minute took: as
    /// [`Hopeless`](crate::Hopeless), with [`DeadlineExceeded`](palisade_core::reject::Reason::DeadlineExceeded).
    ///
    /// Nothing is refused before 20 answers have come within that minute. One in ten passes all the same, so that a
    /// service that has become faster is found. A request that its deadline cuts off counts as one of twice its age, an
    /// answer that says that the service has failed does not count, and a whole answer lasts as long as its reader
    /// takes. One value of the layer has one median: requests that take very differently long need one each.
    #[must_use]
    pub fn refuse_below_median(self, need: Need) -> Self {
        self.with(|deadlines| deadlines.refuse_below_median = Some(need))
    }

    /// Tells others of the deadline.
    #[must_use]
    pub fn propagate(mut self, propagate: Propagate) -> Self {
        self.propagate = propagate;
        self
    }

    /// Ends nothing and counts what it would have ended.
    #[must_use]
    pub fn shadow(mut self) -> Self {
        let tally = Tally::new(self.shared.tally.name.clone(), Mode::Shadow);
        self.shared = Shared::new(&self.shared.get(), tally);
        self
    }

    /// Names the layer in metrics; `deadline` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        let tally = Tally::new(name.into(), self.shared.tally.mode());
        self.shared = Shared::new(&self.shared.get(), tally);
        self
    }

    /// Looks at the layer and its clones, and steers them. Taken last: a setter makes another layer.
    pub fn handle(&self) -> Handle<Deadlines> {
        Handle::new(self.shared.clone())
    }

    fn with(mut self, change: impl FnOnce(&mut Deadlines)) -> Self {
        let mut deadlines = self.shared.get();
        change(&mut deadlines);
        let tally = &self.shared.tally;
        let tally = Tally::new(tally.name.clone(), tally.mode());
        self.shared = Shared::new(&deadlines, tally);
        self
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        let layer = self.clone();
        DeadlineService { inner, layer }
    }
}

/// A service whose requests end at their deadline.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S, R, B> Service<Request<R>> for DeadlineService<S>
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

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        let now = time::now();
        match self.layer.admit(&request, now) {
            Err(refusal) => DeadlineFuture::refused(refusal, self.layer.shared.tally.clone()),
            Ok(limits) => {
                self.layer.tell(&mut request, &limits);
                let watch = Watch::new(&self.layer.shared.tally, limits);
                DeadlineFuture::new(self.inner.call(request), watch)
            }
        }
    }
}

impl DeadlineLayer {
    #[inline]
    fn admit<R>(&self, request: &Request<R>, now: Instant) -> Result<Limits, Refusal> {
        let Shared {
            tally,
            state,
            quick,
        } = &*self.shared;
        let (spans, state) = match quick.get() {
            Some(spans) => (spans, None),
            None => {
                let state = state.load();
                let Quick { spans, .. } = sealed::Settings::quick(&state.deadlines);
                (spans, Some(state))
            }
        };
        let [or, at_most, _] = spans;
        let header = self.header.as_ref();
        let asked = header.and_then(|header| header.read(request.headers()));
        let outer = request.extensions().get::<Deadline>();

        tally.arrive();
        let mut limits = Limits::new(now, Limit::Deadline);
        let own = asked.map_or(or, After::new).min(at_most);
        limits.whole = own.min(span(outer.map(|outer| outer.remaining(now))));
        let passed = limits.whole == After::new(Duration::ZERO);
        let refusal = passed.then_some(Refusal::Passed);
        let refusal = match state {
            Some(state) => refusal.or_else(|| state.watch(&mut limits, tally, now)),
            None => refusal,
        };
        match (refusal, tally.mode()) {
            (None, _) => Ok(limits),
            (Some(refusal), Mode::Enforce) => Err(refusal),
            (Some(refusal), Mode::Shadow) => {
                tally.ends(refusal.why());
                // It has been counted.
                limits.whole = After::NEVER;
                Ok(limits)
            }
        }
    }

    #[inline]
    fn tell<R>(&self, request: &mut Request<R>, limits: &Limits) {
        if self.propagate == Propagate::Nothing
            || limits.whole.is_never()
            || self.shared.tally.mode() == Mode::Shadow
        {
            return;
        }
        let left = limits.whole.get();
        // What overflows the clock, in centuries, is no limit.
        let Some(at) = limits.since.checked_add(left) else {
            return;
        };
        if let Propagate::Header(header) = &self.propagate {
            header.write(request.headers_mut(), left);
        }
        request.extensions_mut().insert(Deadline(at));
    }
}

fn span(span: Option<Duration>) -> After {
    span.map_or(After::NEVER, After::new)
}

impl fmt::Debug for DeadlineLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineLayer")
            .field("header", &self.header)
            .field("propagate", &self.propagate)
            .field("deadlines", &self.shared.get())
            .finish_non_exhaustive()
    }
}
