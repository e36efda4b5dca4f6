//! Timeouts that follow the service.

use std::{sync::Arc, time::Duration};

use palisade_core::{quantile::Quantile, ratio::Ratio};
use tokio::time::Instant;

/// Fewer say nothing of a quantile near 1.
const FEWEST: u64 = 100;
const WINDOW: Duration = Duration::from_secs(60);
const MOST_TIMES: f64 = 1000.0;

/// A timeout, fixed or one that follows the service.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Timeout {
    /// Always the same.
    Fixed(Duration),
    /// As long as the service needs, and some more.
    Adaptive(Adaptive),
}

impl From<Duration> for Timeout {
    fn from(timeout: Duration) -> Self {
        Self::Fixed(timeout)
    }
}

impl From<Adaptive> for Timeout {
    fn from(adaptive: Adaptive) -> Self {
        Self::Adaptive(adaptive)
    }
}

/// A timeout that is a multiple of a quantile of what the service took of late.
///
/// The longest one holds until 100 answers have come within the window. An attempt that was cut off counts as one of
/// twice its age, so that the timeout grows when the service slows down and cannot choke itself: it doubles, up to
/// the longest, while it cuts off more than the quantile leaves out. So the share that may hang for ever has to be
/// smaller than that. Answers that say that the service has failed do not count, however fast they were, and neither
/// does an attempt that was cut off for its silence where whole answers are timed.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::ratio::Ratio;
/// use palisade_deadline::{Adaptive, AttemptTimeoutLayer, Timeouts};
///
/// let (least, most) = (Duration::from_millis(50), Duration::from_secs(5));
/// let adaptive = Adaptive::between(least, most).quantile(Ratio::new(0.99)?).times(2.0);
/// let layer = AttemptTimeoutLayer::new(Timeouts::none().first_byte(adaptive));
/// assert_eq!(layer.handle().snapshot().first_byte, Some(most));
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    quantile: f64,
    times: f64,
    least: Duration,
    most: Duration,
    window: Duration,
}

impl Adaptive {
    /// Twice the 99th percentile of the last minute, but never outside of these bounds, whichever is the larger.
    pub fn between(least: Duration, most: Duration) -> Self {
        Self {
            quantile: 0.99,
            times: 2.0,
            least: least.min(most),
            most: least.max(most),
            window: WINDOW,
        }
    }

    /// The share of attempts that took no longer than what is multiplied.
    #[must_use]
    pub fn quantile(mut self, quantile: Ratio) -> Self {
        self.quantile = quantile.get();
        self
    }

    /// What the quantile is multiplied with: 1 to 1000, and 1 for what is not a number.
    #[must_use]
    pub fn times(mut self, times: f64) -> Self {
        self.times = if times.is_nan() {
            1.0
        } else {
            times.clamp(1.0, MOST_TIMES)
        };
        self
    }

    /// How far back is looked; less than eight milliseconds are eight.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }
}

/// A timeout with what it follows.
#[derive(Clone, Debug)]
pub(crate) struct Tracked {
    timeout: Timeout,
    pub(crate) samples: Option<Arc<Quantile>>,
}

impl Tracked {
    /// Goes on with the samples of `before` if it looked as far back.
    pub(crate) fn new(timeout: Timeout, before: Option<&Self>) -> Self {
        let Timeout::Adaptive(adaptive) = timeout else {
            let samples = None;
            return Self { timeout, samples };
        };
        let fresh = Quantile::new(adaptive.window).at_least(FEWEST);
        let kept = before.and_then(|before| before.samples.clone());
        let kept = kept.filter(|kept| kept.window() == fresh.window());
        let samples = Some(kept.unwrap_or_else(|| Arc::new(fresh)));
        Self { timeout, samples }
    }

    pub(crate) fn get(&self, now: Instant) -> Duration {
        let adaptive = match self.timeout {
            Timeout::Fixed(timeout) => return timeout,
            Timeout::Adaptive(adaptive) => adaptive,
        };
        let samples = self.samples.as_ref();
        let value = samples.and_then(|samples| {
            let quantile = Ratio::new(adaptive.quantile).ok()?;
            samples.value(quantile, now)
        });
        value.map_or(adaptive.most, |value| {
            let times = value.mul_f64(adaptive.times);
            times.clamp(adaptive.least, adaptive.most)
        })
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;
    use proptest::prelude::*;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn strange_settings_are_brought_into_reason() {
        let adaptive = Adaptive::between(5 * MILLI, MILLI);
        assert_eq!((adaptive.least, adaptive.most), (MILLI, 5 * MILLI));
        for (times, used) in [
            (f64::NAN, 1.0),
            (-1.0, 1.0),
            (f64::INFINITY, MOST_TIMES),
            (3.0, 3.0),
        ] {
            assert_eq!(adaptive.times(times).times, used);
        }
    }

    proptest! {
        #[test]
        fn it_stays_between_its_bounds(
            micros in prop::collection::vec(any::<u64>(), 0..300),
            times in any::<f64>(),
            (least, most) in (any::<u32>(), any::<u32>()),
        ) {
            let (least, most) = (least.min(most), least.max(most));
            let (least, most) = (Duration::from_micros(least.into()), Duration::from_micros(most.into()));
            let adaptive = Adaptive::between(least, most).times(times);
            let tracked = Tracked::new(adaptive.into(), None);
            let now = time::now();
            for &micros in &micros {
                tracked.samples.as_ref().unwrap().record(Duration::from_micros(micros), now);
            }
            let timeout = tracked.get(now);
            prop_assert!(least <= timeout && timeout <= most);
            if micros.len() < FEWEST as usize {
                prop_assert_eq!(timeout, most);
            }
        }
    }
}
