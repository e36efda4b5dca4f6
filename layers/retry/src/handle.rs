use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::budget::Budget;

/// Looks at a retry from outside.
#[derive(Clone, Debug)]
pub struct Handle {
    stats: Arc<Stats>,
    budget: Budget,
}

/// What a retry has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests that have come in.
    pub requests: u64,
    /// Attempts beyond the first that were sent.
    pub retries: u64,
    /// Requests whose last attempt would have been retried, had anything been left to do it with.
    pub exhausted: u64,
    /// How many attempts the budget has for now; `None` without a limit.
    pub budget_left: Option<u32>,
}

impl Handle {
    pub(crate) fn new(stats: Arc<Stats>, budget: Budget) -> Self {
        Self { stats, budget }
    }

    /// The counts of now. They are read one after the other, while requests go on.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            requests: self.stats.requests.load(Relaxed),
            retries: self.stats.retries.load(Relaxed),
            exhausted: self.stats.exhausted.load(Relaxed),
            budget_left: self.budget.left(),
        }
    }

    /// The budget, for whatever else sends attempts to the same destination.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) exhausted: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
