//! How the backends do, in the fields of `GET /health`.

use std::sync::Arc;

use palisade::{
    balance::{EjectionReason, EndpointState, Finding, LoadReport, Snapshot},
    circuit_breaker::{self, CircuitState},
    time::{now, wall_clock},
};
use serde::Serialize;

use super::{Backend, Backends, is_healthy, rounded};
use crate::clock::rfc3339;

/// How the backends do, in the fields of `GET /health`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    strategy: &'static str,
    /// Where the gateway is.
    zone: Option<String>,
    /// So few backends are well that those that are not get requests as well.
    panic: bool,
    pub(crate) total_backends: usize,
    pub(crate) healthy_backends: usize,
    overall_health: f64,
    backends: Vec<Report>,
}

impl Backends {
    pub(crate) fn status(&self) -> Status {
        let here = self.endpoints.snapshot();
        let reports = here.iter().filter_map(|endpoint| {
            let backend = self.maker.known.find(&endpoint.name)?;
            Some(self.report(&backend, endpoint))
        });
        let backends: Vec<Report> = reports.collect();
        let healthy = backends.iter().filter(|report| report.healthy).count();
        Status {
            strategy: self.endpoints.strategy().name(),
            zone: self.zone.clone(),
            panic: self.endpoints.is_panicking(),
            total_backends: backends.len(),
            healthy_backends: healthy,
            overall_health: rounded(healthy as f64 / backends.len().max(1) as f64),
            backends,
        }
    }

    fn report(&self, backend: &Backend, endpoint: &Snapshot) -> Report {
        let circuit = self.circuit(&endpoint.name);
        let last_check = endpoint.last_check.as_ref();
        let requests = endpoint.requests.max(1);
        Report {
            id: backend.id.clone(),
            url: backend.url.clone(),
            healthy: is_healthy(endpoint),
            state: endpoint.state.name(),
            zone: endpoint.zone.clone(),
            priority: endpoint.priority,
            ejection: Ejection::new(endpoint, circuit.as_ref()),
            circuit_breaker_open: circuit.is_some_and(|it| it.state == CircuitState::Open),
            circuit: circuit.map(Circuit::from),
            current_connections: endpoint.in_flight,
            max_connections: endpoint.max_in_flight,
            total_requests: endpoint.requests,
            error_count: endpoint.failures,
            error_rate_percent: rounded(endpoint.failures as f64 * 100.0 / requests as f64),
            avg_response_time_ms: backend.average_ms(),
            weight: endpoint.weight,
            last_health_check: last_check.map(|it| rfc3339(wall_clock() - it.ago)),
            health_check_error: last_check.and_then(|it| match &it.finding {
                Finding::Passed => None,
                Finding::Failed(why) => Some(why.clone()),
            }),
            reported_load: endpoint.reported.map(Load::from),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    id: Arc<str>,
    url: String,
    healthy: bool,
    state: &'static str,
    zone: Option<Arc<str>>,
    priority: u32,
    /// Why it gets no requests; `null` while it does.
    ejection: Option<Ejection>,
    circuit_breaker_open: bool,
    circuit: Option<Circuit>,
    current_connections: u32,
    max_connections: Option<u32>,
    total_requests: u64,
    error_count: u64,
    error_rate_percent: f64,
    avg_response_time_ms: f64,
    weight: f64,
    last_health_check: Option<String>,
    /// Why the last one has failed.
    health_check_error: Option<Arc<str>>,
    /// What it has said of itself.
    reported_load: Option<Load>,
}

#[derive(Debug, Serialize)]
struct Load {
    in_flight: Option<u32>,
    utilization: Option<f64>,
    latency_ms: Option<f64>,
    error_percent: Option<f64>,
}

impl From<LoadReport> for Load {
    fn from(report: LoadReport) -> Self {
        let latency = report.latency;
        Self {
            in_flight: report.in_flight,
            utilization: report.utilization,
            latency_ms: latency.map(|it| rounded(it.as_secs_f64() * 1e3)),
            error_percent: report.errors.map(|share| rounded(100.0 * share)),
        }
    }
}

/// Why a backend gets no requests, since when, and until when if that is known.
#[derive(Debug, Serialize)]
struct Ejection {
    reason: &'static str,
    since: Option<String>,
    /// When a request may find out whether it works again.
    until: Option<String>,
}

impl Ejection {
    fn new(endpoint: &Snapshot, circuit: Option<&circuit_breaker::Snapshot>) -> Option<Self> {
        let ejected = endpoint.ejected.as_ref();
        let held = circuit.is_some_and(|it| it.forced && it.state == CircuitState::Open);
        let reason = match endpoint.state {
            EndpointState::Unhealthy => "health_check",
            EndpointState::Draining => "drained",
            _ if held => "held_open",
            EndpointState::Ejected | EndpointState::Probing => match ejected.map(|it| it.reason) {
                Some(EjectionReason::Gate) | None => "circuit_breaker",
                Some(reason) => reason.name(),
            },
            _ => return None,
        };
        let is_out = matches!(
            endpoint.state,
            EndpointState::Ejected | EndpointState::Probing
        );
        Some(Self {
            reason,
            since: ejected.filter(|_| is_out).map(|it| {
                let age = now().saturating_duration_since(it.at);
                rfc3339(wall_clock() - age)
            }),
            until: endpoint.retry_in.map(|left| rfc3339(wall_clock() + left)),
        })
    }
}

/// What the circuit of a backend has counted.
#[derive(Debug, Serialize)]
struct Circuit {
    state: &'static str,
    /// Held so by hand.
    forced: bool,
    failures_in_a_row: u32,
    opened_total: u64,
    next_probe_in_ms: Option<f64>,
}

impl From<circuit_breaker::Snapshot> for Circuit {
    fn from(circuit: circuit_breaker::Snapshot) -> Self {
        let probe = circuit.next_probe_in;
        Self {
            state: circuit.state.name(),
            forced: circuit.forced,
            failures_in_a_row: circuit.failures,
            opened_total: circuit.opened_total,
            next_probe_in_ms: probe.map(|left| rounded(left.as_secs_f64() * 1e3)),
        }
    }
}
