//! How long a request and its attempts may take.

use std::{
    cell::LazyCell,
    error::Error,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    time,
};
use tokio::time::Instant;

/// No answer came in time. Its envelope is a [`Rejected`] for [`Reason::TimedOut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Elapsed {
    /// Not to the last attempt, within [`RetryLayer::attempt_timeout`](crate::RetryLayer::attempt_timeout).
    Attempt(Duration),
    /// Not to all attempts together, within [`RetryLayer::within`](crate::RetryLayer::within).
    Overall(Duration),
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt(limit) => write!(f, "no answer to an attempt within {limit:?}"),
            Self::Overall(limit) => write!(f, "no answer to all attempts within {limit:?}"),
        }
    }
}

impl Error for Elapsed {}

/// Read at most once per call and per poll, and only by what needs it.
pub(crate) type Now = LazyCell<Instant>;

/// The limits of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) attempt: Option<Duration>,
    pub(crate) overall: Option<Duration>,
}

/// The limits of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    limits: Limits,
    /// When all attempts are over; no clock is read if they never are.
    over: Option<Instant>,
}

impl Until {
    pub(crate) fn new(limits: Limits, now: &Now) -> Self {
        let overall = limits.overall;
        Self {
            limits,
            over: overall.and_then(|limit| now.checked_add(limit)),
        }
    }

    pub(crate) fn over(&self) -> Option<Instant> {
        self.over
    }

    /// When an attempt that begins now has to have its answer.
    pub(crate) fn attempt(&self, now: &Now) -> Option<Instant> {
        let limit = self.limits.attempt;
        let attempt = limit.and_then(|limit| now.checked_add(limit));
        [attempt, self.over].into_iter().flatten().min()
    }

    /// What to say when such a time has come.
    pub(crate) fn elapsed(&self) -> BoxError {
        let is_over = || self.over.is_some_and(|over| over <= time::now());
        let elapsed = match (self.limits.overall, self.limits.attempt) {
            (Some(limit), None) => Elapsed::Overall(limit),
            (Some(limit), Some(_)) if is_over() => Elapsed::Overall(limit),
            (_, limit) => Elapsed::Attempt(limit.unwrap_or_default()),
        };
        Rejected::new(Reason::TimedOut, elapsed).into()
    }
}

/// How long an attempt that is answered takes to its answer: an average that weighs each one an eighth.
#[derive(Debug, Default)]
pub(crate) struct Typical(AtomicU64);

impl Typical {
    /// Of two at the same time one may be lost, which an average can bear.
    pub(crate) fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.0.load(Relaxed);
        let after = match before {
            0 => took,
            before => before - before / 8 + took / 8,
        };
        self.0.store(after, Relaxed);
    }

    /// Zero as long as there was none.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_average_follows_what_it_is_told_and_never_overflows() {
        let typical = Typical::default();
        assert_eq!(typical.get(), Duration::ZERO);
        typical.record(8 * SECOND);
        assert_eq!(typical.get(), 8 * SECOND);
        typical.record(16 * SECOND);
        assert_eq!(typical.get(), 9 * SECOND);
        for _ in 0..100 {
            typical.record(SECOND);
        }
        assert!(typical.get() < 2 * SECOND);
        for _ in 0..100 {
            typical.record(Duration::MAX);
        }
        assert!(typical.get() > SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_with_the_earlier_of_two_limits() {
        let now = time::now();
        let attempt = |attempt, overall| {
            let now = Now::new(time::now);
            Until::new(Limits { attempt, overall }, &now).attempt(&now)
        };
        assert_eq!(attempt(None, None), None);
        assert_eq!(attempt(Some(SECOND), None), Some(now + SECOND));
        let both = attempt(Some(2 * SECOND), Some(SECOND));
        assert_eq!(both, Some(now + SECOND));
        assert_eq!(attempt(Some(Duration::MAX), Some(Duration::MAX)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_which_limit_it_was() {
        let said = |until: Until| {
            let error = until.elapsed();
            let rejected = Rejected::find(&*error).unwrap();
            assert_eq!(rejected.reason(), Reason::TimedOut);
            *rejected
                .source()
                .unwrap()
                .downcast_ref::<Elapsed>()
                .unwrap()
        };
        let until = |attempt, overall| {
            let now = Now::new(time::now);
            Until::new(Limits { attempt, overall }, &now)
        };
        assert_eq!(said(until(Some(SECOND), None)), Elapsed::Attempt(SECOND));
        assert_eq!(said(until(None, Some(SECOND))), Elapsed::Overall(SECOND));
        let both = until(Some(SECOND), Some(2 * SECOND));
        tokio::time::advance(SECOND).await;
        assert_eq!(said(both), Elapsed::Attempt(SECOND));
        tokio::time::advance(SECOND).await;
        assert_eq!(said(both), Elapsed::Overall(2 * SECOND));
    }
}
