//! Prequal as Wydrowski, Kleinberg, Rumble and Archer published it (NSDI 2024): probes in a pool, hot and cold.

use super::{
    jobs::{Job, Stream},
    ours::draw,
    policy::{Balancer, Over},
    server::Server,
};
use crate::{LoadReport, coin::Coin};

const PROBES: usize = 3;
const POOL: usize = 16;
const TOO_OLD: u64 = 1_000_000_000;
/// An endpoint is hot with more in flight than this part of what was seen lately.
const HOT: f64 = 0.84;
/// So many answers to probes were seen lately.
const SEEN: usize = 128;
/// How often one answer is used: half of what a request brings is thrown away for its age or for being bad.
const USES: u32 = 2;

#[derive(Clone, Copy, Debug)]
struct Probe {
    endpoint: usize,
    at: u64,
    in_flight: u32,
    latency: f64,
    uses: u32,
}

#[derive(Debug, Default)]
struct Gateway {
    pool: Vec<Probe>,
    seen: Vec<u32>,
    next: usize,
    sorted: Vec<u32>,
    /// The worst and the oldest are thrown away in turn.
    worst: bool,
}

impl Gateway {
    fn add(&mut self, probe: Probe) {
        if self.pool.len() == POOL {
            // Pushed in order of time.
            self.pool.remove(0);
        }
        self.pool.push(probe);
        if self.seen.len() < SEEN {
            self.seen.push(probe.in_flight);
        } else {
            self.seen[self.next] = probe.in_flight;
            self.next = (self.next + 1) % SEEN;
        }
    }

    fn hot_above(&mut self) -> u32 {
        self.sorted.clear();
        self.sorted.extend_from_slice(&self.seen);
        let at = ((self.sorted.len() as f64 * HOT) as usize).min(self.sorted.len() - 1);
        *self.sorted.select_nth_unstable(at).1
    }

    fn choose(&mut self, now: u64) -> Option<usize> {
        self.pool
            .retain(|probe| now.saturating_sub(probe.at) < TOO_OLD);
        if self.pool.len() < 2 {
            return None;
        }
        let hot = self.hot_above();
        let rank = |probe: &Probe| match probe.in_flight > hot {
            false => (false, probe.latency),
            true => (true, f64::from(probe.in_flight)),
        };
        let compare = |a: &Probe, b: &Probe| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        let all = 0..self.pool.len();
        let best = all.min_by(|&a, &b| compare(&self.pool[a], &self.pool[b]))?;
        let endpoint = self.pool[best].endpoint;
        // What is sent there now is there when the answer is used again.
        self.pool[best].in_flight += 1;
        self.pool[best].uses += 1;
        let used = self.pool[best].uses >= USES;
        if used {
            self.pool.remove(best);
        }
        self.worst = !self.worst;
        if self.pool.len() > 2 {
            let bad = if self.worst {
                let all = 0..self.pool.len();
                all.max_by(|&a, &b| compare(&self.pool[a], &self.pool[b]))?
            } else {
                0
            };
            self.pool.remove(bad);
        }
        Some(endpoint)
    }
}

pub(super) struct Probing {
    gateways: Vec<Gateway>,
    coin: Coin,
    drawn: Vec<usize>,
    in_flight: u64,
}

impl Probing {
    pub(super) fn new(gateways: usize, seed: u64) -> Self {
        Self {
            gateways: std::iter::repeat_with(Gateway::default)
                .take(gateways)
                .collect(),
            coin: Stream::Policy.coin(seed, 0),
            drawn: Vec::new(),
            in_flight: 0,
        }
    }
}

impl Balancer for Probing {
    type Ticket = ();

    fn choose(
        &mut self,
        job: &Job,
        servers: &[Server],
        now: u64,
    ) -> Result<(usize, ()), Option<u64>> {
        let chosen = self.gateways[job.gateway as usize].choose(now);
        let endpoint = match chosen.filter(|&at| servers[at].present) {
            Some(endpoint) => endpoint,
            None => {
                self.drawn.clear();
                draw(&mut self.coin, servers, 1, &mut self.drawn);
                *self.drawn.first().ok_or(None)?
            }
        };
        self.in_flight += 1;
        Ok((endpoint, ()))
    }

    fn first_data(&mut self, _: usize, (): &mut (), _: u64) {}

    fn over(&mut self, _: usize, (): (), _: &Over<'_>) {
        self.in_flight -= 1;
    }

    fn probes(&mut self, _: usize, servers: &[Server], asked: &mut Vec<usize>) {
        draw(&mut self.coin, servers, PROBES, asked);
    }

    fn probed(&mut self, gateway: usize, endpoint: usize, report: LoadReport, now: u64) {
        let latency = report.latency.map_or(0.0, |latency| latency.as_secs_f64());
        self.gateways[gateway].add(Probe {
            endpoint,
            at: now,
            in_flight: report.in_flight.unwrap_or_default(),
            latency,
            uses: 0,
        });
    }

    fn join(&mut self, _: usize, _: u64) {}

    fn leave(&mut self, endpoint: usize, _: u64) {
        for gateway in &mut self.gateways {
            gateway.pool.retain(|probe| probe.endpoint != endpoint);
        }
    }

    fn in_flight(&self) -> u64 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(probes: &[(usize, u32, f64)]) -> Gateway {
        let mut gateway = Gateway::default();
        for &(endpoint, in_flight, latency) in probes {
            gateway.add(Probe {
                endpoint,
                at: 0,
                in_flight,
                latency,
                uses: 0,
            });
        }
        gateway
    }

    #[test]
    fn the_fastest_of_those_that_are_not_hot_is_taken() {
        let mut gateway = gateway(&[(0, 1, 3.0), (1, 2, 2.0), (2, 1, 4.0), (3, 9, 1.0)]);
        gateway.seen = vec![1, 1, 2, 2, 2, 2, 2, 2, 9, 9];
        gateway.seen[8] = 2;
        assert_eq!(gateway.choose(1), Some(1));
    }

    #[test]
    fn of_hot_ones_the_least_loaded_is_taken() {
        let mut gateway = gateway(&[(0, 5, 1.0), (1, 3, 9.0)]);
        gateway.seen = vec![1; 10];
        assert_eq!(gateway.choose(1), Some(1));
    }

    #[test]
    fn old_answers_are_not_believed() {
        let mut gateway = gateway(&[(0, 1, 1.0), (1, 1, 1.0)]);
        assert_eq!(gateway.choose(TOO_OLD), None);
    }
}
