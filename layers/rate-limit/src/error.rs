//! What a limit refuses a request with.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use palisade_core::reject::{Reason, Rejected};

/// The key is over its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimited {
    /// The rule with the longest wait.
    pub rule: Arc<str>,
    /// What the request would have taken.
    pub cost: u64,
    /// How much there is in a window; 0 where a [mirror](crate::QuotaMirrorLayer) was not told.
    pub limit: u64,
    /// How much was left.
    pub remaining: u64,
    /// Exactly how long until the same request passes, if no other comes first.
    pub retry_after: Duration,
}

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            cost,
            limit,
            remaining,
            retry_after,
        } = self;
        if *remaining == 0 {
            return write!(
                f,
                "rate limit {rule} is used up for another {retry_after:.1?}"
            );
        }
        write!(
            f,
            "rate limit {rule} has {remaining} of {limit} left, too few for a cost of {cost} for another {retry_after:.1?}"
        )
    }
}

impl Error for RateLimited {}

/// The request costs more than the rule can ever hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostExceedsQuota {
    /// The rule.
    pub rule: Arc<str>,
    /// What the request costs.
    pub cost: u64,
    /// What the rule holds at most.
    pub holds: u64,
}

impl fmt::Display for CostExceedsQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, cost, holds } = self;
        write!(
            f,
            "a cost of {cost} exceeds the {holds} that rate limit {rule} holds at most"
        )
    }
}

impl Error for CostExceedsQuota {}

impl From<CostExceedsQuota> for Rejected {
    fn from(error: CostExceedsQuota) -> Self {
        let rule = error.rule.clone();
        Self::new(Reason::CostExceedsQuota, error).violates(rule)
    }
}

/// The request has no key, and the rule wants one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyMissing {
    /// The rule.
    pub rule: Arc<str>,
}

impl fmt::Display for KeyMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request has no key for rate limit {}", self.rule)
    }
}

impl Error for KeyMissing {}

impl From<KeyMissing> for Rejected {
    fn from(error: KeyMissing) -> Self {
        let mut rejected = Self::new(Reason::RateLimited, error);
        // The same request would be refused again, whenever it comes.
        rejected.give_up();
        rejected
    }
}

/// The store that keeps the counts cannot be asked, and the rule refuses then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUnavailable {
    /// The rule.
    pub rule: Arc<str>,
}

impl fmt::Display for StoreUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store of rate limit {} cannot be asked", self.rule)
    }
}

impl Error for StoreUnavailable {}

/// The store that counts for several processes gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// It was not asked: the last answers have failed.
    Down,
    /// It did not answer in time, so that the request may have been counted.
    TimedOut,
    /// It answered with an error, or the connection broke.
    Failed(Arc<str>),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("the store of rate limits is down"),
            Self::TimedOut => f.write_str("the store of rate limits did not answer in time"),
            Self::Failed(what) => write!(f, "the store of rate limits failed: {what}"),
        }
    }
}

impl Error for StoreError {}
