//! The real mechanism and the real service in virtual time, beside an oracle that knows every queue and every speed.
//!
//! Workloads, loads and seeds are the same for all policies. Ratios to the oracle are asserted, never times.

mod service;
mod world;

use std::sync::Arc;

use palisade_core::{classify::Verdict, gate::Outlook, settle::End, time};
use tokio::time::Instant;

use self::world::{Job, Oracle, Outcome, Policy, Summary, Workload};
use crate::{
    Strategy,
    coin::Coin,
    fleet::{Fleet, Item, Want},
    slot::Ticket,
};

const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

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
}

/// The mechanism without its shell.
struct Mechanism {
    fleet: Fleet<Number>,
    born: Instant,
}

impl Mechanism {
    fn new(workload: &Workload, strategy: Strategy, seed: u64) -> Self {
        let born = time::now();
        let mut fleet = Fleet::new(born, Coin::seeded(seed));
        fleet.strategy = strategy;
        for at in 0..workload.endpoints.len() {
            fleet.insert(Number(at), 1.0, u32::MAX, born);
        }
        Self { fleet, born }
    }
}

impl Policy for Mechanism {
    type Ticket = Ticket;

    fn choose(&mut self, now: u64) -> (usize, Ticket) {
        let now = self.born + world::nanos(now);
        let (number, ticket) = self.fleet.pick(now, |_| Want::Yes).unwrap();
        (number.0, ticket)
    }

    fn over(&mut self, _: usize, mut ticket: Ticket, verdict: Verdict, age: u64, now: u64) {
        let now = self.born + world::nanos(now);
        let age = world::nanos(age);
        let end = End {
            age,
            ..End::new(verdict)
        };
        self.fleet.settle(&mut ticket, &end, now);
        self.fleet.end(&mut ticket, now);
    }
}

/// Gateways that know nothing of each other.
struct Gateways {
    all: Vec<Mechanism>,
    next: usize,
}

impl Gateways {
    fn new(number: usize, workload: &Workload, seed: u64) -> Self {
        let one = |at| Mechanism::new(workload, Strategy::Adaptive, seed * 100 + at as u64);
        let all = (0..number).map(one).collect();
        Self { all, next: 0 }
    }
}

impl Policy for Gateways {
    type Ticket = (usize, Ticket);

    fn choose(&mut self, now: u64) -> (usize, (usize, Ticket)) {
        self.next = (self.next + 1) % self.all.len();
        let (at, ticket) = self.all[self.next].choose(now);
        (at, (self.next, ticket))
    }

    fn over(&mut self, at: usize, ticket: (usize, Ticket), verdict: Verdict, age: u64, now: u64) {
        let (gateway, ticket) = ticket;
        self.all[gateway].over(at, ticket, verdict, age, now);
    }
}

fn oracle(workload: &Workload, requests: usize) -> Summary {
    Summary::of(SEEDS.map(|seed| {
        let jobs = Job::poisson(workload, requests, seed);
        world::run(workload, &jobs, Oracle::new(workload))
    }))
}

fn mechanism(workload: &Workload, strategy: Strategy, requests: usize) -> Summary {
    Summary::of(SEEDS.map(|seed| {
        let jobs = Job::poisson(workload, requests, seed);
        world::run(workload, &jobs, Mechanism::new(workload, strategy, seed))
    }))
}

/// How many requests in a run. `PALISADE_LONG=1` asks for more, for figures to be written down.
fn requests(usual: usize) -> usize {
    if std::env::var_os("PALISADE_LONG").is_some() {
        usual * 10
    } else {
        usual
    }
}

fn compare(workload: &Workload) -> (Summary, Summary) {
    let requests = requests(20_000);
    let oracle = oracle(workload, requests);
    let adaptive = mechanism(workload, Strategy::Adaptive, requests);
    let round_robin = mechanism(workload, Strategy::RoundRobin, requests);
    let least = mechanism(workload, Strategy::LeastConnections, requests);
    println!("{} (p99, ratio to the oracle, errors)", workload.name);
    for (name, policy) in [
        ("oracle", &oracle),
        ("adaptive", &adaptive),
        ("least_connections", &least),
        ("round_robin", &round_robin),
    ] {
        println!(
            "  {name:18} {:8.2} s {:6.3} {:8.4} %  slowest gets {:.4}",
            policy.p99,
            policy.p99 / oracle.p99,
            policy.errors * 100.0,
            policy.share_of_first,
        );
    }
    assert!(adaptive.p99 <= 1.10 * oracle.p99, "{adaptive:?} {oracle:?}");
    assert!(adaptive.errors < 0.001, "{adaptive:?}");
    (round_robin, oracle)
}

#[test]
fn equal_endpoints_stay_near_the_oracle() {
    compare(&Workload::equal());
}

#[test]
fn two_endpoints_of_less_than_half_the_speed_stay_near_the_oracle_where_round_robin_collapses() {
    let (round_robin, oracle) = compare(&Workload::hetero());
    assert!(round_robin.p99 > 10.0 * oracle.p99, "{round_robin:?}");
}

#[test]
fn one_endpoint_at_a_tenth_of_the_speed_stays_near_the_oracle_where_round_robin_collapses() {
    let (round_robin, oracle) = compare(&Workload::slow1());
    assert!(round_robin.p99 > 10.0 * oracle.p99, "{round_robin:?}");
}

#[test]
fn a_black_hole_that_fails_at_once_attracts_nobody() {
    let (_, oracle) = compare(&Workload::black_hole());
    assert_eq!(oracle.errors, 0.0);
}

#[test]
fn eight_gateways_that_know_nothing_of_each_other_stay_near_the_oracle() {
    for workload in [Workload::slow1(), Workload::hetero()] {
        let requests = requests(20_000);
        let oracle = oracle(&workload, requests);
        let eight = Summary::of(SEEDS.map(|seed| {
            let jobs = Job::poisson(&workload, requests, seed);
            world::run(&workload, &jobs, Gateways::new(8, &workload, seed))
        }));
        let ratio = eight.p99 / oracle.p99;
        println!(
            "{}, 8 gateways: p99 {:.2} s, {ratio:.3} of the oracle",
            workload.name, eight.p99
        );
        assert!(ratio <= 1.25, "{eight:?} {oracle:?}");
    }
}

#[test]
fn without_ejection_and_penalty_a_black_hole_would_attract_nearly_all() {
    // The same price, told that failures are successes: what the mechanism is there for.
    struct Blind(Mechanism);
    impl Policy for Blind {
        type Ticket = Ticket;

        fn choose(&mut self, now: u64) -> (usize, Ticket) {
            self.0.choose(now)
        }

        fn over(&mut self, at: usize, ticket: Ticket, _: Verdict, age: u64, now: u64) {
            self.0.over(at, ticket, Verdict::Success, age, now);
        }
    }
    let workload = Workload::black_hole();
    let jobs = Job::poisson(&workload, 5_000, 1);
    let blind = Blind(Mechanism::new(&workload, Strategy::Adaptive, 1));
    let outcome = world::run(&workload, &jobs, blind);
    assert!(outcome.errors() > 0.5, "{}", outcome.errors());
}

/// The outcome of one run of the real service, see [`service`].
fn served(workload: &Workload, jobs: Vec<Job>) -> Outcome {
    let workload = Arc::new(workload.clone());
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(service::run(workload, jobs))
}

#[test]
fn the_whole_service_stays_near_the_oracle_too() {
    let requests = requests(10_000);
    for workload in [
        Workload::slow1(),
        Workload::hetero(),
        Workload::black_hole(),
    ] {
        let oracle = oracle(&workload, requests);
        let served = Summary::of(SEEDS.map(|seed| {
            let jobs = Job::poisson(&workload, requests, seed);
            served(&workload, jobs)
        }));
        println!(
            "{} through the service: p99 {:.2} s, {:.3} of the oracle, {:.4} % errors",
            workload.name,
            served.p99,
            served.p99 / oracle.p99,
            served.errors * 100.0
        );
        assert!(served.p99 <= 1.15 * oracle.p99, "{served:?} {oracle:?}");
        assert!(served.errors < 0.001, "{served:?}");
    }
}
