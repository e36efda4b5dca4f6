use std::{collections::VecDeque, time::Duration};

use palisade_core::{classify::Verdict, reject::Reason, time};

use super::{
    Need, Want,
    tests::{ends, fails, fleet, is, only, state},
};
use crate::{
    eject::Ejection,
    slot::{Doubtful, Duty},
    snapshot::{EndpointState, Health},
    strategy::Strategy,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How many of a thousand requests, one each 5 ms, endpoint 0 of four gets. The others answer after 100 ms.
fn gets(strategy: Strategy, takes: Duration, verdict: Verdict) -> u32 {
    let mut now = time::now() + SECOND * 60;
    let mut fleet = fleet(4, now - SECOND * 60);
    fleet.strategy = strategy;
    let mut under_way = VecDeque::new();
    let mut gets = 0;
    for _ in 0..1000 {
        let (thing, ticket) = fleet.pick(now, &Need::default(), |_| Want::Yes).unwrap();
        let bad = thing.number == 0;
        gets += u32::from(bad);
        let (takes, verdict) = if bad {
            (takes, verdict)
        } else {
            (MS * 100, Verdict::Success)
        };
        under_way.push_back((now + takes, ticket, verdict));
        now += MS * 5;
        for _ in 0..under_way.len() {
            let (until, ticket, verdict) = under_way.pop_front().unwrap();
            if until <= now {
                ends(&mut fleet, ticket, verdict, until);
            } else {
                under_way.push_back((until, ticket, verdict));
            }
        }
    }
    gets
}

#[test]
fn who_asks_to_be_left_alone_for_hardly_any_time_does_not_get_one_probe_after_the_other() {
    for asked in [Duration::ZERO, MS] {
        let retry_after = Some(asked);
        let gets = gets(Strategy::Adaptive, MS, Verdict::Overload { retry_after });
        assert!(gets <= 30, "{gets} of 1000 for {asked:?}");
    }
}

#[test]
fn what_lets_nobody_through_to_an_endpoint_attracts_nobody() {
    for strategy in [
        Strategy::Adaptive,
        Strategy::LeastConnections,
        Strategy::LeastResponseTime,
    ] {
        for reason in [Reason::CircuitOpen, Reason::Overloaded, Reason::NoEndpoint] {
            let gets = gets(strategy, Duration::ZERO, Verdict::Refused(reason));
            assert!(gets <= 30, "{gets} of 1000 for {reason:?}");
        }
    }
}

#[test]
fn a_probe_whose_caller_leaves_makes_a_pause_of_ten_times_as_long_and_a_second_at_most() {
    let mut now = time::now();
    let mut fleet = fleet(3, now);
    fails(&mut fleet, 0, 5, now);
    now += SECOND * 2;
    for (waits, pause) in [(MS * 20, MS * 200), (SECOND * 2, SECOND)] {
        let probe = fleet.pick(now, &Need::default(), only(0)).unwrap().1;
        now += waits;
        ends(&mut fleet, probe, Verdict::Canceled, now);
        let until = fleet.pick(now, &Need::default(), only(0)).unwrap_err();
        assert_eq!(until, Some(now + pause));
        now += pause;
    }
    assert!(fleet.pick(now, &Need::default(), only(0)).is_ok());
}

#[test]
fn the_last_one_that_is_left_is_not_ejected_for_what_it_did_among_more() {
    let now = time::now();
    let mut fleet = fleet(3, now);
    fails(&mut fleet, 0, 5, now);
    fleet.remove(is(1));
    assert!(
        fleet.pick(now, &Need::default(), only(0)).is_err(),
        "there is another"
    );
    fleet.remove(is(2));
    let ticket = fleet.pick(now, &Need::default(), only(0)).unwrap().1;
    assert_eq!(ticket.doubtful, Doubtful::No);
    assert_eq!(state(&mut fleet, 0, now), EndpointState::SlowStart);
    ends(&mut fleet, ticket, Verdict::Failure, now);
    assert!(!fails(&mut fleet, 0, 20, now));
}

#[test]
fn rules_that_stay_as_they_are_forget_nothing() {
    let mut now = time::now();
    let mut fleet = fleet(4, now);
    let rules = Ejection::default().consecutive(u32::MAX);
    let mut ejected = false;
    for turn in 0..12 {
        fleet.obey(rules, now);
        let ticket = fleet.pick(now, &Need::default(), only(0)).unwrap().1;
        let verdict = [Verdict::Failure, Verdict::Success][turn % 2];
        ejected |= ends(&mut fleet, ticket, verdict, now);
        now += MS;
        if ejected {
            break;
        }
    }
    assert!(ejected, "half of ten have failed");
}

#[test]
fn two_are_drawn_though_a_heavy_one_is_suspended() {
    let now = time::now() + SECOND * 60;
    let mut fleet = fleet(20, now - SECOND * 60);
    fleet.strategy = Strategy::P2c;
    let heavy = fleet.find(is(0)).unwrap();
    heavy.set_weight(1e6);
    heavy.duty = Duty::Suspended;
    for busy in 2..20 {
        fleet.pick(now, &Need::default(), only(busy)).unwrap();
    }
    let mut idle = 0;
    for _ in 0..20 {
        let (thing, ticket) = fleet.pick(now, &Need::default(), |_| Want::Yes).unwrap();
        idle += u32::from(thing.number == 1);
        ends(&mut fleet, ticket, Verdict::Success, now);
    }
    assert!(
        (1..15).contains(&idle),
        "{idle} of 20: 20 if all are looked at"
    );
}

#[test]
fn when_most_are_unhealthy_an_ejected_one_is_better_than_none() {
    let now = time::now();
    let mut fleet = fleet(4, now);
    fails(&mut fleet, 0, 5, now);
    assert!(fleet.pick(now, &Need::default(), only(0)).is_err());
    for number in 1..4 {
        fleet.set_health(is(number), Health::Unhealthy, now);
    }
    let (thing, ticket) = fleet.pick(now, &Need::default(), |_| Want::Yes).unwrap();
    assert_eq!((thing.number, ticket.doubtful), (0, Doubtful::Yes));
    assert!(
        !ends(&mut fleet, ticket, Verdict::Failure, now),
        "it is out already"
    );
    assert_eq!(state(&mut fleet, 0, now), EndpointState::Ejected);
}
