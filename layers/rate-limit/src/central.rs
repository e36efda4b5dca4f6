//! The boundary to a store that other processes share.
//!
//! It sees rules as plans, keys as hashes, and costs; never a request. Times that it takes and gives are nanoseconds;
//! its own clock has microseconds, and they are those of the store, not of this process.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use palisade_core::key::Key;

use crate::{
    error::StoreError,
    meter::{Full, Standing},
};

/// A key as all processes hash it, so that no store holds what callers sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Subject(pub(crate) [u8; 16]);

impl Subject {
    /// Of a rule without keys, and of all who have none.
    pub(crate) const SHARED: Self = Self([0; 16]);
}

/// How a rule counts: all that a store has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    TokenBucket {
        /// Nanoseconds that one comes back in.
        interval: u64,
        burst: u64,
    },
    FixedWindow {
        limit: u64,
        /// Nanoseconds, whole microseconds.
        window: u64,
    },
    SlidingWindow {
        limit: u64,
        /// Nanoseconds, whole ticks.
        window: u64,
        /// Nanoseconds that are told apart in the window, whole microseconds.
        tick: u64,
    },
    SlidingLog {
        limit: u64,
        /// Nanoseconds, whole microseconds.
        window: u64,
    },
    /// Places that are given back when a request has ended.
    InFlight { limit: u64 },
}

/// What a request wants from one rule.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) rule: Arc<str>,
    pub(crate) subject: Subject,
    pub(crate) plan: Plan,
    pub(crate) cost: u64,
    /// Names a place in flight, in all processes.
    pub(crate) ticket: u64,
}

/// How a rule answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Set if there is no room for the cost.
    pub(crate) full: Option<Full>,
    /// After the decision.
    pub(crate) standing: Standing,
    /// When it was taken by the store's clock, in nanoseconds: for [`Change`].
    pub(crate) at: u64,
}

/// How all rules answered: taken from all if none is full, and else from none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    /// In the order they were asked in.
    pub(crate) rules: Vec<Answer>,
}

/// What became of a cost that was taken. Applied at most once: what is lost stands as it was reserved.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) rule: Arc<str>,
    pub(crate) subject: Subject,
    pub(crate) plan: Plan,
    pub(crate) ticket: u64,
    /// [`Answer::at`].
    pub(crate) at: u64,
    pub(crate) reserved: u64,
    pub(crate) used: u64,
    /// Takes all that remains besides: the service has refused for being overloaded.
    pub(crate) drain: bool,
}

/// What was granted to be spent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// From none to as many as were wanted.
    pub(crate) granted: u64,
    pub(crate) answer: Answer,
}

/// How requests have ended, for a limit that follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) good: u64,
    pub(crate) bad: u64,
}

/// The numbers of an adaptive limit, for the store to move it by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Course {
    pub(crate) base: u64,
    pub(crate) least: u64,
    pub(crate) most: u64,
    pub(crate) grow: f64,
    pub(crate) shrink: f64,
    pub(crate) threshold: f64,
    pub(crate) alpha: f64,
    pub(crate) samples: u64,
    /// Nanoseconds.
    pub(crate) interval: u64,
}

pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;
pub(crate) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A store that other processes share.
///
/// Every future ends within the store's deadline, and can be dropped at any time; what it asked for may have been done.
pub(crate) trait Central: fmt::Debug + Send + Sync + 'static {
    /// Whether it can be asked. When it cannot, policies decide at once. One load.
    fn is_up(&self) -> bool;

    /// How many processes share it, at least one; the last number known when it cannot be asked.
    fn replicas(&self) -> u64;

    fn subject(&self, key: &Key<'_>) -> Subject;

    /// One script for all that may share one; more only where a cluster keeps keys apart, which then compensates.
    fn take(&self, asks: Vec<Ask>) -> Pending<Answers>;

    /// As [`take`](Self::take) would answer; takes nothing.
    fn peek(&self, asks: Vec<Ask>) -> Pending<Answers>;

    /// Takes up to `want` at once, but no less than the cost, nor more than a fair share when it is short.
    fn lease(&self, ask: Ask, want: u64) -> Pending<Grant>;

    /// Settles costs; also when `used` is more than was reserved.
    fn settle(&self, changes: Vec<Change>) -> Pending<()>;

    /// Forgets what was used: whether any was.
    fn reset(&self, asks: Vec<Ask>) -> Pending<Vec<bool>>;

    /// Reports how requests have ended since the last report: the limit that all processes follow now.
    fn adapt(&self, rule: Arc<str>, ends: Ends, course: Course) -> Pending<u64>;

    /// Leaves something to the store's upkeep. `false`: there is no room, or no upkeep; it is not done then.
    fn run(&self, job: Job) -> bool;

    /// How long a lease lasts.
    fn lease_for(&self) -> Duration;
}
