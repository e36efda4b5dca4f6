//! Health checks of the simulated endpoints: each gateway makes its own, as often as the checker does.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::server::Server;
use crate::{
    coin::Coin,
    health::{HealthChecks, Tally},
    snapshot::Health,
};

pub(super) struct Checks {
    /// When the next check is due, of which.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    tallies: Vec<Tally>,
    endpoints: usize,
    coin: Coin,
}

/// What a check has changed.
pub(super) struct Said {
    pub(super) gateway: usize,
    pub(super) endpoint: usize,
    pub(super) health: Health,
    pub(super) at: u64,
}

impl Checks {
    pub(super) fn new(gateways: usize, endpoints: usize, mut coin: Coin) -> Self {
        let every = Tally::default().pause(HealthChecks::default()).as_nanos() as f64;
        let all = gateways * endpoints;
        let first = (0..all).map(|which| Reverse(((coin.share() * every) as u64, which)));
        Self {
            due: first.collect(),
            tallies: vec![Tally::default(); all],
            endpoints,
            coin,
        }
    }

    /// Makes the checks that are due until one changes what is believed.
    pub(super) fn next(&mut self, servers: &[Server], now: u64) -> Option<Said> {
        while let Some(&Reverse((at, which))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            let (gateway, endpoint) = (which / self.endpoints, which % self.endpoints);
            let tally = &mut self.tallies[which];
            let checks = HealthChecks::default();
            let server = &servers[endpoint];
            let said = if server.present {
                tally.hear(server.passes(self.coin.share(), at), checks)
            } else {
                *tally = Tally::default();
                None
            };
            let pause = tally.pause(checks).as_nanos() as f64;
            let pause = pause * (0.8 + 0.4 * self.coin.share());
            self.due.push(Reverse((at + pause as u64, which)));
            if let Some(health) = said {
                return Some(Said {
                    gateway,
                    endpoint,
                    health,
                    at,
                });
            }
        }
        None
    }
}
