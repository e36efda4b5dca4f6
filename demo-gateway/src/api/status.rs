//! How it goes: `/status`, `/metrics`, and what there is at `/`.

use std::time::Duration;

use http::StatusCode;
use palisade::{
    sla::{Burn, DimensionSummary, Summary},
    time,
};
use serde::Serialize;

use crate::{
    app::App,
    backends,
    body::{self, Answer},
    clock::timestamp,
    dashboard::newest,
    discovery::{self, Discovery},
    errors::ApiError,
    limits::Totals,
    metrics,
    store::{self, Store},
    verdict::{Facts, Verdict},
};

/// What `performance_summary` is about.
const WINDOW: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Status<'a> {
    timestamp: String,
    performance_summary: Summary,
    active_backends: usize,
    total_backends: usize,
    system_health: &'static str,
    backend_status: backends::Status,
    /// `null` when backends are only those that were named.
    discovery: Option<discovery::Status>,
    slo: Burn,
    /// The same window by route, tier and model, and of attempts by endpoint.
    by: Vec<DimensionSummary>,
    rate_limit: Option<Totals<'a>>,
    /// The request log; `null` when it is off.
    store: Option<store::Status>,
    /// There is none yet.
    autoscaler: Option<()>,
    /// Whether all is well, as the dashboard says it.
    verdict: Verdict,
}

pub(super) fn status(app: &App) -> Answer {
    let backend_status = app.backends.status();
    let active = backend_status.healthy_backends;
    let burn = app.stack.sla.burn(time::now());
    let verdict = app.verdict.judge(&Facts {
        backends: &app.backends,
        endpoints: &newest(app.backends.endpoints.snapshot()),
        burn: &burn,
        draining: app.is_draining(),
        ended: app.dashboard.ended(),
        in_flight: app.stack.sla.in_flight(),
    });
    body::json(&Status {
        timestamp: timestamp(),
        performance_summary: app.stack.sla.summary(WINDOW),
        active_backends: active,
        total_backends: backend_status.total_backends,
        system_health: if active > 0 { "healthy" } else { "degraded" },
        backend_status,
        discovery: app.discovery.as_ref().map(Discovery::status),
        slo: burn,
        by: app.stack.sla.labels(WINDOW),
        rate_limit: app.stack.limits.totals(),
        store: app.store.as_ref().map(Store::status),
        autoscaler: None,
        verdict,
    })
}

pub(super) fn metrics(app: &App) -> Result<Answer, ApiError> {
    app.backends.publish();
    app.stack.sla.publish();
    let page = metrics::page().ok_or_else(|| {
        let detail = "another recorder is in place in this process";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_metrics", detail)
    })?;
    Ok(body::text(metrics::TYPE, page))
}

/// What there is.
pub(crate) fn index() -> Answer {
    #[derive(Serialize)]
    struct Index {
        name: &'static str,
        version: &'static str,
        endpoints: [&'static str; 14],
    }

    body::json(&Index {
        name: "palisade demo-gateway",
        version: env!("CARGO_PKG_VERSION"),
        endpoints: [
            "POST /generate",
            "POST /generate/batch",
            "POST /v1/chat/completions",
            "POST /v1/completions",
            "POST /v1/embeddings",
            "GET /v1/models",
            "GET /health",
            "GET /livez",
            "GET /readyz",
            "GET /metrics",
            "GET /status",
            "GET /events",
            "GET /rate-limits/{identifier}",
            "/admin",
        ],
    })
}
