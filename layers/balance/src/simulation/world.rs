//! Arrivals, endpoints with a few places and a queue each, and what becomes of the requests. Times are nanoseconds.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use palisade_core::classify::Verdict;

use crate::coin::Coin;

const SECOND: f64 = 1e9;
/// Requests that each endpoint works on at the same time.
const PLACES: usize = 4;
/// Of what the working endpoints can do.
const LOAD: f64 = 0.9;
/// The part of a run that is not counted.
const WARM_UP: f64 = 0.1;
const FAILS_AFTER: u64 = 1_000_000;

pub(super) fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// Ten endpoints with four places each, where work takes a second on average, exponentially distributed.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) endpoints: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Works {
        speed: f64,
    },
    /// Answers with a failure after a millisecond.
    Fails,
}

impl Workload {
    pub(super) fn equal() -> Self {
        Self::new("equal", &[])
    }

    pub(super) fn hetero() -> Self {
        let slow = Kind::Works { speed: 0.4 };
        Self::new("hetero", &[slow, slow])
    }

    pub(super) fn slow1() -> Self {
        Self::new("slow1", &[Kind::Works { speed: 0.1 }])
    }

    pub(super) fn black_hole() -> Self {
        Self::new("blackhole", &[Kind::Fails])
    }

    fn new(name: &'static str, odd: &[Kind]) -> Self {
        let mut endpoints = odd.to_vec();
        endpoints.resize(10, Kind::Works { speed: 1.0 });
        Self { name, endpoints }
    }

    /// Requests per second.
    fn rate(&self) -> f64 {
        let speeds = self.endpoints.iter().map(|kind| match kind {
            Kind::Works { speed } => *speed,
            Kind::Fails => 0.0,
        });
        LOAD * PLACES as f64 * speeds.sum::<f64>()
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) arrives: u64,
    /// Nanoseconds at full speed.
    pub(super) work: f64,
}

impl Job {
    /// Arrivals and work come from streams of their own, so that all policies see the same.
    pub(super) fn poisson(workload: &Workload, requests: usize, seed: u64) -> Vec<Self> {
        let mut arrivals = Coin::seeded(seed);
        let mut work = Coin::seeded(seed ^ 0x5EED);
        let pause = SECOND / workload.rate();
        let mut arrives = 0.0;
        let one = |_| {
            arrives += exponential(&mut arrivals) * pause;
            Self {
                arrives: arrives as u64,
                work: exponential(&mut work) * SECOND,
            }
        };
        (0..requests).map(one).collect()
    }
}

fn exponential(coin: &mut Coin) -> f64 {
    -(1.0 - coin.share()).ln()
}

/// One endpoint: places and a queue, first come, first served.
#[derive(Clone, Debug)]
pub(super) struct Server {
    kind: Kind,
    /// When each place is free.
    places: BinaryHeap<Reverse<u64>>,
}

impl Server {
    pub(super) fn new(kind: Kind) -> Self {
        let places = std::iter::repeat_n(Reverse(0), PLACES).collect();
        Self { kind, places }
    }

    /// When a request that comes now is over, and how.
    pub(super) fn serve(&mut self, job: &Job, now: u64) -> (u64, Verdict) {
        let Kind::Works { speed } = self.kind else {
            return (now + FAILS_AFTER, Verdict::Failure);
        };
        let Reverse(free) = self.places.pop().unwrap();
        let end = free.max(now) + (job.work / speed) as u64;
        self.places.push(Reverse(end));
        (end, Verdict::Success)
    }
}

/// Sends requests to endpoints and hears how they end.
pub(super) trait Policy {
    type Ticket;

    fn choose(&mut self, now: u64) -> (usize, Self::Ticket);

    fn over(&mut self, at: usize, ticket: Self::Ticket, verdict: Verdict, age: u64, now: u64);
}

pub(super) fn run<P: Policy>(workload: &Workload, jobs: &[Job], mut policy: P) -> Outcome {
    let mut servers: Vec<_> = workload
        .endpoints
        .iter()
        .copied()
        .map(Server::new)
        .collect();
    let mut ends = BinaryHeap::new();
    let mut running = HashMap::new();
    let mut outcome = Outcome::new(jobs.len());
    for (number, job) in jobs.iter().enumerate() {
        while let Some(&Reverse((end, ended))) = ends.peek()
            && end <= job.arrives
        {
            ends.pop();
            let (at, ticket, verdict, began) = running.remove(&ended).unwrap();
            policy.over(at, ticket, verdict, end - began, end);
        }
        let (at, ticket) = policy.choose(job.arrives);
        let (end, verdict) = servers[at].serve(job, job.arrives);
        outcome.note(number, at, end - job.arrives, verdict);
        ends.push(Reverse((end, number)));
        running.insert(number, (at, ticket, verdict, job.arrives));
    }
    outcome
}

/// Joins the queue in which the request would be over first, were it of average size.
pub(super) struct Oracle {
    speeds: Vec<f64>,
    in_flight: Vec<usize>,
}

impl Oracle {
    pub(super) fn new(workload: &Workload) -> Self {
        let speed = |kind: &Kind| match kind {
            Kind::Works { speed } => *speed,
            Kind::Fails => 0.0,
        };
        let speeds: Vec<_> = workload.endpoints.iter().map(speed).collect();
        let in_flight = vec![0; speeds.len()];
        Self { speeds, in_flight }
    }

    fn expected(&self, at: usize) -> f64 {
        let ahead = (self.in_flight[at] + 1).saturating_sub(PLACES);
        (1.0 + ahead as f64 / PLACES as f64) / self.speeds[at]
    }
}

impl Policy for Oracle {
    type Ticket = ();

    fn choose(&mut self, _: u64) -> (usize, ()) {
        let all = 0..self.speeds.len();
        let at = all.min_by(|&a, &b| self.expected(a).total_cmp(&self.expected(b)));
        let at = at.unwrap();
        self.in_flight[at] += 1;
        (at, ())
    }

    fn over(&mut self, at: usize, (): (), _: Verdict, _: u64, _: u64) {
        self.in_flight[at] -= 1;
    }
}

/// What became of the requests of a run.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    skip: usize,
    latencies: Vec<u64>,
    errors: usize,
    to_first: usize,
}

impl Outcome {
    pub(super) fn new(requests: usize) -> Self {
        Self {
            skip: (requests as f64 * WARM_UP) as usize,
            latencies: Vec::new(),
            errors: 0,
            to_first: 0,
        }
    }

    pub(super) fn note(&mut self, number: usize, at: usize, latency: u64, verdict: Verdict) {
        if number < self.skip {
            return;
        }
        self.latencies.push(latency);
        self.errors += usize::from(verdict != Verdict::Success);
        self.to_first += usize::from(at == 0);
    }

    pub(super) fn errors(&self) -> f64 {
        self.errors as f64 / self.latencies.len() as f64
    }

    fn p99(&mut self) -> f64 {
        let at = self.latencies.len() * 99 / 100;
        *self.latencies.select_nth_unstable(at).1 as f64 / SECOND
    }
}

/// The mean over runs of different seeds.
#[derive(Debug)]
pub(super) struct Summary {
    /// Seconds.
    pub(super) p99: f64,
    /// Of all requests.
    pub(super) errors: f64,
    /// Of all requests, to the endpoint that is the odd one.
    pub(super) share_of_first: f64,
}

impl Summary {
    pub(super) fn of<const N: usize>(mut outcomes: [Outcome; N]) -> Self {
        let mean = |one: fn(&mut Outcome) -> f64, all: &mut [Outcome]| {
            all.iter_mut().map(one).sum::<f64>() / N as f64
        };
        Self {
            p99: mean(Outcome::p99, &mut outcomes),
            errors: mean(|outcome| outcome.errors(), &mut outcomes),
            share_of_first: mean(
                |outcome| outcome.to_first as f64 / outcome.latencies.len() as f64,
                &mut outcomes,
            ),
        }
    }
}
