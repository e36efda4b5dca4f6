use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use crate::{budget::Budget, limits::Typical};

/// Looks at a retry from outside, and steers it.
#[derive(Clone, Debug)]
pub struct Handle {
    stats: Arc<Stats>,
    budget: Budget,
    mode: Arc<ModeCell>,
}

/// What a retry has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests that have come in.
    pub requests: u64,
    /// Attempts beyond the first that were sent.
    pub retries: u64,
    /// Requests whose first attempt would have been followed by another, in [`Mode::Shadow`].
    pub shadowed: u64,
    /// Requests whose last attempt would have been retried, had anything been left to do it with.
    pub exhausted: u64,
    /// How many attempts the budget has for now, or the emptiest of [several](Budget::per); `None` without a limit.
    pub budget_left: Option<u32>,
}

/// Whether a retry does what it decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What has failed is made again.
    #[default]
    Enforce,
    /// It is counted, in [`Snapshot::shadowed`] and in metrics, and paid for; the first answer is the caller's,
    /// unmarked, and limits on time cut nothing off: to try a retry on live traffic. The comments that an event stream
    /// begins with are held back as ever.
    Shadow,
    /// Every request is sent once.
    Off,
}

impl Handle {
    pub(crate) fn new(stats: Arc<Stats>, budget: Budget, mode: Arc<ModeCell>) -> Self {
        Self {
            stats,
            budget,
            mode,
        }
    }

    /// The counts of now. They are read one after the other, while requests go on.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            requests: self.stats.requests.load(Relaxed),
            retries: self.stats.retries.load(Relaxed),
            shadowed: self.stats.shadowed.load(Relaxed),
            exhausted: self.stats.exhausted.load(Relaxed),
            budget_left: self.budget.left(),
        }
    }

    /// The budget, for whatever else sends attempts to the same destination.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether it does what it decides.
    pub fn mode(&self) -> Mode {
        self.mode.get()
    }

    /// Changes that at once, also for requests that are under way.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.0.store(mode as u8, Relaxed);
    }
}

/// A [`Mode`] that can be changed.
#[derive(Debug, Default)]
pub(crate) struct ModeCell(AtomicU8);

impl ModeCell {
    pub(crate) fn new(mode: Mode) -> Self {
        Self(AtomicU8::new(mode as u8))
    }

    #[inline]
    pub(crate) fn get(&self) -> Mode {
        const SHADOW: u8 = Mode::Shadow as u8;
        const OFF: u8 = Mode::Off as u8;
        match self.0.load(Relaxed) {
            SHADOW => Mode::Shadow,
            OFF => Mode::Off,
            _ => Mode::Enforce,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) shadowed: AtomicU64,
    pub(crate) exhausted: AtomicU64,
    /// Of requests that have a limit on their time.
    pub(crate) typical: Typical,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
