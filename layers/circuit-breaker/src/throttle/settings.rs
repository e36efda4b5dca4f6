use std::time::Duration;

use palisade_core::ratio::Ratio;

/// How many requests for each that is accepted may be sent, by default (Google, "Site Reliability Engineering", 2016,
/// chapter 21): twice as many as the service takes, so that it is found at once when it takes more.
const MULTIPLIER: f64 = 2.0;

const WINDOW: Duration = Duration::from_secs(120);

/// One in ten at least: with fewer, nobody would notice for long that the service works again.
const MOST: f64 = 0.9;

const MINIMUM_CALLS: u32 = 10;

const SLOW_AFTER: Duration = Duration::from_secs(5);

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When a [`Throttle`](crate::Throttle) refuses how many requests. Numbers out of reason are brought into it.
///
/// ```
/// use palisade_circuit_breaker::{Throttle, ThrottleSettings};
///
/// let mut settings = ThrottleSettings::default();
/// settings.multiplier = 1.1;
/// let throttle = Throttle::new().with(settings);
/// assert_eq!(throttle.handle().settings().multiplier, 1.1);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ThrottleSettings {
    /// How many requests for each that is accepted may be sent before any is refused, 1 to 1000; 2 by default.
    pub multiplier: f64,
    /// How long a request is remembered from when it was sent, 12 ms to a year; 2 minutes by default, to a twelfth of
    /// it, of which one more is counted.
    pub window: Duration,
    /// The largest share that is refused; nine in ten by default.
    pub most: Ratio,
    /// Refuses nothing before so many requests are remembered, 1 at least; 10 by default.
    pub minimum_calls: u32,
    /// A caller that leaves before any data and after this long tells of a service that does not answer; 5 s by
    /// default.
    pub slow_after: Duration,
}

impl Default for ThrottleSettings {
    fn default() -> Self {
        Self {
            multiplier: MULTIPLIER,
            window: WINDOW,
            most: Ratio::new(MOST).unwrap_or(Ratio::HALF),
            minimum_calls: MINIMUM_CALLS,
            slow_after: SLOW_AFTER,
        }
    }
}

impl ThrottleSettings {
    pub(crate) fn reasonable(mut self) -> Self {
        if self.multiplier.is_nan() {
            self.multiplier = MULTIPLIER;
        }
        self.multiplier = self.multiplier.clamp(1.0, 1000.0);
        self.window = self.window.clamp(Duration::from_millis(12), YEAR);
        self.minimum_calls = self.minimum_calls.max(1);
        self
    }
}
