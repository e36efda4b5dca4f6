//! What a verdict means for an objective.

use palisade_core::{classify::Verdict, reject::Reason};

/// A verdict, with refusals told apart by whose fault they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Success,
    Failure,
    Overload,
    TimedOut,
    Unsent,
    Refused,
    CallerFault,
    RateLimited,
    Canceled,
}

/// What a request says about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    Bad,
    LeftOut,
}

impl Class {
    pub(crate) const ALL: [Self; 9] = [
        Self::Success,
        Self::Failure,
        Self::Overload,
        Self::TimedOut,
        Self::Unsent,
        Self::Refused,
        Self::CallerFault,
        Self::RateLimited,
        Self::Canceled,
    ];

    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success => Self::Success,
            Verdict::Overload { .. } => Self::Overload,
            Verdict::CallerFault => Self::CallerFault,
            Verdict::TimedOut => Self::TimedOut,
            Verdict::Unsent => Self::Unsent,
            Verdict::Canceled => Self::Canceled,
            // The caller asked for more than it was given, so the promise to it was kept.
            Verdict::Refused(
                Reason::RateLimited | Reason::QuotaExhausted | Reason::CostExceedsQuota,
            ) => Self::RateLimited,
            Verdict::Refused(_) => Self::Refused,
            // A verdict that is not known here is not known to be good.
            _ => Self::Failure,
        }
    }

    pub(crate) fn standing(self) -> Standing {
        match self {
            Self::Success => Standing::Good,
            Self::Failure | Self::Overload | Self::TimedOut | Self::Unsent | Self::Refused => {
                Standing::Bad
            }
            Self::CallerFault | Self::RateLimited | Self::Canceled => Standing::LeftOut,
        }
    }

    /// The value of the label `verdict`.
    #[cfg(feature = "metrics")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Overload => "overload",
            Self::TimedOut => "timed_out",
            Self::Unsent => "unsent",
            Self::Refused => "refused",
            Self::CallerFault => "caller_fault",
            Self::RateLimited => "rate_limited",
            Self::Canceled => "canceled",
        }
    }
}

/// How many requests there were of each class.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally([u64; Class::ALL.len()]);

impl Tally {
    pub(crate) fn count(&mut self, class: Class) {
        self.0[class as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        let of = |class: Class| self.0[class as usize];
        Verdicts {
            success: of(Class::Success),
            failure: of(Class::Failure),
            overload: of(Class::Overload),
            timed_out: of(Class::TimedOut),
            unsent: of(Class::Unsent),
            refused: of(Class::Refused),
            caller_fault: of(Class::CallerFault),
            rate_limited: of(Class::RateLimited),
            canceled: of(Class::Canceled),
        }
    }
}

#[cfg(feature = "hdr")]
impl Tally {
    pub(crate) fn counts(&self) -> &[u64] {
        &self.0
    }
}

#[cfg(feature = "hdr")]
impl From<Verdicts> for Tally {
    fn from(verdicts: Verdicts) -> Self {
        let mut tally = Self::default();
        for class in Class::ALL {
            tally.0[class as usize] = match class {
                Class::Success => verdicts.success,
                Class::Failure => verdicts.failure,
                Class::Overload => verdicts.overload,
                Class::TimedOut => verdicts.timed_out,
                Class::Unsent => verdicts.unsent,
                Class::Refused => verdicts.refused,
                Class::CallerFault => verdicts.caller_fault,
                Class::RateLimited => verdicts.rate_limited,
                Class::Canceled => verdicts.canceled,
            };
        }
        tally
    }
}

/// How many requests have ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Verdicts {
    /// Good: the service did its work.
    pub success: u64,
    /// Bad: the service is to blame.
    pub failure: u64,
    /// Bad: the service had more work than it could take.
    pub overload: u64,
    /// Bad: no answer in time.
    pub timed_out: u64,
    /// Bad: the service was not reached.
    pub unsent: u64,
    /// Bad: refused by a layer further in, other than for what the caller was given.
    pub refused: u64,
    /// Left out: the caller is to blame.
    pub caller_fault: u64,
    /// Left out: refused because the caller asked for more than its quota.
    pub rate_limited: u64,
    /// Left out: the caller left before the end.
    pub canceled: u64,
}

impl Verdicts {
    /// Requests that the promise was kept for.
    pub fn good(&self) -> u64 {
        self.success
    }

    /// Requests that the promise was broken for.
    pub fn bad(&self) -> u64 {
        self.failure + self.overload + self.timed_out + self.unsent + self.refused
    }

    /// Requests that say nothing about the service.
    pub fn left_out(&self) -> u64 {
        self.caller_fault + self.rate_limited + self.canceled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_is_good_bad_or_left_out_by_the_table_of_the_house() {
        let overload = Verdict::Overload { retry_after: None };
        for (verdict, standing) in [
            (Verdict::Success, Standing::Good),
            (Verdict::Failure, Standing::Bad),
            (overload, Standing::Bad),
            (Verdict::TimedOut, Standing::Bad),
            (Verdict::Unsent, Standing::Bad),
            (Verdict::CallerFault, Standing::LeftOut),
            (Verdict::Canceled, Standing::LeftOut),
            (Verdict::Refused(Reason::RateLimited), Standing::LeftOut),
            (Verdict::Refused(Reason::QuotaExhausted), Standing::LeftOut),
            (
                Verdict::Refused(Reason::CostExceedsQuota),
                Standing::LeftOut,
            ),
            (Verdict::Refused(Reason::Overloaded), Standing::Bad),
            (Verdict::Refused(Reason::CircuitOpen), Standing::Bad),
            (Verdict::Refused(Reason::NoEndpoint), Standing::Bad),
            (Verdict::Refused(Reason::StoreUnavailable), Standing::Bad),
            (Verdict::Refused(Reason::DeadlineExceeded), Standing::Bad),
        ] {
            assert_eq!(Class::of(verdict).standing(), standing, "{verdict:?}");
        }
    }

    #[test]
    fn the_sums_agree_with_the_standing_of_each_class() {
        for (at, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at);
            let mut tally = Tally::default();
            tally.count(class);
            let verdicts = tally.verdicts();
            let sums = [verdicts.good(), verdicts.bad(), verdicts.left_out()];
            let expected = match class.standing() {
                Standing::Good => [1, 0, 0],
                Standing::Bad => [0, 1, 0],
                Standing::LeftOut => [0, 0, 1],
            };
            assert_eq!(sums, expected, "{class:?}");
        }
    }
}
