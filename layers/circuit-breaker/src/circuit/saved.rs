use std::time::Duration;

use tokio::time::Instant;

use super::{Circuit, LONGEST_RETRY_AFTER, State};
use crate::buckets::Sums;

/// A circuit as it is kept over a restart: plain numbers, and any will do.
///
/// With the feature `serde` it can be written and read.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::{CircuitBreaker, CircuitState, Saved, SavedState};
///
/// let mut saved = Saved::default();
/// saved.state = SavedState::Open { remaining: Duration::from_secs(7) };
/// let handle = CircuitBreaker::consecutive(5, Duration::from_secs(10)).handle();
/// handle.restore(&saved);
/// assert_eq!(handle.snapshot().state, CircuitState::Open);
/// assert!(handle.snapshot().next_probe_in.unwrap() <= Duration::from_secs(7));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct Saved {
    /// What it did with requests.
    pub state: SavedState,
    /// How often it has opened since it was closed last: the next cool-down grows by it.
    pub reopenings: u32,
    /// How often it has opened by itself.
    pub opened_total: u64,
    /// Failures in a row.
    pub in_a_row: u32,
    /// Calls in the window.
    pub calls: u64,
    /// Of them, those that have failed.
    pub failures: u64,
    /// Of them, those that were slow.
    pub slow_calls: u64,
}

/// What a saved circuit did with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SavedState {
    /// They passed.
    #[default]
    Closed,
    /// They were refused. A half-open circuit is kept as one that has nothing left to wait for: what its probes were
    /// about to say is not known.
    Open {
        /// For so long.
        remaining: Duration,
    },
    /// They were refused because somebody said so.
    ForcedOpen,
    /// They passed uncounted because somebody said so.
    ForcedClosed,
}

impl Circuit {
    pub(crate) fn save(&mut self, now: Instant) -> Saved {
        let sums = self.tally.sums(now);
        Saved {
            state: match &self.state {
                State::Closed => SavedState::Closed,
                State::Open { until } => SavedState::Open {
                    remaining: until.saturating_duration_since(now),
                },
                State::HalfOpen(_) => SavedState::Open {
                    remaining: Duration::ZERO,
                },
                State::ForcedOpen => SavedState::ForcedOpen,
                State::ForcedClosed => SavedState::ForcedClosed,
            },
            reopenings: self.reopenings,
            opened_total: self.opened,
            in_a_row: self.tally.in_a_row(),
            calls: sums.calls,
            failures: sums.failures,
            slow_calls: sums.slow,
        }
    }

    /// Becomes what was saved. What was admitted before is not heard.
    pub(crate) fn restore(&mut self, saved: &Saved, now: Instant) {
        let sums = Sums {
            calls: saved.calls,
            failures: saved.failures,
            slow: saved.slow_calls,
        };
        self.tally.restore(saved.in_a_row, sums, now);
        self.reopenings = saved.reopenings;
        self.opened = saved.opened_total;
        self.enter(match saved.state {
            SavedState::Closed => State::Closed,
            SavedState::Open { remaining } => State::Open {
                until: now + remaining.min(self.longest_pause()),
            },
            SavedState::ForcedOpen => State::ForcedOpen,
            SavedState::ForcedClosed => State::ForcedClosed,
        });
    }

    /// The longest that it would ever stay open.
    fn longest_pause(&self) -> Duration {
        // The jitter can double it.
        let longest = self.settings.longest_cooldown * 2;
        longest.max(LONGEST_RETRY_AFTER)
    }
}
