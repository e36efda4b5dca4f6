//! How it goes: `/status`, `/metrics`, and what there is at `/`.

use std::time::Duration;

use http::StatusCode;
use palisade::{
    sla::{Burn, Summary},
    time,
};
use serde::Serialize;

use crate::{
    app::App,
    backends,
    body::{self, Answer},
    clock::timestamp,
    discovery::{self, Discovery},
    errors::ApiError,
    limits::Totals,
    metrics,
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
    rate_limit: Option<Totals<'a>>,
    /// There is none yet.
    autoscaler: Option<()>,
}

pub(super) fn status(app: &App) -> Answer {
    let backend_status = app.backends.status();
    let active = backend_status.healthy_backends;
    body::json(&Status {
        timestamp: timestamp(),
        performance_summary: app.stack.sla.summary(WINDOW),
        active_backends: active,
        total_backends: backend_status.total_backends,
        system_health: if active > 0 { "healthy" } else { "degraded" },
        backend_status,
        discovery: app.discovery.as_ref().map(Discovery::status),
        slo: app.stack.sla.burn(time::now()),
        rate_limit: app.stack.limits.totals(),
        autoscaler: None,
    })
}

pub(super) fn metrics(app: &App) -> Result<Answer, ApiError> {
    let recorder = metrics::recorder().ok_or_else(|| {
        let detail = "another recorder is in place in this process";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_metrics", detail)
    })?;
    app.backends.publish();
    app.stack.sla.publish();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(body::text(kind, recorder.render()))
}

/// What there is.
pub(super) fn index() -> Answer {
    #[derive(Serialize)]
    struct Index {
        name: &'static str,
        version: &'static str,
        endpoints: [&'static str; 13],
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
            "GET /rate-limits/{identifier}",
            "/admin",
        ],
    })
}
