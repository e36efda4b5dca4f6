//! Moves a limit by how requests end.

use std::{error::Error, fmt, time::Duration};

use palisade_core::{classify::Verdict, ratio::Ratio};

use crate::{
    central::{Course, Ends},
    quota::Quota,
};

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

#[cfg(test)]
mod tests {
    use palisade_core::reject::Reason;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const INTERVAL: u64 = 300 * SECOND;

    fn ends(good: u64, bad: u64) -> Ends {
        Ends { good, bad }
    }

    /// A limit of 100 after one interval in which so many have ended.
    fn after(good: u64, bad: u64) -> u64 {
        let course = Adaptive::new().course(100).unwrap();
        State::new(&course, 0).ends(&course, ends(good, bad), INTERVAL)
    }

    #[test]
    fn as_it_is_it_keeps_to_the_numbers_of_the_seed() {
        let course = Adaptive::default().course(100).unwrap();
        let expected = Course {
            base: 100,
            least: 10,
            most: 1000,
            grow: 1.2,
            shrink: 0.8,
            threshold: 0.95,
            alpha: 0.1,
            samples: 20,
            interval: INTERVAL,
        };
        assert_eq!(course, expected);
        assert_eq!(Adaptive::aimd().course(100).unwrap().grow, 1.05);
    }

    #[test]
    fn it_moves_up_while_requests_succeed_and_down_when_they_fail() {
        assert_eq!(after(1000, 0), 120);
        assert_eq!(after(0, 1000), 80);
        assert_eq!(after(500, 500), 80);
    }

    #[test]
    fn between_the_threshold_and_half_as_many_failures_again_it_stays() {
        // So many that nothing is left of the start.
        assert_eq!(after(9500, 500), 120);
        assert_eq!(after(9499, 501), 100);
        assert_eq!(after(9251, 749), 100);
        assert_eq!(after(9249, 751), 80);
    }

    #[test]
    fn with_too_few_samples_it_waits_for_the_rest() {
        let course = Adaptive::new().course(100).unwrap();
        let mut state = State::new(&course, 0);
        assert_eq!(state.ends(&course, ends(19, 0), 2 * INTERVAL), 100);
        assert_eq!(state.ends(&course, ends(0, 0), 3 * INTERVAL), 100);
        assert_eq!(state.ends(&course, ends(1, 0), 3 * INTERVAL), 120);
        // And then for the next interval and the next samples.
        assert_eq!(state.ends(&course, ends(50, 0), 4 * INTERVAL - 1), 120);
        assert_eq!(state.ends(&course, ends(0, 0), 4 * INTERVAL), 144);
        assert_eq!(state.ends(&course, ends(19, 0), 9 * INTERVAL), 144);
    }

    #[test]
    fn factors_that_doubles_do_not_hold_round_as_one_would() {
        let course = Adaptive::new().grow(1.1).unwrap().course(100).unwrap();
        let mut state = State::new(&course, 0);
        assert_eq!(state.ends(&course, ends(99, 0), INTERVAL), 110);
        let course = Adaptive::new().shrink(0.57).unwrap().course(100).unwrap();
        let mut state = State::new(&course, 0);
        assert_eq!(state.ends(&course, ends(0, 99), INTERVAL), 57);
        let course = Adaptive::new()
            .grow(1.0 + 1e-9)
            .unwrap()
            .course(100)
            .unwrap();
        let mut state = State::new(&course, 0);
        assert_eq!(state.ends(&course, ends(99, 0), INTERVAL), 101);
    }

    #[test]
    fn small_steps_up_are_one_at_least() {
        let course = Adaptive::aimd().course(10).unwrap();
        let mut state = State::new(&course, 0);
        let limits: Vec<u64> = (1..=16)
            .map(|at| state.ends(&course, ends(100, 0), at * INTERVAL))
            .collect();
        let up = [
            11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 27, 29, 31,
        ];
        assert_eq!(limits, up);
        assert_eq!(state.ends(&course, ends(0, 100), 17 * INTERVAL), 24);
    }

    #[test]
    fn a_course_that_has_changed_takes_the_limit_along() {
        let wide = Adaptive::new().course(100).unwrap();
        let narrow = Adaptive::new().most(50).unwrap().course(40).unwrap();
        let mut state = State::new(&wide, 0);
        assert_eq!(state.ends(&narrow, ends(1, 0), 1), 50);
    }

    #[test]
    fn a_clock_that_steps_back_stops_it_for_an_interval_at_most() {
        let course = Adaptive::new().course(100).unwrap();
        let mut state = State::new(&course, 1000 * INTERVAL);
        assert_eq!(state.ends(&course, ends(50, 0), 5 * INTERVAL), 100);
        assert_eq!(state.ends(&course, ends(50, 0), 6 * INTERVAL), 120);
        // Who is only late moves nothing, nor puts it off.
        assert_eq!(state.ends(&course, ends(50, 0), 6 * INTERVAL - 1), 120);
        assert_eq!(state.ends(&course, ends(50, 0), 7 * INTERVAL - 1), 120);
        assert_eq!(state.ends(&course, ends(50, 0), 7 * INTERVAL), 144);
    }

    #[test]
    fn seed_11_the_first_interval_counts_and_it_can_go_below_its_start() {
        let course = Adaptive::new().course(100).unwrap();
        let mut state = State::new(&course, 0);
        let mut limit = 100;
        for second in 1..=300 {
            limit = state.ends(&course, ends(0, 10), second * SECOND);
            assert_eq!(limit, if second < 300 { 100 } else { 80 });
        }
        for interval in 2..30 {
            limit = state.ends(&course, ends(0, 100), interval * INTERVAL);
        }
        assert_eq!(limit, course.least);
    }

    #[test]
    fn seed_11_the_average_is_kept_when_it_moves() {
        let course = Adaptive::new().course(100).unwrap();
        let mut state = State::new(&course, 0);
        state.ends(&course, ends(0, 20), INTERVAL);
        assert!((state.average - 0.9_f64.powi(20)).abs() < 1e-12);
    }

    #[test]
    fn seed_12_a_limit_below_five_still_moves() {
        let bounds = |adaptive: Adaptive| adaptive.least(1).unwrap().most(20).unwrap();
        for adaptive in [bounds(Adaptive::new()), bounds(Adaptive::aimd())] {
            for start in 1..5 {
                let course = adaptive.course(start).unwrap();
                let mut state = State::new(&course, 0);
                let up = state.ends(&course, ends(100, 0), INTERVAL);
                assert_eq!(up, start + 1);
                let down = state.ends(&course, ends(0, 100), 2 * INTERVAL);
                assert!(down < up && down >= 1, "{up} to {down}");
            }
        }
    }

    #[test]
    fn courses_that_lead_nowhere_are_errors() {
        let new = Adaptive::new;
        assert_eq!(new().base(0), Err(AdaptiveError::Limit(0)));
        assert_eq!(new().least(0), Err(AdaptiveError::Limit(0)));
        let large = Quota::MOST + 1;
        assert_eq!(new().most(large), Err(AdaptiveError::Limit(large)));
        assert_eq!(new().grow(1.0), Err(AdaptiveError::Grow(1.0)));
        assert!(new().grow(f64::NAN).is_err() && new().grow(f64::INFINITY).is_err());
        assert_eq!(new().shrink(1.0), Err(AdaptiveError::Shrink(1.0)));
        assert!(new().shrink(f64::NAN).is_err() && new().shrink(0.0).is_err());
        let none = AdaptiveError::Interval(Duration::ZERO);
        assert_eq!(new().interval(Duration::ZERO), Err(none));
        assert!(new().interval(Duration::MAX).is_err());
        assert_eq!(new().samples(0), Err(AdaptiveError::NoSamples));
        let order = new().most(99).unwrap().course(100);
        let expected = AdaptiveError::Order {
            least: 10,
            base: 100,
            most: 99,
        };
        assert_eq!(order, Err(expected));
        assert!(new().least(101).unwrap().course(100).is_err());
        assert_eq!(new().base(7).unwrap().course(100).unwrap().base, 7);
        let largest = new().course(Quota::MOST).unwrap();
        assert_eq!(largest.most, Quota::MOST);
    }

    #[test]
    fn only_what_the_service_did_counts() {
        let overload = Verdict::Overload { retry_after: None };
        let bad = [
            Verdict::Failure,
            overload,
            Verdict::TimedOut,
            Verdict::Unsent,
        ];
        assert!(bad.map(Ends::of).iter().all(|&end| end == ends(0, 1)));
        assert_eq!(Ends::of(Verdict::Success), ends(1, 0));
        let refused = Verdict::Refused(Reason::RateLimited);
        let none = [Verdict::CallerFault, Verdict::Canceled, refused];
        assert!(none.map(Ends::of).iter().all(|&end| end == ends(0, 0)));
    }

    proptest! {
        #[test]
        fn it_moves_once_in_an_interval_between_its_ends(
            base in 1..2000_u64,
            steps in vec((0..INTERVAL / 2, 0..40_u64, 0..40_u64), 1..200),
        ) {
            let course = Adaptive::new().course(base).unwrap();
            let (mut state, mut now, mut moved_at) = (State::new(&course, 0), 0, 0);
            for (later, good, bad) in steps {
                now += later;
                let before = state.limit;
                let limit = state.ends(&course, ends(good, bad), now);
                prop_assert!((course.least..=course.most).contains(&limit));
                if limit != before {
                    prop_assert!(now - moved_at >= course.interval);
                    moved_at = now;
                    let up = limit > before;
                    prop_assert_eq!(up, state.average >= course.threshold);
                    let most = if up { before.div_ceil(5).max(1) } else { before.div_ceil(5) };
                    prop_assert!(limit.abs_diff(before) <= most, "{} to {}", before, limit);
                }
            }
        }

        #[test]
        fn a_batch_weighs_as_its_requests_one_by_one(good in 0..200_u64, bad in 0..200_u64) {
            let course = Adaptive::new().course(100).unwrap();
            let mut batch = State::new(&course, 0);
            batch.ends(&course, ends(good, bad), 0);
            // As if each had been as good as all of them: the batch does not say which came last.
            let share = good as f64 / ((good + bad).max(1)) as f64;
            let mut average = 1.0;
            for _ in 0..good + bad {
                average += course.alpha * (share - average);
            }
            prop_assert!((batch.average - average).abs() < 1e-9);
            prop_assert_eq!(batch.samples, good + bad);
        }
    }
}
