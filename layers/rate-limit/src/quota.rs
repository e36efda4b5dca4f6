//! How much per how long.

use std::{error::Error, fmt, time::Duration};

/// How much per how long.
///
/// A limit of zero admits nothing.
///
/// ```
/// # use std::time::Duration;
/// use palisade_rate_limit::Quota;
///
/// let quota = Quota::per_second(50).burst(100);
/// assert_eq!((quota.limit(), quota.window()), (50, Duration::from_secs(1)));
/// assert!(Quota::new(5, Duration::ZERO).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    limit: u64,
    window: Duration,
    burst: Option<u64>,
}

impl Quota {
    /// The largest limit: what an integer of HTTP's structured fields holds.
    pub const MOST: u64 = 999_999_999_999_999;

    /// The longest window, and the longest time for a burst to come back: 104 days, the nanoseconds that a
    /// double counts exactly, so that a store that only knows doubles decides alike.
    pub const LONGEST: Duration = Duration::from_nanos(1 << 53);

    /// This many in a second.
    pub const fn per_second(limit: u64) -> Self {
        Self::per(limit, 1)
    }

    /// This many in a minute.
    pub const fn per_minute(limit: u64) -> Self {
        Self::per(limit, 60)
    }

    /// This many in an hour.
    pub const fn per_hour(limit: u64) -> Self {
        Self::per(limit, 60 * 60)
    }

    /// This many in a day.
    pub const fn per_day(limit: u64) -> Self {
        Self::per(limit, 24 * 60 * 60)
    }

    /// This many in a window of any length.
    ///
    /// # Errors
    ///
    /// If the window is zero or longer than [`LONGEST`](Self::LONGEST), or the limit is above [`MOST`](Self::MOST).
    pub fn new(limit: u64, window: Duration) -> Result<Self, QuotaError> {
        let quota = Self {
            limit,
            window,
            burst: None,
        };
        quota.check().map(|()| quota)
    }

    /// Lets a token bucket save up this many; without it, the limit.
    ///
    /// More than `u32::MAX`, or than comes back within [`LONGEST`](Self::LONGEST), is an error of
    /// [`RateLimit::rules`](crate::RateLimit::rules), and is cut to that by [`RateLimit::new`](crate::RateLimit::new).
    #[must_use]
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    /// How much in a window.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How long.
    pub fn window(&self) -> Duration {
        self.window
    }

    const fn per(limit: u64, seconds: u64) -> Self {
        Self {
            limit,
            window: Duration::from_secs(seconds),
            burst: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), QuotaError> {
        if self.window.is_zero() {
            return Err(QuotaError::ZeroWindow);
        }
        if self.window > Self::LONGEST {
            return Err(QuotaError::LongWindow);
        }
        if self.limit > Self::MOST {
            return Err(QuotaError::LargeLimit);
        }
        Ok(())
    }

    /// Nanoseconds in the window; a [checked](Self::check) quota has fewer than 2^53.
    pub(crate) fn nanos(&self) -> u64 {
        u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn allowed_burst(&self) -> Option<u64> {
        self.burst
    }

    /// A share of it, at least one.
    pub(crate) fn divided_by(self, by: u64) -> Self {
        let share = |whole: u64| match whole {
            0 => 0,
            whole => (whole / by.max(1)).max(1),
        };
        Self {
            limit: share(self.limit),
            window: self.window,
            burst: self.burst.map(share),
        }
    }

    pub(crate) fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) fn limited_to(mut self, most: u64) -> Self {
        self.limit = self.limit.min(most);
        self
    }
}

/// Why a [`Quota`] cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The window has no length.
    ZeroWindow,
    /// The window is longer than [`Quota::LONGEST`].
    LongWindow,
    /// The limit is above [`Quota::MOST`].
    LargeLimit,
    /// The burst is above `u32::MAX`, or comes back later than after [`Quota::LONGEST`].
    LargeBurst,
    /// The strategy knows no burst: only a token bucket does.
    NoBurst,
    /// A sliding log remembers no more than 10 000.
    LargeLog,
    /// The window is not a whole number of microseconds, which is what a shared store counts in.
    OddWindow,
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroWindow => "the window of a quota is zero",
            Self::LongWindow => "the window of a quota is longer than 104 days",
            Self::LargeLimit => "the limit of a quota is above 999999999999999",
            Self::LargeBurst => {
                "a burst is above 4294967295 or takes more than 104 days to come back"
            }
            Self::NoBurst => "only a token bucket has a burst",
            Self::LargeLog => "a sliding log remembers at most 10000 requests",
            Self::OddWindow => {
                "a store counts in microseconds, and the window is not a whole number of them"
            }
        })
    }
}

impl Error for QuotaError {}
