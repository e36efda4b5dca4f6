//! What the short cut and the draws come to.

use palisade_core::{classify::Verdict, time};

use super::*;

fn end(verdict: Verdict) -> End {
    End::new(verdict)
}

/// Sends one, if it is let through; whether it was.
fn one(shared: &Shared, verdict: Verdict, now: Instant) -> bool {
    match shared.admit(now) {
        Ok(mut stage) => {
            shared.settle(&mut stage, &end(verdict), now, now);
            true
        }
        Err(_) => false,
    }
}

#[test]
fn while_nothing_is_refused_a_request_is_let_through_without_the_lock() {
    let (shared, now) = (Shared::new(1), time::now());
    one(&shared, Verdict::Success, now);
    shared.look(|_| assert_eq!(shared.admit(now), Ok(Stage::Waiting)));
}

#[test]
fn the_share_that_is_refused_is_the_chance() {
    let (shared, now) = (Shared::new(7), time::now());
    (0..100).for_each(|_| assert!(one(&shared, Verdict::Success, now)));
    let mut let_through = 0_u32;
    let mut expected = 0.0;
    for _ in 0..10_000 {
        expected += 1.0 - shared.meter(|meter| meter.chance(now));
        let_through += u32::from(one(&shared, Verdict::Failure, now));
    }
    let off = f64::from(let_through) / expected;
    assert!((0.9..1.1).contains(&off), "{let_through} of {expected}");
    let (refused, _) = shared.refusals();
    assert_eq!(refused, 10_000 - u64::from(let_through));
}

#[test]
fn a_service_that_takes_half_of_what_is_sent_is_sent_twice_what_it_takes() {
    let (shared, start) = (Shared::new(3), time::now());
    // It takes 10 of the 100 that come each second; 10 minutes.
    let mut sent = 0;
    for second in 0..600 {
        let now = start + Duration::from_secs(second);
        let mut taken = 0;
        for _ in 0..100 {
            let Ok(mut stage) = shared.admit(now) else {
                continue;
            };
            taken += 1;
            let verdict = match taken <= 10 {
                true => Verdict::Success,
                false => Verdict::Overload { retry_after: None },
            };
            shared.settle(&mut stage, &end(verdict), now, now);
            sent += u64::from(second >= 300);
        }
    }
    let each_second = sent as f64 / 300.0;
    assert!((17.0..24.0).contains(&each_second), "{each_second}");
}

#[test]
fn equal_seeds_refuse_the_same_requests() {
    let refused = |seed| {
        let (shared, now) = (Shared::new(seed), time::now());
        let fails = |_| one(&shared, Verdict::Failure, now);
        (0..100).map(fails).collect::<Vec<_>>()
    };
    assert_eq!(refused(1), refused(1));
    assert_ne!(refused(1), refused(2));
}

#[test]
fn whoever_leaves_or_is_refused_further_in_is_not_counted() {
    let (shared, now) = (Shared::new(1), time::now());
    for verdict in [
        Verdict::Canceled,
        Verdict::Refused(palisade_core::reject::Reason::RateLimited),
    ] {
        (0..100).for_each(|_| assert!(one(&shared, verdict, now)));
    }
    (0..100).for_each(|_| assert!(shared.admit(now).is_ok()));
    assert_eq!(shared.meter(|meter| meter.sums(now).calls), 0);
}

#[test]
fn a_stream_counts_once_from_its_first_data_and_again_only_if_it_breaks_off() {
    let (shared, now) = (Shared::new(1), time::now());
    for (verdict, failures) in [(Verdict::Success, 0), (Verdict::Failure, 1)] {
        let mut stage = shared.admit(now).unwrap();
        shared.first_data(&mut stage, now, now);
        let before = shared.meter(|meter| meter.sums(now));
        shared.settle(&mut stage, &end(verdict), now, now);
        shared.settle(&mut stage, &end(Verdict::Failure), now, now);
        let after = shared.meter(|meter| meter.sums(now));
        assert_eq!(after.calls, before.calls);
        assert_eq!(after.failures, before.failures + failures);
    }
}

#[test]
fn in_shadow_it_counts_as_if_it_had_refused() {
    let count = |mode| {
        let (shared, now) = (Shared::new(5), time::now());
        shared.set_mode(mode);
        (0..500).for_each(|_| {
            one(&shared, Verdict::Failure, now);
        });
        let (refused, shadowed) = shared.refusals();
        (
            refused + shadowed,
            shared.meter(|meter| meter.sums(now)),
            refused,
        )
    };
    let (enforced, shadow) = (count(Mode::Enforce), count(Mode::Shadow));
    assert_eq!((enforced.0, enforced.1), (shadow.0, shadow.1));
    assert!(enforced.2 > 100);
    assert_eq!(shadow.2, 0);
}
