use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::rule::Strategy;

const STRATEGIES: [Strategy; 3] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
];

fn meter(strategy: Strategy, limit: u64, window: u64) -> Meter {
    let quota = Quota::new(limit, Duration::from_nanos(window)).unwrap();
    Meter::new(strategy, &quota).unwrap()
}

fn refused(taken: Result<Count, Full>) -> u64 {
    match taken {
        Err(Full::For(nanos)) => nanos,
        other => panic!("{other:?}"),
    }
}

/// What was let through, and when; decides by adding it all up.
struct Model {
    strategy: Strategy,
    limit: u64,
    window: u64,
    passed: Vec<(u64, u64)>,
}

impl Model {
    fn has_room(&self, cost: u64, now: u64) -> bool {
        let (limit, window) = (i128::from(self.limit), i128::from(self.window));
        let in_window = |number: u64| -> i128 {
            let passed = self
                .passed
                .iter()
                .filter(|(at, _)| at / self.window == number);
            passed.map(|&(_, cost)| i128::from(cost)).sum()
        };
        let (number, into) = (now / self.window, i128::from(now % self.window));
        match self.strategy {
            Strategy::TokenBucket => {
                // A bucket that holds time, filled up to the brim at each step.
                let interval = i128::from(self.window.div_ceil(self.limit));
                let brim = interval * limit;
                let (mut holds, mut last) = (brim, 0);
                for &(at, cost) in &self.passed {
                    holds = brim.min(holds + i128::from(at - last)) - i128::from(cost) * interval;
                    last = at;
                }
                brim.min(holds + i128::from(now - last)) >= i128::from(cost) * interval
            }
            Strategy::FixedWindow => in_window(number) + i128::from(cost) <= limit,
            Strategy::SlidingWindow => {
                let before = number.checked_sub(1).map_or(0, in_window);
                let used = in_window(number) + i128::from(cost);
                before * (window - into) + used * window <= limit * window
            }
        }
    }
}

fn strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop::sample::select(&STRATEGIES[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_decides_as_one_who_adds_it_all_up(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64), 1..60),
    ) {
        let meter = meter(strategy, limit, window);
        let mut model = Model { strategy, limit, window, passed: Vec::new() };
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            let taken = meter.take(&count, cost, now);
            prop_assert_eq!(taken.is_ok(), model.has_room(cost, now), "{} at {}", cost, now);
            match taken {
                Ok(taken) => {
                    count = taken;
                    model.passed.push((now, cost));
                }
                Err(Full::For(wait)) => {
                    prop_assert!(wait > 0);
                    prop_assert!(meter.take(&count, cost, now + wait).is_ok(), "after {}", wait);
                    prop_assert_eq!(meter.take(&count, cost, now + wait - 1), Err(Full::For(1)));
                    prop_assert!(!model.has_room(cost, now + wait - 1));
                }
                Err(Full::Forever) => prop_assert!(cost > limit),
            }
            // However long it is, no stretch of time lets through more than the strategy says.
            let within = |from: u64, length: u64| -> u64 {
                let passed = model.passed.iter().filter(|(at, _)| (from..from + length).contains(at));
                passed.map(|(_, cost)| cost).sum()
            };
            for &(from, _) in &model.passed {
                match strategy {
                    Strategy::TokenBucket => {
                        let length = now - from + 1;
                        let most = limit + (length - 1) / window.div_ceil(limit);
                        prop_assert!(within(from, length) <= most);
                    }
                    Strategy::FixedWindow | Strategy::SlidingWindow => {
                        let turn = from / window * window;
                        prop_assert!(within(turn, window) <= limit);
                        let most = if strategy == Strategy::FixedWindow { 2 * limit } else { 2 * limit - 1 };
                        prop_assert!(within(from, window) <= most);
                    }
                }
            }
        }
    }

    #[test]
    fn how_a_key_stands_is_what_it_can_take(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64), 0..40),
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            count = meter.take(&count, cost, now).unwrap_or(count);
            let Standing { remaining, retry_after, reset_after } = meter.standing(&count, now);
            if remaining > 0 {
                prop_assert!(meter.take(&count, remaining, now).is_ok());
                prop_assert_eq!(retry_after, 0);
            }
            if remaining < limit {
                prop_assert!(meter.take(&count, remaining + 1, now).is_err());
            }
            if remaining == 0 {
                prop_assert_eq!(meter.take(&count, 1, now), Err(Full::For(retry_after)));
            }
            prop_assert_eq!(meter.is_idle(&count, now), reset_after == 0);
            prop_assert_eq!(meter.standing(&count, now + reset_after).remaining, limit);
            prop_assert!(meter.is_idle(&count, now + reset_after));
            if reset_after > 0 {
                prop_assert!(meter.standing(&count, now + reset_after - 1).remaining < limit);
                prop_assert!(!meter.is_idle(&count, now + reset_after - 1));
            }
        }
    }

    #[test]
    fn a_request_more_never_lets_another_through(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64), 0..40),
        more in 1..14_u64,
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            if let Ok(burdened) = meter.take(&count, more, now) && meter.take(&burdened, cost, now + later).is_ok() {
                prop_assert!(meter.take(&count, cost, now + later).is_ok());
            }
            count = meter.take(&count, cost, now).unwrap_or(count);
        }
    }

    #[test]
    fn what_is_given_back_was_never_taken(
        strategy in prop::sample::select(&STRATEGIES[1..]),
        limit in 1..12_u64,
        window in 1..200_u64,
        before in vec((0..120_u64, 1..6_u64), 0..10),
        cost in 1..6_u64,
        late in 0..600_u64,
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in before {
            now += later;
            count = meter.take(&count, cost, now).unwrap_or(count);
        }
        if let Ok(taken) = meter.take(&count, cost, now) {
            // Others come in between, so that the window turns.
            let other = meter.take(&taken, 1, now + late).unwrap_or(taken);
            let given_back = meter.give_back(&other, cost, now);
            let fair = meter.take(&count, 1, now + late).unwrap_or(count);
            let (left, fair) = (meter.standing(&given_back, now + late), meter.standing(&fair, now + late));
            prop_assert!(left.remaining <= fair.remaining || other == taken);
            if other != taken {
                prop_assert_eq!(left, fair);
            }
        }
    }
}

#[test]
fn a_bucket_keeps_what_is_given_back() {
    // Otherwise 100 more would pass at t = 100 on top of the burst that has refilled by then.
    let meter = meter(Strategy::TokenBucket, 100, 100);
    let first = meter.take(&Count::default(), 100, 0).unwrap();
    let second = meter.take(&first, 100, 100).unwrap();
    assert_eq!(meter.give_back(&second, 100, 0), second);
    assert_eq!(refused(meter.take(&second, 1, 100)), 1);
}

#[test]
fn a_thread_that_read_the_clock_earlier_turns_nothing_back() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 2, 100);
        let count = meter.take(&Count::default(), 2, 200).unwrap();
        let wait = refused(meter.take(&count, 1, 199));
        assert!(meter.take(&count, 1, 199 + wait).is_ok(), "{strategy:?}");
        assert!(
            meter.take(&count, 1, 199 + wait - 1).is_err(),
            "{strategy:?}"
        );
        assert!(!meter.is_idle(&count, 0));
    }
}

#[test]
fn a_limit_of_zero_admits_nothing() {
    let quotas = STRATEGIES.map(|strategy| (strategy, Quota::per_second(0)));
    let no_burst = (Strategy::TokenBucket, Quota::per_second(5).burst(0));
    for (strategy, quota) in quotas.into_iter().chain([no_burst]) {
        let meter = Meter::new(strategy, &quota).unwrap();
        let wait = refused(meter.take(&Count::default(), 1, 7));
        assert_eq!(wait, 1_000_000_000);
        assert_eq!(meter.standing(&Count::default(), 7).remaining, 0);
    }
}

#[test]
fn a_rate_that_is_no_whole_number_of_nanoseconds_is_kept_from_above() {
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_second(3)).unwrap();
    let mut count = Count::default();
    for _ in 0..3 {
        count = meter.take(&count, 1, 0).unwrap();
    }
    assert_eq!(refused(meter.take(&count, 1, 0)), 333_333_334);
}

#[test]
fn a_burst_is_saved_up_and_no_more() {
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_second(10).burst(25)).unwrap();
    let count = meter.take(&Count::default(), 25, 0).unwrap();
    assert_eq!(refused(meter.take(&count, 1, 0)), 100_000_000);
    let year = 365 * 24 * 60 * 60 * 1_000_000_000;
    assert_eq!(meter.standing(&count, year).remaining, 25);
    assert_eq!(meter.take(&count, 26, year), Err(Full::Forever));
    assert_eq!(meter.take(&count, 1 << 40, year), Err(Full::Forever));
}

#[test]
fn quotas_that_cannot_be_kept_are_errors() {
    let check = |strategy, quota: Quota| Meter::new(strategy, &quota).map(|_| ());
    let bucket = |quota| check(Strategy::TokenBucket, quota);
    assert_eq!(Quota::new(1, Duration::ZERO), Err(QuotaError::ZeroWindow));
    let long = Quota::LONGEST + Duration::from_nanos(1);
    assert_eq!(Quota::new(1, long), Err(QuotaError::LongWindow));
    assert_eq!(
        Quota::new(Quota::MOST + 1, Quota::LONGEST),
        Err(QuotaError::LargeLimit)
    );
    assert_eq!(
        bucket(Quota::per_second(u64::MAX)),
        Err(QuotaError::LargeLimit)
    );
    assert_eq!(
        bucket(Quota::per_second(1 << 32)),
        Err(QuotaError::LargeBurst)
    );
    assert_eq!(bucket(Quota::per_day(1).burst(104)), Ok(()));
    assert_eq!(
        bucket(Quota::per_day(1).burst(105)),
        Err(QuotaError::LargeBurst)
    );
    assert_eq!(
        check(Strategy::FixedWindow, Quota::per_day(1).burst(2)),
        Err(QuotaError::NoBurst)
    );
}

#[test]
fn a_bucket_out_of_reach_is_cut_to_what_can_be_kept() {
    for quota in [
        Quota::per_second(u64::MAX).burst(u64::MAX),
        Quota::per_day(1).burst(u64::MAX),
        Quota::new(1, Quota::LONGEST).unwrap().burst(2),
        Quota::new(Quota::MOST, Duration::from_nanos(1)).unwrap(),
    ] {
        let meter = Meter::new(Strategy::TokenBucket, &Meter::within_reach(quota)).unwrap();
        let holds = meter.holds();
        assert!(
            (1..=u64::from(u32::MAX)).contains(&holds),
            "{quota:?}: {holds}"
        );
        let count = meter.take(&Count::default(), holds, u64::MAX / 4).unwrap();
        assert!(refused(meter.take(&count, holds, u64::MAX / 4)) > 0);
    }
    let modest = Quota::per_second(50).burst(100);
    assert_eq!(Meter::within_reach(modest), modest);
}

#[test]
fn the_largest_quotas_do_not_overflow() {
    let quota = Quota::new(Quota::MOST, Quota::LONGEST).unwrap();
    for strategy in [Strategy::FixedWindow, Strategy::SlidingWindow] {
        let meter = Meter::new(strategy, &quota).unwrap();
        let now = u64::MAX / 2;
        let count = meter.take(&Count::default(), Quota::MOST, now).unwrap();
        let wait = refused(meter.take(&count, Quota::MOST, now));
        assert!(meter.take(&count, Quota::MOST, now + wait).is_ok());
        assert!(meter.take(&count, Quota::MOST, now + wait - 1).is_err());
        assert_eq!(meter.take(&count, u64::MAX, now), Err(Full::Forever));
        assert_eq!(meter.standing(&count, now).remaining, 0);
    }
}

#[test]
fn a_cost_beyond_the_clock_is_refused_for_good() {
    // 213_505 days of nanoseconds are more than 2^64.
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_day(1).burst(5)).unwrap();
    for cost in [213_504_u64, 213_505, 213_506, 213_507] {
        assert_eq!(
            meter.take(&Count::default(), cost, 0),
            Err(Full::Forever),
            "{cost}"
        );
    }
}
