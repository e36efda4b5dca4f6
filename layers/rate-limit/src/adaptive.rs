//! Moves a limit by how requests end.

use std::{error::Error, fmt, time::Duration};

use palisade_core::{classify::Verdict, ratio::Ratio};

use crate::{
    central::{Course, Ends},
    quota::Quota,
};

#[cfg(test)]
mod tests;

/// How a limit follows the service: up while requests succeed, down when they fail.
///
/// Once in an [`interval`](Self::interval) the average of how requests ended, weighed by 0.1 for each new one, is held
/// against the [`threshold`](Self::threshold). At or above it the limit moves up, at least by one; clearly below it,
/// down, at least by one. In between, with up to half as many failures again as the threshold allows (from 0.925 to
/// 0.95 as it is), it stays, so that it does not swing to and fro where it belongs.
///
/// As it is: from the rule's limit, between a tenth of it and ten times as much, ×1.2 or ×0.8 every 300 s in which at
/// least 20 requests have ended, by a threshold of 0.95.
///
/// Failures, time-outs, overload and a service that cannot be reached count against it. The caller's faults, and what
/// was refused or left before its end, do not count.
///
/// ```
/// # use std::time::Duration;
/// use palisade_rate_limit::{Adaptive, Quota, Rule};
///
/// let adaptive = Adaptive::new().least(50)?.most(400)?.interval(Duration::from_secs(60))?;
/// let rule = Rule::new("adaptive", Quota::per_minute(100)).adaptive(adaptive);
/// assert!(Adaptive::new().shrink(1.5).is_err());
/// # Ok::<(), palisade_rate_limit::AdaptiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    base: Option<u64>,
    least: Option<u64>,
    most: Option<u64>,
    grow: f64,
    shrink: f64,
    threshold: f64,
    samples: u64,
    interval: Duration,
}

/// The weight of a new request in the average.
const ALPHA: f64 = 0.1;

impl Adaptive {
    /// Up and down by a factor: ×1.2 and ×0.8.
    pub const fn new() -> Self {
        Self {
            base: None,
            least: None,
            most: None,
            grow: 1.2,
            shrink: 0.8,
            threshold: 0.95,
            samples: 20,
            interval: Duration::from_secs(300),
        }
    }

    /// Up by small steps and down by a factor: 5 %, or one if that is more, and ×0.8.
    ///
    /// Slow to come back, and close below what the service can do for most of the time.
    pub const fn aimd() -> Self {
        Self {
            grow: 1.05,
            ..Self::new()
        }
    }

    /// Starts here; without it, at the limit of the rule.
    ///
    /// # Errors
    ///
    /// If it is zero or above [`Quota::MOST`].
    pub fn base(self, limit: u64) -> Result<Self, AdaptiveError> {
        let base = Some(check(limit)?);
        Ok(Self { base, ..self })
    }

    /// Goes down to here; without it, to a tenth of the base.
    ///
    /// # Errors
    ///
    /// If it is zero or above [`Quota::MOST`].
    pub fn least(self, limit: u64) -> Result<Self, AdaptiveError> {
        let least = Some(check(limit)?);
        Ok(Self { least, ..self })
    }

    /// Goes up to here; without it, to ten times the base.
    ///
    /// # Errors
    ///
    /// If it is zero or above [`Quota::MOST`].
    pub fn most(self, limit: u64) -> Result<Self, AdaptiveError> {
        let most = Some(check(limit)?);
        Ok(Self { most, ..self })
    }

    /// Goes up by this factor, rounded up.
    ///
    /// # Errors
    ///
    /// If it is not above 1 and up to 10.
    pub fn grow(self, factor: f64) -> Result<Self, AdaptiveError> {
        if factor > 1.0 && factor <= 10.0 {
            Ok(Self {
                grow: factor,
                ..self
            })
        } else {
            Err(AdaptiveError::Grow(factor))
        }
    }

    /// Goes down by this factor, rounded down.
    ///
    /// # Errors
    ///
    /// If it is not above 0 and below 1.
    pub fn shrink(self, factor: f64) -> Result<Self, AdaptiveError> {
        if factor > 0.0 && factor < 1.0 {
            Ok(Self {
                shrink: factor,
                ..self
            })
        } else {
            Err(AdaptiveError::Shrink(factor))
        }
    }

    /// The share of good ends from which the limit goes up.
    #[must_use]
    pub fn threshold(self, good: Ratio) -> Self {
        Self {
            threshold: good.get(),
            ..self
        }
    }

    /// Moves once in this time.
    ///
    /// # Errors
    ///
    /// If it is zero or longer than [`Quota::LONGEST`].
    pub fn interval(self, interval: Duration) -> Result<Self, AdaptiveError> {
        if interval.is_zero() || interval > Quota::LONGEST {
            return Err(AdaptiveError::Interval(interval));
        }
        Ok(Self { interval, ..self })
    }

    /// Stays until this many requests have ended since it moved last.
    ///
    /// # Errors
    ///
    /// If it is zero: nobody would have ended well.
    pub fn samples(self, ends: u64) -> Result<Self, AdaptiveError> {
        if ends == 0 {
            return Err(AdaptiveError::NoSamples);
        }
        Ok(Self {
            samples: ends,
            ..self
        })
    }

    /// For a rule of this limit.
    pub(crate) fn course(&self, limit: u64) -> Result<Course, AdaptiveError> {
        // A rule whose limit is zero stays closed, whatever this says.
        let base = self.base.unwrap_or(limit.max(1));
        let least = self.least.unwrap_or((base / 10).max(1));
        let most = self
            .most
            .unwrap_or((base.saturating_mul(10)).min(Quota::MOST));
        if least > base || base > most {
            return Err(AdaptiveError::Order { least, base, most });
        }
        Ok(Course {
            base,
            least,
            most,
            grow: self.grow,
            shrink: self.shrink,
            threshold: self.threshold,
            alpha: ALPHA,
            samples: self.samples,
            // Below 2^53.
            interval: self.interval.as_nanos() as u64,
        })
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a limit cannot move like this.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum AdaptiveError {
    /// A limit is zero or above [`Quota::MOST`].
    Limit(u64),
    /// The least is above the base, or the base above the most.
    Order {
        /// Where it ends downwards.
        least: u64,
        /// Where it starts.
        base: u64,
        /// Where it ends upwards.
        most: u64,
    },
    /// The factor is not above 1 and up to 10.
    Grow(f64),
    /// The factor is not above 0 and below 1.
    Shrink(f64),
    /// The interval is zero or longer than [`Quota::LONGEST`].
    Interval(Duration),
    /// It would move before a request has ended.
    NoSamples,
}

impl fmt::Display for AdaptiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => write!(f, "{limit} is not above 0 and up to {}", Quota::MOST),
            Self::Order { least, base, most } => {
                write!(
                    f,
                    "a limit that starts at {base} is not between {least} and {most}"
                )
            }
            Self::Grow(factor) => write!(f, "{factor} is not above 1 and up to 10"),
            Self::Shrink(factor) => write!(f, "{factor} is not above 0 and below 1"),
            Self::Interval(interval) => write!(f, "{interval:?} is not above 0 and up to 104 days"),
            Self::NoSamples => f.write_str("a limit moves after no request at all"),
        }
    }
}

impl Error for AdaptiveError {}

/// Where a limit is on its course.
///
/// # The rule
///
/// Every store keeps these four numbers, and does this when `good` and `bad` requests have ended, at once:
///
/// 1. `limit` is cut to `least..=most`: the course may have changed.
/// 2. With `n = good + bad`, unless that is 0: `average += (1 - (1 - alpha)^n) * (good / n - average)` and
///    `samples += n`. So a batch weighs as much as its requests one by one.
/// 3. If `since - now > interval`, the clock has stepped back: `since = now`.
/// 4. If `now - since < interval`, or `samples < course.samples`, that is all. What has too few samples moves with the
///    report that brings enough.
/// 5. If `average >= threshold`, `limit = min(most, max(limit + 1, ceil(limit * grow - 1e-6)))`. Else, if
///    `average < threshold - min(threshold, 1 - threshold) / 2`,
///    `limit = max(least, min(limit - 1, floor(limit * shrink + 1e-6)))`. Else it stays. (100 × 1.1 is a little above
///    110 in doubles; that makes 110, not 111.)
/// 6. `samples = 0`, `since = now`, whether it has moved or not: once in an interval, however long nobody came.
///
/// At first: `limit = base`, `average = 1`, `samples = 0`, `since = now`. Times are nanoseconds; a store of microseconds
/// rounds the interval up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) limit: u64,
    /// The share of good ends.
    pub(crate) average: f64,
    /// Ends since it was last decided whether to move.
    pub(crate) samples: u64,
    since: u64,
}

impl State {
    pub(crate) fn new(course: &Course, now: u64) -> Self {
        Self {
            limit: course.base,
            average: 1.0,
            samples: 0,
            since: now,
        }
    }

    /// Hears how requests have ended, and says where the limit is now.
    pub(crate) fn ends(&mut self, course: &Course, ends: Ends, now: u64) -> u64 {
        self.limit = self.limit.clamp(course.least, course.most);
        self.hear(course, ends);
        if self.since.saturating_sub(now) > course.interval {
            self.since = now;
        }
        let passed = now.saturating_sub(self.since);
        if passed >= course.interval && self.samples >= course.samples {
            self.limit = self.moved(course);
            self.samples = 0;
            self.since = now;
        }
        self.limit
    }

    fn hear(&mut self, course: &Course, ends: Ends) {
        let many = ends.good.saturating_add(ends.bad);
        if many == 0 {
            return;
        }
        let good = ends.good as f64 / many as f64;
        let weight = 1.0 - (1.0 - course.alpha).powf(many as f64);
        self.average += weight * (good - self.average);
        self.samples = self.samples.saturating_add(many);
    }

    fn moved(&self, course: &Course) -> u64 {
        let limit = self.limit as f64;
        let slack = course.threshold.min(1.0 - course.threshold) / 2.0;
        if self.average >= course.threshold {
            let more = (limit * course.grow - 1e-6).ceil() as u64;
            more.max(self.limit + 1).min(course.most)
        } else if self.average < course.threshold - slack {
            let less = (limit * course.shrink + 1e-6).floor() as u64;
            less.min(self.limit - 1).max(course.least)
        } else {
            self.limit
        }
    }
}

impl Ends {
    /// What this end says about how much the service can do.
    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success => Self { good: 1, bad: 0 },
            Verdict::Failure | Verdict::Overload { .. } | Verdict::TimedOut | Verdict::Unsent => {
                Self { good: 0, bad: 1 }
            }
            _ => Self::default(),
        }
    }
}

fn check(limit: u64) -> Result<u64, AdaptiveError> {
    if (1..=Quota::MOST).contains(&limit) {
        Ok(limit)
    } else {
        Err(AdaptiveError::Limit(limit))
    }
}
