//! A sliding window whose limit moves.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::adaptive::Adaptive;

fn adaptive(limit: u64) -> (Meter, Arc<AtomicU64>) {
    let course = Adaptive::new().course(limit).unwrap();
    let cell = Arc::new(AtomicU64::new(course.base));
    let quota = quota(limit, 100);
    let meter = Meter::adaptive(&quota, &course, cell.clone()).unwrap();
    (meter, cell)
}

#[test]
fn each_decision_is_by_the_limit_of_its_time() {
    let (meter, limit) = adaptive(10);
    let mut count = taken(&meter, 10, 0);
    assert!(meter.take(&count, 1, 0).is_err());
    limit.store(12, Relaxed);
    pass(&meter, &mut count, 2, 0).unwrap();
    assert_eq!(meter.holds(), 12);
    limit.store(4, Relaxed);
    assert_eq!(meter.standing(&count, 0).remaining, 0);
    let plan = Plan::SlidingWindow {
        limit: 4,
        window: 1000,
        tick: 1000,
    };
    assert_eq!(meter.plan(), Some(plan));
    let still = super::meter(Strategy::SlidingWindow, 4, 100);
    let wait = refused(meter.take(&count, 1, 0));
    assert_eq!(meter.standing(&count, 0), still.standing(&count, 0));
    assert!(meter.take(&count, 1, wait).is_ok() && meter.take(&count, 1, wait - 1).is_err());
}

#[test]
fn a_cost_is_only_too_large_for_good_when_the_limit_cannot_come_to_hold_it() {
    let (meter, limit) = adaptive(10);
    assert_eq!(refused(meter.take(&Count::default(), 11, 0)), 100);
    assert_eq!(refused(meter.take(&Count::default(), 100, 0)), 100);
    assert_eq!(meter.take(&Count::default(), 101, 0), Err(Full::Forever));
    limit.store(100, Relaxed);
    taken(&meter, 100, 0);
}

#[test]
fn it_is_cut_to_its_course_and_never_zero() {
    let (meter, limit) = adaptive(10);
    limit.store(u64::MAX, Relaxed);
    assert_eq!(meter.holds(), 100);
    limit.store(0, Relaxed);
    assert_eq!(meter.holds(), 1);
    let count = taken(&meter, 1, 0);
    assert!(refused(meter.take(&count, 1, 0)) > 0);
}

#[test]
fn its_ticks_stay_while_it_moves() {
    let course = Adaptive::new().course(1_000_000).unwrap();
    let cell = Arc::new(AtomicU64::new(course.base));
    let quota = Quota::per_hour(1_000_000);
    let meter = Meter::adaptive(&quota, &course, cell.clone()).unwrap();
    let tick = |meter: &Meter| match meter.plan() {
        Some(Plan::SlidingWindow { tick, .. }) => tick,
        other => panic!("{other:?}"),
    };
    assert_eq!(tick(&meter), 10_000);
    cell.store(course.most, Relaxed);
    assert_eq!(tick(&meter), 10_000);
    // One that stays there needs none.
    assert_eq!(tick(&Meter::new(Strategy::Adaptive, &quota).unwrap()), 1000);
}

#[test]
fn a_rule_that_is_closed_stays_closed() {
    let course = Adaptive::new().course(0).unwrap();
    let cell = Arc::new(AtomicU64::new(course.base));
    let meter = Meter::adaptive(&Quota::per_second(0), &course, cell).unwrap();
    assert!(refused(meter.take(&Count::default(), 1, 0)) > 0);
    let burst = Quota::per_second(5).burst(6);
    let cell = Arc::new(AtomicU64::new(5));
    let error = Meter::adaptive(&burst, &course, cell).map(|_| ());
    assert_eq!(error, Err(QuotaError::NoBurst));
}

#[test]
fn from_one_that_stays_to_one_that_moves_what_was_used_is_kept() {
    let (moving, _) = adaptive(10);
    let still = meter(Strategy::SlidingWindow, 4, 100);
    let mut count = taken(&still, 3, 50);
    let before = count.clone();
    moving.carry(&still, &mut count, 60);
    assert_eq!(count, before);
}
