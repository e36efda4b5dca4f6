use std::{error::Error, fmt, time::Duration};

use crate::draw::Draw;

/// What a delay without an end of its own is cut to, unless it is told otherwise.
const LONGEST: Duration = Duration::from_secs(60);

/// How long a request is held up.
///
/// ```
/// use std::time::Duration;
/// use palisade_chaos::Delay;
///
/// let ms = Duration::from_millis;
/// let always = Delay::constant(ms(200));
/// let between = Delay::uniform(ms(50), ms(500))?;
/// // Half of them below 80 ms, one in forty above half a second, and none above 5 s.
/// let tail = Delay::lognormal(ms(80), 1.0)?.at_most(ms(5000));
/// assert!(Delay::uniform(ms(2), ms(1)).is_err());
/// # let _ = (always, between, tail);
/// # Ok::<(), palisade_chaos::InvalidDelay>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    kind: Kind,
    at_most: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Constant(Duration),
    Uniform(Duration, Duration),
    Exponential(Duration),
    Lognormal(Duration, f64),
}

impl Delay {
    /// Always the same.
    pub fn constant(delay: Duration) -> Self {
        Self::new(Kind::Constant(delay), Duration::MAX)
    }

    /// Evenly between the two.
    ///
    /// # Errors
    ///
    /// If the shortest is longer than the longest.
    pub fn uniform(shortest: Duration, longest: Duration) -> Result<Self, InvalidDelay> {
        if shortest > longest {
            return Err(InvalidDelay::Reversed);
        }
        Ok(Self::new(Kind::Uniform(shortest, longest), longest))
    }

    /// Short ones often and long ones seldom, up to a minute: what waiting for rare events looks like.
    pub fn exponential(mean: Duration) -> Self {
        Self::new(Kind::Exponential(mean), LONGEST)
    }

    /// Around the median with a long tail, up to a minute: what the latency of servers looks like. Of 1000 delays one is
    /// longer than the median times e to the power of 3.1 `sigma`.
    ///
    /// # Errors
    ///
    /// If `sigma` is negative or not finite.
    pub fn lognormal(median: Duration, sigma: f64) -> Result<Self, InvalidDelay> {
        if !sigma.is_finite() || sigma < 0.0 {
            return Err(InvalidDelay::Sigma(sigma));
        }
        Ok(Self::new(Kind::Lognormal(median, sigma), LONGEST))
    }

    /// Cuts longer ones to this.
    #[must_use]
    pub fn at_most(mut self, longest: Duration) -> Self {
        self.at_most = longest;
        self
    }

    fn new(kind: Kind, at_most: Duration) -> Self {
        Self { kind, at_most }
    }

    pub(crate) fn draw(&self, draw: &mut Draw) -> Duration {
        let delay = match self.kind {
            Kind::Constant(delay) => delay,
            Kind::Uniform(shortest, longest) => {
                shortest + (longest - shortest).mul_f64(draw.share())
            }
            Kind::Exponential(mean) => times(mean, -(1.0 - draw.share()).ln()),
            Kind::Lognormal(median, sigma) => times(median, (sigma * draw.normal()).exp()),
        };
        delay.min(self.at_most)
    }
}

/// As far as a duration goes.
fn times(delay: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// A delay that cannot be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum InvalidDelay {
    /// The shortest is longer than the longest.
    Reversed,
    /// The spread is negative or not finite.
    Sigma(f64),
}

impl fmt::Display for InvalidDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reversed => f.write_str("the shortest delay is longer than the longest"),
            Self::Sigma(sigma) => write!(f, "a sigma of {sigma} is negative or not finite"),
        }
    }
}

impl Error for InvalidDelay {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sorted(delay: Delay) -> Vec<Duration> {
        let draws = (0..10_000).map(|at| delay.draw(&mut Draw::new(3, at, 0)));
        let mut draws: Vec<_> = draws.collect();
        draws.sort();
        draws
    }

    fn near(drawn: Duration, wanted: f64) -> bool {
        (drawn.as_secs_f64() / wanted - 1.0).abs() < 0.1
    }

    #[test]
    fn a_constant_is_one() {
        assert!(
            sorted(Delay::constant(SECOND))
                .iter()
                .all(|&delay| delay == SECOND)
        );
    }

    #[test]
    fn a_uniform_delay_fills_its_bounds_and_stays_within() {
        let drawn = sorted(Delay::uniform(SECOND, 3 * SECOND).unwrap());
        assert!(drawn[0] >= SECOND && drawn[9999] <= 3 * SECOND);
        assert!(near(drawn[2500], 1.5) && near(drawn[5000], 2.0) && near(drawn[7500], 2.5));
    }

    #[test]
    fn an_exponential_delay_has_its_quantiles() {
        let drawn = sorted(Delay::exponential(SECOND));
        assert!(near(drawn[5000], 2f64.ln()) && near(drawn[9900], 100f64.ln()));
    }

    #[test]
    fn a_lognormal_delay_has_its_quantiles() {
        let drawn = sorted(Delay::lognormal(SECOND, 0.5).unwrap());
        assert!(
            near(drawn[5000], 1.0) && near(drawn[9772], 1f64.exp()),
            "{:?}",
            drawn[9772]
        );
    }

    #[test]
    fn no_delay_is_longer_than_it_may_be() {
        let cut = |delay: Delay| *sorted(delay).last().unwrap();
        assert_eq!(cut(Delay::exponential(100 * SECOND)), LONGEST);
        assert_eq!(cut(Delay::lognormal(SECOND, 1e300).unwrap()), LONGEST);
        assert_eq!(
            cut(Delay::exponential(SECOND).at_most(2 * SECOND)),
            2 * SECOND
        );
        assert_eq!(cut(Delay::constant(Duration::MAX).at_most(SECOND)), SECOND);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        assert_eq!(
            Delay::uniform(2 * SECOND, SECOND),
            Err(InvalidDelay::Reversed)
        );
        for sigma in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Delay::lognormal(SECOND, sigma).is_err(), "{sigma}");
        }
    }
}
