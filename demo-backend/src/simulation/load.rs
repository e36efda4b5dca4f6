//! How many requests come per second.

use std::time::Duration;

use tokio::time::Instant;

/// Events per second, of which older ones count less: each by `e` less per span of memory.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: f64,
    at: Instant,
}

const MEMORY: Duration = Duration::from_secs(5);

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { rate: 0.0, at: now }
    }

    pub(crate) fn event(&mut self, now: Instant) {
        self.rate = self.per_second(now) + 1.0 / MEMORY.as_secs_f64();
        self.at = self.at.max(now);
    }

    pub(crate) fn per_second(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at);
        self.rate * (-age.div_duration_f64(MEMORY)).exp()
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;

    use super::*;

    #[test]
    fn a_steady_stream_is_counted_as_what_it_is_and_silence_fades() {
        let mut now = time::now();
        let mut pace = Pace::new(now);
        for _ in 0..2000 {
            now += Duration::from_millis(20);
            pace.event(now);
        }
        let rate = pace.per_second(now);
        assert!((49.0..51.0).contains(&rate), "{rate}");
        assert!(pace.per_second(now + 20 * MEMORY) < 0.001);
    }
}
