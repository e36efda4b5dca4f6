//! When a server is no longer asked, and for how long.
//!
//! Not the layer's circuit breaker, which judges requests and probes with them: here nothing that takes from a quota
//! may be a probe, failures in a row and their share count at once, and a lost connection is known without counting.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that say enough.
const ROW: u32 = 5;

/// Answers within [`SPAN`] of which half have to be failures.
const ENOUGH: u32 = 20;

/// Of a second, so that the answers of the last one count.
const SPAN: Duration = Duration::from_millis(250);
const SPANS: usize = 4;

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// A connection that has lasted this long is worth another at once.
const PROVEN: Duration = Duration::from_secs(1);

/// Why a server is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It has not been asked yet.
    New,
    /// The connection is gone.
    Lost,
    /// It failed too often.
    Tripped,
    /// It could not be reached, or did not do what it was probed with.
    Unreached,
}

#[derive(Debug)]
pub(super) struct Breaker {
    row: u32,
    spans: [Span; SPANS],
    current: usize,
    /// Since when it has been asked.
    since: Instant,
    /// What is waited next.
    wait: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    began: Instant,
    answers: u32,
    failures: u32,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            row: 0,
            spans: [Span::begin(now); SPANS],
            current: 0,
            since: now,
            wait: SHORTEST,
        }
    }

    pub(super) fn succeeded(&mut self, now: Instant) {
        self.row = 0;
        self.span(now).answers += 1;
    }

    /// Whether that was one too many.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.row += 1;
        let span = self.span(now);
        span.answers += 1;
        span.failures += 1;
        let recent = self.spans.iter().filter(|span| span.is_recent(now));
        let (answers, failures) = recent.fold((0, 0), |(answers, failures), span| {
            (answers + span.answers, failures + span.failures)
        });
        self.row >= ROW || (answers >= ENOUGH && failures * 2 >= answers)
    }

    /// It is asked again.
    pub(super) fn close(&mut self, now: Instant) {
        self.row = 0;
        self.spans = [Span::begin(now); SPANS];
        self.since = now;
    }

    /// How long to wait before it is probed; `chance` is from 0 to 1.
    pub(super) fn wait(&mut self, why: Why, now: Instant, chance: f64) -> Duration {
        let lasted = now.saturating_duration_since(self.since);
        if why == Why::New {
            return Duration::ZERO;
        }
        if why == Why::Lost && lasted >= PROVEN {
            self.wait = SHORTEST;
            return Duration::ZERO;
        }
        if why != Why::Unreached && lasted >= LONGEST {
            self.wait = SHORTEST;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        // Processes that have lost the same server do not come back in the same instant.
        wait.mul_f64(0.8 + 0.4 * chance)
    }

    fn span(&mut self, now: Instant) -> &mut Span {
        if now.saturating_duration_since(self.spans[self.current].began) >= SPAN {
            self.current = (self.current + 1) % SPANS;
            self.spans[self.current] = Span::begin(now);
        }
        &mut self.spans[self.current]
    }
}

impl Span {
    fn begin(now: Instant) -> Self {
        Self {
            began: now,
            answers: 0,
            failures: 0,
        }
    }

    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < SPAN * SPANS as u32
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time::now;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn five_failures_in_a_row_are_enough_and_a_success_begins_a_new_row() {
        let start = now();
        let mut breaker = Breaker::new(start);
        for _ in 0..4 {
            assert!(!breaker.failed(start));
        }
        breaker.succeeded(start);
        for _ in 0..4 {
            assert!(!breaker.failed(start));
        }
        assert!(breaker.failed(start));
    }

    #[test]
    fn half_of_twenty_answers_within_a_second_are_enough() {
        let start = now();
        let mut breaker = Breaker::new(start);
        for step in 0..9 {
            breaker.succeeded(start + MS * step * 40);
            assert!(!breaker.failed(start + MS * step * 40));
        }
        breaker.succeeded(start + MS * 400);
        assert!(breaker.failed(start + MS * 400));
    }

    #[test]
    fn what_is_older_than_a_second_is_forgotten() {
        let start = now();
        let mut breaker = Breaker::new(start);
        for step in 0..200 {
            // One of each in 80 ms: at most 14 lie within a second and a span.
            breaker.succeeded(start + MS * step * 160);
            assert!(!breaker.failed(start + MS * step * 160));
        }
    }

    #[test]
    fn fewer_than_half_are_not_enough() {
        let start = now();
        let mut breaker = Breaker::new(start);
        for step in 0..1_000 {
            breaker.succeeded(start + MS * step);
            assert!(!breaker.failed(start + MS * step));
            breaker.succeeded(start + MS * step);
        }
    }

    #[test]
    fn waits_double_up_to_five_seconds_until_it_has_held_for_as_long() {
        let start = now();
        let mut breaker = Breaker::new(start);
        let waits: Vec<_> = (0..7)
            .map(|_| breaker.wait(Why::Unreached, start, 0.5).as_millis())
            .collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        breaker.close(start);
        let soon = start + LONGEST - MS;
        assert_eq!(breaker.wait(Why::Tripped, soon, 0.5), LONGEST);
        assert_eq!(breaker.wait(Why::Tripped, start + LONGEST, 0.5), SHORTEST);
    }

    #[test]
    fn waits_differ_by_a_fifth() {
        let start = now();
        let mut breaker = Breaker::new(start);
        assert_eq!(breaker.wait(Why::Unreached, start, 0.0), MS * 200);
        assert_eq!(breaker.wait(Why::Unreached, start, 1.0), MS * 600);
    }

    #[test]
    fn a_connection_that_has_worked_is_replaced_at_once_and_one_that_has_not_is_waited_for() {
        let start = now();
        let mut breaker = Breaker::new(start);
        breaker.close(start);
        assert_eq!(breaker.wait(Why::Lost, start + PROVEN, 0.5), Duration::ZERO);
        breaker.close(start);
        assert_eq!(breaker.wait(Why::Lost, start, 0.5), SHORTEST);
        assert_eq!(breaker.wait(Why::Lost, start, 0.5), SHORTEST * 2);
    }
}
