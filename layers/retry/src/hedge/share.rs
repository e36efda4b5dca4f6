//! The mechanism that keeps hedges few: a share of what comes in, and none while attempts fail.

/// So many hedges of usual cost may be saved up.
const SAVED: f64 = 10.0;
/// The usual cost is that of about so many requests.
const MEMORY: u32 = 100;
/// What sums of shares may lose.
const ROUNDING: f64 = 1e-9;

/// Credit that each request pays a share of its cost into, and each hedge takes its cost out of.
///
/// It starts empty, so hedges never cost more than their share of what has come in.
#[derive(Debug)]
pub(crate) struct Share {
    ratio: f64,
    credit: f64,
    usual: f64,
    seen: u32,
}

impl Share {
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            ratio,
            credit: 0.0,
            usual: 0.0,
            seen: 0,
        }
    }

    pub(crate) fn ratio(&self) -> f64 {
        self.ratio
    }

    pub(crate) fn set_ratio(&mut self, ratio: f64) {
        self.ratio = ratio;
    }

    pub(crate) fn deposit(&mut self, cost: f64) {
        self.seen = (self.seen + 1).min(MEMORY);
        self.usual += (cost - self.usual) / f64::from(self.seen);
        self.credit = (self.credit + self.ratio * cost).min(SAVED * self.usual);
    }

    pub(crate) fn has(&self, cost: f64) -> bool {
        self.credit >= cost * (1.0 - ROUNDING)
    }

    /// Takes all of it or nothing.
    pub(crate) fn withdraw(&mut self, cost: f64) -> bool {
        let has = self.has(cost);
        if has {
            self.credit = (self.credit - cost).max(0.0);
        }
        has
    }

    pub(crate) fn give_back(&mut self, cost: f64) {
        self.credit += cost;
    }
}

/// How often attempts fail, as gRPC's retry throttling counts it (gRFC A6): ten tokens, of which a failure takes one and
/// a success returns a tenth. More than half of them are trust.
#[derive(Debug)]
pub(crate) struct Trust(u32);

impl Trust {
    const ALL: u32 = 100;
    const FAILURE: u32 = 10;

    pub(crate) const fn new() -> Self {
        Self(Self::ALL)
    }

    pub(crate) fn note(&mut self, failed: bool) {
        self.0 = if failed {
            self.0.saturating_sub(Self::FAILURE)
        } else {
            (self.0 + 1).min(Self::ALL)
        };
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0 > Self::ALL / 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn twenty_requests_pay_for_one_hedge_in_twenty() {
        let mut share = Share::new(0.05);
        for _ in 0..50 {
            for _ in 0..19 {
                share.deposit(1.0);
                assert!(!share.withdraw(1.0));
            }
            share.deposit(1.0);
            assert!(share.withdraw(1.0));
        }
    }

    #[test]
    fn ten_hedges_of_usual_cost_are_saved() {
        for cost in [0.001, 1.0, 5000.0] {
            let mut share = Share::new(0.05);
            for _ in 0..10_000 {
                share.deposit(cost);
            }
            let taken = (0..).take_while(|_| share.withdraw(cost)).count();
            assert_eq!(taken, 10);
        }
    }

    #[test]
    fn a_larger_request_takes_more() {
        let mut share = Share::new(1.0);
        for _ in 0..5 {
            share.deposit(1.0);
        }
        assert!(!share.withdraw(6.0) && share.withdraw(4.0));
        assert!(!share.withdraw(2.0) && share.withdraw(1.0));
        share.give_back(1.0);
        assert!(share.withdraw(1.0) && !share.withdraw(1.0));
    }

    #[test]
    fn five_failures_in_a_row_or_one_attempt_in_ten_take_trust_away() {
        let mut trust = Trust::new();
        for _ in 0..4 {
            trust.note(true);
        }
        assert!(trust.is_there());
        trust.note(true);
        assert!(!trust.is_there());
        trust.note(false);
        assert!(trust.is_there());
        for (every, stays) in [(12, true), (10, false)] {
            let mut trust = Trust::new();
            for at in 0..1000 {
                trust.note(at % every == 0);
            }
            assert_eq!(trust.is_there(), stays, "one in {every}");
        }
    }

    proptest! {
        #[test]
        fn what_hedges_cost_is_at_most_the_share_of_what_came_in(
            ratio in 0.001_f64..=1.0,
            steps in proptest::collection::vec((any::<bool>(), 0.001_f64..1e6), 1..500),
        ) {
            let (mut share, mut came, mut went) = (Share::new(ratio), 0.0, 0.0);
            for (comes, cost) in steps {
                if comes {
                    share.deposit(cost);
                    came += ratio * cost;
                } else if share.withdraw(cost) {
                    went += cost;
                }
                prop_assert!(went <= came * (1.0 + 1e-6));
            }
        }
    }
}
