use std::sync::Arc;

use palisade_core::{classify::Verdict, gate::Outlook, settle::End, time};
use proptest::{prelude::*, strategy::Strategy as _};
use tokio::time::{Duration, Instant};

use super::{Fleet, Item, Need, Want};
use crate::{
    coin::Coin,
    eject::Ejection,
    slot::{Doubtful, Duty, Slot, Ticket},
    snapshot::Health,
    strategy::Strategy,
};

const SECOND: Duration = Duration::from_secs(1);

/// An endpoint that is only a number.
#[derive(Debug)]
struct Number(usize);

impl Item for Number {
    fn is_gated(&self) -> bool {
        false
    }

    fn outlook(&self, _: Instant) -> Outlook {
        Outlook::Admits
    }

    fn hash(&self) -> u64 {
        self.0 as u64
    }
}

fn is(number: usize) -> impl Fn(&Number) -> bool {
    move |one| one.0 == number
}

/// Endpoints of these zones and priorities, seen from zone a.
fn fleet(places: &[(&str, u32)], now: Instant) -> Fleet<Number> {
    let mut fleet = Fleet::new(now, Coin::seeded(1));
    fleet.set_zone(Some(Arc::from("a")));
    for (number, (zone, priority)) in places.iter().enumerate() {
        let slot = fleet.insert(Number(number), 1.0, u32::MAX, now);
        slot.zone = (!zone.is_empty()).then(|| Arc::from(*zone));
        slot.priority = *priority;
    }
    fleet
}

fn pick(fleet: &mut Fleet<Number>, now: Instant) -> (usize, Ticket) {
    let (number, ticket) = fleet.pick(now, &Need::default(), |_| Want::Yes).unwrap();
    (number.0, ticket)
}

fn end(fleet: &mut Fleet<Number>, mut ticket: Ticket, verdict: Verdict, now: Instant) {
    fleet.settle(&mut ticket, &End::new(verdict), now);
    fleet.end(&mut ticket, now);
}

/// Which part of so many requests each endpoint gets that are over at once.
fn shares(fleet: &mut Fleet<Number>, number: usize, requests: u32, now: Instant) -> Vec<f64> {
    let mut counts = vec![0u32; number];
    for _ in 0..requests {
        let (at, ticket) = pick(fleet, now);
        counts[at] += 1;
        end(fleet, ticket, Verdict::Success, now);
    }
    let share = |count| f64::from(count) / f64::from(requests);
    counts.into_iter().map(share).collect()
}

fn unhealthy(fleet: &mut Fleet<Number>, numbers: impl IntoIterator<Item = usize>, now: Instant) {
    for number in numbers {
        fleet.set_health(is(number), Health::Unhealthy, now);
    }
}

fn level_of(fleet: &mut Fleet<Number>, number: usize, now: Instant) -> u32 {
    let mut states = fleet.states(now);
    states
        .find(|(slot, ..)| slot.item.0 == number)
        .unwrap()
        .0
        .level
}

fn near(share: f64, expected: f64) -> bool {
    (share - expected).abs() < 0.01
}

#[test]
fn near_comes_before_far_and_a_priority_before_the_next() {
    let now = time::now();
    let places = [
        ("b", 1),
        ("", 1),
        ("b", 0),
        ("a", 0),
        ("a", 1),
        ("", 0),
        ("c", 7),
    ];
    let mut fleet = fleet(&places, now);
    let levels: Vec<_> = (0..7)
        .map(|number| level_of(&mut fleet, number, now))
        .collect();
    assert_eq!(levels, [3, 2, 1, 0, 2, 0, 4]);
    fleet.set_zone(None);
    let levels: Vec<_> = (0..7)
        .map(|number| level_of(&mut fleet, number, now))
        .collect();
    assert_eq!(levels, [1, 1, 0, 0, 1, 0, 2], "all are near");
    for number in 0..7 {
        fleet.place(is(number), |slot| slot.priority = 9);
        assert!(level_of(&mut fleet, number, now) > 0 || number == 6);
    }
    assert!(fleet.levels.is_single());
}

#[test]
fn a_level_carries_all_until_less_than_71_percent_of_it_is_able() {
    let now = time::now();
    let mut places = vec![("a", 0); 10];
    places.extend([("b", 0); 10]);
    let mut fleet = fleet(&places, now);
    // As in the table of Envoy's documentation, by tenths.
    for (out, local) in [
        (0, 1.0),
        (2, 1.0),
        (3, 0.98),
        (5, 0.7),
        (7, 0.42),
        (10, 0.0),
    ] {
        unhealthy(&mut fleet, 0..out, now);
        let shares = shares(&mut fleet, 20, 1000, now);
        let sum: f64 = shares[..10].iter().sum();
        assert!(near(sum, local), "{out} out: {sum}");
    }
    for number in 0..3 {
        fleet.set_health(is(number), Health::Healthy, now);
    }
    let some = shares(&mut fleet, 20, 1000, now);
    assert!(near(some[..3].iter().sum(), 0.42));
    for number in 3..8 {
        fleet.set_health(is(number), Health::Healthy, now);
    }
    let back = shares(&mut fleet, 20, 1000, now);
    assert_eq!(back[10..], [0.0; 10], "the spill ends at once");
}

#[test]
fn short_levels_share_by_what_they_have() {
    let now = time::now();
    let mut places = vec![("a", 0); 4];
    places.extend([("a", 1); 4]);
    let mut fleet = fleet(&places, now);
    unhealthy(&mut fleet, [0, 1, 2, 4, 5, 6], now);
    // 35 % each.
    let shares = shares(&mut fleet, 8, 1000, now);
    assert!(near(shares[3], 0.5) && near(shares[7], 0.5), "{shares:?}");
}

#[test]
fn health_counts_by_weight() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("a", 0), ("b", 0)], now);
    fleet.find(is(0)).unwrap().set_weight(9.0);
    unhealthy(&mut fleet, [1], now);
    assert_eq!(shares(&mut fleet, 3, 100, now), [1.0, 0.0, 0.0]);
    fleet.set_health(is(1), Health::Healthy, now);
    unhealthy(&mut fleet, [0], now);
    let shares = shares(&mut fleet, 3, 1000, now);
    assert!(near(shares[1], 0.14) && near(shares[2], 0.86), "{shares:?}");
}

#[test]
fn a_full_level_sends_on_what_it_cannot_take_and_nobody_waits() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("b", 0), ("b", 3)], now);
    for number in 0..3 {
        fleet.find(is(number)).unwrap().max_in_flight = 2;
    }
    let mut tickets = Vec::new();
    let mut order = Vec::new();
    for _ in 0..6 {
        let (number, ticket) = pick(&mut fleet, now);
        order.push(number);
        tickets.push(ticket);
    }
    assert_eq!(order, [0, 0, 1, 1, 2, 2]);
    assert!(fleet.pick(now, &Need::default(), |_| Want::Yes).is_err());
    end(&mut fleet, tickets.swap_remove(0), Verdict::Success, now);
    assert_eq!(pick(&mut fleet, now).0, 0);
}

#[test]
fn what_a_request_has_tried_comes_after_what_is_farther() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("b", 0), ("c", 1)], now);
    let tried = |numbers: &'static [usize]| {
        move |one: &Number| {
            if numbers.contains(&one.0) {
                Want::Last
            } else {
                Want::Yes
            }
        }
    };
    let mut first = |numbers| {
        let (one, ticket) = fleet.pick(now, &Need::default(), tried(numbers)).unwrap();
        let number = one.0;
        end(&mut fleet, ticket, Verdict::Success, now);
        number
    };
    assert_eq!([first(&[0]), first(&[0, 1])], [1, 2]);
    assert!(first(&[0, 1, 2]) < 3);
}

#[test]
fn a_near_endpoint_that_is_due_is_probed_though_all_goes_to_a_farther_level() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("b", 0), ("b", 0), ("b", 0)], now);
    for _ in 0..5 {
        let (number, ticket) = pick(&mut fleet, now);
        assert_eq!(number, 0);
        end(&mut fleet, ticket, Verdict::Failure, now);
    }
    let (elsewhere, ticket) = pick(&mut fleet, now);
    assert!(elsewhere > 0);
    end(&mut fleet, ticket, Verdict::Success, now);
    let later = now + SECOND * 2;
    let (number, probe) = pick(&mut fleet, later);
    assert_eq!((number, probe.doubtful), (0, Doubtful::No));
    assert!(pick(&mut fleet, later).0 > 0, "one at a time");
    end(&mut fleet, probe, Verdict::Success, later);
    assert_eq!(pick(&mut fleet, later).0, 0);
}

#[test]
fn a_far_endpoint_that_is_due_waits_until_somebody_comes_there() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("b", 0), ("b", 0)], now);
    let only_far = |one: &Number| if one.0 == 1 { Want::Yes } else { Want::No };
    for _ in 0..5 {
        let ticket = fleet.pick(now, &Need::default(), only_far).unwrap().1;
        end(&mut fleet, ticket, Verdict::Failure, now);
    }
    let later = now + SECOND * 2;
    assert_eq!(shares(&mut fleet, 3, 100, later), [1.0, 0.0, 0.0]);
    unhealthy(&mut fleet, [0], later);
    assert_eq!(pick(&mut fleet, later).0, 1);
}

#[test]
fn what_belongs_together_stays_on_its_level() {
    let now = time::now();
    let mut places = vec![("a", 0); 4];
    places.extend([("b", 0); 4]);
    let mut fleet = fleet(&places, now);
    fleet.strategy = Strategy::ConsistentHash;
    unhealthy(&mut fleet, 0..2, now);
    let mut local = 0;
    for key in 0..500u64 {
        let need = Need {
            affinity: Some(key.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            ..Need::default()
        };
        let mut level = || {
            let (one, ticket) = fleet.pick(now, &need, |_| Want::Yes).unwrap();
            let far = one.0 >= 4;
            end(&mut fleet, ticket, Verdict::Success, now);
            far
        };
        let far = level();
        assert!((0..5).all(|_| level() == far));
        local += u32::from(!far);
    }
    assert!((300..400).contains(&local), "{local} of 500, for 70 %");
}

#[test]
fn a_large_fleet_prefers_near_ones_and_hears_within_ten_milliseconds_that_they_are_out() {
    let now = time::now();
    let mut places = vec![("b", 0); 200];
    places.extend([("a", 0); 200]);
    let mut fleet = fleet(&places, now);
    let local = |fleet: &mut Fleet<Number>, now| {
        let shares = shares(fleet, 400, 2000, now);
        shares[200..].iter().sum::<f64>()
    };
    assert!(near(local(&mut fleet, now), 1.0));
    unhealthy(&mut fleet, 200..300, now);
    let later = now + Duration::from_millis(10);
    assert!(near(local(&mut fleet, later), 0.7));
    unhealthy(&mut fleet, 300..400, later);
    assert_eq!(
        local(&mut fleet, later),
        0.0,
        "before it is counted again, too"
    );
}

#[test]
fn endpoints_that_leave_and_slots_that_are_used_again_keep_no_place_on_a_level() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 0), ("b", 0)], now);
    let (_, held) = pick(&mut fleet, now);
    fleet.remove(is(0));
    assert_eq!(pick(&mut fleet, now).0, 1, "it leaves");
    assert!(fleet.levels.is_single(), "who leaves makes no level");
    end(&mut fleet, held, Verdict::Success, now);
    let slot: &mut Slot<Number> = fleet.insert(Number(2), 1.0, u32::MAX, now);
    slot.zone = Some(Arc::from("c"));
    slot.priority = 5;
    for _ in 0..10 {
        assert_eq!(pick(&mut fleet, now).0, 1);
    }
    fleet.remove(is(1));
    assert_eq!(pick(&mut fleet, now).0, 2);
}

#[derive(Clone, Debug)]
struct Place {
    near: bool,
    priority: u32,
    weight: f64,
    state: u8,
}

fn place() -> impl proptest::strategy::Strategy<Value = Place> {
    (any::<bool>(), 0..3u32, 1..9u32, 0..3u8).prop_map(|(near, priority, weight, state)| Place {
        near,
        priority,
        weight: f64::from(weight),
        state,
    })
}

/// The rule, in the words of its documentation.
fn rule(places: &[Place]) -> Vec<((u32, bool), f64)> {
    let mut keys: Vec<_> = places
        .iter()
        .map(|place| (place.priority, !place.near))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let health = |key| {
        let of = |place: &&Place| (place.priority, !place.near) == key;
        let all: f64 = places.iter().filter(of).map(|place| place.weight).sum();
        let able = places.iter().filter(of).filter(|place| place.state == 0);
        (able.map(|place| place.weight).sum::<f64>() / all * 1.4).min(1.0)
    };
    let total: f64 = keys.iter().map(|&key| health(key)).sum();
    let mut left = 1.0;
    let share = |key| {
        let mine = f64::min(
            if total < 1.0 {
                health(key) / total
            } else {
                health(key)
            },
            left,
        );
        left -= mine;
        (key, mine)
    };
    keys.clone().into_iter().map(share).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_healths_each_level_gets_what_the_rule_says_and_nothing_is_lost(
        places in prop::collection::vec(place(), 1..30),
        most in prop_oneof![Just(u32::MAX), 1..4u32],
    ) {
        let now = time::now();
        let mut fleet: Fleet<Number> = Fleet::new(now, Coin::seeded(3));
        fleet.set_zone(Some(Arc::from("a")));
        for (number, place) in places.iter().enumerate() {
            let slot = fleet.insert(Number(number), place.weight, most, now);
            slot.zone = Some(Arc::from(if place.near { "a" } else { "b" }));
            slot.priority = place.priority;
            match place.state {
                0 => {}
                1 => slot.health = Health::Unhealthy,
                _ => slot.duty = Duty::Suspended,
            }
        }
        let able = places.iter().filter(|place| place.state == 0).count();
        if able == 0 {
            prop_assert!(fleet.pick(now, &Need::default(), |_| Want::Yes).is_err());
            return Ok(());
        }
        let shares = shares(&mut fleet, places.len(), 500, now);
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (key, expected) in rule(&places) {
            let of = |(place, share): (&Place, &f64)| ((place.priority, !place.near) == key).then_some(*share);
            let share: f64 = places.iter().zip(&shares).filter_map(of).sum();
            prop_assert!((share - expected).abs() < 0.02, "{:?} {} {}", key, share, expected);
        }
        // Whatever the levels, there is a place for as many as there are places.
        if most != u32::MAX {
            let mut tickets = Vec::new();
            for _ in 0..able as u32 * most {
                tickets.push(pick(&mut fleet, now).1);
            }
            prop_assert!(fleet.pick(now, &Need::default(), |_| Want::Yes).is_err());
            for ticket in tickets {
                end(&mut fleet, ticket, Verdict::Success, now);
            }
        }
    }
}

#[test]
fn a_single_level_is_not_drawn() {
    let now = time::now();
    let mut fleet = fleet(&[("a", 3), ("", 3), ("a", 3)], now);
    fleet.obey(Ejection::off(), now);
    shares(&mut fleet, 3, 10, now);
    assert!(fleet.levels.is_single());
}
