use super::*;

fn entries(count: &Count) -> (usize, usize) {
    count.log.as_ref().map_or((0, 0), |log| log.sizes())
}

#[test]
fn seed_4_requests_at_the_same_time_all_count() {
    let meter = meter(Strategy::SlidingLog, 5, 1000);
    let mut count = Count::default();
    for _ in 0..5 {
        pass(&meter, &mut count, 1, 7).unwrap();
    }
    assert_eq!(entries(&count).0, 1);
    assert_eq!(refused(meter.take(&count, 1, 7)), 1000);
}

#[test]
fn seed_4_a_refused_twin_takes_nothing_away() {
    let meter = meter(Strategy::SlidingLog, 5, 1000);
    let mut count = taken(&meter, 5, 7);
    let before = count.clone();
    assert!(pass(&meter, &mut count, 1, 7).is_err());
    assert_eq!(count, before);
    assert_eq!(meter.standing(&count, 7).remaining, 0);
}

#[test]
fn an_entry_leaves_when_its_window_is_over() {
    let meter = meter(Strategy::SlidingLog, 3, 1000);
    let mut count = taken(&meter, 1, 0);
    pass(&meter, &mut count, 2, 500).unwrap();
    assert_eq!(refused(meter.take(&count, 1, 999)), 1);
    assert_eq!(refused(meter.take(&count, 2, 999)), 501);
    pass(&meter, &mut count, 1, 1000).unwrap();
    assert_eq!(entries(&count).0, 2);
}

#[test]
fn a_log_grows_by_its_limit_at_most_and_shrinks_again() {
    let limit = SlidingLog::MOST;
    let meter = meter(Strategy::SlidingLog, limit, 1_000_000);
    let mut count = Count::default();
    for now in 0..limit {
        pass(&meter, &mut count, 1, now).unwrap();
    }
    assert_eq!(entries(&count).0, 10_000);
    assert!(entries(&count).1 <= 16_384);
    // Debts that are renewed all the time.
    for now in limit..5 * limit {
        meter.charge(&mut count, 1, now);
        assert!(entries(&count).0 <= 10_000);
    }
    assert!(entries(&count).1 <= 16_384);
    let now = 5 * limit;
    let wait = refused(meter.take(&count, 1, now));
    // As if none had been put together: there is room when the newest 9999 are alone.
    assert_eq!(now + wait, 4 * limit + 1_000_000);
    pass(&meter, &mut count, 1, now + 2_000_000).unwrap();
    assert_eq!(entries(&count).0, 1);
    assert!(entries(&count).1 <= 16);
}

#[test]
fn a_log_from_which_all_was_given_back_is_none() {
    let meter = meter(Strategy::SlidingLog, 100, 1000);
    let mut count = Count::default();
    for now in 0..100 {
        pass(&meter, &mut count, 1, now).unwrap();
    }
    for now in (0..100).rev() {
        meter.give_back(&mut count, 1, now, 100);
    }
    assert_eq!(count.log, None);
    assert!(meter.is_idle(&count, 100));
}

#[test]
fn what_has_left_a_log_is_not_given_back_by_others() {
    let meter = meter(Strategy::SlidingLog, 10, 100);
    let mut count = taken(&meter, 4, 0);
    pass(&meter, &mut count, 3, 50).unwrap();
    meter.give_back(&mut count, 4, 0, 100);
    assert_eq!(meter.standing(&count, 100).remaining, 7);
    // Nor once it was cleaned away, by one who read the clock earlier.
    pass(&meter, &mut count, 1, 100).unwrap();
    meter.give_back(&mut count, 4, 0, 99);
    assert_eq!(meter.standing(&count, 100).remaining, 6);
}

#[test]
fn what_came_late_is_given_back_where_it_was_counted() {
    let meter = meter(Strategy::SlidingLog, 10, 100);
    let mut count = taken(&meter, 2, 20);
    pass(&meter, &mut count, 3, 10).unwrap();
    meter.give_back(&mut count, 3, 10, 30);
    assert_eq!(meter.standing(&count, 30).remaining, 8);
    assert_eq!(meter.standing(&count, 119).remaining, 8);
    assert_eq!(meter.standing(&count, 120).remaining, 10);
}

#[test]
fn sums_that_wrap_around_count_on() {
    let meter = meter(Strategy::SlidingLog, 10, 100);
    let mut count = Count::default();
    // Each debt is as much as a log holds; 2^11 of them wrap around.
    for round in 0..(1 << 12) + 1 {
        meter.charge(&mut count, u64::MAX, round * 1000);
        assert_eq!(meter.standing(&count, round * 1000 + 99).remaining, 0);
        assert!(meter.is_idle(&count, round * 1000 + 100));
    }
    let now = 1 << 40;
    pass(&meter, &mut count, 4, now).unwrap();
    pass(&meter, &mut count, 5, now + 1).unwrap();
    assert_eq!(refused(meter.take(&count, 5, now + 1)), 99);
    meter.give_back(&mut count, 4, now, now + 1);
    assert_eq!(meter.standing(&count, now + 1).remaining, 5);
}

#[test]
fn a_clock_that_has_stepped_back_leaves_no_entries_behind() {
    let meter = meter(Strategy::SlidingLog, 20, LATE);
    let mut count = Count::default();
    for now in 0..10 {
        pass(&meter, &mut count, 1, 100 * LATE + now).unwrap();
    }
    pass(&meter, &mut count, 5, 0).unwrap();
    assert_eq!(entries(&count).0, 1);
    assert_eq!(refused(meter.take(&count, 16, 1)), LATE - 1);
    assert_eq!(meter.standing(&count, LATE).remaining, 20);
}

#[test]
fn a_count_is_32_bytes() {
    assert_eq!(size_of::<Count>(), 32);
}
