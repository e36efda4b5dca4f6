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

/// Delays between attempts: a curve that grows from one to the next, and a random part.
///
/// The default is 25 ms doubling up to 1 s with [`Jitter::Full`]. Clones share the source of their randomness.
///
/// ```
/// use std::time::Duration;
/// use palisade_retry::{Backoff, Jitter};
///
/// let second = Duration::from_secs(1);
/// let seconds = |backoff: Backoff| -> Vec<_> {
///     let delays = backoff.jitter(Jitter::None).delays();
///     delays.take(6).map(|delay| delay.as_secs()).collect()
/// };
/// assert_eq!(seconds(Backoff::exponential(second, 10 * second)?), [1, 2, 4, 8, 10, 10]);
/// assert_eq!(seconds(Backoff::linear(2 * second, 9 * second)?), [2, 4, 6, 8, 9, 9]);
/// # Ok::<(), palisade_retry::InvalidBackoff>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    curve: Curve,
    max: Duration,
    jitter: Jitter,
    random: Arc<Random>,
}

/// A delay without its random part, before it is cut to the longest.
#[derive(Clone)]
enum Curve {
    /// The same each time.
    Constant(Duration),
    /// This much more each time.
    Linear(Duration),
    /// From this on twice as much each time.
    Exponential(Duration),
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

/// The random part of a delay. `d` is the delay without it: what the curve says, up to the longest.
///
/// Full, equal and decorrelated are those of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
/// 2015); among them, full jitter makes the least work for the server. The decorrelated ones make their own curve: of
/// the [`Backoff`] they take the first delay, `min`, and the longest, `max`.
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
    /// Doubles from `min` up to `max`, with [`Jitter::Full`].
    ///
    /// Fails if `min` is zero or above `max`.
    pub fn exponential(min: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        Self::growing(Curve::Exponential(min), min, max)
    }

    /// `step`, twice `step`, and so on up to `max`, with [`Jitter::Full`].
    ///
    /// Fails if `step` is zero or above `max`.
    pub fn linear(step: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        Self::growing(Curve::Linear(step), step, max)
    }

    /// The same `delay` each time, without jitter. Zero is at once.
    pub fn constant(delay: Duration) -> Self {
        Self::new(Curve::Constant(delay), delay, Jitter::None)
    }

    /// What `delay` says after each failed attempt, the first of which is 0, up to `max` and without jitter.
    ///
    /// ```
    /// use std::time::Duration;
    /// use palisade_retry::Backoff;
    ///
    /// let millis = Duration::from_millis;
    /// let squares = Backoff::custom(millis(20), move |n| n * n * millis(1));
    /// let delays: Vec<_> = squares.delays().take(6).collect();
    /// assert_eq!(delays, [0, 1, 4, 9, 16, 20].map(millis));
    /// ```
    pub fn custom(max: Duration, delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self::new(Curve::Custom(Arc::new(delay)), max, Jitter::None)
    }

    /// 1, 2, 4, 8 and then 10 seconds each time, exactly: for jobs that have the time. Where many may fail together,
    /// give it a [`jitter`](Self::jitter).
    pub fn seconds() -> Self {
        let second = Duration::from_secs(1);
        Self::new(Curve::Exponential(second), 10 * second, Jitter::None)
    }

    fn growing(curve: Curve, min: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if min.is_zero() || min > max {
            return Err(InvalidBackoff { min, max });
        }
        Ok(Self::new(curve, max, Jitter::Full))
    }

    fn new(curve: Curve, max: Duration, jitter: Jitter) -> Self {
        Self {
            curve,
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
        match self.jitter {
            Jitter::None => self.at(n),
            Jitter::Full => self.at(n).mul_f64(self.random.unit()),
            Jitter::Equal => {
                let half = self.at(n) / 2;
                half + half.mul_f64(self.random.unit())
            }
            Jitter::Decorrelated => {
                let min = self.at(0);
                let most = progress.previous.max(min).saturating_mul(3);
                let span = (most - min).mul_f64(self.random.unit());
                progress.previous = min.saturating_add(span).min(self.max);
                progress.previous
            }
            Jitter::DecorrelatedV2 => self.smooth(n, progress),
        }
    }

    /// The delay without its random part.
    fn at(&self, n: u32) -> Duration {
        let delay = match &self.curve {
            Curve::Constant(delay) => *delay,
            Curve::Linear(step) => step.saturating_mul(n.saturating_add(1)),
            Curve::Exponential(min) => min.saturating_mul(2_u32.saturating_pow(n)),
            Curve::Custom(delay) => delay(n),
        };
        delay.min(self.max)
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
        let delay = Duration::try_from_secs_f64(step * SCALE * self.at(0).as_secs_f64());
        delay.unwrap_or(self.max).min(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        let min = Duration::from_millis(25);
        Self::new(
            Curve::Exponential(min),
            Duration::from_secs(1),
            Jitter::Full,
        )
    }
}

impl fmt::Debug for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(delay) => f.debug_tuple("Constant").field(delay).finish(),
            Self::Linear(step) => f.debug_tuple("Linear").field(step).finish(),
            Self::Exponential(min) => f.debug_tuple("Exponential").field(min).finish(),
            Self::Custom(_) => f.write_str("Custom"),
        }
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
        write!(f, "backoff cannot grow from {min:?} up to {max:?}")
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
mod tests;
