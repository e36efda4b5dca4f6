//! What strategies do with all that a fleet knows: costs, affinities, reports, and nobody left out.

use std::{collections::HashMap, time::Duration};

use palisade_core::{classify::Verdict, gate::Outlook, settle::End, time};
use proptest::{prelude::*, sample::Index, strategy::Strategy as _};
use tokio::time::Instant;

use super::{Fleet, Item, Need, Want};
use crate::{
    LoadReport,
    coin::{Coin, mix},
    slot::Ticket,
    strategy::Strategy,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Number(usize);

impl Item for Number {
    fn is_gated(&self) -> bool {
        false
    }

    fn hash(&self) -> u64 {
        mix(self.0 as u64 + 1)
    }

    fn outlook(&self, _: Instant) -> Outlook {
        Outlook::Admits
    }
}

fn fleet(strategy: Strategy, weights: &[f64], most: u32, now: Instant) -> Fleet<Number> {
    let mut fleet = Fleet::new(now, Coin::seeded(1));
    fleet.strategy = strategy;
    for (number, &weight) in weights.iter().enumerate() {
        fleet.insert(Number(number), weight, most, now);
    }
    fleet
}

/// Past the slow start.
fn settled() -> Instant {
    time::now() + SECOND * 60
}

fn any_of(_: &Number) -> Want {
    Want::Yes
}

fn succeeds(fleet: &mut Fleet<Number>, mut ticket: Ticket, now: Instant) {
    fleet.settle(&mut ticket, &End::new(Verdict::Success), now);
    fleet.end(&mut ticket, now);
}

fn shares(fleet: &mut Fleet<Number>, requests: u32, now: Instant) -> Vec<u32> {
    let mut shares = vec![0; fleet.slots().count()];
    for _ in 0..requests {
        let (one, ticket) = fleet.pick(now, &Need::default(), any_of).unwrap();
        shares[one.0] += 1;
        succeeds(fleet, ticket, now);
    }
    shares
}

fn told(in_flight: u32) -> LoadReport {
    LoadReport {
        in_flight: Some(in_flight),
        ..LoadReport::default()
    }
}

#[test]
fn strategies_by_turn_and_by_chance_keep_to_weights_or_ignore_them() {
    let now = settled();
    for number in [4, 100] {
        let weights: Vec<_> = (0..number).map(|at| f64::from(1 + at % 4)).collect();
        let unit = 10_000.0 / weights.iter().sum::<f64>();
        let counted = |strategy| {
            shares(
                &mut fleet(strategy, &weights, u32::MAX, now - SECOND * 60),
                10_000,
                now,
            )
        };
        let even = counted(Strategy::RoundRobin);
        assert!(
            even.iter().all(|&share| share == 10_000 / number),
            "{even:?}"
        );
        for (share, weight) in counted(Strategy::WeightedRoundRobin).iter().zip(&weights) {
            assert!((f64::from(*share) - unit * weight).abs() <= 1.0, "{share}");
        }
        for (share, weight) in counted(Strategy::Random).iter().zip(&weights) {
            let (share, fair) = (f64::from(*share), unit * weight);
            assert!((share - fair).abs() < 5.0 * fair.sqrt(), "{share} {fair}");
        }
    }
}

#[test]
fn who_gets_a_larger_share_does_not_wait_for_the_end_of_the_turn_that_it_had() {
    let now = settled();
    let mut fleet = fleet(Strategy::WeightedRoundRobin, &[0.001, 2.0], u32::MAX, now);
    assert_eq!(shares(&mut fleet, 2, now), [1, 1]);
    fleet.find(|number| number.0 == 0).unwrap().set_weight(1.0);
    assert_eq!(shares(&mut fleet, 30, now), [10, 20]);
    fleet.find(|number| number.0 == 0).unwrap().set_weight(2.0);
    fleet.strategy = Strategy::RoundRobin;
    shares(&mut fleet, 4, now);
    fleet.strategy = Strategy::WeightedRoundRobin;
    assert_eq!(shares(&mut fleet, 20, now), [10, 10]);
}

#[test]
fn of_two_that_are_drawn_the_one_with_fewer_in_flight_is_taken() {
    let now = settled();
    let mut fleet = fleet(Strategy::P2c, &[1.0; 10], u32::MAX, now - SECOND * 60);
    let mut in_flight = [0; 10];
    for _ in 0..1000 {
        let (one, _ticket) = fleet.pick(now, &Need::default(), any_of).unwrap();
        in_flight[one.0] += 1;
    }
    // By chance alone the most would have some twenty more than the fewest.
    let (least, most) = (
        in_flight.iter().min().unwrap(),
        in_flight.iter().max().unwrap(),
    );
    assert!(most - least <= 8, "{in_flight:?}");
    assert!(most - least >= 1, "two of ten, not all: {in_flight:?}");
}

#[test]
fn draws_go_by_weight_and_fall_back_on_all_when_both_are_out() {
    let now = settled();
    let mut weighted = fleet(
        Strategy::P2c,
        &[6.0, 1.0, 1.0, 1.0, 1.0],
        u32::MAX,
        now - SECOND * 60,
    );
    let mut in_flight = [0; 5];
    for _ in 0..1000 {
        let (one, _ticket) = weighted.pick(now, &Need::default(), any_of).unwrap();
        in_flight[one.0] += 1;
    }
    assert!((560..640).contains(&in_flight[0]), "{in_flight:?}");
    let mut full = fleet(Strategy::P2c, &[1.0; 100], 1, now - SECOND * 60);
    let mut seen = [false; 100];
    for _ in 0..100 {
        let (one, _ticket) = full.pick(now, &Need::default(), any_of).unwrap();
        assert!(!std::mem::replace(&mut seen[one.0], true));
    }
    assert!(full.pick(now, &Need::default(), any_of).is_err());
}

#[test]
fn a_popular_affinity_spills_over_and_others_stay_at_home() {
    let now = settled();
    let mut fleet = fleet(
        Strategy::ConsistentHash,
        &[1.0; 5],
        u32::MAX,
        now - SECOND * 60,
    );
    let need = |affinity| Need {
        affinity: Some(affinity),
        ..Need::default()
    };
    let homes: Vec<_> = (0..50)
        .map(|affinity| {
            let (one, ticket) = fleet.pick(now, &need(affinity), any_of).unwrap();
            let home = one.0;
            succeeds(&mut fleet, ticket, now);
            home
        })
        .collect();
    let mut in_flight = [0; 5];
    for sent in 1..=200u32 {
        let (one, _ticket) = fleet.pick(now, &need(7), any_of).unwrap();
        in_flight[one.0] += 1;
        let bound = (1.25 * f64::from(sent) / 5.0).ceil() as u32;
        assert!(
            in_flight.iter().all(|&there| there <= bound),
            "{in_flight:?}"
        );
    }
    assert_eq!(in_flight[homes[7]], *in_flight.iter().max().unwrap());
    let emptiest = in_flight
        .iter()
        .position(|there| there == in_flight.iter().min().unwrap());
    for affinity in (0..50).filter(|&affinity| Some(homes[affinity as usize]) == emptiest) {
        let (one, ticket) = fleet.pick(now, &need(affinity), any_of).unwrap();
        assert_eq!(Some(one.0), emptiest);
        succeeds(&mut fleet, ticket, now);
    }
}

#[test]
fn an_affinity_has_the_same_home_in_all_gateways_and_when_it_comes_back() {
    let now = settled();
    let need = Need {
        affinity: Some(99),
        ..Need::default()
    };
    let home = |weights: &[f64], unwanted: Option<usize>| {
        let mut fleet = fleet(
            Strategy::ConsistentHash,
            weights,
            u32::MAX,
            now - SECOND * 60,
        );
        let want = |one: &Number| match unwanted {
            Some(other) if other == one.0 => Want::No,
            _ => Want::Yes,
        };
        fleet.pick(now, &need, want).unwrap().0.0
    };
    let first = home(&[1.0; 200], None);
    assert_eq!(first, home(&[1.0; 200], None));
    let second = home(&[1.0; 200], Some(first));
    assert_ne!(first, second);
    assert_eq!(second, home(&[1.0; 200], Some(first)));
}

#[test]
fn probes_lead_to_the_fastest_that_is_cold_and_without_probes_the_rest_decides() {
    let now = settled();
    let mut fleet = fleet(Strategy::Prequal, &[1.0; 5], u32::MAX, now - SECOND * 60);
    let pick = |fleet: &mut Fleet<Number>, now| {
        let (one, ticket) = fleet.pick(now, &Need::default(), any_of).unwrap();
        let number = one.0;
        succeeds(fleet, ticket, now);
        number
    };
    let seen: std::collections::HashSet<_> = (0..5).map(|_| pick(&mut fleet, now)).collect();
    assert_eq!(seen.len(), 5, "as adaptive");
    for (number, in_flight, latency) in [(0, 4, 50), (1, 4, 30), (2, 9, 1), (3, 0, 80)] {
        let report = LoadReport {
            latency: Some(MS * latency),
            ..told(in_flight)
        };
        fleet.report(|one| one.0 == number, &report, now);
    }
    // Four uses each; the sent ones count until it is hotter than the others.
    let taken: Vec<_> = (0..4).map(|_| pick(&mut fleet, now)).collect();
    assert_eq!(taken, [1, 1, 1, 1]);
    assert_eq!(pick(&mut fleet, now), 0);
    let later = now + SECOND * 6;
    let seen: std::collections::HashSet<_> = (0..5).map(|_| pick(&mut fleet, later)).collect();
    assert_eq!(seen.len(), 5, "as adaptive, they are old");
}

/// Each endpoint takes so long; one request comes each 100 ms.
struct Traffic {
    fleet: Fleet<Number>,
    now: Instant,
    takes: Vec<Duration>,
    running: Vec<(Instant, usize, Ticket)>,
}

impl Traffic {
    fn new(strategy: Strategy, takes: Vec<Duration>) -> Self {
        let now = time::now();
        Self {
            fleet: fleet(strategy, &vec![1.0; takes.len()], u32::MAX, now),
            now,
            takes,
            running: Vec::new(),
        }
    }

    /// Who gets the next; `reports` is what endpoints say when they answer.
    fn step(&mut self, reports: impl Fn(usize) -> Option<LoadReport>) -> usize {
        self.now += MS * 100;
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].0 > self.now {
                at += 1;
                continue;
            }
            let (_, number, ticket) = self.running.swap_remove(at);
            if let Some(report) = reports(number) {
                self.fleet.report_of(&ticket, &report, self.now);
            }
            succeeds(&mut self.fleet, ticket, self.now);
        }
        let (one, ticket) = self.fleet.pick(self.now, &Need::default(), any_of).unwrap();
        let number = one.0;
        self.running
            .push((self.now + self.takes[number], number, ticket));
        number
    }
}

/// Two times as long as is remembered, or a hundred turns of the peers; and one more request for each that is due.
const T: Duration = Duration::from_secs(70);

#[test]
fn an_endpoint_that_says_it_is_full_is_not_left_alone_and_one_that_says_it_is_empty_does_not_get_all()
 {
    for lie in [0, u32::MAX] {
        let mut traffic = Traffic::new(Strategy::Adaptive, vec![MS * 300; 4]);
        let mut last = traffic.now;
        let mut liar = 0;
        for _ in 0..6000 {
            let number = traffic.step(|number| Some(told(if number == 0 { lie } else { 5 })));
            if number == 0 {
                liar += 1;
                last = traffic.now;
            }
            assert!(traffic.now - last <= T, "{lie}");
        }
        assert!(liar < 3000, "{lie} {liar}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_starves(takes in prop::collection::vec(1..3000u64, 2..7), switches in prop::collection::vec((any::<Index>(), 0..3000usize), 0..3)) {
        let takes: Vec<_> = takes.into_iter().map(Duration::from_millis).collect();
        let mut traffic = Traffic::new(Strategy::Adaptive, takes.clone());
        let mut last = vec![traffic.now; takes.len()];
        for step in 0..3000 {
            for (which, at) in &switches {
                if *at == step {
                    traffic.fleet.strategy = *which.get(&Strategy::ALL);
                }
            }
            let number = traffic.step(|number| (number % 2 == 0).then(|| told(number as u32)));
            last[number] = traffic.now;
            // Answers that last longer are remembered for longer.
            let bound = T.max(takes.iter().max().copied().unwrap_or_default() * 70);
            for last in &last {
                prop_assert!(traffic.now - *last <= bound, "{:?} {:?}", traffic.fleet.strategy, takes);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pick {
        affinity: Option<u64>,
        cost: Option<f64>,
        unwanted: u8,
    },
    FirstData(Index),
    End(Index, u8),
    Report(Index, LoadReport),
    Weight(Index, f64),
    Strategy(Index),
    Wait(u32),
}

fn odd() -> impl proptest::strategy::Strategy<Value = f64> {
    prop_oneof![
        4 => 1.0..10_000.0f64,
        1 => any::<f64>(),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, 0.0, f64::MAX, f64::MIN_POSITIVE]),
    ]
}

fn report() -> impl proptest::strategy::Strategy<Value = LoadReport> {
    let latency = prop::option::of(any::<u64>().prop_map(Duration::from_nanos));
    (
        prop::option::of(any::<u32>()),
        prop::option::of(odd()),
        latency,
        prop::option::of(odd()),
    )
        .prop_map(|(in_flight, utilization, latency, errors)| LoadReport {
            in_flight,
            utilization,
            latency,
            errors,
        })
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        12 => (prop::option::of(0..5u64), prop::option::of(odd()), 0..6u8)
            .prop_map(|(affinity, cost, unwanted)| Step::Pick { affinity, cost, unwanted }),
        3 => at().prop_map(Step::FirstData),
        9 => (at(), 0..5u8).prop_map(|(at, verdict)| Step::End(at, verdict)),
        3 => (at(), report()).prop_map(|(at, report)| Step::Report(at, report)),
        1 => (at(), 1e-3..1e6f64).prop_map(|(at, weight)| Step::Weight(at, weight)),
        2 => at().prop_map(Step::Strategy),
        4 => (0..100_000u32).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_told_the_choice_is_wanted_and_has_room_and_all_counts_come_back_to_zero(
        number in prop_oneof![1..6usize, 70..90usize],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut now = settled();
        let mut fleet = fleet(Strategy::Adaptive, &vec![1.0; number], 3, now);
        let mut in_flight: HashMap<usize, u32> = HashMap::new();
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        for step in steps {
            match step {
                Step::Pick { affinity, cost, unwanted } => {
                    let need = Need { affinity, cost, wants_all: false };
                    // Some not at all, some last.
                    let want = |one: &Number| match one.0 as u8 % 6 {
                        same if same == unwanted => Want::No,
                        near if near + 1 == unwanted => Want::Last,
                        _ => Want::Yes,
                    };
                    if let Ok((one, ticket)) = fleet.pick(now, &need, want) {
                        prop_assert_ne!(one.0 as u8 % 6, unwanted);
                        let there = in_flight.entry(one.0).or_default();
                        prop_assert!(*there < 3);
                        *there += 1;
                        tickets.push((one.0, ticket));
                    } else {
                        // None has failed, unless an earlier step has said so: then it may be out.
                        let wanted = (0..number).filter(|&at| at as u8 % 6 != unwanted);
                        let failed = |at: usize| fleet.slots().any(|slot| slot.item.0 == at && slot.failures > 0);
                        let free = |at: usize| in_flight.get(&at).is_none_or(|&there| there < 3);
                        let mut left = wanted.filter(|&at| free(at) && !failed(at));
                        prop_assert_eq!(left.next(), None);
                    }
                }
                Step::FirstData(at) => if !tickets.is_empty() {
                    let at = at.index(tickets.len());
                    fleet.first_data(&mut tickets[at].1, now);
                },
                Step::End(at, verdict) => if !tickets.is_empty() {
                    let (one, mut ticket) = tickets.swap_remove(at.index(tickets.len()));
                    let verdicts = [
                        Some(Verdict::Success),
                        Some(Verdict::Failure),
                        Some(Verdict::Canceled),
                        Some(Verdict::CallerFault),
                        None,
                    ];
                    if let Some(verdict) = verdicts[usize::from(verdict)] {
                        fleet.settle(&mut ticket, &End::new(verdict), now);
                    }
                    fleet.end(&mut ticket, now);
                    *in_flight.get_mut(&one).unwrap() -= 1;
                },
                Step::Report(at, report) => {
                    let at = at.index(number);
                    fleet.report(|one| one.0 == at, &report, now);
                }
                Step::Weight(at, weight) => {
                    let at = at.index(number);
                    fleet.find(|one| one.0 == at).unwrap().set_weight(weight);
                }
                Step::Strategy(at) => fleet.strategy = *at.get(&Strategy::ALL),
                Step::Wait(millis) => now += MS * millis,
            }
        }
        for (_, mut ticket) in tickets {
            fleet.end(&mut ticket, now);
        }
        for slot in fleet.slots() {
            prop_assert_eq!((slot.load.in_flight(), slot.load.queue()), (0, 0.0));
        }
    }
}

#[test]
fn who_asks_one_after_the_other_soon_hears_of_all() {
    let answers = [(20, 0), (20, 200), (1, 0), (300, 9_700)];
    for (waits, streams) in answers {
        // The median of all is a few milliseconds old.
        for (of, soon) in [(3, 30), (10, 60)] {
            let mut now = time::now();
            let mut fleet = fleet(Strategy::Adaptive, &vec![1.0; of], u32::MAX, now);
            let mut seen = std::collections::HashSet::new();
            let mut coin = Coin::seeded(7);
            for _ in 0..soon {
                let (one, mut ticket) = fleet.pick(now, &Need::default(), any_of).unwrap();
                seen.insert(one.0);
                let luck = 0.5 + coin.share();
                now += (MS * waits).mul_f64(luck);
                fleet.first_data(&mut ticket, now);
                now += (MS * streams).mul_f64(luck);
                succeeds(&mut fleet, ticket, now);
            }
            assert_eq!(seen.len(), of, "{waits} ms and {streams} ms");
        }
    }
}
