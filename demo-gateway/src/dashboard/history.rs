//! The last five minutes, second by second.

use std::collections::VecDeque;

use serde::Serialize;

use super::wire::Num;

/// Seconds that are kept.
pub(super) const KEPT: usize = 300;

/// One second; `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) requests: Option<Num>,
    pub(super) rejected: Option<Num>,
    pub(super) failed: Option<Num>,
    pub(super) tokens_out: Option<Num>,
    pub(super) tokens_in: Option<Num>,
    pub(super) p50: Option<Num>,
    pub(super) p95: Option<Num>,
    pub(super) p99: Option<Num>,
    pub(super) first_p50: Option<Num>,
    pub(super) first_p95: Option<Num>,
}

/// The last five minutes, second by second, without a hole.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By second of the Unix epoch, each one more than the one before.
    rows: VecDeque<(u64, Row)>,
}

impl History {
    /// A second that is not later than the newest is its: the clock was set back, or a look came early.
    pub(super) fn push(&mut self, at: u64, row: Row) {
        let last = self.rows.back().map(|(last, _)| *last);
        if last.is_some_and(|last| at <= last) {
            // Set back by more than a moment: what was is of no other time than this.
            if last.is_some_and(|last| last - at > KEPT as u64) {
                self.rows.clear();
            } else {
                return;
            }
        }
        let from = self.rows.back().map_or(at, |(last, _)| last + 1);
        // Seconds in which nobody looked are unknown.
        for missed in from.max(at.saturating_sub(KEPT as u64))..at {
            self.rows.push_back((missed, Row::default()));
        }
        self.rows.push_back((at, row));
        while self.rows.len() > KEPT {
            self.rows.pop_front();
        }
    }

    pub(super) fn columns(&self) -> Columns {
        let column = |pick: fn(&Row) -> Option<Num>| {
            let column = self.rows.iter().map(|(_, row)| pick(row));
            column.collect::<Vec<_>>()
        };
        Columns {
            at: self.rows.iter().map(|(at, _)| *at).collect(),
            requests: column(|row| row.requests),
            rejected: column(|row| row.rejected),
            failed: column(|row| row.failed),
            tokens_out: column(|row| row.tokens_out),
            tokens_in: column(|row| row.tokens_in),
            p50: column(|row| row.p50),
            p95: column(|row| row.p95),
            p99: column(|row| row.p99),
            first_p50: column(|row| row.first_p50),
            first_p95: column(|row| row.first_p95),
        }
    }
}

/// The same as the plots take it.
#[derive(Debug, Serialize)]
pub(super) struct Columns {
    at: Vec<u64>,
    requests: Vec<Option<Num>>,
    rejected: Vec<Option<Num>>,
    failed: Vec<Option<Num>>,
    tokens_out: Vec<Option<Num>>,
    tokens_in: Vec<Option<Num>>,
    p50: Vec<Option<Num>>,
    p95: Vec<Option<Num>>,
    p99: Vec<Option<Num>>,
    first_p50: Vec<Option<Num>>,
    first_p95: Vec<Option<Num>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(requests: f64) -> Row {
        Row {
            requests: Some(Num::new(requests, 1)),
            ..Row::default()
        }
    }

    #[test]
    fn seconds_that_were_missed_are_unknown_and_not_left_out() {
        let mut history = History::default();
        for at in [100, 101, 101, 99, 104] {
            history.push(at, row(at as f64));
        }
        let columns = serde_json::to_value(history.columns()).unwrap();
        assert_eq!(columns["at"], serde_json::json!([100, 101, 102, 103, 104]));
        assert_eq!(
            columns["requests"],
            serde_json::json!([100, 101, null, null, 104])
        );
        assert_eq!(columns["p50"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn five_minutes_are_kept_whatever_the_clock_does() {
        let mut history = History::default();
        for at in 0..1000 {
            history.push(at, row(1.0));
        }
        assert_eq!(history.columns().at, (700..1000).collect::<Vec<_>>());
        // A day later, as after a laptop slept.
        history.push(90_000, row(2.0));
        assert_eq!(history.columns().at.len(), KEPT);
        assert_eq!(history.columns().at[0], 90_001 - KEPT as u64);
        // Years back: it goes on from there.
        history.push(5, row(3.0));
        assert_eq!(history.columns().at, [5]);
    }
}
