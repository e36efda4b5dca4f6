//! What a scrape sees, besides what the layers say of themselves.
//!
#![doc = include_str!("metrics.md")]

mod answers;
pub(crate) mod buckets;
mod gen_ai;
mod histogram;
mod overhead;
mod process;
mod recorder;
mod text;

use std::sync::OnceLock;

use ::metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use palisade::reject::Reason;

pub(crate) use self::gen_ai::OTHER;
pub use self::recorder::Recorder;
use self::{answers::Answers, gen_ai::GenAi, text::Writer};
pub(crate) use self::{
    overhead::{Measured, Overhead},
    text::TYPE,
};
use crate::{config::Config, identity::Kind, work::Lengths};

const REQUESTS: &str = "llm_requests_total";
const DURATION: &str = "llm_request_duration_seconds";
pub(crate) const ACTIVE: &str = "llm_active_connections";
const HITS: &str = "llm_rate_limit_hits_total";
const OVERHEAD: &str = "palisade_gateway_overhead_seconds";
pub(crate) const USABLE: &str = "palisade_gateway_usable";
const BUILD: &str = "palisade_gateway_build_info";

/// Where no backend was reached.
pub(crate) const UNKNOWN: &str = "unknown";

/// The recorder of this process, which all gateways in it share; `None` when somebody else has installed another.
pub(crate) fn recorder() -> Option<&'static Recorder> {
    static RECORDER: OnceLock<Option<Recorder>> = OnceLock::new();
    let install = || {
        let recorder = Recorder::new();
        match recorder.install() {
            Ok(()) => {
                describe();
                Some(recorder)
            }
            Err(error) => {
                tracing::warn!(%error, "no metrics: another recorder is in place");
                None
            }
        }
    };
    RECORDER.get_or_init(install).as_ref()
}

/// What Prometheus reads of this process, unless somebody else has installed a recorder.
pub(crate) fn page() -> Option<String> {
    let recorder = recorder()?;
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let mut page = Writer::new(recorder.render());
    // Their names come last.
    process::render(&mut page);
    Some(page.finish())
}

/// Lets go of what was counted for a backend that is gone.
pub(crate) fn forget(backend: &str) {
    if let Some(recorder) = recorder() {
        // Layers name after it what they have one of for each.
        for label in ["backend", "endpoint", "label", "layer"] {
            recorder.forget(label, backend);
        }
    }
}

fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests that ended, by backend and by how; without those over their rate, at fault themselves, and those that were left."
    );
    describe_histogram!(
        DURATION,
        "From a request to the end of its answer, for those that succeeded."
    );
    describe_gauge!(
        ACTIVE,
        "Requests that a backend works on, to the end of their answers."
    );
    describe_counter!(HITS, "Requests over a rate, by what the rule counts by.");
    describe_histogram!(
        OVERHEAD,
        "What the gateway itself took of a request: without the time that backends and callers were waited for."
    );
    describe_gauge!(
        USABLE,
        "1 while requests go to backends, be they ejected; 0 while all are refused, but for probes."
    );
    describe_gauge!(BUILD, "1, and which gateway this is.");
    answers::describe();
    gen_ai::describe();
}

/// Ready-made handles, so that no request looks one up.
pub(crate) struct Meters {
    pub(crate) gen_ai: GenAi,
    answers: Answers,
    /// Requests that reached no backend.
    pub(crate) unknown: Counter,
    overhead: Histogram,
    /// What the balancer is told by.
    pub(crate) lengths: Lengths,
    hits: [(&'static str, Counter); 5],
}

impl Meters {
    pub(crate) fn new(config: &Config) -> Self {
        let hits = |kind| (kind, counter!(HITS, "identifier_type" => kind));
        Self {
            gen_ai: GenAi::new(config),
            answers: Answers::default(),
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

/// What is counted for one backend.
#[derive(Debug)]
pub(crate) struct BackendMeters {
    pub(crate) success: Counter,
    pub(crate) error: Counter,
    pub(crate) duration: Histogram,
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

/// Whether a request was refused for its rate.
pub(crate) fn is_limit(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RateLimited | Reason::QuotaExhausted | Reason::CostExceedsQuota
    )
}

#[cfg(test)]
mod tests;
