//! Where it goes: a window against the one before.

use crate::{histogram::Durations, indicators::Indicators};

/// Less than this is not a change.
const NOTABLE: f64 = 0.1;
/// Chance alone moves a count by twice its deviation one time in twenty.
const DEVIATIONS: f64 = 2.0;

/// What a window comes to, kept for as long again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) good: u64,
    pub(crate) bad: u64,
    /// Of all latencies.
    pub(crate) nanos: u64,
    /// That models wrote.
    pub(crate) tokens: u64,
}

impl Totals {
    pub(crate) fn of<H: Durations>(indicators: &Indicators<H>) -> Self {
        let verdicts = indicators.tally.verdicts();
        Self {
            good: verdicts.good(),
            bad: verdicts.bad(),
            nanos: indicators.total.sum(),
            tokens: indicators.tokens.completion,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.good = self.good.saturating_add(other.good);
        self.bad = self.bad.saturating_add(other.bad);
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.tokens = self.tokens.saturating_add(other.tokens);
    }

    fn requests(&self) -> f64 {
        self.good as f64 + self.bad as f64
    }

    fn error_rate(&self) -> f64 {
        self.bad as f64 / self.requests().max(1.0)
    }

    fn latency(&self) -> f64 {
        self.nanos as f64 / 1e9 / self.requests().max(1.0)
    }
}

/// A window against the one before, which was as long.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Trend {
    /// Requests per second.
    pub requests_per_second: Moved,
    /// The share of requests that ended badly, in percent.
    pub error_rate_percent: Moved,
    /// The mean latency in seconds.
    pub avg_seconds: Moved,
    /// Tokens that models wrote, per second.
    pub output_tokens_per_second: Moved,
}

impl Trend {
    /// Of two windows and how many seconds each covers.
    pub(crate) fn new((now, covered): (&Totals, f64), (before, earlier): (&Totals, f64)) -> Self {
        let [requests, rates] =
            [Totals::requests, Totals::error_rate].map(|of| [(of(now), now), (of(before), before)]);
        let per_second = |count: f64, seconds: f64| count / seconds;
        // Counts vary by their root, so their rates by that over the time.
        let deviation = (requests[0].0 / covered.powi(2) + requests[1].0 / earlier.powi(2)).sqrt();
        let varies = rates.map(|(rate, totals)| rate * (1.0 - rate) / totals.requests().max(1.0));
        let tokens = |totals: &Totals, seconds| per_second(totals.tokens as f64, seconds);
        Self {
            requests_per_second: Moved::new(
                per_second(requests[0].0, covered),
                per_second(requests[1].0, earlier),
                deviation,
            ),
            error_rate_percent: Moved::new(
                100.0 * rates[0].0,
                100.0 * rates[1].0,
                100.0 * varies.iter().sum::<f64>().sqrt(),
            ),
            avg_seconds: Moved::new(now.latency(), before.latency(), 0.0),
            output_tokens_per_second: Moved::new(
                tokens(now, covered),
                tokens(before, earlier),
                0.0,
            ),
        }
    }
}

/// A number now and in the window before.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Moved {
    /// In the window.
    pub current: f64,
    /// In the window before.
    pub before: f64,
    /// How far the one is above the other, in percent of the latter; 0 where that was nothing.
    pub change_percent: f64,
    /// Whether that is a change at all.
    pub direction: Direction,
}

impl Moved {
    fn new(current: f64, before: f64, deviation: f64) -> Self {
        let change = current - before;
        let least = (NOTABLE * before).max(DEVIATIONS * deviation);
        let direction = if change.abs() <= least {
            Direction::Steady
        } else if change > 0.0 {
            Direction::Rising
        } else {
            Direction::Falling
        };
        let change_percent = if before > 0.0 {
            100.0 * change / before
        } else {
            0.0
        };
        Self {
            current,
            before,
            change_percent,
            direction,
        }
    }
}

/// Where a number goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Direction {
    /// By more than a tenth, and of requests and errors by more than chance.
    Rising,
    /// Neither.
    Steady,
    /// By more than a tenth, and of requests and errors by more than chance.
    Falling,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(good: u64, bad: u64, seconds: u64, tokens: u64) -> Totals {
        Totals {
            good,
            bad,
            nanos: seconds * 1_000_000_000,
            tokens,
        }
    }

    fn directions(now: &Totals, before: &Totals) -> [Direction; 4] {
        let trend = Trend::new((now, 60.0), (before, 60.0));
        [
            trend.requests_per_second,
            trend.error_rate_percent,
            trend.avg_seconds,
            trend.output_tokens_per_second,
        ]
        .map(|moved| moved.direction)
    }

    #[test]
    fn a_change_is_more_than_a_tenth_and_more_than_chance() {
        use Direction::{Falling, Rising, Steady};

        let before = totals(1000, 10, 1000, 1000);
        assert_eq!(directions(&before, &before), [Steady; 4]);
        let more = totals(2000, 200, 9000, 5000);
        assert_eq!(directions(&more, &before), [Rising; 4]);
        assert_eq!(directions(&before, &more), [Falling; 4]);
        // 12 % more of few, and as many again of even fewer errors, may well be chance.
        let (few, fewer) = (totals(112, 2, 10, 0), totals(100, 1, 10, 0));
        assert_eq!(directions(&few, &fewer)[..2], [Steady; 2]);
        // The same of many is not.
        let (many, most) = (totals(100_000, 1000, 10, 0), totals(112_000, 2240, 10, 0));
        assert_eq!(directions(&most, &many)[..2], [Rising; 2]);
    }

    #[test]
    fn rates_are_for_the_time_that_is_covered() {
        let (now, before) = (totals(120, 0, 60, 600), totals(60, 0, 60, 300));
        let trend = Trend::new((&now, 60.0), (&before, 30.0));
        assert_eq!(trend.requests_per_second.direction, Direction::Steady);
        let found = trend.output_tokens_per_second;
        assert_eq!(
            (found.current, found.before, found.change_percent),
            (10.0, 10.0, 0.0)
        );
        assert_eq!(trend.avg_seconds.change_percent, -50.0);
    }

    #[test]
    fn out_of_nothing_it_rises_and_into_nothing_it_falls() {
        let (some, none) = (totals(100, 0, 100, 100), Totals::default());
        assert_eq!(directions(&some, &none)[0], Direction::Rising);
        assert_eq!(directions(&none, &some)[0], Direction::Falling);
        assert_eq!(directions(&none, &none), [Direction::Steady; 4]);
        let trend = Trend::new((&some, 60.0), (&none, 60.0));
        assert_eq!(trend.requests_per_second.change_percent, 0.0);
    }
}
