//! How many requests are refused, from how many were accepted. No clock, no lock.

use palisade_core::{classify::Verdict, settle::End};
use tokio::time::Instant;

use super::ThrottleSettings;
use crate::buckets::{Buckets, Sums};

/// Of ten seconds each, as the window is.
const BUCKETS: usize = 12;

#[derive(Debug)]
pub(crate) struct Meter {
    settings: ThrottleSettings,
    /// Failures are the requests that were not accepted.
    requests: Buckets,
}

/// What the end of a request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Accepted,
    Failed,
    Nothing,
}

impl Word {
    pub(crate) fn of(end: &End, answered: bool, settings: &ThrottleSettings) -> Self {
        match end.verdict {
            Verdict::Success | Verdict::CallerFault => Self::Accepted,
            Verdict::Failure | Verdict::TimedOut | Verdict::Unsent | Verdict::Overload { .. } => {
                Self::Failed
            }
            Verdict::Canceled if !answered && end.age >= settings.slow_after => Self::Failed,
            _ => Self::Nothing,
        }
    }
}

impl Meter {
    pub(crate) fn new(settings: ThrottleSettings) -> Self {
        let settings = settings.reasonable();
        Self {
            requests: Buckets::new(settings.window, BUCKETS),
            settings,
        }
    }

    pub(crate) fn settings(&self) -> &ThrottleSettings {
        &self.settings
    }

    pub(crate) fn update(&mut self, settings: ThrottleSettings, now: Instant) {
        self.settings = settings.reasonable();
        self.requests = self.requests.over(self.settings.window, now);
    }

    /// Forgets all requests.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
    }

    /// Counts one that was sent at `sent`, now that it is known what became of it.
    pub(crate) fn count(&mut self, accepted: bool, sent: Instant, now: Instant) {
        self.requests
            .count_at(Sums::one(!accepted, false), sent, now);
    }

    /// One that was accepted has failed after all.
    pub(crate) fn fail_later(&mut self, sent: Instant, now: Instant) {
        let more = Sums {
            failures: 1,
            ..Sums::default()
        };
        self.requests.count_at(more, sent, now);
    }

    pub(crate) fn refuse(&mut self, now: Instant) {
        self.requests.count(Sums::one(true, false), now);
    }

    pub(crate) fn sums(&mut self, now: Instant) -> Sums {
        self.requests.sums(now)
    }

    /// The share to refuse: (n - K * accepted) / (n + 1).
    pub(crate) fn chance(&mut self, now: Instant) -> f64 {
        let sums = self.requests.sums(now);
        if sums.calls < self.settings.minimum_calls.into() {
            return 0.0;
        }
        let accepted = accepted(sums) as f64;
        let requests = sums.calls as f64;
        let chance = (requests - self.settings.multiplier * accepted) / (requests + 1.0);
        chance.clamp(0.0, self.settings.most.get())
    }
}

/// Those that were accepted. One whose call was forgotten before it broke off is none.
pub(crate) fn accepted(sums: Sums) -> u64 {
    sums.calls.saturating_sub(sums.failures)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use palisade_core::{ratio::Ratio, reject::Reason, time::now};
    use proptest::prelude::*;

    use super::*;

    fn settings(multiplier: f64) -> ThrottleSettings {
        ThrottleSettings {
            multiplier,
            ..ThrottleSettings::default()
        }
    }

    fn after(accepted: u32, failed: u32) -> f64 {
        let (mut meter, now) = (Meter::new(settings(2.0)), now());
        (0..accepted).for_each(|_| meter.count(true, now, now));
        (0..failed).for_each(|_| meter.count(false, now, now));
        meter.chance(now)
    }

    #[test]
    fn nothing_is_refused_while_half_of_the_requests_are_accepted() {
        for (accepted, failed) in [(0, 0), (100, 0), (50, 50), (0, 9)] {
            assert_eq!(after(accepted, failed), 0.0, "{accepted} of {failed} more");
        }
        assert_eq!(after(40, 60), 20.0 / 101.0);
        assert_eq!(after(10, 10) + after(9, 11), 2.0 / 21.0);
    }

    #[test]
    fn never_more_than_nine_in_ten_are_refused() {
        assert_eq!(after(0, 10), 0.9);
        assert_eq!(after(0, 100_000), 0.9);
    }

    #[test]
    fn two_minutes_after_the_last_failure_nothing_is_refused() {
        let (mut meter, start) = (Meter::new(settings(2.0)), now());
        (0..100).for_each(|_| meter.count(false, start, start));
        let second = Duration::from_secs(1);
        assert!(meter.chance(start + second * 120) > 0.0);
        assert_eq!(meter.chance(start + second * 130), 0.0);
    }

    #[test]
    fn a_request_counts_from_when_it_was_sent() {
        let (mut meter, start) = (Meter::new(settings(2.0)), now());
        let second = Duration::from_secs(1);
        meter.count(true, start, start);
        (0..100).for_each(|_| meter.count(false, start, start + second * 100));
        assert!(meter.chance(start + second * 125) > 0.0);
        assert_eq!(meter.chance(start + second * 130), 0.0);
        (0..100).for_each(|_| meter.count(false, start, start + second * 131));
        assert_eq!(meter.chance(start + second * 131), 0.0, "too long ago");
    }

    #[test]
    fn what_breaks_off_was_not_accepted() {
        let (mut meter, now) = (Meter::new(settings(2.0)), now());
        (0..20).for_each(|_| meter.count(true, now, now));
        (0..15).for_each(|_| meter.fail_later(now, now));
        assert_eq!(meter.chance(now), 10.0 / 21.0);

        meter.clear();
        meter.fail_later(now, now);
        assert_eq!(accepted(meter.sums(now)), 0, "its call was forgotten");
    }

    #[test]
    fn every_verdict_says_what_it_should() {
        let settings = settings(2.0);
        let says = |verdict, age, answered| {
            let end = End {
                age,
                ..End::new(verdict)
            };
            Word::of(&end, answered, &settings)
        };
        let retry_after = None;
        for (verdict, word) in [
            (Verdict::Success, Word::Accepted),
            (Verdict::CallerFault, Word::Accepted),
            (Verdict::Failure, Word::Failed),
            (Verdict::TimedOut, Word::Failed),
            (Verdict::Unsent, Word::Failed),
            (Verdict::Overload { retry_after }, Word::Failed),
            (Verdict::Refused(Reason::Overloaded), Word::Nothing),
            (Verdict::Canceled, Word::Nothing),
        ] {
            assert_eq!(says(verdict, Duration::ZERO, false), word, "{verdict:?}");
        }
        let late = settings.slow_after;
        assert_eq!(says(Verdict::Canceled, late, false), Word::Failed);
        assert_eq!(says(Verdict::Canceled, late, true), Word::Nothing);
    }

    proptest! {
        #[test]
        fn the_chance_is_a_share_whatever_the_settings(
            multiplier: f64,
            window: Duration,
            most in 0.001_f64..=1.0,
            minimum_calls: u32,
            requests in prop::collection::vec((any::<bool>(), 0_u64..100_000), 0..100),
        ) {
            let mut meter = Meter::new(ThrottleSettings {
                multiplier,
                window,
                most: Ratio::new(most).unwrap(),
                minimum_calls,
                slow_after: Duration::ZERO,
            });
            let mut now = now();
            for (accepted, wait) in requests {
                meter.count(accepted, now, now);
                now += Duration::from_millis(wait);
                let chance = meter.chance(now);
                prop_assert!((0.0..=most).contains(&chance));
            }
        }
    }
}
