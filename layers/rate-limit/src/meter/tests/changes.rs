//! What is corrected, given back, drained, carried over and raised.

use super::*;

/// A model whose past changes: each request by its place in `passed`.
fn settled(model: &mut Model, index: usize, used: u64, now: u64) {
    let (at, reserved) = model.passed[index];
    let turns = now / model.window - at / model.window;
    let counts = match model.strategy {
        Strategy::FixedWindow => turns == 0,
        _ => turns <= 1,
    };
    if counts {
        model.passed[index].1 = used;
    } else {
        model.passed.push((now, used.saturating_sub(reserved)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_settled_is_what_was_used(
        strategy in prop::sample::select(&WINDOWS[..]),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64, any::<prop::sample::Index>(), 0..20_u64), 1..40),
    ) {
        let meter = meter(strategy, limit, window);
        let mut model = Model::new(strategy, limit, window);
        let (mut count, mut now, mut open) = (Count::default(), 0, Vec::new());
        for (later, cost, which, used) in steps {
            now += later;
            prop_assert_eq!(meter.standing(&count, now).remaining, model.remaining(now));
            if pass(&meter, &mut count, cost, now).is_ok() {
                open.push(model.passed.len());
                model.passed.push((now, cost));
            }
            if !open.is_empty() && used % 2 == 0 {
                let index = open.swap_remove(which.index(open.len()));
                let (at, reserved) = model.passed[index];
                meter.settle(&mut count, reserved, used, at, now);
                settled(&mut model, index, used, now);
            }
        }
        prop_assert_eq!(meter.standing(&count, now).remaining, model.remaining(now));
    }

    #[test]
    fn the_order_of_settling_changes_nothing(
        strategy in prop::sample::select(&WINDOWS[..]),
        requests in vec((0..60_u64, 1..8_u64, 0..20_u64), 1..12)
            .prop_flat_map(|requests| {
                let order: Vec<usize> = (0..requests.len()).collect();
                (Just(requests), Just(order).prop_shuffle())
            }),
        later in 0..300_u64,
    ) {
        let (requests, order) = requests;
        let meter = meter(strategy, 10, 100);
        let (mut count, mut now, mut at) = (Count::default(), 0, Vec::new());
        for &(later, reserved, _) in &requests {
            now += later;
            meter.charge(&mut count, reserved, now);
            at.push(now);
        }
        let mut other = count.clone();
        for (index, &(_, reserved, used)) in requests.iter().enumerate() {
            meter.settle(&mut count, reserved, used, at[index], now + later);
        }
        for index in order {
            let (_, reserved, used) = requests[index];
            meter.settle(&mut other, reserved, used, at[index], now + later);
        }
        prop_assert_eq!(count, other);
    }

    #[test]
    fn what_is_given_back_was_never_taken(
        strategy in prop::sample::select(&STRATEGIES[1..]),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..8_u64, any::<prop::sample::Index>(), any::<bool>()), 1..60),
    ) {
        let meter = meter(strategy, limit, window);
        let mut model = Model::new(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost, which, gives) in steps {
            now += later;
            prop_assert_eq!(meter.standing(&count, now).remaining, model.remaining(now));
            if pass(&meter, &mut count, cost, now).is_ok() {
                model.passed.push((now, cost));
            }
            if gives && !model.passed.is_empty() {
                let (at, cost) = model.passed.swap_remove(which.index(model.passed.len()));
                meter.give_back(&mut count, cost, at, now);
            }
        }
        prop_assert_eq!(meter.standing(&count, now).remaining, model.remaining(now));
    }

    #[test]
    fn a_bucket_that_gets_back_never_admits_more_than_one_that_never_gave(
        limit in 1..12_u64,
        window in 1..200_u64,
        requests in vec((0..60_u64, 1..8_u64, prop::option::of(0..150_u64)), 1..40),
    ) {
        let meter = meter(Strategy::TokenBucket, limit, window);
        let interval = window.div_ceil(limit);
        let (mut count, mut twin) = (Count::default(), Count::default());
        let (mut now, mut kept, mut back) = (0, Vec::new(), Vec::new());
        for (later, cost, gives_back_after) in requests {
            now += later;
            back.retain(|&(when, cost, at): &(u64, u64, u64)| {
                if when > now {
                    return true;
                }
                meter.give_back(&mut count, cost, at, when.max(at));
                false
            });
            prop_assert!(meter.standing(&count, now).remaining <= meter.standing(&twin, now).remaining);
            if pass(&meter, &mut count, cost, now).is_err() {
                continue;
            }
            match gives_back_after {
                Some(later) => back.push((now + later, cost, now)),
                None => {
                    prop_assert!(pass(&meter, &mut twin, cost, now).is_ok());
                    kept.push((now, cost));
                }
            }
        }
        for (first, &(from, _)) in kept.iter().enumerate() {
            let mut sum = 0;
            for &(to, cost) in &kept[first..] {
                sum += cost;
                prop_assert!(sum * interval <= limit * interval + (to - from));
            }
        }
    }

    #[test]
    fn drained_nothing_is_left(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64), 0..20),
        later in 0..120_u64,
        retry_after in prop::option::of(0..1000_u64),
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            let _ = pass(&meter, &mut count, cost, now);
        }
        now += later;
        let before = meter.standing(&count, now);
        meter.drain(&mut count, retry_after, now);
        let after = meter.standing(&count, now);
        prop_assert_eq!(after.remaining, 0);
        prop_assert!(after.retry_after > 0 && after.reset_after >= before.reset_after);
        if strategy == Strategy::TokenBucket {
            prop_assert_eq!(after.retry_after, retry_after.unwrap_or(0) + window.div_ceil(limit));
        }
        let drained = count.clone();
        meter.drain(&mut count, retry_after, now);
        prop_assert_eq!(count, drained, "there is nothing left to take");
    }

    #[test]
    fn new_limits_free_no_more_than_their_difference(
        from in (strategy(), 1..12_u64, 1..200_u64),
        to in (strategy(), 1..12_u64, 1..200_u64),
        same_window in any::<bool>(),
        steps in vec((0..120_u64, 1..14_u64, 0..30_u64), 0..20),
        later in 0..120_u64,
    ) {
        let window = if same_window { from.2 } else { to.2 };
        let old = meter(from.0, from.1, from.2);
        let new = meter(to.0, to.1, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost, charge) in steps {
            now += later;
            let _ = pass(&old, &mut count, cost, now);
            old.charge(&mut count, charge.saturating_sub(20), now);
        }
        now += later;
        let before = count.clone();
        new.carry(&old, &mut count, now);
        let (was, is) = (old.standing(&before, now), new.standing(&count, now));
        if (from.0, to.0) == (Strategy::TokenBucket, Strategy::TokenBucket) {
            let whole = window.div_ceil(to.1) * to.1;
            prop_assert_eq!(is.reset_after, was.reset_after.min(whole));
        } else {
            prop_assert!(is.remaining <= was.remaining + to.1.saturating_sub(from.1));
            // As much is used as was, unless that is more than there is.
            if was.remaining > 0 {
                prop_assert_eq!(is.remaining, to.1.saturating_sub(from.1 - was.remaining));
            }
        }
        if from == (to.0, to.1, window) {
            prop_assert_eq!(is.remaining, was.remaining);
        }
    }

    #[test]
    fn raised_it_is_as_full_as_others_say_and_never_less(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64, 0..16_u64), 0..30),
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost, used) in steps {
            now += later;
            let _ = pass(&meter, &mut count, cost, now);
            let before = meter.standing(&count, now);
            meter.raise(&mut count, used, now);
            let after = meter.standing(&count, now);
            prop_assert_eq!(after.remaining, before.remaining.min(limit.saturating_sub(used)));
            prop_assert!(after.reset_after >= before.reset_after);
        }
    }
}

#[test]
fn a_bucket_keeps_what_has_refilled_since() {
    // Otherwise 100 more would pass at t = 100 on top of the burst that has refilled by then.
    let meter = meter(Strategy::TokenBucket, 100, 100);
    let mut count = taken(&meter, 100, 0);
    pass(&meter, &mut count, 100, 100).unwrap();
    let second = count.clone();
    meter.give_back(&mut count, 100, 0, 100);
    assert_eq!(count, second);
    assert_eq!(refused(meter.take(&second, 1, 100)), 1);
}

#[test]
fn what_a_bucket_gets_back_at_once_is_all_of_it() {
    let meter = meter(Strategy::TokenBucket, 100, 100);
    let mut count = taken(&meter, 100, 0);
    meter.give_back(&mut count, 100, 0, 0);
    assert!(meter.is_idle(&count, 0));
    let mut count = taken(&meter, 100, 0);
    meter.give_back(&mut count, 60, 0, 25);
    // 25 have refilled and 35 come back.
    assert_eq!(meter.standing(&count, 25).remaining, 60);
}

#[test]
fn nothing_comes_back_to_a_bucket_that_was_drained_since() {
    let meter = meter(Strategy::TokenBucket, 10, 1000);
    let mut count = taken(&meter, 5, 0);
    meter.drain(&mut count, Some(300), 7);
    meter.give_back(&mut count, 5, 0, 8);
    assert_eq!(meter.standing(&count, 7 + 300 + 99).remaining, 0);
    assert_eq!(meter.standing(&count, 7 + 300 + 100).remaining, 1);
    // What is taken later does.
    pass(&meter, &mut count, 1, 407).unwrap();
    meter.give_back(&mut count, 1, 407, 407);
    assert_eq!(meter.standing(&count, 407).remaining, 1);
}

#[test]
fn a_debt_is_not_lowered_by_a_drain() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 10, 1000);
        let mut count = Count::default();
        meter.charge(&mut count, 95, 0);
        let debt = meter.standing(&count, 0);
        meter.drain(&mut count, None, 0);
        assert_eq!(meter.standing(&count, 0), debt, "{strategy:?}");
    }
}

#[test]
fn what_is_used_beyond_a_window_that_is_gone_counts_now() {
    for (strategy, gone) in [(Strategy::FixedWindow, 100), (Strategy::SlidingWindow, 200)] {
        let meter = meter(strategy, 10, 100);
        let mut count = taken(&meter, 2, 50);
        meter.settle(&mut count, 2, 9, 50, gone);
        assert_eq!(meter.standing(&count, gone).remaining, 3, "{strategy:?}");
        // And what was not used has no window any more to be taken off.
        meter.settle(&mut count, 7, 0, 50, gone);
        assert_eq!(meter.standing(&count, gone).remaining, 3, "{strategy:?}");
    }
}

#[test]
fn what_was_taken_in_the_window_before_is_settled_there() {
    let meter = meter(Strategy::SlidingWindow, 10, 100);
    let mut count = taken(&meter, 4, 50);
    meter.settle(&mut count, 4, 8, 50, 150);
    // Half of the eight still counts.
    assert_eq!(meter.standing(&count, 150).remaining, 6);
    meter.settle(&mut count, 8, 2, 50, 150);
    assert_eq!(meter.standing(&count, 150).remaining, 9);
}

#[test]
fn where_no_window_settles_it_stays_on_the_safe_side() {
    let bucket = meter(Strategy::TokenBucket, 10, 1000);
    let mut count = taken(&bucket, 5, 0);
    bucket.settle(&mut count, 5, 7, 0, 100);
    assert_eq!(bucket.standing(&count, 100).remaining, 10 - 7 + 1);
    bucket.settle(&mut count, 3, 0, 0, 100);
    // One of the three has refilled since.
    assert_eq!(bucket.standing(&count, 100).remaining, 10 - 7 + 1 + 2);
    let log = meter(Strategy::SlidingLog, 10, 1000);
    let mut count = taken(&log, 5, 0);
    log.settle(&mut count, 5, 2, 0, 100);
    assert_eq!(log.standing(&count, 100).remaining, 8);
    log.settle(&mut count, 2, 6, 0, 100);
    assert_eq!(log.standing(&count, 100).remaining, 4);
}

#[test]
fn no_cost_overflows_and_the_largest_debts_stay_debts() {
    for strategy in STRATEGIES {
        for (limit, window) in [(1, 1), (8192, 1 << 53), (3, 1_000_000_000)] {
            let meter = meter(strategy, limit, window);
            let now = u64::MAX / 4;
            let mut count = Count::default();
            for _ in 0..3 {
                meter.charge(&mut count, u64::MAX, now);
                meter.settle(&mut count, 0, u64::MAX, now, now);
                meter.raise(&mut count, u64::MAX, now);
                assert_eq!(meter.standing(&count, now).remaining, 0);
                assert!(refused(meter.take(&count, 1, now)) > 0);
                meter.drain(&mut count, Some(u64::MAX), now);
            }
            let wait = refused(meter.take(&count, 1, now));
            assert!(meter.take(&count, 1, now + wait - 1).is_err());
            pass(&meter, &mut count, 1, now + wait).unwrap();
            meter.give_back(&mut count, u64::MAX, now + wait, now + wait);
            meter.give_back(&mut count, u64::MAX, 0, now + wait);
        }
    }
}

#[test]
fn a_limit_that_was_lowered_leaves_what_is_above_it() {
    for strategy in &STRATEGIES[1..] {
        let (old, new) = (meter(*strategy, 10, 100), meter(*strategy, 4, 100));
        let mut count = taken(&old, 9, 0);
        new.carry(&old, &mut count, 10);
        assert_eq!(new.standing(&count, 10).remaining, 0);
        // Back to where it was, all is as if nothing had happened.
        old.carry(&new, &mut count, 20);
        assert_eq!(count, taken(&old, 9, 0));
    }
}

#[test]
fn a_bucket_of_another_rate_is_as_full_by_time() {
    let bucket = |limit| meter(Strategy::TokenBucket, limit, 1000);
    let mut count = taken(&bucket(100), 50, 0);
    bucket(10).carry(&bucket(100), &mut count, 0);
    assert_eq!(bucket(10).standing(&count, 0).remaining, 5);
    let burst = Meter::new(Strategy::TokenBucket, &quota(10, 1000).burst(2)).unwrap();
    burst.carry(&bucket(10), &mut count, 0);
    let Standing { reset_after, .. } = burst.standing(&count, 0);
    assert_eq!(reset_after, 200);
}

#[test]
fn what_is_carried_over_is_no_debt() {
    let window = meter(Strategy::FixedWindow, 10, 100);
    let bucket = meter(Strategy::TokenBucket, 2, 100);
    let mut count = taken(&window, 10, 0);
    bucket.carry(&window, &mut count, 0);
    assert_eq!(bucket.standing(&count, 0).reset_after, 100);
}

#[test]
fn a_closed_meter_keeps_nothing() {
    let closed = Meter::new(Strategy::FixedWindow, &Quota::per_second(0)).unwrap();
    let open = meter(Strategy::FixedWindow, 10, 1_000_000_000);
    let mut count = taken(&open, 9, 0);
    closed.carry(&open, &mut count, 0);
    closed.charge(&mut count, 5, 0);
    closed.drain(&mut count, None, 0);
    assert_eq!(count, Count::default());
    open.carry(&closed, &mut count, 0);
    assert_eq!(open.standing(&count, 0).remaining, 10);
}
