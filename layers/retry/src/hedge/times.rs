//! The delay that is learnt: a quantile of what answers take of late.

use std::time::Duration;

use palisade_core::{quantile::Quantile, ratio::Ratio};
use tokio::time::Instant;

/// It is found again after so many times, or once part of the window is over: what is read in between is as good, and
/// asks no clock.
const FRESH: u32 = 32;
const PARTS: u32 = 8;

/// A quantile of the times of the last window.
#[derive(Debug)]
pub(crate) struct Times {
    quantile: Ratio,
    times: Quantile,
    /// How many times came since it was found, and when that was.
    fresh: u32,
    found: Option<Instant>,
    known: Option<Duration>,
}

impl Times {
    /// Fewer times than `least` say nothing.
    pub(crate) fn new(quantile: Ratio, least: u32, window: Duration) -> Self {
        Self {
            quantile,
            times: Quantile::new(window).at_least(least.into()),
            fresh: 0,
            found: None,
            known: None,
        }
    }

    pub(crate) fn record(&mut self, time: Duration, now: Instant) {
        self.times.record(time, now);
        self.fresh += 1;
        let part = self.times.window() / PARTS;
        let found = self.found;
        let stale = found.is_none_or(|found| now.saturating_duration_since(found) >= part);
        if stale || self.known.is_none() || self.fresh >= FRESH {
            self.known = self.times.value(self.quantile, now);
            (self.fresh, self.found) = (0, Some(now));
        }
    }

    /// Not less than the quantile; `None` while there are too few times.
    pub(crate) fn known(&self) -> Option<Duration> {
        self.known
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn p95() -> Times {
        Times::new(Ratio::new(0.95).unwrap(), 100, 8 * SECOND)
    }

    #[test]
    fn too_few_times_say_nothing() {
        let (mut times, now) = (p95(), time::now());
        for _ in 0..99 {
            times.record(MILLI, now);
            assert_eq!(times.known(), None);
        }
        times.record(MILLI, now);
        assert!(times.known().is_some_and(|known| known >= MILLI));
    }

    #[test]
    fn what_is_known_is_of_32_times_ago_at_most() {
        let (mut times, now) = (p95(), time::now());
        (0..100).for_each(|_| times.record(MILLI, now));
        // Six in a hundred and six are more than a twentieth.
        (0..6).for_each(|_| times.record(SECOND, now));
        (0..26).for_each(|_| times.record(MILLI, now));
        assert!(times.known().is_some_and(|known| known < 2 * MILLI));
        (0..32).for_each(|_| times.record(SECOND, now));
        assert!(times.known().is_some_and(|known| known >= SECOND));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let (mut times, mut now) = (p95(), time::now());
        (0..1000).for_each(|_| times.record(SECOND, now));
        now += 4 * SECOND;
        (0..1000).for_each(|_| times.record(MILLI, now));
        assert!(times.known().is_some_and(|known| known >= SECOND));
        now += 4 * SECOND;
        times.record(MILLI, now);
        assert!(times.known().is_some_and(|known| known < 2 * MILLI));
        // After a pause nothing is known.
        now += 8 * SECOND;
        times.record(MILLI, now);
        assert_eq!(times.known(), None);
    }
}
