use super::*;
use crate::size::Usual;

const MS: u64 = 1_000_000;
const PEERS: f64 = 100e6;

const NORM: Norm = Norm {
    latency: PEERS,
    lasts: 0.0,
    streams: 0.0,
    place: 0.0,
};

fn answered(load: &mut Load, size: Size, start: u64, end: u64) {
    let mut attempt = load.start(size, &NORM, start);
    let waited = load.heard(&mut attempt, end);
    load.sample(&attempt, waited, end);
    load.end(&attempt);
}

fn times(size: f64) -> Size {
    let mut usual = Usual::default();
    usual.note(Some(1.0));
    usual.size(Some(size))
}

#[test]
fn an_unknown_endpoint_is_a_little_better_than_its_peers_until_it_is_asked() {
    let mut load = Load::new(0);
    assert_eq!(load.latency(PEERS, 5 * MS), 0.9 * PEERS);
    load.start(Size::ONE, &NORM, 5 * MS);
    assert_eq!(load.latency(PEERS, 5 * MS), PEERS);
}

#[test]
fn nothing_decays_while_somebody_waits() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 500 * MS);
    let mut attempt = load.start(Size::ONE, &NORM, 500 * MS);
    assert_eq!(load.latency(PEERS, 900 * MS), 500e6);
    load.heard(&mut attempt, 60_000 * MS);
    assert_eq!(load.latency(PEERS, 60_000 * MS), 500e6);
}

#[test]
fn a_stream_that_lasts_does_not_keep_an_old_estimate_alive() {
    let mut load = Load::new(0);
    let mut stream = load.start(Size::ONE, &NORM, 0);
    load.heard(&mut stream, MS);
    answered(&mut load, Size::ONE, MS, 151 * MS);
    assert_eq!(load.latency(PEERS, 30_151 * MS), PEERS);
    assert_eq!(load.in_flight(), 1);
}

#[test]
fn an_idle_endpoint_drifts_to_its_peers_from_either_side() {
    for latency in [10 * MS, 180 * MS] {
        let mut load = Load::new(0);
        answered(&mut load, Size::ONE, 0, latency);
        let quarter = load.latency(PEERS, latency + 15_000 * MS);
        assert_eq!(quarter, 0.75 * latency as f64 + 0.25 * PEERS);
        assert_eq!(load.latency(PEERS, latency + 30_000 * MS), PEERS);
        assert_eq!(load.latency(PEERS, latency + 90_000 * MS), PEERS);
    }
}

#[test]
fn who_is_odd_is_as_good_as_its_peers_after_fifty_seconds_and_not_before() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 1_000 * MS);
    assert_eq!(load.latency(PEERS, 50_999 * MS), 1000e6);
    assert!(!load.is_overdue(50_999 * MS));
    assert_eq!(load.latency(PEERS, 51_001 * MS), PEERS);
    assert!(load.is_overdue(51_001 * MS));
}

#[test]
fn who_was_slow_gets_one_request_at_a_time_and_is_back_after_four_good_answers() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 1_000 * MS);
    for (look, start) in [51_000, 51_050, 51_100, 51_150].into_iter().enumerate() {
        let mut attempt = load.start(Size::ONE, &NORM, start * MS);
        let price = load.latency(PEERS, start * MS);
        assert_eq!(price, 1000e6, "nobody follows {look}");
        assert!(!load.is_due());
        let end = (start + 50) * MS;
        let waited = load.heard(&mut attempt, end);
        load.sample(&attempt, waited, end);
        load.end(&attempt);
        assert_eq!(load.is_due(), look < 3, "{look}");
    }
    assert_eq!(load.estimate(), Some(PEERS), "no better than they are");
}

#[test]
fn one_answer_that_is_late_ends_a_row_of_looks_and_changes_little() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 1_000 * MS);
    answered(&mut load, Size::ONE, 51_000 * MS, 51_050 * MS);
    assert!(load.is_due());
    answered(&mut load, Size::ONE, 51_050 * MS, 51_450 * MS);
    assert!(!load.is_due());
    let estimate = load.estimate().unwrap();
    // The memory of what is odd is 5 s, and nothing was new for 0.4 s.
    assert!((900e6..1000e6).contains(&estimate), "{estimate}");
    // The row begins anew.
    for start in [110_000, 110_100, 110_200] {
        answered(&mut load, Size::ONE, start * MS, (start + 50) * MS);
        assert!(load.is_due(), "{start}");
    }
    answered(&mut load, Size::ONE, 110_300 * MS, 110_350 * MS);
    assert_eq!(load.estimate(), Some(PEERS));
}

#[test]
fn a_look_weighs_three_tenths_however_long_ago_the_last_was() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 1_000 * MS);
    answered(&mut load, Size::ONE, 600_000 * MS, 600_300 * MS);
    assert_eq!(load.estimate(), Some(790e6));
}

#[test]
fn where_answers_stream_one_that_has_not_begun_says_that_no_place_is_free() {
    let mut load = Load::new(0);
    let streams = Norm {
        streams: 0.5,
        ..NORM
    };
    let mut first = load.start(Size::ONE, &streams, 0);
    load.start(Size::ONE, &streams, 0);
    assert_eq!(load.queue(), 2.0 + 2.0 * 3.0);
    load.heard(&mut first, MS);
    assert_eq!(load.queue(), 2.0 + 3.0);
    load.end(&first);
    assert_eq!(load.queue(), 1.0 + 3.0);
}

#[test]
fn who_was_not_asked_for_twice_the_time_is_as_if_it_were_new() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 150 * MS);
    for (start, known) in [(60_149, true), (120_149, true), (180_151, false)] {
        let mut attempt = load.start(Size::ONE, &NORM, start * MS);
        assert_eq!(load.estimate().is_some(), known, "{start}");
        load.heard(&mut attempt, (start + 1) * MS);
    }
}

#[test]
fn penalties_are_forgotten_sooner_than_latencies() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    load.penalise(2100e6, 100 * MS);
    assert_eq!(load.latency(PEERS, 100 * MS), 600e6);
    assert_eq!(load.latency(PEERS, 5_100 * MS), 350e6);
    assert_eq!(load.latency(PEERS, 10_100 * MS), 100e6);
}

#[test]
fn never_better_than_a_part_of_the_age_of_the_oldest_that_is_unanswered() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, MS);
    let mut first = load.start(Size::ONE, &NORM, 10 * MS);
    load.start(Size::ONE, &NORM, 20 * MS);
    assert_eq!(load.latency(PEERS, 200 * MS), 57e6);
    load.heard(&mut first, 200 * MS);
    assert_eq!(load.latency(PEERS, 200 * MS), 54e6, "of the other one");
}

#[test]
fn a_failure_that_comes_at_once_still_weighs() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    load.penalise(2e9, 100 * MS);
    assert_eq!(load.estimate(), Some(100e6 + 0.25 * 1900e6));
    load.forgive(100 * MS);
    assert_eq!(load.estimate(), Some(100e6));
}

#[test]
fn who_left_early_says_nothing_and_who_left_late_does() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    let attempt = load.start(Size::ONE, &NORM, 100 * MS);
    load.censored(&attempt, 50e6, 20_000 * MS);
    assert_eq!(load.estimate(), Some(100e6));
    load.censored(&attempt, 400e6, 20_000 * MS);
    assert!(load.estimate() > Some(200e6), "{load:?}");
    // Nobody knows how long it would have taken.
    assert_eq!(load.typical(), Some(100e6));
}

#[test]
fn one_that_nobody_has_heard_of_is_known_by_who_left_late_and_not_by_who_left_at_once() {
    let mut load = Load::new(0);
    let attempt = load.start(Size::ONE, &NORM, 0);
    for waited in [0.0, 1e6, PEERS] {
        load.censored(&attempt, waited, 1_000 * MS);
        assert_eq!(load.estimate(), None, "{waited}");
    }
    load.censored(&attempt, 2e9, 2_000 * MS);
    assert_eq!(load.estimate(), Some(2e9));
    assert_eq!(load.typical(), None);
}

#[test]
fn what_takes_long_because_it_is_much_makes_nobody_slow() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    answered(&mut load, times(20.0), 100 * MS, 2_100 * MS);
    answered(&mut load, times(0.5), 2_100 * MS, 2_150 * MS);
    let estimate = load.estimate().unwrap();
    assert!((estimate - 100e6).abs() < 1.0, "{estimate}");
}

#[test]
fn a_small_request_that_waits_says_little() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    answered(&mut load, times(0.01), 10_000 * MS, 10_100 * MS);
    // Alone it would be a hundred times as slow; a tenth of what is remembered is new.
    let estimate = load.estimate().unwrap();
    assert!((105e6..120e6).contains(&estimate), "{estimate}");
}

#[test]
fn the_time_to_the_beginning_of_a_stream_is_not_divided() {
    let mut load = Load::new(0);
    let streams = Norm {
        streams: 1.0,
        ..NORM
    };
    for (size, start) in [(0.01, 0), (100.0, 1_000 * MS), (1.0, 2_000 * MS)] {
        let mut attempt = load.start(times(size), &streams, start);
        let waited = load.heard(&mut attempt, start + 100 * MS);
        load.sample(&attempt, waited, start + 100 * MS);
    }
    assert_eq!(load.estimate(), Some(100e6));
}

#[test]
fn what_lasts_long_is_remembered_for_longer() {
    let long = Norm {
        lasts: 10e9,
        ..NORM
    };
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 150 * MS);
    let mut attempt = load.start(Size::ONE, &long, 150 * MS);
    load.heard(&mut attempt, 150 * MS);
    assert_eq!(load.latency(PEERS, 30_150 * MS), 149.5e6);
    assert!(!load.is_overdue(600_149 * MS));
    assert!(load.is_overdue(600_151 * MS));
    let mut odd = Load::new(0);
    answered(&mut odd, Size::ONE, 0, 500 * MS);
    odd.start(Size::ONE, &long, 500 * MS);
    let mut attempt = odd.start(Size::ONE, &long, 500 * MS);
    odd.heard(&mut attempt, 50_500 * MS);
    odd.sample(&attempt, 1_500e6, 50_500 * MS);
    let estimate = odd.estimate().unwrap();
    assert_eq!(estimate, 1000e6, "half of it after 50 s: it is odd");
}

#[test]
fn one_answer_does_not_price_out_who_was_like_its_peers() {
    let mut load = Load::new(0);
    answered(&mut load, Size::ONE, 0, 100 * MS);
    answered(&mut load, Size::ONE, 60_000 * MS, 61_000 * MS);
    assert_eq!(load.estimate(), Some(190e6));
}

#[test]
fn work_in_flight_counts_a_little_by_size_and_ends_at_zero() {
    let mut load = Load::new(0);
    let first = load.start(times(11.0), &NORM, 0);
    let second = load.start(Size::ONE, &NORM, 0);
    assert_eq!((load.queue(), load.in_flight()), (3.0, 2));
    load.end(&first);
    load.end(&second);
    assert_eq!((load.queue(), load.in_flight()), (0.0, 0));
}
