//! Whether the simulation can be believed.

use super::*;
use crate::Strategy;

fn named(name: &str) -> Scenario {
    Scenario::of(Workload::named(name).unwrap())
}

fn mean(scenario: &Scenario, policy: Policy) -> f64 {
    run(scenario, policy).unwrap().latency.mean
}

/// The mean time that requests spend at `slots` slots with a line in front of them, in services: Erlang's formula C.
fn erlang(slots: u32, load: f64) -> f64 {
    let offered = load * f64::from(slots);
    // The blocking probability by Erlang's formula B, from one slot to all.
    let blocked = (1..=slots).fold(1.0, |blocked, slots| {
        offered * blocked / (f64::from(slots) + offered * blocked)
    });
    let waits = blocked / (1.0 - load * (1.0 - blocked));
    1.0 + waits / (f64::from(slots) * (1.0 - load))
}

#[test]
fn one_endpoint_is_as_fast_as_the_closed_formula_says() {
    assert!((erlang(1, 0.7) - 1.0 / 0.3).abs() < 1e-9, "M/M/1");
    for (slots, load) in [(1, 0.5), (1, 0.7), (4, 0.7), (4, 0.9), (8, 0.8)] {
        let workload = Workload {
            endpoints: vec![Group::of(1).slots(slots)],
            ..Workload::default()
        };
        let scenario = Scenario::of(workload).load(load).requests(300_000);
        for policy in [Policy::Ours(Strategy::Adaptive), Policy::InFlight] {
            let ratio = mean(&scenario, policy) / erlang(slots, load);
            assert!((ratio - 1.0).abs() < 0.03, "{slots} {load}: {ratio}");
        }
    }
}

#[test]
fn turns_make_each_endpoint_a_line_of_its_own_and_an_oracle_makes_one_of_all() {
    let scenario = Scenario::default().load(0.7).requests(300_000);
    let ratio = mean(&scenario, Policy::Ours(Strategy::RoundRobin)) / erlang(4, 0.7);
    // Turns come more evenly than chance, so less has to wait.
    assert!((0.8..1.0).contains(&ratio), "{ratio}");
    // And all places together are the best that there can be.
    let ratio = mean(&scenario, Policy::Queues) / erlang(40, 0.7);
    assert!((0.99..1.1).contains(&ratio), "{ratio}");
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_does_not() {
    for name in ["llm-uneven", "antagonist", "rolling-restart", "hang-middle"] {
        let scenario = named(name).gateways(8).requests(2_000);
        for policy in Policy::all() {
            let report = run(&scenario, policy).unwrap();
            assert_eq!(report, run(&scenario, policy).unwrap(), "{name} {policy}");
            let other = run(&scenario.clone().seed(2), policy).unwrap();
            assert_ne!(report.latency, other.latency, "{name} {policy}");
        }
    }
}

#[test]
fn every_request_is_over_exactly_once() {
    for workload in Workload::all() {
        let scenario = Scenario::of(workload).gateways(3).requests(3_000);
        let costs = [Policy::Costs(Strategy::Adaptive)];
        let told = [
            Policy::Reports(Strategy::LeastResponseTime),
            Policy::Probes(Strategy::Adaptive),
            Policy::Checks(Strategy::Adaptive),
        ];
        for policy in Policy::all().chain(costs).chain(told) {
            let world = World::new(&scenario);
            let name = &scenario.workload.name;
            // Runs with assertions in debug builds: nothing is over twice, nothing is left in flight.
            let report = run(&scenario, policy).unwrap();
            let fates = report.answered + report.failed + report.given_up + report.unplaced;
            assert_eq!(fates, report.requests, "{name} {policy}");
            let (from, to) = scenario.workload.counted;
            let within = |job: &&jobs::Job| {
                let moment = job.arrives as f64 / world.whole;
                from <= moment && (moment < to || to >= 1.0)
            };
            let counted = world.jobs.iter().filter(within).count();
            assert_eq!(report.requests, counted, "{name} {policy}");
            let placed = 1.0 - report.unplaced as f64 / counted as f64;
            let shares: f64 = report.shares.iter().sum();
            assert!((shares - placed).abs() < 1e-9, "{name} {policy}: {shares}");
        }
    }
}

#[test]
fn all_policies_see_the_same_requests() {
    let scenario = named("exponential").load(0.01).requests(2_000);
    // Nobody waits for anybody, so all answers take as long as they are large.
    let oracle = run(&scenario, Policy::Queues).unwrap();
    for policy in Policy::all() {
        let report = run(&scenario, policy).unwrap();
        let ratio = report.latency.mean / oracle.latency.mean;
        assert!((ratio - 1.0).abs() < 0.001, "{policy}: {ratio}");
    }
}

#[test]
fn nobody_is_better_than_an_oracle_at_what_it_is_best_at() {
    let p99 = |scenario: &Scenario, policy| run(scenario, policy).unwrap().latency.p99;
    let others = || Policy::all().filter(|policy| !policy.is_oracle());
    // Where endpoints differ, the shortest line is best for each request and not for all: there the mean can be
    // beaten by sending more to slow endpoints, and the tail pays for it.
    for name in ["exponential", "hetero", "slow1", "llm-uneven"] {
        let scenario = named(name);
        let best = p99(&scenario, Policy::Queues);
        for policy in others() {
            let p99 = p99(&scenario, policy);
            assert!(p99 > 0.97 * best, "{name} {policy}: {p99} {best}");
        }
    }
    for name in ["exponential", "lognormal", "llm"] {
        let scenario = named(name);
        let queues = mean(&scenario, Policy::Queues);
        let sizes = mean(&scenario, Policy::Sizes);
        assert!(sizes <= queues, "{name}: {sizes} {queues}");
        for policy in others() {
            let mean = mean(&scenario, policy);
            assert!(mean > 0.99 * queues, "{name} {policy}: {mean} {queues}");
        }
    }
}

#[test]
fn a_probing_policy_says_how_much_it_asks() {
    let scenario = named("exponential").requests(2_000);
    let probes = |policy| run(&scenario, policy).unwrap().probes;
    assert_eq!(probes(Policy::Probing), 3.0);
    assert_eq!(probes(Policy::Ours(Strategy::Adaptive)), 0.0);
}

#[test]
fn whom_health_checks_take_out_gets_nothing_and_is_back_when_they_pass() {
    let share = |policy| run(&named("blackhole"), policy).unwrap().shares[0];
    let (probed, checked) = (
        share(Policy::Ours(Strategy::Adaptive)),
        share(Policy::Checks(Strategy::Adaptive)),
    );
    assert!(probed > 0.0005, "{probed}");
    assert_eq!(checked, 0.0);
    let middle = run(
        &named("blackhole-middle"),
        Policy::Checks(Strategy::Adaptive),
    );
    let recovered = middle.unwrap().recovered;
    assert!(recovered.is_some_and(|after| after < 60.0), "{recovered:?}");
}

#[test]
fn trouble_is_seen_in_the_share_of_the_endpoint_and_its_end_too() {
    let scenario = named("blackhole-middle");
    let oracle = run(&scenario, Policy::Queues).unwrap();
    assert!(oracle.detected < Some(0.1), "{:?}", oracle.detected);
    assert!(oracle.recovered < Some(5.0), "{:?}", oracle.recovered);
    assert_eq!(oracle.failed, 0);
    let blind = run(&scenario, Policy::Ours(Strategy::Random)).unwrap();
    let hole = blind.timeline.iter().map(|moment| moment.errors);
    assert!(hole.fold(0.0, f64::max) > 0.0);
    let none = run(&named("exponential"), Policy::Queues).unwrap();
    assert_eq!((none.detected, none.recovered), (None, None));
}

#[test]
fn a_scenario_that_makes_no_sense_is_refused() {
    let scenario = Scenario::default().gateways(0);
    let error = run(&scenario, Policy::Queues).unwrap_err();
    assert_eq!(error.to_string(), "gateways: has to be from 1 to 10000");
}

#[test]
fn who_answers_at_once_is_heard_with_the_end_and_who_streams_is_heard_before() {
    /// Only counts what it hears, and when.
    #[derive(Default)]
    struct Listener {
        first: u64,
        over: u64,
    }
    impl Balancer for Listener {
        type Ticket = ();

        fn choose(
            &mut self,
            job: &jobs::Job,
            servers: &[server::Server],
            _: u64,
        ) -> Result<(usize, ()), Option<u64>> {
            Ok((job.session as usize % servers.len(), ()))
        }

        fn first_data(&mut self, _: usize, (): &mut (), _: u64) {
            self.first += 1;
        }

        fn over(&mut self, _: usize, (): (), _: &policy::Over<'_>) {
            self.over += 1;
        }

        fn join(&mut self, _: usize, _: u64) {}

        fn leave(&mut self, _: usize, _: u64) {}

        fn in_flight(&self) -> u64 {
            0
        }
    }
    let heard = |name| {
        let world = World::new(&named(name).requests(1_000));
        let (_, listener) = play(world, Listener::default());
        (listener.first, listener.over)
    };
    assert_eq!(heard("exponential"), (0, 1_000));
    let (first, over) = heard("llm");
    // Some are shorter than what is read before the first word.
    assert!((900..=1_000).contains(&first), "{first}");
    assert_eq!(over, 1_000);
}
