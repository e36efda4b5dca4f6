//! How long to wait between attempts.

use std::{
    collections::hash_map::RandomState,
    error::Error,
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Delays that grow from attempt to attempt, each with its random part.
///
/// The default is 25 ms doubling up to 1 s with [`Jitter::Full`]. Clones share the source of their randomness.
///
/// ```
/// use std::time::Duration;
/// use palisade_retry::{Backoff, Jitter};
///
/// let second = Duration::from_secs(1);
/// let backoff = Backoff::exponential(second, 10 * second)?.jitter(Jitter::None);
/// let delays: Vec<_> = backoff.delays().take(6).map(|delay| delay.as_secs()).collect();
/// assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
/// # Ok::<(), palisade_retry::InvalidBackoff>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: Jitter,
    random: Arc<Random>,
}

/// The random part of a delay. `d` is the delay without it: `min` x 2^n, up to `max`.
///
/// Full, equal and decorrelated are those of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
/// 2015); among them, full jitter makes the least work for the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// Between zero and `d`.
    #[default]
    Full,
    /// Between half of `d` and `d`.
    Equal,
    /// Between `min` and three times the delay before, up to `max`.
    Decorrelated,
    /// Spread without gaps or peaks around a growing curve, the first with a median of `min`: the formula of Grant
    /// Dickinson and the Polly project, `decorrelatedJitterBackoffV2`.
    DecorrelatedV2,
    /// Exactly `d`. Callers that failed together come back together.
    None,
}

impl Backoff {
    /// Doubles from `min` up to `max`.
    ///
    /// Fails if `min` is zero or above `max`.
    pub fn exponential(min: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if min.is_zero() || min > max {
            return Err(InvalidBackoff { min, max });
        }
        Ok(Self::new(min, max, Jitter::Full))
    }

    /// The same `delay` each time, without jitter. Zero is at once.
    pub fn constant(delay: Duration) -> Self {
        Self::new(delay, delay, Jitter::None)
    }

    fn new(min: Duration, max: Duration, jitter: Jitter) -> Self {
        Self {
            min,
            max,
            jitter,
            random: Arc::new(Random::new(RandomState::new().build_hasher().finish())),
        }
    }

    /// Chooses the random part.
    #[must_use]
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Makes the delays the same in each run, for tests.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.random = Arc::new(Random::new(seed));
        self
    }

    /// The delays of one request, without an end.
    pub fn delays(&self) -> Delays {
        Delays {
            backoff: self.clone(),
            progress: Progress::default(),
        }
    }

    pub(crate) fn next(&self, progress: &mut Progress) -> Duration {
        let n = progress.taken;
        progress.taken = n.saturating_add(1);
        let full = self
            .min
            .saturating_mul(2_u32.saturating_pow(n))
            .min(self.max);
        match self.jitter {
            Jitter::None => full,
            Jitter::Full => full.mul_f64(self.random.unit()),
            Jitter::Equal => full / 2 + (full / 2).mul_f64(self.random.unit()),
            Jitter::Decorrelated => {
                let most = progress.previous.max(self.min).saturating_mul(3);
                let span = (most - self.min).mul_f64(self.random.unit());
                progress.previous = self.min.saturating_add(span).min(self.max);
                progress.previous
            }
            Jitter::DecorrelatedV2 => self.smooth(n, progress),
        }
    }

    fn smooth(&self, n: u32, progress: &mut Progress) -> Duration {
        /// From here on every delay is the longest; far below where the curve would overflow.
        const STEEP: u32 = 64;
        /// Brings the median of the first delay to `min`.
        const SCALE: f64 = 1.0 / 1.4;

        if n >= STEEP {
            return self.max;
        }
        let at = f64::from(n) + self.random.unit();
        let height = at.exp2() * (4.0 * at).sqrt().tanh();
        let step = height - progress.height;
        progress.height = height;
        let delay = Duration::try_from_secs_f64(step * SCALE * self.min.as_secs_f64());
        delay.unwrap_or(self.max).min(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(
            Duration::from_millis(25),
            Duration::from_secs(1),
            Jitter::Full,
        )
    }
}

/// The delays of one request: see [`Backoff::delays`].
#[derive(Clone, Debug)]
pub struct Delays {
    backoff: Backoff,
    progress: Progress,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.backoff.next(&mut self.progress))
    }
}

/// Where one request is in its delays.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    taken: u32,
    previous: Duration,
    height: f64,
}

/// The shortest delay is zero, or above the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBackoff {
    min: Duration,
    max: Duration,
}

impl fmt::Display for InvalidBackoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max } = self;
        write!(f, "backoff cannot double from {min:?} up to {max:?}")
    }
}

impl Error for InvalidBackoff {}

/// SplitMix64 (Steele, Lea, Flood, 2014): a counter and a mixer, so that threads need no lock.
#[derive(Debug)]
struct Random(AtomicU64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// At least 0 and below 1.
    fn unit(&self) -> f64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GOLDEN, Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ALL: [Jitter; 5] = [
        Jitter::Full,
        Jitter::Equal,
        Jitter::Decorrelated,
        Jitter::DecorrelatedV2,
        Jitter::None,
    ];

    fn backoff(jitter: Jitter, seed: u64) -> Backoff {
        let backoff = Backoff::exponential(100 * MS, 2000 * MS).unwrap();
        backoff.jitter(jitter).seed(seed)
    }

    /// The `n`th delays of many requests, sorted.
    fn sorted(jitter: Jitter, n: usize) -> Vec<Duration> {
        let backoff = backoff(jitter, 7);
        let mut all: Vec<_> = (0..10_000)
            .map(|_| backoff.delays().nth(n).unwrap())
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_backoff_that_cannot_grow_is_an_error() {
        for (min, max) in [(Duration::ZERO, MS), (2 * MS, MS)] {
            let error = Backoff::exponential(min, max).unwrap_err();
            assert_eq!(error, InvalidBackoff { min, max });
        }
        let error = Backoff::exponential(2 * MS, MS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "backoff cannot double from 2ms up to 1ms"
        );
    }

    #[test]
    fn full_jitter_is_even_between_zero_and_the_delay() {
        for (n, full) in [(0, 100 * MS), (2, 400 * MS), (9, 2000 * MS)] {
            let all = sorted(Jitter::Full, n);
            assert!(all[0] < full / 100 && all[9_999] < full && all[9_999] > full * 99 / 100);
            let median = all[5_000];
            assert!(
                median > full * 48 / 100 && median < full * 52 / 100,
                "{median:?}"
            );
        }
    }

    #[test]
    fn equal_jitter_waits_at_least_half() {
        let all = sorted(Jitter::Equal, 1);
        assert!(all[0] >= 100 * MS && all[0] < 102 * MS);
        assert!(all[9_999] < 200 * MS && all[9_999] > 198 * MS);
    }

    #[test]
    fn decorrelated_jitter_grows_from_the_delay_before() {
        let backoff = backoff(Jitter::Decorrelated, 7);
        let mut before = 100 * MS;
        for delay in backoff.delays().take(10_000) {
            assert!(delay >= 100 * MS && delay <= (3 * before).min(2000 * MS));
            before = delay;
        }
    }

    #[test]
    fn the_second_decorrelated_jitter_has_its_first_median_at_the_shortest_delay() {
        let median = sorted(Jitter::DecorrelatedV2, 0)[5_000];
        assert!(median > 85 * MS && median < 115 * MS, "{median:?}");
    }

    #[test]
    fn a_constant_delay_is_constant_and_may_be_zero() {
        for delay in [Duration::ZERO, 5 * MS] {
            let delays: Vec<_> = Backoff::constant(delay).delays().take(3).collect();
            assert_eq!(delays, [delay; 3]);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_delays_and_none_gives_others() {
        for jitter in ALL {
            let take = |backoff: Backoff| backoff.delays().take(8).collect::<Vec<_>>();
            assert_eq!(take(backoff(jitter, 1)), take(backoff(jitter, 1)));
            if jitter != Jitter::None {
                assert_ne!(take(backoff(jitter, 1)), take(backoff(jitter, 2)));
                let random = || Backoff::default().jitter(jitter);
                assert_ne!(take(random()), take(random()));
            }
        }
    }

    proptest! {
        #[test]
        fn no_delay_is_above_the_longest_and_nothing_overflows(
            min in 1_u64.., more in 0_u64.., seed: u64, which in 0..ALL.len(),
        ) {
            let min = Duration::from_nanos(min);
            let max = min.saturating_add(Duration::from_secs(more));
            let backoff = Backoff::exponential(min, max).unwrap().jitter(ALL[which]).seed(seed);
            for delay in backoff.delays().take(100) {
                prop_assert!(delay <= max);
            }
            let huge = Backoff::exponential(min, Duration::MAX).unwrap().jitter(ALL[which]);
            prop_assert!(huge.delays().nth(5_000).is_some());
        }
    }
}
