//! A store that only knows doubles and microseconds decides alike.

use super::*;

/// A window as such a store counts it.
#[derive(Default)]
struct Doubles {
    at: f64,
    used: f64,
    before: f64,
}

impl Doubles {
    fn take(&mut self, plan: Plan, cost: u64, micros: u64) -> bool {
        let Plan::SlidingWindow {
            limit,
            window,
            tick,
        } = plan
        else {
            panic!("{plan:?}");
        };
        let (limit, cost, micros) = (limit as f64, cost as f64, micros as f64);
        let (window, tick) = ((window / 1000) as f64, (tick / 1000) as f64);
        let length = window / tick;
        let at = (micros / window).floor();
        let turns = at - self.at;
        if turns >= 1.0 {
            self.before = if turns == 1.0 { self.used } else { 0.0 };
            (self.at, self.used) = (at, 0.0);
        }
        let into = ((micros - at * window) / tick).floor();
        let weighed = self.before * (length - into) + (self.used + cost) * length;
        let room = weighed <= limit * length;
        if room {
            self.used += cost;
        }
        room
    }
}

/// Of any size, each about as often.
fn any_size(most: u64) -> impl proptest::strategy::Strategy<Value = u64> {
    (0..64 - most.leading_zeros(), any::<u64>())
        .prop_map(move |(bits, low)| ((1 << bits) | (low & ((1 << bits) - 1))).min(most))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_sliding_window_decides_alike(
        limit in any_size(Quota::MOST),
        micros in any_size((1 << 53) / 1000),
        start in 0..1_u64 << 33,
        steps in vec((0..=1500_u64, 1..=1000_u64), 1..60),
    ) {
        let meter = meter(Strategy::SlidingWindow, limit, micros * 1000);
        let plan = meter.plan().unwrap();
        let (mut count, mut doubles) = (Count::default(), Doubles::default());
        let mut now = start;
        for (later, cost) in steps {
            // In thousandths of the window and of the limit.
            now += (u128::from(micros) * u128::from(later) / 1000) as u64;
            let cost = (u128::from(limit) * u128::from(cost) / 1000).max(1) as u64;
            let taken = pass(&meter, &mut count, cost, now * 1000);
            prop_assert_eq!(taken.is_ok(), doubles.take(plan, cost, now));
            if let Err(Full::For(wait)) = taken {
                let at = now * 1000 + wait;
                prop_assert!(meter.take(&count, cost, at).is_ok());
                prop_assert_eq!(meter.take(&count, cost, at - 1), Err(Full::For(1)));
            }
            let Standing { remaining, .. } = meter.standing(&count, now * 1000);
            prop_assert!(remaining == 0 || meter.take(&count, remaining, now * 1000).is_ok());
            prop_assert!(meter.take(&count, remaining + 1, now * 1000).is_err());
        }
    }

    #[test]
    fn a_bucket_decides_alike(
        limit in any_size(u32::MAX.into()),
        micros in any_size((1 << 53) / 1000),
        steps in vec((0..=1500_u64, 1..=1000_u64), 1..60),
    ) {
        let quota = Meter::within_reach(quota(limit, micros * 1000));
        let meter = Meter::new(Strategy::TokenBucket, &quota).unwrap();
        let Some(Plan::TokenBucket { interval, burst }) = meter.plan() else {
            panic!("{meter:?}");
        };
        let (mut count, mut now, mut until_full) = (Count::default(), 0, 0.0_f64);
        for (later, cost) in steps {
            let later = (u128::from(micros) * u128::from(later) / 1000) as u64;
            let cost = (u128::from(burst) * u128::from(cost) / 1000).max(1) as u64;
            now += later * 1000;
            until_full = (until_full - (later * 1000) as f64).max(0.0);
            let takes = (cost * interval) as f64;
            let room = until_full <= (burst * interval) as f64 - takes;
            prop_assert_eq!(pass(&meter, &mut count, cost, now).is_ok(), room);
            if room {
                until_full += takes;
            }
        }
    }

    #[test]
    fn ticks_are_as_short_as_the_product_allows(
        limit in any_size(Quota::MOST),
        window in any_size(1 << 53),
    ) {
        let meter = meter(Strategy::SlidingWindow, limit, window);
        let Some(Plan::SlidingWindow { limit, window: whole, tick }) = meter.plan() else {
            panic!("{meter:?}");
        };
        let fits = |tick: u64| u128::from(limit) * u128::from(window.div_ceil(tick)) < 1 << 53;
        prop_assert!(fits(tick) && whole % tick == 0 && whole - window < tick);
        let shorter: Vec<u64> = (3..16).map(|power| 10_u64.pow(power)).take_while(|&ten| ten < tick).collect();
        prop_assert!(shorter.into_iter().all(|shorter| !fits(shorter)));
    }
}

#[test]
fn ordinary_quotas_are_told_apart_to_the_nanosecond() {
    let plan = |quota| Meter::new(Strategy::SlidingWindow, &quota).unwrap().plan();
    let expected = |limit, window, tick| {
        Some(Plan::SlidingWindow {
            limit,
            window,
            tick,
        })
    };
    let minute = 60_000_000_000;
    assert_eq!(plan(Quota::per_minute(1000)), expected(1000, minute, 1000));
    // One nanosecond before the half of what the window before had is gone.
    let meter = Meter::new(Strategy::SlidingWindow, &Quota::per_minute(2)).unwrap();
    let count = taken(&meter, 2, 0);
    assert_eq!(refused(meter.take(&count, 1, minute)), minute / 2);
    assert!(meter.take(&count, 1, minute + minute / 2 - 1).is_err());
    let day = 24 * 60 * minute;
    let tokens = Quota::per_day(1_000_000);
    assert_eq!(plan(tokens), expected(1_000_000, day, 10_000));
    // 2^33 by 2^20 microseconds is 2^53, which a double does not tell from one more.
    let edge = quota(1 << 33, (1 << 20) * 1000);
    assert_eq!(plan(edge), expected(1 << 33, 1_048_580_000, 10_000));
    let most = Quota::new(Quota::MOST, Quota::LONGEST).unwrap();
    let whole = 10_000_000_000_000_000;
    assert_eq!(plan(most), expected(Quota::MOST, whole, whole));
}

#[test]
fn windows_that_are_no_whole_microseconds_are_planned_from_above() {
    let plan = |strategy| meter(strategy, 5, 1001).plan();
    let (limit, window) = (5, 2000);
    let fixed = Plan::FixedWindow { limit, window };
    assert_eq!(plan(Strategy::FixedWindow), Some(fixed));
    let log = Plan::SlidingLog { limit, window };
    assert_eq!(plan(Strategy::SlidingLog), Some(log));
    let (interval, burst) = (201, 5);
    let bucket = Plan::TokenBucket { interval, burst };
    assert_eq!(plan(Strategy::TokenBucket), Some(bucket));
    let places = Plan::InFlight { limit };
    assert_eq!(Meter::in_flight(5).plan(), Some(places));
    assert_eq!(Meter::in_flight(0).plan(), None);
    let closed = Meter::new(Strategy::TokenBucket, &Quota::per_second(0));
    assert_eq!(closed.unwrap().plan(), None);
}
