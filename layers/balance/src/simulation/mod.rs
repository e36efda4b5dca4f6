//! The mechanism in virtual time, beside oracles and what others do.
//!
//! Endpoints with slots and a line in front of them are simulated; what decides is the code that serves requests, as
//! many times as there are gateways. Arrivals are a Poisson process that does not slow down for anybody, and latencies
//! count from the moment at which a request comes. Arrivals, sizes and troubles are the same for all policies.
//!
//! ```
//! use palisade_balance::{
//!     Strategy,
//!     simulation::{Policy, Scenario, Workload, run},
//! };
//!
//! let slow = Workload::named("slow1").ok_or("no such workload")?;
//! let scenario = Scenario::of(slow).requests(5_000);
//! let oracle = run(&scenario, Policy::Queues)?;
//! let adaptive = run(&scenario, Policy::Ours(Strategy::Adaptive))?;
//! let round_robin = run(&scenario, Policy::Ours(Strategy::RoundRobin))?;
//! assert!(adaptive.latency.p99 < 1.5 * oracle.latency.p99);
//! assert!(round_robin.latency.p99 > 5.0 * oracle.latency.p99);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same scenario gives the same report to the last bit, on the same kind of machine: logarithms differ in their
//! last bits between platforms.
//!
//! # Figures
//!
#![doc = include_str!("figures.md")]

mod checks;
mod jobs;
mod named;
mod oracle;
mod ours;
mod plot;
mod policy;
mod probing;
mod record;
mod report;
mod scenario;
mod server;
#[cfg(test)]
mod service;
#[cfg(test)]
mod tests;
mod two;
mod workload;
mod world;

use self::{
    oracle::{Knows, Oracle},
    ours::{Ours, Told},
    policy::Balancer,
    probing::Probing,
    two::{Measure, TwoChoices},
    world::{World, play},
};
pub use self::{
    plot::{svg, table},
    policy::{Policy, UnknownPolicy},
    report::{Moment, Quantiles, Report},
    scenario::{InvalidScenario, Scenario},
    workload::{Fault, Group, Phase, Score, Size, Trouble, Workload},
};
use crate::Strategy;

/// Seeds that constants of the mechanism may be tuned with.
pub const TUNING_SEEDS: [u64; 5] = [1, 2, 3, 4, 5];
/// Seeds of the tests, which nothing was tuned with.
pub const TEST_SEEDS: [u64; 3] = [101, 102, 103];
/// Seeds of the figures in the documentation, which nothing was tuned with either.
pub const FIGURE_SEEDS: [u64; 5] = [201, 202, 203, 204, 205];

/// What the policy makes of the scenario.
///
/// # Errors
///
/// Where the scenario cannot be simulated.
pub fn run(scenario: &Scenario, policy: Policy) -> Result<Report, InvalidScenario> {
    scenario.check()?;
    let world = World::new(scenario);
    let (gateways, seed) = (scenario.gateways, scenario.seed);
    let ours = |strategy: Strategy, told, world: World| {
        let ours = Ours::new(strategy, told, gateways, &world.servers, seed);
        finish(scenario, policy, world, ours)
    };
    let two = |measure, world: World| {
        let two = TwoChoices::new(measure, gateways, world.servers.len(), seed);
        finish(scenario, policy, world, two)
    };
    let oracle = |knows, world: World| {
        let oracle = Oracle::new(knows, scenario.workload.score, world.first_work);
        finish(scenario, policy, world, oracle)
    };
    Ok(match policy {
        Policy::Ours(strategy) => ours(strategy, Told::Nothing, world),
        Policy::Costs(strategy) => ours(strategy, Told::Costs, world),
        Policy::Reports(strategy) => ours(strategy, Told::Reports, world),
        Policy::Checks(strategy) => ours(strategy, Told::Health, world),
        Policy::Probes(strategy) => ours(strategy, Told::Probes, world),
        Policy::Asks(strategy) => ours(strategy, Told::Both, world),
        Policy::PeakEwma => two(Measure::PeakEwma, world),
        Policy::InFlight => two(Measure::InFlight, world),
        Policy::Probing => finish(scenario, policy, world, Probing::new(gateways, seed)),
        Policy::Queues => oracle(Knows::Queues, world),
        Policy::Sizes => oracle(Knows::Sizes, world),
    })
}

fn finish<B: Balancer>(scenario: &Scenario, policy: Policy, world: World, balancer: B) -> Report {
    let (record, balancer) = play(world, balancer);
    debug_assert_eq!(balancer.in_flight(), 0, "everything is over");
    Report::new(scenario, policy, &record)
}
