//! The mechanism of this crate: one [`Fleet`] for each gateway, as the service has one.

use std::time::Duration;

use palisade_core::{gate::Outlook, settle::End, time};
use tokio::time::Instant;

use super::{
    checks::Checks,
    jobs::{Job, Stream},
    policy::{Balancer, Over},
    server::Server,
};
use crate::{
    LoadReport, Strategy,
    coin::Coin,
    fleet::{Fleet, Item, Need, Want},
    slot::Ticket,
};

/// Probes for each request, where the strategy lives on them.
const PROBES: usize = 3;
/// Otherwise each endpoint is asked every so many nanoseconds, a fifth more or less.
const STEADY: f64 = 1e9;

/// An endpoint that is only a number.
#[derive(Debug)]
struct Number(usize);

impl Item for Number {
    fn is_gated(&self) -> bool {
        false
    }

    fn hash(&self) -> u64 {
        crate::coin::mix(self.0 as u64)
    }

    fn outlook(&self, _: Instant) -> Outlook {
        Outlook::Admits
    }
}

/// What is told to the mechanism beside how requests end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Costs,
    Reports,
    Probes,
    Health,
    /// What probes and what checks find.
    Both,
}

pub(super) struct Ours {
    gateways: Vec<Fleet<Number>>,
    strategy: Strategy,
    told: Told,
    checks: Option<Checks>,
    /// Whom each gateway asks next.
    next: Vec<usize>,
    endpoints: usize,
    born: Instant,
    coin: Coin,
}

impl Ours {
    pub(super) fn new(
        strategy: Strategy,
        told: Told,
        gateways: usize,
        servers: &[Server],
        seed: u64,
    ) -> Self {
        let born = time::now();
        let gateway = |at| {
            let mut fleet = Fleet::new(born, Stream::Policy.coin(seed, 1 + at as u64));
            fleet.strategy = strategy;
            let present = servers.iter().enumerate().filter(|(_, one)| one.present);
            for (number, _) in present {
                fleet.insert(Number(number), 1.0, u32::MAX, born);
            }
            fleet
        };
        Self {
            gateways: (0..gateways).map(gateway).collect(),
            strategy,
            told,
            checks: matches!(told, Told::Health | Told::Both).then(|| {
                let coin = Stream::Health.coin(seed, 0);
                Checks::new(gateways, servers.len(), coin)
            }),
            next: (0..gateways).collect(),
            endpoints: servers.len(),
            born,
            coin: Stream::Policy.coin(seed, 0),
        }
    }

    fn check(&mut self, servers: &[Server], now: u64) {
        let Some(checks) = &mut self.checks else {
            return;
        };
        while let Some(said) = checks.next(servers, now) {
            let at = self.born + Duration::from_nanos(said.at);
            let fleet = &mut self.gateways[said.gateway];
            fleet.set_health(|number| number.0 == said.endpoint, said.health, at);
        }
    }

    fn instant(&self, now: u64) -> Instant {
        self.born + Duration::from_nanos(now)
    }
}

impl Balancer for Ours {
    /// The endpoint, too.
    type Ticket = (usize, Ticket);

    fn choose(
        &mut self,
        job: &Job,
        servers: &[Server],
        now: u64,
    ) -> Result<(usize, Self::Ticket), Option<u64>> {
        self.check(servers, now);
        let need = Need {
            affinity: Some(job.session),
            cost: (self.told == Told::Costs).then_some(job.work),
            wants_all: true,
        };
        let (born, now) = (self.born, self.instant(now));
        let picked = self.gateways[job.gateway as usize].pick(now, &need, |_| Want::Yes);
        match picked {
            Ok((number, ticket)) => Ok((number.0, (number.0, ticket))),
            Err(until) => Err(until.map(|until| (until - born).as_nanos() as u64)),
        }
    }

    fn first_data(&mut self, gateway: usize, (_, ticket): &mut Self::Ticket, now: u64) {
        let now = self.instant(now);
        self.gateways[gateway].first_data(ticket, now);
    }

    fn over(&mut self, gateway: usize, (at, mut ticket): Self::Ticket, over: &Over<'_>) {
        let now = self.instant(over.now);
        let end = End {
            age: Duration::from_nanos(over.age),
            ..End::new(over.verdict)
        };
        let fleet = &mut self.gateways[gateway];
        if self.told == Told::Reports {
            let report = LoadReport {
                latency: None,
                ..over.server.report(over.now)
            };
            fleet.report(|number| number.0 == at, &report, now);
        }
        fleet.settle(&mut ticket, &end, now);
        fleet.end(&mut ticket, now);
    }

    fn probes(&mut self, _: usize, servers: &[Server], asked: &mut Vec<usize>) {
        if self.strategy == Strategy::Prequal {
            draw(&mut self.coin, servers, PROBES, asked);
        }
    }

    fn gateways(&self) -> usize {
        if matches!(self.told, Told::Probes | Told::Both) {
            self.gateways.len()
        } else {
            0
        }
    }

    fn pause(&mut self) -> u64 {
        let jitter = 0.8 + 0.4 * self.coin.share();
        (jitter * STEADY / self.endpoints as f64) as u64
    }

    fn probes_next(&mut self, gateway: usize, servers: &[Server], asked: &mut Vec<usize>) {
        let next = &mut self.next[gateway];
        for _ in servers {
            *next = (*next + 1) % servers.len();
            if servers[*next].present {
                asked.push(*next);
                return;
            }
        }
    }

    fn probed(&mut self, gateway: usize, endpoint: usize, report: LoadReport, now: u64) {
        let now = self.instant(now);
        self.gateways[gateway].report(|number| number.0 == endpoint, &report, now);
    }

    fn join(&mut self, endpoint: usize, now: u64) {
        let now = self.instant(now);
        for fleet in &mut self.gateways {
            fleet.insert(Number(endpoint), 1.0, u32::MAX, now);
        }
    }

    fn leave(&mut self, endpoint: usize, _: u64) {
        for fleet in &mut self.gateways {
            fleet.remove(|number| number.0 == endpoint);
        }
    }

    fn in_flight(&self) -> u64 {
        let slots = self.gateways.iter().flat_map(Fleet::slots);
        slots.map(|slot| u64::from(slot.load.in_flight())).sum()
    }
}

/// So many different endpoints, evenly.
pub(super) fn draw(coin: &mut Coin, servers: &[Server], many: usize, into: &mut Vec<usize>) {
    let present = servers.iter().filter(|server| server.present).count();
    while into.len() < many.min(present) {
        let one = (coin.share() * servers.len() as f64) as usize;
        if servers[one].present && !into.contains(&one) {
            into.push(one);
        }
    }
}
