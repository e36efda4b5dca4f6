use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use palisade_core::{
    classify::{Classify, Http, Sse, Verdict},
    head::ResponseHead,
};
use tower_layer::Layer;

use crate::{
    backoff::{Backoff, Jitter},
    budget::Budget,
    handle::{Handle, Mode, ModeCell, Stats},
    limits::Limits,
    metrics::Metrics,
    policy::{Policy, Repeatable},
    service::Retry,
};

/// Sends requests again when an attempt fails.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::classify::Grpc;
/// use palisade_retry::{Backoff, Budget, Repeatable, RetryLayer};
/// use tower::Layer;
///
/// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2))?;
/// let layer = RetryLayer::new(backoff)
///     .attempts(4)
///     .budget(Budget::percent(10))
///     .repeat(Repeatable::IdempotentOrUnsent)
///     .classify(Grpc);
/// let service = layer.layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// assert_eq!(layer.handle().snapshot().budget_left, Some(100));
/// # Ok::<(), palisade_retry::InvalidBackoff>(())
/// ```
#[derive(Clone)]
pub struct RetryLayer<C = Http> {
    policy: Arc<Policy>,
    classify: C,
}

impl RetryLayer {
    /// Three attempts in all, a fifth more attempts than requests, bodies up to 64 KiB, judged by HTTP status.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            policy: Arc::new(Policy {
                attempts: 3,
                backoff,
                budget: Budget::default(),
                repeatable: Repeatable::default(),
                condition: None,
                replay_up_to: 64 * 1024,
                wait_up_to: Duration::from_secs(30),
                limits: Limits::default(),
                mode: Arc::default(),
                stats: Arc::new(Stats::default()),
                metrics: Metrics::new("retry".into()),
            }),
            classify: Http,
        }
    }
}

impl RetryLayer<Sse> {
    /// For language models: [completions](Repeatable::completions) too are retried, streams of them until their first
    /// data; half a second doubling up to 8 s, a wait of up to a minute when the model asks for one, and prompts of up to
    /// 1 MiB. As the clients of the vendors have it, but with a budget.
    ///
    /// ```
    /// use palisade_core::cost::Cost;
    /// use palisade_retry::{Budget, RetryLayer};
    ///
    /// let thousand = Cost::new(1_000.0).expect("above zero");
    /// let layer = RetryLayer::completions().budget(Budget::percent(20).weighted(thousand));
    /// # assert_eq!(layer.handle().snapshot().budget_left, Some(100));
    /// ```
    pub fn completions() -> Self {
        let (min, max) = (Duration::from_millis(500), Duration::from_secs(8));
        let backoff = Backoff::exponential(min, max).unwrap_or_default();
        RetryLayer::new(backoff.jitter(Jitter::Equal))
            .repeat(Repeatable::completions())
            .wait_up_to(Duration::from_secs(60))
            .replay_up_to(1024 * 1024)
            .classify(Sse)
    }
}

impl Default for RetryLayer {
    /// With the default [`Backoff`].
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<C: Classify> RetryLayer<C> {
    /// Sends each request this often at most, the first attempt included. Below two, nothing is retried.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.policy_mut().attempts = attempts;
        self
    }

    /// Takes attempts from this budget: give all that send to one destination a clone of the same.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.policy_mut().budget = budget;
        self
    }

    /// Retries these requests; [`Repeatable::Idempotent`] otherwise.
    #[must_use]
    pub fn repeat(mut self, repeatable: Repeatable) -> Self {
        self.policy_mut().repeatable = repeatable;
        self
    }

    /// Retries after these verdicts, and the heads they were reached by; [`transient`](crate::transient) otherwise.
    ///
    /// Not asked about a success, a refusal by a layer further in, or an answer that says not to retry.
    #[must_use]
    pub fn condition<F>(mut self, condition: F) -> Self
    where
        F: Fn(Verdict, Option<&ResponseHead<'_>>) -> bool + Send + Sync + 'static,
    {
        self.policy_mut().condition = Some(Arc::new(condition));
        self
    }

    /// Keeps up to this many bytes of a request's body; one of which more was sent is not sent again.
    #[must_use]
    pub fn replay_up_to(mut self, bytes: usize) -> Self {
        self.policy_mut().replay_up_to = bytes;
        self
    }

    /// Waits this long at most when a service says when to come back; 30 s otherwise. Asked for more, it gives up.
    #[must_use]
    pub fn wait_up_to(mut self, delay: Duration) -> Self {
        self.policy_mut().wait_up_to = delay;
        self
    }

    /// Gives up on an attempt that has no answer after this long, as timed out; unlimited otherwise.
    ///
    /// Its answer is what is passed on: its head, of an event stream that is read its first data. What follows may take
    /// as long as it will.
    #[must_use]
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.policy_mut().limits.attempt = Some(limit);
        self
    }

    /// Gives up on a request whose attempts and the waits between them have led to no answer after this long; unlimited
    /// otherwise.
    ///
    /// No attempt is begun that would not be over by then, going by how long those that were answered took of late: what
    /// there is by now is the answer. The same goes for the [`Deadline`](palisade_core::deadline::Deadline) of a request,
    /// which cuts nothing off here: whoever put it there does.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.policy_mut().limits.overall = Some(limit);
        self
    }

    /// Whether it does what it decides; [`Handle::set_mode`] changes that later on.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.policy_mut().mode = Arc::new(ModeCell::new(mode));
        self
    }

    /// Names the layer in metrics; `retry` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.policy_mut().metrics = Metrics::new(name.into());
        self
    }

    /// Judges attempts with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> RetryLayer<D> {
        RetryLayer {
            policy: self.policy,
            classify,
        }
    }

    /// Looks at it from outside.
    pub fn handle(&self) -> Handle {
        let Policy {
            stats,
            budget,
            mode,
            ..
        } = &*self.policy;
        Handle::new(stats.clone(), budget.clone(), mode.clone())
    }

    /// Own settings for this clone from here on.
    fn policy_mut(&mut self) -> &mut Policy {
        Arc::make_mut(&mut self.policy)
    }
}

impl<S, C: Classify> Layer<S> for RetryLayer<C> {
    type Service = Retry<S, C>;

    fn layer(&self, inner: S) -> Retry<S, C> {
        Retry::new(inner, self.classify.clone(), self.policy.clone())
    }
}

impl<C: fmt::Debug> fmt::Debug for RetryLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("attempts", &self.policy.attempts)
            .field("backoff", &self.policy.backoff)
            .field("budget", &self.policy.budget)
            .field("repeatable", &self.policy.repeatable)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}
