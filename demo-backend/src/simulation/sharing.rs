//! One rate of tokens, shared evenly among those that are being answered.

use std::time::Duration;

use tokio::time::Instant;

/// Processor sharing: of `rate` tokens per second each of `active` streams gets an equal part.
///
/// Counts the tokens that a stream would have got, had it been there from the start. A stream notes this count when it
/// comes; its k-th token is due when the count is k higher. So no stream needs to hear when another comes or goes.
#[derive(Debug)]
pub(crate) struct Sharing {
    rate: f64,
    active: u32,
    served: f64,
    at: Instant,
}

/// Far below a token, far above what adding up floats loses.
const EPSILON: f64 = 1e-6;

impl Sharing {
    /// `rate` is above 0.
    pub(crate) fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            active: 0,
            served: 0.0,
            at: now,
        }
    }

    /// Tokens per second for all.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// One stream more. Returns the count from which its tokens are counted.
    pub(crate) fn join(&mut self, now: Instant) -> f64 {
        self.advance(now);
        self.active += 1;
        self.served
    }

    /// One stream less.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.advance(now);
        self.active = self.active.saturating_sub(1);
        if self.active == 0 {
            // No mark is left that it could be compared with, and small numbers keep their last digits.
            self.served = 0.0;
        }
    }

    /// How many whole tokens are due to a stream that joined at `mark`.
    pub(crate) fn due(&mut self, mark: f64, now: Instant) -> u64 {
        self.advance(now);
        (self.served - mark + EPSILON) as u64
    }

    /// When the token number `count` is due to it, if nobody comes or goes.
    pub(crate) fn due_at(&self, mark: f64, count: u64) -> Instant {
        let missing = (mark + count as f64 - self.served).max(0.0);
        let wait = missing * f64::from(self.active.max(1)) / self.rate;
        let wait = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX);
        // Far beyond any program's life, and still an instant.
        const FAR: Duration = Duration::from_secs(86_400 * 365);
        self.at + wait.min(FAR)
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        if self.active > 0 {
            self.served += passed * self.rate / f64::from(self.active);
        }
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;
    use proptest::prelude::*;

    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn one_alone_gets_the_whole_rate() {
        let start = time::now();
        let mut sharing = Sharing::new(10.0, start);
        let mark = sharing.join(start);
        assert_eq!(sharing.due(mark, at(start, 0.999)), 9);
        assert_eq!(sharing.due(mark, at(start, 1.0)), 10);
        assert_eq!(sharing.due_at(mark, 12), at(start, 1.2));
    }

    #[test]
    fn who_comes_later_slows_and_who_goes_speeds_up() {
        let start = time::now();
        let mut sharing = Sharing::new(10.0, start);
        let first = sharing.join(start);
        let second = sharing.join(at(start, 1.0));
        assert_eq!(sharing.due(first, at(start, 2.0)), 15);
        assert_eq!(sharing.due(second, at(start, 2.0)), 5);
        sharing.leave(at(start, 2.0));
        assert_eq!(sharing.due(first, at(start, 3.0)), 25);
    }

    #[test]
    fn a_token_is_due_when_it_was_said_and_not_a_millisecond_before() {
        let start = time::now();
        let mut sharing = Sharing::new(3.0, start);
        sharing.join(start);
        let mark = sharing.join(at(start, 0.1));
        for count in 1..100 {
            let due = sharing.due_at(mark, count);
            assert_eq!(sharing.due(mark, due - Duration::from_millis(1)), count - 1);
            assert_eq!(sharing.due(mark, due), count);
        }
    }

    proptest! {
        /// Against a server that deals out the rate in steps of a millisecond.
        #[test]
        fn all_get_what_a_server_in_small_steps_would_deal(
            spans in proptest::collection::vec((0_u64..400, 1_u64..400), 1..6),
        ) {
            const RATE: f64 = 50.0;
            let start = time::now();
            let millis = |ms| start + Duration::from_millis(ms);
            let mut sharing = Sharing::new(RATE, start);
            let mut dealt = vec![0.0; spans.len()];
            let mut marks = vec![None; spans.len()];
            for now in 0..800 {
                for (stream, (from, length)) in spans.iter().enumerate() {
                    if now == *from {
                        marks[stream] = Some(sharing.join(millis(now)));
                    }
                    if now == from + length {
                        let served = sharing.due(marks[stream].unwrap(), millis(now)) as f64;
                        prop_assert!((served - dealt[stream]).abs() <= 1.0);
                        sharing.leave(millis(now));
                    }
                }
                let here = |(from, length): &(u64, u64)| (*from..from + length).contains(&now);
                let active = spans.iter().filter(|span| here(span)).count();
                for (stream, span) in spans.iter().enumerate() {
                    if here(span) {
                        dealt[stream] += RATE / 1000.0 / active as f64;
                    }
                }
            }
            prop_assert_eq!(sharing.active, 0);
        }
    }
}
