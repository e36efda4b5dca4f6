//! What a service promises.

use std::{error::Error, fmt, time::Duration};

use crate::state::nanos;

/// What a service promises: a share of requests that succeed, and a share of those that do so in time.
///
/// ```
/// use std::time::Duration;
/// use palisade_sla::Objective;
///
/// let objective = Objective::success(0.999)?.within(Duration::from_millis(800), 0.99)?;
/// assert!(Objective::success(1.0).is_err(), "leaves no error budget to spend");
/// # let _ = objective;
/// # Ok::<(), palisade_sla::InvalidObjective>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    success: f64,
    latency: Option<Latency>,
}

impl Objective {
    /// Of the requests that count, this share succeeds. Fails outside of `0 < share < 1`.
    pub fn success(share: f64) -> Result<Self, InvalidObjective> {
        Ok(Self {
            success: check(share)?,
            latency: None,
        })
    }

    /// Of the requests that succeed, this share ends within `limit`, the body included.
    ///
    /// Replaces an earlier [`first_data_within`](Self::first_data_within). Fails outside of `0 < share < 1`.
    pub fn within(self, limit: Duration, share: f64) -> Result<Self, InvalidObjective> {
        self.latency(Moment::End, limit, share)
    }

    /// Of the requests that succeed, this share has its first data within `limit`: for streams, whose length is the
    /// caller's wish. An answer without data counts with its end.
    ///
    /// Replaces an earlier [`within`](Self::within). Fails outside of `0 < share < 1`.
    pub fn first_data_within(self, limit: Duration, share: f64) -> Result<Self, InvalidObjective> {
        self.latency(Moment::FirstData, limit, share)
    }

    fn latency(self, at: Moment, limit: Duration, share: f64) -> Result<Self, InvalidObjective> {
        let share = check(share)?;
        let latency = Some(Latency {
            at,
            limit,
            limit_nanos: nanos(limit),
            share,
        });
        Ok(Self { latency, ..self })
    }

    /// The share of requests that has to succeed.
    pub(crate) fn success_share(&self) -> f64 {
        self.success
    }

    /// The share of requests that has to be in time, and the time.
    pub(crate) fn latency_share(&self) -> Option<(f64, Duration)> {
        self.latency.map(|latency| (latency.share, latency.limit))
    }

    /// Whether a request that succeeded was too slow, in nanoseconds; `None` when nothing was promised.
    pub(crate) fn is_slow(&self, first_data: Option<u64>, total: u64) -> Option<bool> {
        let latency = self.latency?;
        let taken = match latency.at {
            Moment::FirstData => first_data.unwrap_or(total),
            Moment::End => total,
        };
        Some(taken > latency.limit_nanos)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Latency {
    at: Moment,
    limit: Duration,
    limit_nanos: u64,
    share: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    FirstData,
    End,
}

fn check(share: f64) -> Result<f64, InvalidObjective> {
    if share > 0.0 && share < 1.0 {
        Ok(share)
    } else {
        Err(InvalidObjective(share))
    }
}

/// The number is not a share above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidObjective(f64);

impl fmt::Display for InvalidObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not above 0 and below 1", self.0)
    }
}

impl Error for InvalidObjective {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOS: u64 = 1_000_000_000;

    #[test]
    fn a_share_that_leaves_no_error_budget_or_no_promise_is_an_error() {
        for share in [0.0, 1.0, -0.1, 1.7, f64::NAN, f64::INFINITY] {
            assert!(Objective::success(share).is_err(), "{share}");
            let objective = Objective::success(0.5).unwrap();
            assert!(objective.within(SECOND, share).is_err(), "{share}");
            assert!(
                objective.first_data_within(SECOND, share).is_err(),
                "{share}"
            );
        }
        let error = Objective::success(1.7).unwrap_err();
        assert_eq!(error.to_string(), "1.7 is not above 0 and below 1");
    }

    #[test]
    fn the_limit_itself_is_in_time() {
        let objective = Objective::success(0.5)
            .unwrap()
            .within(SECOND, 0.5)
            .unwrap();
        assert_eq!(objective.is_slow(None, NANOS), Some(false));
        assert_eq!(objective.is_slow(Some(0), NANOS + 1), Some(true));
    }

    #[test]
    fn an_answer_without_data_counts_with_its_end() {
        let objective = Objective::success(0.5).unwrap();
        assert_eq!(objective.is_slow(None, NANOS), None);
        let objective = objective.first_data_within(SECOND, 0.5).unwrap();
        assert_eq!(objective.is_slow(Some(NANOS), 9 * NANOS), Some(false));
        assert_eq!(objective.is_slow(None, 9 * NANOS), Some(true));
    }
}
