//! What has happened to a store so far, and how it stands.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::time::now;
use tokio::time::Instant;

use super::metrics::Metrics;

/// How a store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StoreState {
    /// Whether it is asked: of a cluster, whether any of its servers is.
    pub up: bool,
    /// For how long it has been so.
    pub since: Duration,
    /// Processes that share it, as last heard; one until then.
    pub replicas: u64,
    /// Decisions so far; in a cluster, of each server that has a part in one.
    pub checks: u64,
    /// Errors answered and connections broken so far, those of the upkeep too.
    pub errors: u64,
    /// Answers that did not come in time so far.
    pub timeouts: u64,
    /// Requests so far that may have been counted though nobody knows: they have a policy's answer.
    pub maybe_charged: u64,
    /// How often so far a server failed so much that it was no longer asked.
    pub trips: u64,
    /// Settlements and the like so far for which the queue had no room: what they would have given back stands as used.
    pub jobs_lost: u64,
    /// The last error.
    pub last_error: Option<Arc<str>>,
}

/// Counts what happens.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) replicas: AtomicU64,
    checks: AtomicU64,
    errors: AtomicU64,
    timeouts: AtomicU64,
    maybe_charged: AtomicU64,
    trips: AtomicU64,
    jobs_lost: AtomicU64,
    /// Servers that are asked.
    up: AtomicUsize,
    rest: Mutex<Rest>,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
struct Rest {
    since: Instant,
    last_error: Option<Arc<str>>,
}

impl Tally {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            replicas: AtomicU64::new(1),
            checks: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            maybe_charged: AtomicU64::new(0),
            trips: AtomicU64::new(0),
            jobs_lost: AtomicU64::new(0),
            up: AtomicUsize::new(0),
            rest: Mutex::new(Rest {
                since: now(),
                last_error: None,
            }),
            metrics,
        }
    }

    #[inline]
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Relaxed) > 0
    }

    pub(super) fn state(&self) -> StoreState {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        StoreState {
            up: self.is_up(),
            since: now().saturating_duration_since(rest.since),
            replicas: self.replicas.load(Relaxed),
            checks: self.checks.load(Relaxed),
            errors: self.errors.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            maybe_charged: self.maybe_charged.load(Relaxed),
            trips: self.trips.load(Relaxed),
            jobs_lost: self.jobs_lost.load(Relaxed),
            last_error: rest.last_error.clone(),
        }
    }

    /// A server is asked from now on.
    pub(super) fn rose(&self) {
        if self.up.fetch_add(1, Relaxed) == 0 {
            self.turned();
        }
    }

    /// A server is not asked any more.
    pub(super) fn fell(&self) {
        if self.up.fetch_sub(1, Relaxed) == 1 {
            self.turned();
        }
    }

    fn turned(&self) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.since = now();
        // As it is now: of two servers that turn at once, the first to change it may be the last to get here.
        self.metrics.turned(self.is_up());
    }

    pub(super) fn asked(&self) {
        self.checks.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self, after: Duration) {
        self.metrics.answered(after);
    }

    pub(super) fn failed(&self, what: &Arc<str>) {
        self.errors.fetch_add(1, Relaxed);
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.last_error = Some(what.clone());
    }

    pub(super) fn timed_out(&self) {
        self.timeouts.fetch_add(1, Relaxed);
    }

    pub(super) fn tripped(&self) {
        self.trips.fetch_add(1, Relaxed);
        self.metrics.tripped();
    }

    pub(super) fn may_have_charged(&self) {
        self.maybe_charged.fetch_add(1, Relaxed);
        self.metrics.may_have_charged();
    }

    pub(super) fn lost_a_job(&self) {
        self.jobs_lost.fetch_add(1, Relaxed);
        self.metrics.lost_a_job();
    }
}
