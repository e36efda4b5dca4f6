//! The backends, as a set that changes while requests are under way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use metrics::gauge;
use palisade::{
    balance::{EndpointState, HealthChecks, Snapshot},
    circuit_breaker::CircuitState,
    time::wall_clock,
};
use serde::Serialize;

use crate::{
    clock::rfc3339,
    config::{self, Config, Strategy},
    metrics::{ACTIVE, BackendMeters},
    proxy::{Address, Checker},
    stack::{self, Endpoints},
    workers,
};

/// What is known of one backend besides how it does.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: Arc<str>,
    pub(crate) url: String,
    pub(crate) address: Address,
    /// The id as a header.
    pub(crate) name: HeaderValue,
    /// What to show to it instead of the caller's credentials.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) meters: BackendMeters,
    /// Milliseconds since 1970; 0 for never.
    last_check: AtomicU64,
    answers: AtomicU64,
    /// Microseconds, of all answers together.
    took: AtomicU64,
}

impl Backend {
    fn new(config: &config::Backend) -> Result<Self, String> {
        let base = config::base_url(&config.url)?;
        let address = Address::new(base).ok_or("the URL has no host")?;
        let authorization = match &config.api_key_env {
            None => None,
            Some(name) => {
                let key = std::env::var(name).map_err(|error| format!("`{name}`: {error}"))?;
                let value = HeaderValue::from_str(&format!("Bearer {key}"));
                let mut value = value.map_err(|_| format!("`{name}` is no header value"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            id: config.name().into(),
            url: config.url.clone(),
            address,
            name: HeaderValue::from_str(config.name()).map_err(|error| error.to_string())?,
            authorization,
            meters: BackendMeters::new(config.name()),
            last_check: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            took: AtomicU64::new(0),
        })
    }

    /// A health check has ended.
    pub(crate) fn checked(&self) {
        let since = wall_clock().duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis() as u64);
        self.last_check.store(millis, Relaxed);
    }

    /// An answer has ended well.
    pub(crate) fn took(&self, time: Duration) {
        self.answers.fetch_add(1, Relaxed);
        self.took.fetch_add(time.as_micros() as u64, Relaxed);
    }

    fn average_ms(&self) -> f64 {
        let answers = self.answers.load(Relaxed).max(1);
        rounded(self.took.load(Relaxed) as f64 / answers as f64 / 1e3)
    }
}

type Known = BTreeMap<Arc<str>, Arc<Backend>>;

/// All backends and how they do.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) endpoints: Endpoints,
    known: Arc<Mutex<Known>>,
    /// What `publish` has shown last.
    shown: Mutex<BTreeMap<Arc<str>, u32>>,
    config: Config,
    workers: usize,
}

/// Why a backend was not added.
#[derive(Debug)]
pub(crate) enum NotAdded {
    Exists,
    Wrong(String),
}

impl Backends {
    pub(crate) fn new(config: &Config) -> Self {
        let backends = Self {
            endpoints: Endpoints::named("gateway"),
            known: Arc::default(),
            shown: Mutex::default(),
            config: config.clone(),
            workers: match config.server.workers {
                0 => workers::usual(),
                many => many,
            },
        };
        backends.endpoints.set_strategy(config.strategy.into());
        backends
    }

    /// How many threads send requests.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    pub(crate) fn add(&self, config: &config::Backend) -> Result<(), NotAdded> {
        let backend = Backend::new(config).map_err(NotAdded::Wrong)?;
        let backend = Arc::new(backend);
        let mut known = lock(&self.known);
        let here = self.endpoints.snapshot();
        let is_used = |endpoint: &Snapshot| {
            endpoint.name == backend.id && endpoint.state != EndpointState::Draining
        };
        // One that was told to drain but not removed keeps its name.
        if here.iter().any(is_used) || self.endpoints.with_gate(&backend.id, |_| ()).is_some() {
            return Err(NotAdded::Exists);
        }
        known.insert(backend.id.clone(), backend.clone());
        let endpoint = stack::endpoint(backend, &self.config, self.workers)
            .weight(config.weight)
            .max_in_flight(u32::try_from(config.max_connections).unwrap_or(u32::MAX));
        self.endpoints.insert(endpoint);
        Ok(())
    }

    /// Sends nothing more there; what is in flight ends. How much that is, if there is such a backend.
    pub(crate) fn remove(&self, id: &str) -> Option<u32> {
        let in_flight = self.find(id)?.in_flight;
        self.endpoints.remove(id).then_some(in_flight)
    }

    pub(crate) fn find(&self, id: &str) -> Option<Snapshot> {
        // The newest, as one of that name may still be leaving.
        let here = self.endpoints.snapshot();
        here.into_iter()
            .rev()
            .find(|endpoint| *endpoint.name == *id)
    }

    /// Whether a request has anywhere to go.
    pub(crate) fn usable(&self) -> bool {
        self.endpoints.snapshot().iter().any(|endpoint| {
            let probe_is_due = endpoint.retry_in == Some(Duration::ZERO);
            is_healthy(endpoint) || endpoint.state == EndpointState::Probing || probe_is_due
        })
    }

    pub(crate) fn status(&self) -> Status {
        // First the lock: what is added after the snapshot would be forgotten.
        let mut known = lock(&self.known);
        let here = self.endpoints.snapshot();
        known.retain(|id, _| here.iter().any(|endpoint| endpoint.name == *id));
        let reports = here.iter().filter_map(|endpoint| {
            let backend = known.get(&endpoint.name)?;
            Some(self.report(backend, endpoint))
        });
        let backends: Vec<Report> = reports.collect();
        let healthy = backends.iter().filter(|report| report.healthy).count();
        Status {
            strategy: self.endpoints.strategy().name(),
            total_backends: backends.len(),
            healthy_backends: healthy,
            overall_health: rounded(healthy as f64 / backends.len().max(1) as f64),
            backends,
        }
    }

    fn report(&self, backend: &Backend, endpoint: &Snapshot) -> Report {
        let circuit = self
            .endpoints
            .with_gate(&endpoint.name, |breaker| breaker.handle().snapshot());
        let last_check = match backend.last_check.load(Relaxed) {
            0 => None,
            millis => Some(rfc3339(
                SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
            )),
        };
        let requests = endpoint.requests.max(1);
        Report {
            id: backend.id.clone(),
            url: backend.url.clone(),
            healthy: is_healthy(endpoint),
            state: endpoint.state.name(),
            circuit_breaker_open: circuit.is_some_and(|it| it.state == CircuitState::Open),
            current_connections: endpoint.in_flight,
            max_connections: endpoint.max_in_flight,
            total_requests: endpoint.requests,
            error_count: endpoint.failures,
            error_rate_percent: rounded(endpoint.failures as f64 * 100.0 / requests as f64),
            avg_response_time_ms: backend.average_ms(),
            weight: endpoint.weight,
            last_health_check: last_check,
        }
    }

    /// Sets the gauges that a scrape shows.
    pub(crate) fn publish(&self) {
        let mut shown = lock(&self.shown);
        // One that is gone is shown once more, with nothing left.
        let mut active: BTreeMap<Arc<str>, u32> = shown
            .iter()
            .filter(|(_, last)| **last > 0)
            .map(|(name, _)| (name.clone(), 0))
            .collect();
        for endpoint in self.endpoints.snapshot() {
            *active.entry(endpoint.name).or_default() += endpoint.in_flight;
        }
        for (name, in_flight) in &active {
            gauge!(ACTIVE, "backend" => name.to_string()).set(*in_flight);
        }
        *shown = active;
    }

    /// Asks each backend for its health, for as long as it is polled.
    pub(crate) fn health_checks(&self, every: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (known, checker) = (self.known.clone(), Checker::new());
        self.endpoints
            .health_checks(HealthChecks::every(every), move |name, _| {
                let backend = lock(&known).get(&name).cloned();
                let checker = checker.clone();
                async move {
                    match backend {
                        Some(backend) => checker.check(backend).await,
                        None => false,
                    }
                }
            })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_healthy(endpoint: &Snapshot) -> bool {
    matches!(
        endpoint.state,
        EndpointState::Serving | EndpointState::SlowStart
    )
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// How the backends do, in the fields of `GET /health`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    strategy: &'static str,
    pub(crate) total_backends: usize,
    pub(crate) healthy_backends: usize,
    overall_health: f64,
    backends: Vec<Report>,
}

#[derive(Debug, Serialize)]
struct Report {
    id: Arc<str>,
    url: String,
    healthy: bool,
    state: &'static str,
    circuit_breaker_open: bool,
    current_connections: u32,
    max_connections: Option<u32>,
    total_requests: u64,
    error_count: u64,
    error_rate_percent: f64,
    avg_response_time_ms: f64,
    weight: f64,
    last_health_check: Option<String>,
}

impl From<Strategy> for palisade::balance::Strategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Adaptive => Self::Adaptive,
            Strategy::RoundRobin => Self::RoundRobin,
            Strategy::LeastConnections => Self::LeastConnections,
        }
    }
}
