//! Policies that know what nobody can know, to compare with.

use super::{
    jobs::Job,
    policy::{Balancer, Over},
    server::{Served, Server},
    workload::Score,
};

#[derive(Clone, Copy)]
pub(super) enum Knows {
    Queues,
    Sizes,
}

pub(super) struct Oracle {
    knows: Knows,
    score: Score,
    /// Work until the first data.
    first_work: f64,
    in_flight: u64,
}

impl Oracle {
    pub(super) fn new(knows: Knows, score: Score, first_work: f64) -> Self {
        Self {
            knows,
            score,
            first_work,
            in_flight: 0,
        }
    }

    fn price(&self, job: &Job, server: &Server, now: u64) -> f64 {
        match self.knows {
            Knows::Queues => {
                let slots = server.slots();
                // One mean request at a time in each slot, as far as anybody knows.
                let ahead = f64::from((server.in_flight + 1).saturating_sub(slots));
                let own = match self.score {
                    Score::Answer => 1.0,
                    Score::FirstData => 0.0,
                };
                // Where all have a slot that is free, the fastest.
                let idle = f64::from(server.in_flight) * 1e-9;
                (own + ahead / f64::from(slots) + 1e-6 + idle) / server.speed(now)
            }
            Knows::Sizes => {
                let Served { first, end, .. } = server.look_ahead(job, self.first_work, now);
                match self.score {
                    Score::Answer => end as f64,
                    Score::FirstData => first as f64,
                }
            }
        }
    }
}

impl Balancer for Oracle {
    type Ticket = ();

    fn choose(
        &mut self,
        job: &Job,
        servers: &[Server],
        now: u64,
    ) -> Result<(usize, ()), Option<u64>> {
        let mut best = None;
        for (at, server) in servers.iter().enumerate() {
            if !server.works(now) {
                continue;
            }
            let price = self.price(job, server, now);
            if best.is_none_or(|(_, least)| price < least) {
                best = Some((at, price));
            }
        }
        let (at, _) = best.ok_or(None)?;
        self.in_flight += 1;
        Ok((at, ()))
    }

    fn first_data(&mut self, _: usize, (): &mut (), _: u64) {}

    fn over(&mut self, _: usize, (): (), _: &Over<'_>) {
        self.in_flight -= 1;
    }

    fn join(&mut self, _: usize, _: u64) {}

    fn leave(&mut self, _: usize, _: u64) {}

    fn in_flight(&self) -> u64 {
        self.in_flight
    }
}
