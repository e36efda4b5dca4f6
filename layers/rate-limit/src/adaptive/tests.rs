use palisade_core::reject::Reason;
use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: u64 = 1_000_000_000;
const INTERVAL: u64 = 300 * SECOND;

fn ends(good: u64, bad: u64) -> Ends {
    Ends { good, bad }
}

/// A limit of 100 after one interval in which so many have ended.
fn after(good: u64, bad: u64) -> u64 {
    let course = Adaptive::new().course(100).unwrap();
    State::new(&course, 0).ends(&course, ends(good, bad), INTERVAL)
}

#[test]
fn as_it_is_it_keeps_to_the_numbers_of_the_seed() {
    let course = Adaptive::default().course(100).unwrap();
    let expected = Course {
        base: 100,
        least: 10,
        most: 1000,
        grow: 1.2,
        shrink: 0.8,
        threshold: 0.95,
        alpha: 0.1,
        samples: 20,
        interval: INTERVAL,
    };
    assert_eq!(course, expected);
    assert_eq!(Adaptive::aimd().course(100).unwrap().grow, 1.05);
}

#[test]
fn it_moves_up_while_requests_succeed_and_down_when_they_fail() {
    assert_eq!(after(1000, 0), 120);
    assert_eq!(after(0, 1000), 80);
    assert_eq!(after(500, 500), 80);
}

#[test]
fn between_the_threshold_and_half_as_many_failures_again_it_stays() {
    // So many that nothing is left of the start.
    assert_eq!(after(9500, 500), 120);
    assert_eq!(after(9499, 501), 100);
    assert_eq!(after(9251, 749), 100);
    assert_eq!(after(9249, 751), 80);
}

#[test]
fn with_too_few_samples_it_waits_for_the_rest() {
    let course = Adaptive::new().course(100).unwrap();
    let mut state = State::new(&course, 0);
    assert_eq!(state.ends(&course, ends(19, 0), 2 * INTERVAL), 100);
    assert_eq!(state.ends(&course, ends(0, 0), 3 * INTERVAL), 100);
    assert_eq!(state.ends(&course, ends(1, 0), 3 * INTERVAL), 120);
    // And then for the next interval and the next samples.
    assert_eq!(state.ends(&course, ends(50, 0), 4 * INTERVAL - 1), 120);
    assert_eq!(state.ends(&course, ends(0, 0), 4 * INTERVAL), 144);
    assert_eq!(state.ends(&course, ends(19, 0), 9 * INTERVAL), 144);
}

#[test]
fn factors_that_doubles_do_not_hold_round_as_one_would() {
    let course = Adaptive::new().grow(1.1).unwrap().course(100).unwrap();
    let mut state = State::new(&course, 0);
    assert_eq!(state.ends(&course, ends(99, 0), INTERVAL), 110);
    let course = Adaptive::new().shrink(0.57).unwrap().course(100).unwrap();
    let mut state = State::new(&course, 0);
    assert_eq!(state.ends(&course, ends(0, 99), INTERVAL), 57);
    let course = Adaptive::new()
        .grow(1.0 + 1e-9)
        .unwrap()
        .course(100)
        .unwrap();
    let mut state = State::new(&course, 0);
    assert_eq!(state.ends(&course, ends(99, 0), INTERVAL), 101);
}

#[test]
fn small_steps_up_are_one_at_least() {
    let course = Adaptive::aimd().course(10).unwrap();
    let mut state = State::new(&course, 0);
    let limits: Vec<u64> = (1..=16)
        .map(|at| state.ends(&course, ends(100, 0), at * INTERVAL))
        .collect();
    let up = [
        11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 27, 29, 31,
    ];
    assert_eq!(limits, up);
    assert_eq!(state.ends(&course, ends(0, 100), 17 * INTERVAL), 24);
}

#[test]
fn a_course_that_has_changed_takes_the_limit_along() {
    let wide = Adaptive::new().course(100).unwrap();
    let narrow = Adaptive::new().most(50).unwrap().course(40).unwrap();
    let mut state = State::new(&wide, 0);
    assert_eq!(state.ends(&narrow, ends(1, 0), 1), 50);
}

#[test]
fn a_clock_that_steps_back_stops_it_for_an_interval_at_most() {
    let course = Adaptive::new().course(100).unwrap();
    let mut state = State::new(&course, 1000 * INTERVAL);
    assert_eq!(state.ends(&course, ends(50, 0), 5 * INTERVAL), 100);
    assert_eq!(state.ends(&course, ends(50, 0), 6 * INTERVAL), 120);
    // Who is only late moves nothing, nor puts it off.
    assert_eq!(state.ends(&course, ends(50, 0), 6 * INTERVAL - 1), 120);
    assert_eq!(state.ends(&course, ends(50, 0), 7 * INTERVAL - 1), 120);
    assert_eq!(state.ends(&course, ends(50, 0), 7 * INTERVAL), 144);
}

#[test]
fn seed_11_the_first_interval_counts_and_it_can_go_below_its_start() {
    let course = Adaptive::new().course(100).unwrap();
    let mut state = State::new(&course, 0);
    let mut limit = 100;
    for second in 1..=300 {
        limit = state.ends(&course, ends(0, 10), second * SECOND);
        assert_eq!(limit, if second < 300 { 100 } else { 80 });
    }
    for interval in 2..30 {
        limit = state.ends(&course, ends(0, 100), interval * INTERVAL);
    }
    assert_eq!(limit, course.least);
}

#[test]
fn seed_11_the_average_is_kept_when_it_moves() {
    let course = Adaptive::new().course(100).unwrap();
    let mut state = State::new(&course, 0);
    state.ends(&course, ends(0, 20), INTERVAL);
    assert!((state.average - 0.9_f64.powi(20)).abs() < 1e-12);
}

#[test]
fn seed_12_a_limit_below_five_still_moves() {
    let bounds = |adaptive: Adaptive| adaptive.least(1).unwrap().most(20).unwrap();
    for adaptive in [bounds(Adaptive::new()), bounds(Adaptive::aimd())] {
        for start in 1..5 {
            let course = adaptive.course(start).unwrap();
            let mut state = State::new(&course, 0);
            let up = state.ends(&course, ends(100, 0), INTERVAL);
            assert_eq!(up, start + 1);
            let down = state.ends(&course, ends(0, 100), 2 * INTERVAL);
            assert!(down < up && down >= 1, "{up} to {down}");
        }
    }
}

#[test]
fn courses_that_lead_nowhere_are_errors() {
    let new = Adaptive::new;
    assert_eq!(new().base(0), Err(AdaptiveError::Limit(0)));
    assert_eq!(new().least(0), Err(AdaptiveError::Limit(0)));
    let large = Quota::MOST + 1;
    assert_eq!(new().most(large), Err(AdaptiveError::Limit(large)));
    assert_eq!(new().grow(1.0), Err(AdaptiveError::Grow(1.0)));
    assert!(new().grow(f64::NAN).is_err() && new().grow(f64::INFINITY).is_err());
    assert_eq!(new().shrink(1.0), Err(AdaptiveError::Shrink(1.0)));
    assert!(new().shrink(f64::NAN).is_err() && new().shrink(0.0).is_err());
    let none = AdaptiveError::Interval(Duration::ZERO);
    assert_eq!(new().interval(Duration::ZERO), Err(none));
    assert!(new().interval(Duration::MAX).is_err());
    assert_eq!(new().samples(0), Err(AdaptiveError::NoSamples));
    let order = new().most(99).unwrap().course(100);
    let expected = AdaptiveError::Order {
        least: 10,
        base: 100,
        most: 99,
    };
    assert_eq!(order, Err(expected));
    assert!(new().least(101).unwrap().course(100).is_err());
    assert_eq!(new().base(7).unwrap().course(100).unwrap().base, 7);
    let largest = new().course(Quota::MOST).unwrap();
    assert_eq!(largest.most, Quota::MOST);
}

#[test]
fn only_what_the_service_did_counts() {
    let overload = Verdict::Overload { retry_after: None };
    let bad = [
        Verdict::Failure,
        overload,
        Verdict::TimedOut,
        Verdict::Unsent,
    ];
    assert!(bad.map(Ends::of).iter().all(|&end| end == ends(0, 1)));
    assert_eq!(Ends::of(Verdict::Success), ends(1, 0));
    let refused = Verdict::Refused(Reason::RateLimited);
    let none = [Verdict::CallerFault, Verdict::Canceled, refused];
    assert!(none.map(Ends::of).iter().all(|&end| end == ends(0, 0)));
}

proptest! {
    #[test]
    fn it_moves_once_in_an_interval_between_its_ends(
        base in 1..2000_u64,
        steps in vec((0..INTERVAL / 2, 0..40_u64, 0..40_u64), 1..200),
    ) {
        let course = Adaptive::new().course(base).unwrap();
        let (mut state, mut now, mut moved_at) = (State::new(&course, 0), 0, 0);
        for (later, good, bad) in steps {
            now += later;
            let before = state.limit;
            let limit = state.ends(&course, ends(good, bad), now);
            prop_assert!((course.least..=course.most).contains(&limit));
            if limit != before {
                prop_assert!(now - moved_at >= course.interval);
                moved_at = now;
                let up = limit > before;
                prop_assert_eq!(up, state.average >= course.threshold);
                let most = if up { before.div_ceil(5).max(1) } else { before.div_ceil(5) };
                prop_assert!(limit.abs_diff(before) <= most, "{} to {}", before, limit);
            }
        }
    }

    #[test]
    fn a_batch_weighs_as_its_requests_one_by_one(good in 0..200_u64, bad in 0..200_u64) {
        let course = Adaptive::new().course(100).unwrap();
        let mut batch = State::new(&course, 0);
        batch.ends(&course, ends(good, bad), 0);
        // As if each had been as good as all of them: the batch does not say which came last.
        let share = good as f64 / ((good + bad).max(1)) as f64;
        let mut average = 1.0;
        for _ in 0..good + bad {
            average += course.alpha * (share - average);
        }
        prop_assert!((batch.average - average).abs() < 1e-9);
        prop_assert_eq!(batch.samples, good + bad);
    }
}
