//! Times that are not in order.

use super::*;

const SECOND: u64 = 1_000_000_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_clock_that_steps_back_locks_nobody_out_for_longer_than_a_window(
        strategy in strategy(),
        limit in 1..12_u64,
        window in 1..5 * SECOND,
        steps in vec((0..2 * SECOND, 1..14_u64), 1..30),
        back in prop_oneof![0..5 * SECOND, 0..100 * SECOND],
    ) {
        let meter = meter(strategy, limit, window);
        let (mut count, mut now, mut last) = (Count::default(), 100 * SECOND, 0);
        for (later, cost) in steps {
            now += later;
            if pass(&meter, &mut count, cost, now).is_ok() {
                last = now;
            }
        }
        let before = meter.standing(&count, now);
        let stepped = now - back;
        let after = meter.standing(&count, stepped);
        let longest = window.max(LATE);
        let behind = last.saturating_sub(stepped);
        if behind <= longest {
            prop_assert!(after.remaining <= before.remaining, "nothing comes back twice");
        } else if behind > longest + window + limit {
            prop_assert_eq!(after.remaining, limit);
        }
        // Where the clock does not step back, two windows.
        prop_assert!(after.reset_after <= 2 * window + longest + 2 * limit);
        let wait = after.retry_after;
        prop_assert!(pass(&meter, &mut count.clone(), 1, stepped + wait).is_ok());
        if wait > 0 {
            prop_assert!(meter.take(&count, 1, stepped + wait - 1).is_err());
        }
        // All is there again, whether others come meanwhile or not.
        let reset = stepped + after.reset_after;
        prop_assert_eq!(meter.standing(&count, reset).remaining, limit);
        if pass(&meter, &mut count, 1, stepped).is_ok() {
            let reset = stepped + meter.standing(&count, stepped).reset_after;
            prop_assert!(meter.is_idle(&count, reset) && !meter.is_idle(&count, reset - 1));
        }
    }

    #[test]
    fn one_who_comes_late_finds_what_others_have_left(
        strategy in prop::sample::select(&[Strategy::TokenBucket, Strategy::SlidingLog][..]),
        limit in 1..12_u64,
        window in 1..200_u64,
        steps in vec((0..120_u64, 1..14_u64, 0..100_u64), 1..60),
    ) {
        let meter = meter(strategy, limit, window);
        let mut model = Model::new(strategy, limit, window);
        let (mut count, mut latest, mut last) = (Count::default(), 0, 0);
        for (later, cost, late) in steps {
            latest += later;
            let now = latest.saturating_sub(late);
            // As if it had come with the last one that was admitted.
            let counts = now.max(last);
            let found = pass(&meter, &mut count, cost, now);
            prop_assert_eq!(found.is_ok(), model.has_room(cost, counts));
            match found {
                Ok(()) => {
                    model.passed.push((counts, cost));
                    last = counts;
                }
                Err(Full::For(wait)) => {
                    prop_assert!(model.has_room(cost, now + wait));
                    prop_assert!(now + wait > counts && !model.has_room(cost, now + wait - 1));
                }
                Err(Full::Forever) => prop_assert!(cost > limit),
            }
        }
    }
}

#[test]
fn a_thread_that_read_the_clock_earlier_turns_nothing_back() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 2, 100);
        let count = taken(&meter, 2, 200);
        let wait = refused(meter.take(&count, 1, 199));
        assert!(meter.take(&count, 1, 199 + wait).is_ok(), "{strategy:?}");
        assert!(
            meter.take(&count, 1, 199 + wait - 1).is_err(),
            "{strategy:?}"
        );
        assert!(!meter.is_idle(&count, 0));
        assert_eq!(meter.standing(&count, 199).retry_after, wait);
    }
}

#[test]
fn a_thread_that_is_late_by_many_short_windows_frees_nothing() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 2, 100);
        let mut count = taken(&meter, 2, 900_000);
        assert!(pass(&meter, &mut count, 1, 100).is_err(), "{strategy:?}");
        assert!(pass(&meter, &mut count, 1, 900_000).is_err());
    }
}

#[test]
fn who_has_come_since_is_not_idle_however_long_ago_that_is() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 2, SECOND);
        let count = taken(&meter, 1, 100 * SECOND);
        for since in [0, 90 * SECOND, 100 * SECOND] {
            assert!(!meter.is_idle(&count, since), "{strategy:?}");
        }
        assert!(meter.is_idle(&count, 102 * SECOND), "{strategy:?}");
    }
}

#[test]
fn seed_7_a_clock_that_is_behind_takes_nothing_away_and_locks_nobody_out() {
    for strategy in STRATEGIES {
        let meter = meter(strategy, 10, 60 * SECOND);
        let hour = 3600 * SECOND;
        let count = taken(&meter, 4, hour);
        let behind = meter.standing(&count, hour - 30 * SECOND);
        assert_eq!(behind.remaining, 6, "{strategy:?}");
        // By more than a window, it begins anew: nobody knows how long ago that was.
        let mut count = taken(&meter, 10, 2 * hour);
        for _ in 0..10 {
            pass(&meter, &mut count, 1, hour).unwrap();
        }
        let wait = refused(meter.take(&count, 1, hour));
        assert!(wait <= 66 * SECOND, "{strategy:?}: {wait}");
        pass(&meter, &mut count, 1, hour + wait).unwrap();
    }
}
