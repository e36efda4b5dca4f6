//! Power of two choices as others have it: two endpoints are drawn, and the one with the lower load is taken.

use super::{
    jobs::{Job, SECOND, Stream},
    ours::draw,
    policy::{Balancer, Over},
    server::Server,
};
use crate::coin::Coin;

/// How fast a peak is forgotten, as in Finagle and linkerd.
const DECAY: f64 = 10.0 * SECOND;
/// What is believed of an endpoint before its first answer.
const UNKNOWN: f64 = SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    PeakEwma,
    InFlight,
}

/// What one gateway knows of one endpoint.
#[derive(Clone, Copy, Debug)]
struct Known {
    estimate: f64,
    at: u64,
    pending: u32,
}

impl Known {
    fn new(now: u64) -> Self {
        Self {
            estimate: UNKNOWN,
            at: now,
            pending: 0,
        }
    }

    /// Up at once, and down by how long ago the last was.
    fn hear(&mut self, latency: f64, now: u64) {
        if latency > self.estimate {
            self.estimate = latency;
        } else {
            let rest = (-((now - self.at) as f64) / DECAY).exp();
            self.estimate = self.estimate * rest + latency * (1.0 - rest);
        }
        self.at = now;
    }
}

pub(super) struct TwoChoices {
    measure: Measure,
    gateways: Vec<Vec<Known>>,
    coin: Coin,
    drawn: Vec<usize>,
    in_flight: u64,
}

impl TwoChoices {
    pub(super) fn new(measure: Measure, gateways: usize, endpoints: usize, seed: u64) -> Self {
        Self {
            measure,
            gateways: vec![vec![Known::new(0); endpoints]; gateways],
            coin: Stream::Policy.coin(seed, 0),
            drawn: Vec::new(),
            in_flight: 0,
        }
    }

    fn load(&mut self, gateway: usize, at: usize, now: u64) -> f64 {
        let known = &mut self.gateways[gateway][at];
        let pending = f64::from(known.pending);
        match self.measure {
            Measure::InFlight => pending,
            Measure::PeakEwma => {
                // Looking is a sample of nothing at all: the estimate is kept as it was read.
                known.hear(0.0, now);
                known.estimate * (pending + 1.0)
            }
        }
    }

    /// Its answers count from the request to their head.
    fn answered(&mut self, gateway: usize, ticket: &mut Ticket, now: u64) {
        if let Some(sent) = ticket.pending.take() {
            let known = &mut self.gateways[gateway][ticket.endpoint];
            known.pending = known.pending.saturating_sub(1);
            known.hear((now - sent) as f64, now);
        }
    }
}

pub(super) struct Ticket {
    endpoint: usize,
    pending: Option<u64>,
}

impl Balancer for TwoChoices {
    type Ticket = Ticket;

    fn choose(
        &mut self,
        job: &Job,
        servers: &[Server],
        now: u64,
    ) -> Result<(usize, Ticket), Option<u64>> {
        let gateway = job.gateway as usize;
        let mut drawn = std::mem::take(&mut self.drawn);
        drawn.clear();
        draw(&mut self.coin, servers, 2, &mut drawn);
        let chosen = match drawn[..] {
            [one, other] => {
                let is_other = self.load(gateway, other, now) < self.load(gateway, one, now);
                Some(if is_other { other } else { one })
            }
            [one] => Some(one),
            _ => None,
        };
        self.drawn = drawn;
        let endpoint = chosen.ok_or(None)?;
        self.gateways[gateway][endpoint].pending += 1;
        self.in_flight += 1;
        let pending = Some(now);
        Ok((endpoint, Ticket { endpoint, pending }))
    }

    fn first_data(&mut self, gateway: usize, ticket: &mut Ticket, now: u64) {
        self.answered(gateway, ticket, now);
    }

    fn over(&mut self, gateway: usize, mut ticket: Ticket, over: &Over<'_>) {
        self.answered(gateway, &mut ticket, over.now);
        self.in_flight -= 1;
    }

    fn join(&mut self, endpoint: usize, now: u64) {
        for known in &mut self.gateways {
            known[endpoint] = Known::new(now);
        }
    }

    fn leave(&mut self, _: usize, _: u64) {}

    fn in_flight(&self) -> u64 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let mut known = Known::new(0);
        known.hear(5e9, 1_000_000_000);
        assert_eq!(known.estimate, 5e9);
        // After one decay time a sample of 1 s counts 1 - 1/e.
        known.hear(1e9, 11_000_000_000);
        let expected = 1e9 + 4e9 * (-1f64).exp();
        assert!((known.estimate - expected).abs() < 1.0, "{known:?}");
    }
}
