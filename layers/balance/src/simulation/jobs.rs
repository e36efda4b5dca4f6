//! Who comes when with how much work: the same for all policies.

use super::{Scenario, workload::Size};
use crate::coin::Coin;

pub(super) const SECOND: f64 = 1e9;

/// One request. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) arrives: u64,
    /// At speed 1.
    pub(super) work: f64,
    /// Where it comes to.
    pub(super) gateway: u32,
    /// Between 0 and 1: whether an endpoint that fails a part of its requests fails this one.
    pub(super) luck: f64,
    /// What it has in common with others.
    pub(super) session: u64,
}

/// So many sessions there are.
const SESSIONS: u64 = 1_000;

/// Streams of chance that know nothing of each other.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Arrivals = 1,
    Work,
    Gateways,
    Luck,
    Sessions,
    Speeds,
    Policy,
    Health,
}

impl Stream {
    pub(super) fn coin(self, seed: u64, which: u64) -> Coin {
        // Two rounds of mixing: neighbouring seeds are as far apart as any others.
        let mut outer = Coin::seeded(seed);
        let mut inner = Coin::seeded(outer.toss() ^ ((self as u64) << 32) ^ which);
        Coin::seeded(inner.toss())
    }
}

/// How long a run takes, in nanoseconds.
pub(super) fn duration(scenario: &Scenario) -> f64 {
    let rate = scenario.load * scenario.workload.capacity();
    let mean: f64 = phases(scenario)
        .iter()
        .map(|(from, to, load)| (to - from) * load)
        .sum();
    scenario.requests as f64 / (rate * mean) * SECOND
}

pub(super) fn jobs(scenario: &Scenario) -> Vec<Job> {
    let seed = scenario.seed;
    let mut arrivals = Arrivals::new(scenario);
    let mut work = Stream::Work.coin(seed, 0);
    let mut gateways = Stream::Gateways.coin(seed, 0);
    let mut luck = Stream::Luck.coin(seed, 0);
    let mut sessions = Stream::Sessions.coin(seed, 0);
    let mean = scenario.workload.mean * SECOND;
    let one = |_| Job {
        arrives: arrivals.next(),
        work: scenario.workload.size.draw(&mut work) * mean,
        gateway: (gateways.share() * scenario.gateways as f64) as u32,
        luck: luck.share(),
        session: Coin::seeded(sessions.toss() % SESSIONS).toss(),
    };
    (0..scenario.requests).map(one).collect()
}

/// From when to when in parts of the run, and how much.
fn phases(scenario: &Scenario) -> Vec<(f64, f64, f64)> {
    let arrivals = &scenario.workload.arrivals;
    let first = arrivals.first().map_or(1.0, |phase| phase.from);
    let before = (first > 0.0).then_some((0.0, first, 1.0));
    let ends = arrivals.iter().skip(1).map(|phase| phase.from).chain([1.0]);
    let each = arrivals.iter().zip(ends);
    before
        .into_iter()
        .chain(each.map(|(phase, to)| (phase.from, to, phase.load)))
        .collect()
}

/// A Poisson process whose rate changes.
struct Arrivals {
    coin: Coin,
    /// Ends in nanoseconds, and nanoseconds between two requests.
    phases: Vec<(f64, f64)>,
    at: usize,
    now: f64,
}

impl Arrivals {
    fn new(scenario: &Scenario) -> Self {
        let whole = duration(scenario);
        let rate = scenario.load * scenario.workload.capacity() / SECOND;
        let phases = phases(scenario).into_iter();
        Self {
            coin: Stream::Arrivals.coin(scenario.seed, 0),
            phases: phases
                .map(|(_, to, load)| (to * whole, 1.0 / (rate * load)))
                .collect(),
            at: 0,
            now: 0.0,
        }
    }

    fn next(&mut self) -> u64 {
        let mut left = exponential(&mut self.coin);
        loop {
            let (end, pause) = self.phases[self.at];
            let next = self.now + left * pause;
            if next <= end || self.at + 1 == self.phases.len() {
                self.now = next;
                return next as u64;
            }
            left -= (end - self.now) / pause;
            self.now = end;
            self.at += 1;
        }
    }
}

impl Size {
    /// With a mean of 1.
    fn draw(self, coin: &mut Coin) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => exponential(coin),
            Self::Bimodal { share, factor } => {
                let small = 1.0 / (1.0 - share + share * factor);
                let is_large = coin.share() < share;
                if is_large { small * factor } else { small }
            }
            Self::Lognormal { sigma } => (sigma * normal(coin) - sigma * sigma / 2.0).exp(),
        }
    }
}

pub(super) fn exponential(coin: &mut Coin) -> f64 {
    -(1.0 - coin.share()).ln()
}

/// By Box and Muller.
fn normal(coin: &mut Coin) -> f64 {
    let length = (2.0 * exponential(coin)).sqrt();
    length * (std::f64::consts::TAU * coin.share()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::Workload;

    #[test]
    fn sizes_have_the_mean_that_was_asked_for() {
        for name in ["exponential", "bimodal", "lognormal", "llm"] {
            let workload = Workload::named(name).unwrap();
            let mean = workload.mean * SECOND;
            let jobs = jobs(&Scenario::of(workload).requests(200_000));
            let sum: f64 = jobs.iter().map(|job| job.work).sum();
            let ratio = sum / jobs.len() as f64 / mean;
            assert!((ratio - 1.0).abs() < 0.02, "{name}: {ratio}");
        }
    }

    #[test]
    fn requests_come_as_often_as_the_load_says_in_each_phase() {
        let scenario = Scenario::of(Workload::named("spike").unwrap()).requests(100_000);
        let whole = duration(&scenario);
        let jobs = jobs(&scenario);
        let capacity = scenario.workload.capacity();
        for (from, to, load) in [(0.0, 0.3, 0.7), (0.3, 0.33, 2.5), (0.33, 0.95, 0.7)] {
            let within = |job: &&Job| {
                let moment = job.arrives as f64 / whole;
                from <= moment && moment < to
            };
            let seconds = (to - from) * whole / SECOND;
            let rate = jobs.iter().filter(within).count() as f64 / seconds;
            let ratio = rate / (load * capacity);
            assert!((ratio - 1.0).abs() < 0.05, "{load}: {ratio}");
        }
    }

    #[test]
    fn requests_come_to_all_gateways_alike() {
        let jobs = jobs(&Scenario::default().gateways(8));
        for gateway in 0..8 {
            let its = jobs.iter().filter(|job| job.gateway == gateway).count();
            assert!((2_200..2_800).contains(&its), "{its}");
        }
    }
}
