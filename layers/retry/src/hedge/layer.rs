use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, atomic::AtomicU8},
};

use palisade_core::{
    classify::{Classify, Http},
    ratio::Ratio,
    signal::Signal,
};
use tower_layer::Layer;

use super::{
    delay::Delay,
    handle::Handle,
    metrics::Metrics,
    policy::{Mode, Policy, State, mode},
    service::Hedge,
};
use crate::{budget::Budget, policy::Repeatable};

const MOST_ATTEMPTS: usize = 3;
/// Of requests, unless a layer is told otherwise.
const SHARE: f64 = 0.05;

/// Asks a second endpoint when the first takes long.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::{classify::Grpc, ratio::Ratio};
/// use palisade_retry::{Budget, HedgeLayer, Repeatable, hedge::Delay};
/// use tower::Layer;
///
/// let budget = Budget::percent(20); // the same that the retry layer around it has
/// let layer = HedgeLayer::default()
///     .budget(budget)
///     .at_most(Ratio::new(0.02)?)
///     .repeat(Repeatable::when(|head| head.uri.path() == "/search.Search/Find"))
///     .classify(Grpc);
/// let service = layer.layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// assert_eq!(layer.handle().snapshot().sent, 0);
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone)]
pub struct HedgeLayer<C = Http> {
    policy: Arc<Policy>,
    classify: C,
}

impl HedgeLayer {
    /// One hedge after this delay, for 5 % of requests at most, with bodies up to 64 KiB, judged by HTTP status.
    pub fn new(delay: impl Into<Delay>) -> Self {
        let delay = delay.into();
        Self {
            policy: Arc::new(Policy {
                attempts: 2,
                budget: None,
                repeatable: Repeatable::default(),
                keep_up_to: 64 * 1024,
                mode: Arc::default(),
                paused_by: Vec::new(),
                state: State::new(&delay, SHARE),
                stats: Arc::default(),
                metrics: Metrics::new("hedge".into()),
                delay,
            }),
            classify: Http,
        }
    }
}

impl Default for HedgeLayer {
    /// After what 95 % of answers take.
    fn default() -> Self {
        Self::new(Delay::default())
    }
}

impl<C: Classify> HedgeLayer<C> {
    /// Hedges at most this share of the requests that may be hedged, by what they [cost](palisade_core::cost::Cost):
    /// 5 % otherwise. It starts with nothing, and ten usual hedges are saved at most.
    ///
    /// Starts to count anew.
    #[must_use]
    pub fn at_most(mut self, share: Ratio) -> Self {
        let policy = self.policy_mut();
        policy.state = State::new(&policy.delay, share.get());
        self
    }

    /// Takes each hedge from this budget, too: that of the [`RetryLayer`](crate::RetryLayer) around it, which pays in.
    /// Without it, there is only [`at_most`](Self::at_most).
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.policy_mut().budget = Some(budget);
        self
    }

    /// Sends each request this often at most, the first attempt included: 2 or 3, each one delay after the one before.
    #[must_use]
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.policy_mut().attempts = attempts.clamp(2, MOST_ATTEMPTS);
        self
    }

    /// Hedges these requests; [`Repeatable::Idempotent`] otherwise. Those that may only be repeated if they were not sent
    /// are not hedged.
    #[must_use]
    pub fn repeat(mut self, repeatable: Repeatable) -> Self {
        self.policy_mut().repeatable = repeatable;
        self
    }

    /// Keeps up to this many bytes of a request's body; one that has more is not hedged.
    #[must_use]
    pub fn keep_up_to(mut self, bytes: usize) -> Self {
        self.policy_mut().keep_up_to = bytes;
        self
    }

    /// Begins in this mode; [`Handle::set_mode`] changes it.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.policy_mut().mode = Arc::new(AtomicU8::new(mode as u8));
        self
    }

    /// Sends no hedges while this is set, such as by an SLA monitor whose error budget burns. With several, while any is.
    ///
    /// Hedges that were due are [counted](crate::hedge::Snapshot::while_paused), and not sent later. Those that run go on.
    #[must_use]
    pub fn paused_by(mut self, signal: Signal) -> Self {
        self.policy_mut().paused_by.push(signal);
        self
    }

    /// Names the layer in metrics; `hedge` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.policy_mut().metrics = Metrics::new(name.into());
        self
    }

    /// Judges attempts with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> HedgeLayer<D> {
        HedgeLayer {
            policy: self.policy,
            classify,
        }
    }

    /// Looks at it from outside, and steers it.
    pub fn handle(&self) -> Handle {
        Handle(self.policy.clone())
    }

    /// Own settings for this clone from here on.
    fn policy_mut(&mut self) -> &mut Policy {
        Arc::make_mut(&mut self.policy)
    }
}

impl<S, C: Classify> Layer<S> for HedgeLayer<C> {
    type Service = Hedge<S, C>;

    fn layer(&self, inner: S) -> Hedge<S, C> {
        Hedge::new(inner, self.classify.clone(), self.policy.clone())
    }
}

impl<C: fmt::Debug> fmt::Debug for HedgeLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("attempts", &self.policy.attempts)
            .field("delay", &self.policy.delay)
            .field("at_most", &self.policy.state().share.ratio())
            .field("mode", &mode(&self.policy.mode))
            .field("repeatable", &self.policy.repeatable)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}
