use std::{fmt, sync::Arc, time::Duration};

use palisade_core::{
    classify::Usage,
    gate::{Admit, Gate},
    head::RequestHead,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{
    class::Class,
    compliance::Targets,
    handle::Handle,
    hold::{Hold, Holding, Lease},
    indicators::{Ended, Event, Gaps},
    labels::{InvalidDimension, NOWHERE, Places, Read},
    objective::Objective,
    state::{Scope, Shared},
};

/// Measures requests against an objective, and lets all of them through.
///
/// For [`gates`](palisade_core::gate::gates), which fuse it with its neighbours; [`SlaLayer`](crate::SlaLayer) is
/// the same by itself. Clones count together.
///
/// ```
/// use palisade_core::gate::gates;
/// use palisade_sla::{Objective, Sla};
///
/// let sla = Sla::new(Objective::success(0.999)?).named("chat");
/// let handle = sla.handle();
/// let layer = gates((sla, ()));
/// # let _ = layer;
/// assert_eq!(handle.snapshot().name, "chat");
/// # Ok::<(), palisade_sla::InvalidObjective>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sla {
    shared: Hold,
}

impl Sla {
    /// Measures against this objective, over 30 days, and summarises up to 5 minutes.
    pub fn new(objective: Objective) -> Self {
        Self {
            shared: Hold::new(Shared::new(objective)),
        }
    }

    /// The name in snapshots and metrics instead of `sla`; metrics take it with the first request.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        self.shared.set(|settings| settings.name = name);
        self
    }

    /// Holds summaries against these targets instead of the defaults.
    #[must_use]
    pub fn targets(self, targets: Targets) -> Self {
        self.shared.set(|settings| settings.targets = targets);
        self
    }

    /// Summarises windows of up to this instead of 5 minutes, an hour at most: 10 KiB for each 30th of it or 10 seconds.
    ///
    /// Forgets what was counted so far.
    #[must_use]
    pub fn longest_window(self, window: Duration) -> Self {
        self.shared.reshape(|shape| shape.window = window);
        self
    }

    /// Gives error budgets for this period instead of 30 days. The windows of alerts scale with it, so that 12 hours
    /// show in a minute what 30 days show in an hour.
    ///
    /// Forgets what was counted so far.
    #[must_use]
    pub fn period(self, period: Duration) -> Self {
        self.shared.reshape(|shape| shape.period = period);
        self
    }

    /// Counts requests also by what `read` finds in their head, each label by itself: by route, by model, by class of key.
    ///
    /// A request without a label is in no part of this dimension. The first 32 labels ([`most_labels`](Self::most_labels))
    /// get a place of 40 KiB each, and all others are `other` together, as are those of more than 128 bytes: what callers
    /// may choose freely is no label. What is only known further in is counted there, by [`further_in`](Self::further_in)
    /// and [`labelled`](Self::labelled).
    ///
    /// ```
    /// use palisade_sla::{Objective, Sla};
    ///
    /// let sla = Sla::new(Objective::success(0.999)?)
    ///     .by("route", |head| Some(head.uri.path()))?
    ///     .by("model", |head| head.headers.get("x-model")?.to_str().ok())?;
    /// # assert_eq!(sla.handle().labels(std::time::Duration::from_secs(60)).len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when the dimension has been given a way to read its labels before, or is the ninth.
    pub fn by<F>(self, dimension: &str, read: F) -> Result<Self, InvalidDimension>
    where
        F: for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    {
        self.shared.dimensions.read(dimension, Box::new(read))?;
        self.shared.reserve();
        Ok(self)
    }

    /// A gate for the requests of one label, which is known before they come: for one endpoint of a balancer.
    ///
    /// It counts by this label only, so that requests which pass it and the layer further out are counted once. A label
    /// that gets no place is counted as `other`.
    ///
    /// Once all gates of a label are dropped and the last of their requests has ended, it stays as long as a window lasts,
    /// and then gives its place back: sooner if another label needs that. Labels of a dimension that is also read from
    /// heads stay.
    ///
    /// # Errors
    ///
    /// Fails when the dimension is the ninth.
    pub fn labelled(&self, dimension: &str, label: &str) -> Result<LabelledSla, InvalidDimension> {
        let (places, holding) = Holding::new(&self.shared, dimension, label)?;
        self.shared.reserve();
        Ok(LabelledSla {
            places,
            _held: holding.map(Arc::new),
            ..self.further_in()
        })
    }

    /// A gate for what is only known further in, where the head says more: the model after the body was read, the class of
    /// a key after it was looked up.
    ///
    /// It counts by the labels of [`LabelledSla::by`] only, so that requests which pass it and the layer further out are
    /// counted once.
    ///
    /// ```
    /// use palisade_core::gate::gates;
    /// use palisade_sla::{Objective, Sla};
    ///
    /// #[derive(Clone)]
    /// struct Model(&'static str);
    ///
    /// let sla = Sla::new(Objective::success(0.999)?).by("route", |head| Some(head.uri.path()))?;
    /// let models = sla
    ///     .further_in()
    ///     .by("model", |head| Some(head.extensions.get::<Model>()?.0))?;
    /// let (outer, inner) = (gates((sla, ())), gates((models, ())));
    /// # let _ = (outer, inner);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn further_in(&self) -> LabelledSla {
        LabelledSla {
            shared: self.shared.clone(),
            places: NOWHERE,
            _held: None,
            reads: Vec::new(),
        }
    }

    /// Gives dimensions that are added from now on so many labels instead of 32, and 253 at most.
    #[must_use]
    pub fn most_labels(self, most: usize) -> Self {
        self.shared.dimensions.set_most(most);
        self
    }

    /// Asks this how many requests wait to be served, whenever a summary is made.
    #[must_use]
    pub fn queue_depth(self, depth: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let depth = Arc::new(depth);
        self.shared.set(|settings| settings.queue = Some(depth));
        self
    }

    /// Has [`Handle::publish`] tell of each label, too: four series for each.
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn publish_labels(self) -> Self {
        self.shared.set(|settings| settings.publishes_labels = true);
        self
    }

    /// Reports what was measured.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.shared())
    }
}

impl Gate for Sla {
    type Guard = InFlight;

    #[inline]
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<InFlight> {
        let scope = Scope {
            whole: true,
            places: self.shared.dimensions.places(head),
        };
        Admit::Now(Ok(InFlight::new(&self.shared, scope, now)))
    }
}

/// Measures requests by their labels, as [`Sla::labelled`] and [`Sla::further_in`] say. Clones count together.
#[derive(Clone)]
pub struct LabelledSla {
    shared: Hold,
    places: Places,
    /// Told when no clone is left.
    _held: Option<Arc<Holding>>,
    /// By dimension.
    reads: Vec<(usize, Arc<Read>)>,
}

impl LabelledSla {
    /// Counts requests by what `read` finds in their head here, as [`Sla::by`] does further out.
    ///
    /// # Errors
    ///
    /// Fails when the dimension is the ninth.
    pub fn by<F>(mut self, dimension: &str, read: F) -> Result<Self, InvalidDimension>
    where
        F: for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    {
        let at = self.shared.dimensions.add_named(dimension)?;
        self.shared.reserve();
        self.reads.push((at, Arc::new(read)));
        Ok(self)
    }
}

impl fmt::Debug for LabelledSla {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LabelledSla")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Gate for LabelledSla {
    type Guard = InFlight;

    #[inline]
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<InFlight> {
        let mut places = self.places;
        for (at, read) in &self.reads {
            if let Some(label) = read(head) {
                places[*at] = self.shared.dimensions.place_at(*at, label);
            }
        }
        let scope = Scope {
            whole: false,
            places,
        };
        Admit::Now(Ok(InFlight::new(&self.shared, scope, now)))
    }
}

/// A request in flight, which is counted when it ends.
#[derive(Debug)]
pub struct InFlight {
    shared: Arc<Lease>,
    scope: Scope,
    /// In nanoseconds, as all times here.
    since: u64,
    first_data: Maybe,
    state: State,
}

/// Small, as it is moved with the request and its answer.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Nobody has said how it ends.
    Open {
        /// When the newest piece of the answer came.
        piece: Maybe,
        /// The longest time without one.
        longest_gap: u64,
    },
    /// The verdict was known before the end.
    Told {
        class: Class,
        /// Of the prompt, and of the completion.
        usage: [Maybe; 2],
        /// Their mean, and the longest.
        gaps: [Maybe; 2],
    },
    Counted,
}

/// A number, if there is one, in the space of one: the largest there is stands for none.
#[derive(Clone, Copy, Debug)]
struct Maybe(u64);

impl Maybe {
    const NONE: Self = Self(u64::MAX);

    fn of(pair: Option<[u64; 2]>) -> [Self; 2] {
        pair.map_or([Self::NONE; 2], |pair| pair.map(Self::some))
    }

    #[inline]
    fn some(number: u64) -> Self {
        Self(number.min(u64::MAX - 1))
    }

    #[inline]
    fn get(self) -> Option<u64> {
        (self.0 != u64::MAX).then_some(self.0)
    }
}

impl State {
    const NEW: Self = Self::Open {
        piece: Maybe::NONE,
        longest_gap: 0,
    };

    fn told(class: Class, usage: Option<Usage>, gaps: Option<Gaps>) -> Self {
        Self::Told {
            class,
            usage: Maybe::of(usage.map(|usage| [usage.prompt, usage.completion])),
            gaps: Maybe::of(gaps.map(|gaps| [gaps.mean, gaps.longest])),
        }
    }
}

impl InFlight {
    #[inline]
    fn new(hold: &Hold, scope: Scope, since: Instant) -> Self {
        let shared = hold.lease();
        shared.enter(&scope);
        Self {
            scope,
            since: shared.nanos(since),
            shared,
            first_data: Maybe::NONE,
            state: State::NEW,
        }
    }

    #[inline]
    fn end(&mut self, class: Class, usage: Option<Usage>, gaps: Option<Gaps>, now: u64) {
        self.state = State::Counted;
        let ended = Ended {
            class,
            usage,
            first_data: self.first_data.get(),
            total: now.saturating_sub(self.since),
            gaps,
        };
        self.shared.end(&Event::End(ended), now, &self.scope);
    }

    /// The time between tokens, of an answer that came in pieces.
    #[inline]
    fn gaps(&self, end: &End, now: u64) -> Option<Gaps> {
        if end.streamed < 2 {
            return None;
        }
        let longest = match self.state {
            State::Open { longest_gap, .. } => longest_gap,
            State::Told { .. } | State::Counted => return None,
        };
        let told = end.usage.map_or(0, |usage| usage.completion);
        let tokens = if told > 1 { told } else { end.streamed };
        let streaming = now.saturating_sub(self.since + self.first_data.get()?);
        Some(Gaps {
            mean: streaming / (tokens - 1),
            longest,
        })
    }
}

impl Settle for InFlight {
    const FOLLOWS: bool = true;

    #[inline]
    fn first_data(&mut self, now: Instant) {
        let now = self.shared.nanos(now);
        let taken = now.saturating_sub(self.since);
        self.first_data = Maybe::some(taken);
        self.shared
            .record(&Event::FirstData(taken), now, &self.scope);
    }

    fn progress(&mut self, _: u64, now: Instant) -> Result<(), Rejected> {
        let now = self.shared.nanos(now);
        if let State::Open { piece, longest_gap } = &mut self.state {
            let before = std::mem::replace(piece, Maybe::some(now));
            let gap = before.get().map_or(0, |before| now.saturating_sub(before));
            *longest_gap = gap.max(*longest_gap);
        }
        Ok(())
    }

    fn settle(&mut self, end: &End, now: Instant) {
        let gaps = self.gaps(end, self.shared.nanos(now));
        self.state = State::told(Class::of(end.verdict), end.usage, gaps);
    }

    #[inline]
    fn finish(&mut self, end: &End, now: Instant) {
        let now = self.shared.nanos(now);
        let gaps = self.gaps(end, now);
        self.end(Class::of(end.verdict), end.usage, gaps, now);
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        match self.state {
            State::Counted => {}
            State::Told { class, usage, gaps } => {
                let pair = |[a, b]: [Maybe; 2]| Some((a.get()?, b.get()?));
                let usage = pair(usage).map(|(prompt, completion)| Usage { prompt, completion });
                let gaps = pair(gaps).map(|(mean, longest)| Gaps { mean, longest });
                let now = self.shared.nanos(time::now());
                self.end(class, usage, gaps, now);
            }
            State::Open { .. } => self.shared.leave(&self.scope),
        }
    }
}
