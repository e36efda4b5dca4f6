use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use palisade_core::{
    classify::{Classify, Http, Verdict},
    head::ResponseHead,
};
use tower_layer::Layer;

use crate::{
    backoff::Backoff,
    budget::Budget,
    handle::{Handle, Stats},
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
                stats: Arc::new(Stats::default()),
                metrics: Metrics::new("retry".into()),
            }),
            classify: Http,
        }
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
        Handle::new(self.policy.stats.clone(), self.policy.budget.clone())
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
