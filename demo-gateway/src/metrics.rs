//! What a scrape sees, besides what the layers say of themselves.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use palisade::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    reject::Reason,
    settle::{End, Settle},
};
use tokio::time::Instant;

use crate::{
    exchange::{Exchange, Operation},
    identity::Kind,
    work::Lengths,
};

const REQUESTS: &str = "llm_requests_total";
const DURATION: &str = "llm_request_duration_seconds";
pub(crate) const ACTIVE: &str = "llm_active_connections";
const HITS: &str = "llm_rate_limit_hits_total";
const TOKENS: &str = "gen_ai_client_token_usage";
const SERVER_DURATION: &str = "gen_ai_server_request_duration_seconds";
const FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
const PER_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";
const OVERHEAD: &str = "palisade_gateway_overhead_seconds";

/// Where no backend was reached.
pub(crate) const UNKNOWN: &str = "unknown";

/// As OpenTelemetry's conventions for generative AI advise.
const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const SERVER_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const PER_TOKEN_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// Prometheus' own, up to the longest answers.
const SECONDS_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// A proxied request costs some tens of microseconds.
const OVERHEAD_BUCKETS: [f64; 13] = [
    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5,
    2.5,
];

/// The recorder of this process, which all gateways in it share; `None` when somebody else has installed another.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER.get_or_init(install).as_ref()
}

fn install() -> Option<PrometheusHandle> {
    let full = |name: &str| Matcher::Full(name.into());
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(full(TOKENS), &TOKEN_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(full(SERVER_DURATION), &SERVER_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(full(FIRST_TOKEN), &FIRST_TOKEN_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(full(PER_TOKEN), &PER_TOKEN_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(full(OVERHEAD), &OVERHEAD_BUCKETS))
        // Whatever a layer adds is a histogram too, never a summary.
        .and_then(|builder| builder.set_buckets(&SECONDS_BUCKETS));
    let handle = builder.and_then(PrometheusBuilder::install_recorder);
    match handle {
        Ok(handle) => {
            describe();
            Some(handle)
        }
        Err(error) => {
            tracing::warn!(%error, "no metrics: another recorder is in place");
            None
        }
    }
}

fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests that ended, by backend and by how; without those over their rate."
    );
    describe_histogram!(
        DURATION,
        "From a request to the end of its answer, for those that reached a backend."
    );
    describe_gauge!(
        ACTIVE,
        "Requests that a backend works on, to the end of their answers."
    );
    describe_counter!(HITS, "Requests over a rate, by what the rule counts by.");
    describe_histogram!(
        TOKENS,
        "Tokens that a request read (input) and wrote (output)."
    );
    describe_histogram!(SERVER_DURATION, "From a request to the end of its answer.");
    describe_histogram!(
        FIRST_TOKEN,
        "From a request to the first event of its stream."
    );
    describe_histogram!(
        PER_TOKEN,
        "Between two tokens of a stream, after the first."
    );
    describe_histogram!(
        OVERHEAD,
        "What a request took, less the time that backends were waited for."
    );
}

/// Ready-made handles, so that no request looks one up.
pub(crate) struct Meters {
    operations: [OperationMeters; Operation::ALL.len()],
    unknown: Counter,
    pub(crate) overhead: Histogram,
    /// What the balancer is told by.
    pub(crate) lengths: Lengths,
    hits: [(&'static str, Counter); 5],
}

struct OperationMeters {
    input_tokens: Histogram,
    output_tokens: Histogram,
    duration: Histogram,
    first_token: Histogram,
    per_token: Histogram,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let hits = |kind| (kind, counter!(HITS, "identifier_type" => kind));
        Self {
            operations: Operation::ALL.map(OperationMeters::new),
            unknown: counter!(REQUESTS, "backend" => UNKNOWN, "status" => "error"),
            overhead: histogram!(OVERHEAD),
            lengths: Lengths::default(),
            hits: [
                hits("global"),
                hits("ip"),
                hits(Kind::User.name()),
                hits(Kind::ApiKey.name()),
                hits("model"),
            ],
        }
    }

    /// Counts a request over a rate that goes by this kind of identifier.
    pub(crate) fn hit(&self, kind: &str) {
        if let Some((_, counter)) = self.hits.iter().find(|(name, _)| *name == kind) {
            counter.increment(1);
        }
    }
}

impl OperationMeters {
    fn new(operation: Operation) -> Self {
        let name = operation.name();
        let tokens = |kind: &'static str| histogram!(TOKENS, "gen_ai_operation_name" => name, "gen_ai_token_type" => kind);
        Self {
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            duration: histogram!(SERVER_DURATION, "gen_ai_operation_name" => name),
            first_token: histogram!(FIRST_TOKEN, "gen_ai_operation_name" => name),
            per_token: histogram!(PER_TOKEN, "gen_ai_operation_name" => name),
        }
    }
}

/// What is counted for one backend.
#[derive(Debug)]
pub(crate) struct BackendMeters {
    success: Counter,
    error: Counter,
    duration: Histogram,
}

impl BackendMeters {
    pub(crate) fn new(backend: &str) -> Self {
        let backend = backend.to_owned();
        Self {
            success: counter!(REQUESTS, "backend" => backend.clone(), "status" => "success"),
            error: counter!(REQUESTS, "backend" => backend.clone(), "status" => "error"),
            duration: histogram!(DURATION, "backend" => backend),
        }
    }
}

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
    first_data: Option<Duration>,
}

impl Settle for Tally {
    fn first_data(&mut self, now: Instant) {
        self.first_data = Some(now.saturating_duration_since(self.since));
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        let succeeded = end.verdict == Verdict::Success;
        let counts = match end.verdict {
            // A caller who leaves says nothing about the service; one over a rate is counted as such.
            Verdict::Canceled => false,
            Verdict::Refused(reason) => !is_limit(reason),
            _ => true,
        };
        let backend = exchange.backend();
        if counts {
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
        let meters = &self.meters.operations[exchange.operation as usize];
        if counts {
            meters.duration.record(end.age);
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
            meters.first_token.record(first);
            if usage.completion > 1 {
                let rest = end.age.saturating_sub(first).as_secs_f64();
                meters
                    .per_token
                    .record(rest / (usage.completion - 1) as f64);
            }
        }
    }
}

/// Whether a request was refused for its rate.
pub(crate) fn is_limit(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RateLimited | Reason::QuotaExhausted | Reason::CostExceedsQuota
    )
}
