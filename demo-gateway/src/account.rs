//! Counts requests when they end.

use std::sync::Arc;

use palisade::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
};
use tokio::time::Instant;

use crate::{
    exchange::{Ended, Exchange},
    metrics::{Meters, is_limit},
};

/// Counts requests when they end. A gate that admits all.
#[derive(Clone)]
pub(crate) struct Account(Arc<Meters>);

impl Account {
    pub(crate) fn new(meters: Arc<Meters>) -> Self {
        Self(meters)
    }
}

impl Gate for Account {
    type Guard = Tally;

    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<Tally> {
        Admit::Now(Ok(Tally {
            meters: self.0.clone(),
            exchange: head.extensions.get().cloned(),
            since: now,
            first_data: None,
        }))
    }
}

pub(crate) struct Tally {
    meters: Arc<Meters>,
    exchange: Option<Arc<Exchange>>,
    since: Instant,
    first_data: Option<Instant>,
}

impl Settle for Tally {
    fn first_data(&mut self, now: Instant) {
        self.first_data = Some(now);
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        exchange.ended(Ended {
            verdict: end.verdict,
            usage: end.usage,
            // As the log has all its times.
            first_data: self
                .first_data
                .map(|at| at.saturating_duration_since(exchange.since)),
        });
        let succeeded = end.verdict == Verdict::Success;
        let counts = match end.verdict {
            // A caller who leaves says nothing about the service; one over a rate is counted as such.
            Verdict::Canceled => false,
            Verdict::Refused(reason) => !is_limit(reason),
            _ => true,
        };
        let backend = exchange.backend();
        // Nor does one whose fault it is.
        if counts && end.verdict != Verdict::CallerFault {
            match &backend {
                Some(backend) if succeeded => backend.meters.success.increment(1),
                Some(backend) => backend.meters.error.increment(1),
                None => self.meters.unknown.increment(1),
            }
        }
        if let Some(backend) = backend.filter(|_| succeeded) {
            backend.meters.duration.record(end.age);
            backend.took(end.age);
        }
        let model = exchange.model();
        let meters = &self.meters.gen_ai;
        let meters = meters.of(exchange.operation, model.as_deref(), succeeded);
        if counts {
            meters.duration(end.verdict).record(end.age);
        }
        let Some(usage) = end.usage else {
            return;
        };
        meters.input_tokens.record(usage.prompt as f64);
        meters.output_tokens.record(usage.completion as f64);
        if succeeded {
            self.meters
                .lengths
                .learn(exchange.operation, usage.completion);
        }
        // A plain answer comes whole: its first byte is its last token.
        if let Some(first) = self
            .first_data
            .filter(|_| succeeded && exchange.is_stream())
        {
            let first = first.saturating_duration_since(self.since);
            meters.first_token().record(first);
            if usage.completion > 1 {
                let rest = end.age.saturating_sub(first).as_secs_f64();
                meters
                    .per_token()
                    .record(rest / (usage.completion - 1) as f64);
            }
        }
    }
}
