//! Whether requests can be answered, for people and for what watches over the process.

use http::StatusCode;
use serde::Serialize;

use crate::{
    app::App,
    backends::Status,
    body::{self, Answer},
    clock::timestamp,
    errors::{ApiError, SOON},
};

#[derive(Serialize)]
struct Health {
    status: &'static str,
    timestamp: String,
    load_balancer: Status,
}

/// The state of all backends. Always 200: see [`readyz`] for a yes or no.
pub(super) fn health(app: &App) -> Answer {
    let load_balancer = app.backends.status();
    body::json(&Health {
        status: match load_balancer.healthy_backends {
            _ if app.is_draining() => "draining",
            0 => "unhealthy",
            healthy if healthy < load_balancer.total_backends => "degraded",
            _ => "healthy",
        },
        timestamp: timestamp(),
        load_balancer,
    })
}

/// The process runs.
pub(super) fn livez() -> Answer {
    body::text("text/plain; charset=utf-8", "ok\n")
}

/// A request that came now would have somewhere to go.
pub(super) fn readyz(app: &App) -> Result<Answer, ApiError> {
    let not = |code, detail: &'static str| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Err(ApiError::new(status, code, detail).retry_after(SOON))
    };
    if app.is_draining() {
        return not("draining", "the gateway is about to stop");
    }
    if !app.backends.usable() {
        return not("no_endpoint", "no backend can be used");
    }
    Ok(body::text("text/plain; charset=utf-8", "ready\n"))
}
