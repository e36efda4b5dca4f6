//! What a closed circuit remembers.

use palisade_core::ratio::Ratio;
use tokio::time::Instant;

use crate::{
    buckets::{Buckets, Sums},
    calls::Calls,
    settings::{Settings, Window},
};

/// Whole buckets of a window of time: a tenth of it more or less tells nobody whether a service works.
const BUCKETS: usize = 10;

/// Counts outcomes until they are too bad. Counting is O(1), also over a window.
#[derive(Debug)]
pub(crate) struct Tally {
    in_a_row: u32,
    window: Counts,
    limits: Limits,
}

/// What is too bad.
#[derive(Debug)]
struct Limits {
    in_a_row: Option<u32>,
    failures: Option<u64>,
    failure_share: Option<Ratio>,
    slow_share: Option<Ratio>,
    minimum: u64,
}

#[derive(Debug)]
enum Counts {
    None,
    Calls(Calls),
    Time(Buckets),
}

impl Tally {
    pub(crate) fn new(settings: &Settings) -> Self {
        let window = match settings.window {
            None => Counts::None,
            Some(Window::Calls(size)) => Counts::Calls(Calls::new(size)),
            Some(Window::Time(span)) => Counts::Time(Buckets::new(span, BUCKETS)),
        };
        Self {
            in_a_row: 0,
            window,
            limits: Limits::new(settings),
        }
    }

    /// Counts by other settings from now on. What was counted is kept, unless the window is of another kind.
    pub(crate) fn update(&mut self, old: &Settings, new: &Settings, now: Instant) {
        self.limits = Limits::new(new);
        if old.window == new.window {
            return;
        }
        self.window = match (&mut self.window, new.window) {
            (Counts::Calls(calls), Some(Window::Calls(size))) => Counts::Calls(calls.of_size(size)),
            (Counts::Time(buckets), Some(Window::Time(span))) => {
                Counts::Time(buckets.over(span, now))
            }
            _ => Self::new(new).window,
        };
    }

    pub(crate) fn success(&mut self, slow: bool, now: Instant) {
        self.in_a_row = 0;
        self.window.count(false, slow, now);
    }

    pub(crate) fn failure(&mut self, slow: bool, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.window.count(true, slow, now);
    }

    /// A service that answers that it is busy is alive, so it is not on its way to be dead.
    pub(crate) fn overload(&mut self, slow: bool, now: Instant) {
        self.window.count(true, slow, now);
    }

    /// As of the last count.
    pub(crate) fn is_too_bad(&self) -> bool {
        let limits = &self.limits;
        if limits.in_a_row.is_some_and(|limit| self.in_a_row >= limit) {
            return true;
        }
        let sums = match &self.window {
            Counts::None => return false,
            Counts::Calls(calls) => calls.sums(),
            Counts::Time(buckets) => buckets.last_sums(),
        };
        if limits.failures.is_some_and(|limit| sums.failures >= limit) {
            return true;
        }
        let reached = |share: Option<Ratio>, part: u64| {
            // Divided, not multiplied: 0.55 * 100.0 is above 55.
            share.is_some_and(|share| part as f64 / sums.calls as f64 >= share.get())
        };
        sums.calls >= limits.minimum
            && (reached(limits.failure_share, sums.failures)
                || reached(limits.slow_share, sums.slow))
    }

    /// Whether another success would change nothing.
    pub(crate) fn ignores_success(&self) -> bool {
        self.in_a_row == 0 && matches!(self.window, Counts::None)
    }

    pub(crate) fn clear(&mut self) {
        self.in_a_row = 0;
        match &mut self.window {
            Counts::None => {}
            Counts::Calls(calls) => calls.clear(),
            Counts::Time(buckets) => buckets.clear(),
        }
    }

    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// What is in the window, or else the row.
    pub(crate) fn sums(&mut self, now: Instant) -> Sums {
        match &mut self.window {
            Counts::None => Sums {
                calls: self.in_a_row.into(),
                failures: self.in_a_row.into(),
                slow: 0,
            },
            Counts::Calls(calls) => calls.sums(),
            Counts::Time(buckets) => buckets.sums(now),
        }
    }

    /// Takes over what another has counted, as of now. Failures and slow calls are spread over the calls of a window of
    /// calls, so that they leave it as they came.
    pub(crate) fn restore(&mut self, in_a_row: u32, sums: Sums, now: Instant) {
        self.clear();
        self.in_a_row = in_a_row;
        // No process counts more.
        let most = u64::from(u32::MAX);
        let calls = sums.calls.min(most);
        let sums = Sums {
            calls,
            failures: sums.failures.min(calls),
            slow: sums.slow.min(calls),
        };
        match &mut self.window {
            Counts::None => {}
            Counts::Calls(window) => window.fill(sums),
            Counts::Time(buckets) => buckets.count(sums, now),
        }
    }
}

impl Limits {
    fn new(settings: &Settings) -> Self {
        Self {
            in_a_row: settings.consecutive,
            failures: settings.failures.map(u64::from),
            failure_share: settings.failure_share,
            slow_share: settings.slow_share,
            minimum: settings.minimum_calls.into(),
        }
    }
}

impl Counts {
    fn count(&mut self, failed: bool, slow: bool, now: Instant) {
        match self {
            Self::None => {}
            Self::Calls(calls) => calls.push(failed, slow),
            Self::Time(buckets) => buckets.count(Sums::one(failed, slow), now),
        }
    }
}

#[cfg(test)]
mod tests;
