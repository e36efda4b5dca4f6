//! What holds for one request.

use std::time::Duration;

use palisade_core::{BoxError, reject::Rejected};
use tokio::time::Instant;

use crate::{
    error::{Awaited, Elapsed},
    metrics::Metrics,
};

/// The end of a request's time, carried from its future into its body.
#[derive(Clone)]
pub(crate) struct Limit {
    /// `None` when it has all the time in the world.
    pub(crate) at: Option<Instant>,
    /// The time from the call up to then.
    pub(crate) after: Duration,
    pub(crate) scope: Scope,
    pub(crate) metrics: Metrics,
}

/// Up to where a request is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Whole,
    FirstData,
}

impl Limit {
    /// What overflows the clock, in centuries, is no limit.
    pub(crate) fn new(now: Instant, after: Duration, scope: Scope, metrics: Metrics) -> Self {
        Self {
            at: now.checked_add(after),
            after,
            scope,
            metrics,
        }
    }

    /// The error that says so, counted.
    pub(crate) fn elapsed(&self, awaited: Awaited) -> BoxError {
        let elapsed = Elapsed::new(self.after, awaited);
        self.metrics.elapsed(elapsed.reason());
        Rejected::from(elapsed).into()
    }

    /// What the body of the answer is waited for.
    pub(crate) fn awaited(&self) -> Awaited {
        match self.scope {
            Scope::Whole => Awaited::End,
            Scope::FirstData => Awaited::FirstData,
        }
    }
}
