//! What one key has used of one quota, with no clock, no lock and no I/O of its own.
//!
//! Times are nanoseconds since the limit was made.

mod fixed_window;
mod sliding_window;
mod token_bucket;

use self::{fixed_window::FixedWindow, sliding_window::SlidingWindow, token_bucket::TokenBucket};
use crate::{
    quota::{Quota, QuotaError},
    rule::Strategy,
};

/// What one key has used; the default has used nothing. Only its [`Meter`] knows how to read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) struct Count {
    /// A bucket: when it is full again. A window: its number.
    at: u64,
    /// In the window.
    used: u64,
    /// In the window before.
    before: u64,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Full {
    /// For this long.
    For(u64),
    /// And there never will be.
    Forever,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What can be taken now.
    pub(crate) remaining: u64,
    /// Until one can be taken.
    pub(crate) retry_after: u64,
    /// Until all can be taken.
    pub(crate) reset_after: u64,
}

/// Counts for one quota.
#[derive(Debug)]
pub(crate) enum Meter {
    TokenBucket(TokenBucket),
    FixedWindow(FixedWindow),
    SlidingWindow(SlidingWindow),
    /// A limit of zero.
    Closed {
        window: u64,
    },
}

impl Meter {
    pub(crate) fn new(strategy: Strategy, quota: &Quota) -> Result<Self, QuotaError> {
        quota.check()?;
        let (limit, window) = (quota.limit(), quota.nanos());
        let burst = quota.allowed_burst();
        if burst.is_some() && strategy != Strategy::TokenBucket {
            return Err(QuotaError::NoBurst);
        }
        if limit == 0 || burst == Some(0) {
            return Ok(Self::Closed { window });
        }
        Ok(match strategy {
            Strategy::TokenBucket => {
                let burst = burst.unwrap_or(limit);
                let bucket = TokenBucket::new(limit, window, burst);
                Self::TokenBucket(bucket.ok_or(QuotaError::LargeBurst)?)
            }
            Strategy::FixedWindow => Self::FixedWindow(FixedWindow { limit, window }),
            Strategy::SlidingWindow => Self::SlidingWindow(SlidingWindow { limit, window }),
        })
    }

    /// A quota for a token bucket, its limit and burst cut to what can be kept.
    pub(crate) fn within_reach(quota: Quota) -> Quota {
        let quota = quota.limited_to(Quota::MOST);
        let most = TokenBucket::most(quota.limit(), quota.nanos());
        if quota.allowed_burst().unwrap_or(quota.limit()) > most {
            quota.burst(most)
        } else {
            quota
        }
    }

    /// The count after `cost` more, or how long there is no room for it.
    #[inline]
    pub(crate) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Count, Full> {
        match self {
            Self::TokenBucket(bucket) => bucket.take(count, cost, now),
            Self::FixedWindow(window) => window.take(count, cost, now),
            Self::SlidingWindow(window) => window.take(count, cost, now),
            Self::Closed { window } => Err(Full::For(*window)),
        }
    }

    /// The count without the `cost` that was taken at `taken_at`.
    ///
    /// A bucket keeps it: it has refilled since, and what came back late would pass on top of a whole burst.
    pub(crate) fn give_back(&self, count: &Count, cost: u64, taken_at: u64) -> Count {
        match self {
            Self::FixedWindow(window) => window.give_back(count, cost, taken_at),
            Self::SlidingWindow(window) => window.give_back(count, cost, taken_at),
            Self::TokenBucket(_) | Self::Closed { .. } => *count,
        }
    }

    pub(crate) fn gives_back(&self) -> bool {
        matches!(self, Self::FixedWindow(_) | Self::SlidingWindow(_))
    }

    /// Whether the count is as good as none.
    pub(crate) fn is_idle(&self, count: &Count, now: u64) -> bool {
        match self {
            Self::TokenBucket(_) => count.at <= now,
            Self::FixedWindow(window) => window.turn(count, now).used == 0,
            Self::SlidingWindow(window) => {
                let count = window.turn(count, now);
                count.used == 0 && count.before == 0
            }
            Self::Closed { .. } => true,
        }
    }

    pub(crate) fn standing(&self, count: &Count, now: u64) -> Standing {
        match self {
            Self::TokenBucket(bucket) => bucket.standing(count, now),
            Self::FixedWindow(window) => window.standing(count, now),
            Self::SlidingWindow(window) => window.standing(count, now),
            Self::Closed { window } => Standing {
                remaining: 0,
                retry_after: *window,
                reset_after: *window,
            },
        }
    }

    /// The most that can ever be taken at once.
    pub(crate) fn holds(&self) -> u64 {
        match self {
            Self::TokenBucket(bucket) => bucket.burst(),
            Self::FixedWindow(FixedWindow { limit, .. })
            | Self::SlidingWindow(SlidingWindow { limit, .. }) => *limit,
            Self::Closed { .. } => 0,
        }
    }
}

#[cfg(test)]
impl Count {
    pub(crate) fn used(used: u64) -> Self {
        Self {
            used,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
