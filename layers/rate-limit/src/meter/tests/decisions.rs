use super::*;

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
        let mut model = Model::new(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            let taken = meter.take(&count, cost, now);
            prop_assert_eq!(taken.is_ok(), model.has_room(cost, now), "{} at {}", cost, now);
            match taken {
                Ok(next) => {
                    meter.accept(&mut count, next, now);
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
                let turn = from / window * window;
                match strategy {
                    Strategy::TokenBucket => {
                        let length = now - from + 1;
                        let most = limit + (length - 1) / window.div_ceil(limit);
                        prop_assert!(within(from, length) <= most);
                    }
                    Strategy::FixedWindow => {
                        prop_assert!(within(turn, window) <= limit);
                        prop_assert!(within(from, window) <= 2 * limit);
                    }
                    Strategy::SlidingLog => prop_assert!(within(from, window) <= limit),
                    _ => {
                        prop_assert!(within(turn, window) <= limit);
                        prop_assert!(within(from, window) < 2 * limit);
                    }
                }
            }
        }
    }

    #[test]
    fn in_debt_it_decides_as_one_who_adds_it_all_up(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..300_u64, 1..14_u64, 0..40_u64), 1..40),
    ) {
        let meter = meter(strategy, limit, window);
        let mut model = Model::new(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost, charge) in steps {
            now += later;
            let room = model.has_room(cost, now);
            prop_assert_eq!(meter.standing(&count, now).remaining, model.remaining(now));
            match pass(&meter, &mut count, cost, now) {
                Ok(()) => {
                    prop_assert!(room);
                    model.passed.push((now, cost));
                }
                Err(Full::For(wait)) => {
                    prop_assert!(!room && !model.has_room(cost, now + wait - 1));
                    prop_assert!(model.has_room(cost, now + wait));
                }
                Err(Full::Forever) => prop_assert!(cost > limit),
            }
            meter.charge(&mut count, charge, now);
            model.passed.push((now, charge));
        }
    }

    #[test]
    fn how_a_key_stands_is_what_it_can_take(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64, 0..30_u64), 0..40),
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost, charge) in steps {
            now += later;
            let _ = pass(&meter, &mut count, cost, now);
            // Now and then a debt.
            meter.charge(&mut count, charge.saturating_sub(20), now);
            let before = count.clone();
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
            prop_assert_eq!(&count, &before, "looking changes nothing");
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
            let mut burdened = count.clone();
            meter.charge(&mut burdened, more, now);
            if meter.take(&burdened, cost, now + later).is_ok() {
                prop_assert!(meter.take(&count, cost, now + later).is_ok());
            }
            let _ = pass(&meter, &mut count, cost, now);
        }
    }

    #[test]
    fn a_larger_limit_lets_all_through_that_a_smaller_one_does(
        strategy in strategy(),
        limit in 1..12_u64,
        larger in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64), 0..40),
    ) {
        let small = quota(limit, window);
        let large = match strategy {
            // At the same rate: another would be rounded otherwise.
            Strategy::TokenBucket => small.burst(limit + larger),
            _ => quota(limit + larger, window),
        };
        let small = Meter::new(strategy, &small).unwrap();
        let large = Meter::new(strategy, &large).unwrap();
        let (mut count, mut now) = (Count::default(), 0);
        for (later, cost) in steps {
            now += later;
            if pass(&small, &mut count.clone(), cost, now).is_ok() {
                prop_assert!(large.take(&count, cost, now).is_ok());
                pass(&small, &mut count, cost, now).unwrap();
            }
        }
    }
}

#[test]
fn a_refusal_is_exact_after_a_debt() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 10, 1000);
        let mut count = taken(&meter, 10, 100);
        meter.charge(&mut count, 35, 400);
        assert_eq!(meter.standing(&count, 400).remaining, 0);
        let wait = refused(meter.take(&count, 3, 400));
        assert!(meter.take(&count, 3, 400 + wait).is_ok(), "{strategy:?}");
        assert!(meter.take(&count, 3, 399 + wait).is_err(), "{strategy:?}");
    }
}

#[test]
fn seed_10_a_burst_is_saved_up_and_no_more() {
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_second(10).burst(25)).unwrap();
    let count = taken(&meter, 25, 0);
    assert_eq!(refused(meter.take(&count, 1, 0)), 100_000_000);
    let year = 365 * 24 * 60 * 60 * 1_000_000_000;
    assert_eq!(meter.standing(&count, year).remaining, 25);
    assert_eq!(meter.take(&count, 26, year), Err(Full::Forever));
    assert_eq!(meter.take(&count, 1 << 40, year), Err(Full::Forever));
}

#[test]
fn a_rate_that_is_no_whole_number_of_nanoseconds_is_kept_from_above() {
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_second(3)).unwrap();
    let count = taken(&meter, 3, 0);
    assert_eq!(refused(meter.take(&count, 1, 0)), 333_333_334);
}
