//! The backends, as a set that changes while requests are under way.

mod note;
mod status;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::metrics::gauge;
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Empty;
use palisade::{
    BoxError,
    balance::{
        Checkup, Endpoint, EndpointState, Finding, HealthChecks, OrcaProbe, Probes, Snapshot,
        Strategy, discover::Target,
    },
    circuit_breaker,
    sla::Sla,
};

pub(crate) use self::{
    note::{note, root},
    status::Status,
};
use crate::{
    checkup,
    config::{self, Config},
    metrics::{self, ACTIVE, BackendMeters, USABLE},
    proxy::{Address, Connections},
    stack::{self, EndpointGate, EndpointService, Endpoints},
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
                let key = std::env::var_os(name);
                let key = key.ok_or_else(|| format!("`{name}` is not in the environment"))?;
                Some(bearer(&key).ok_or_else(|| format!("`{name}` is no header value"))?)
            }
        };
        Ok(Self {
            id: config.name().into(),
            url: config.url.clone(),
            address,
            name: HeaderValue::from_str(config.name()).map_err(|error| error.to_string())?,
            authorization,
            meters: BackendMeters::new(config.name()),
            answers: AtomicU64::new(0),
            took: AtomicU64::new(0),
        })
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

/// Of each name those that are in use, the newest last. The set and the requests hold them.
#[derive(Clone, Debug, Default)]
struct Known(Arc<Mutex<ByName>>);

type ByName = BTreeMap<Arc<str>, Vec<Weak<Backend>>>;

impl Known {
    fn insert(&self, backend: &Arc<Backend>) {
        let mut known = lock(&self.0);
        for backends in known.values_mut() {
            backends.retain(|backend| backend.strong_count() > 0);
        }
        known.retain(|_, backends| !backends.is_empty());
        let of_name = known.entry(backend.id.clone()).or_default();
        of_name.push(Arc::downgrade(backend));
    }

    fn find(&self, id: &str) -> Option<Arc<Backend>> {
        let known = lock(&self.0);
        known.get(id)?.iter().rev().find_map(Weak::upgrade)
    }
}

/// All backends and how they do.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) endpoints: Endpoints,
    maker: Maker,
    /// What `publish` has shown last.
    shown: Mutex<BTreeMap<Arc<str>, u32>>,
    /// Whether the strategy asks what a request belongs to.
    reads_affinity: AtomicBool,
    /// Held by what looks before it changes something.
    changing: Mutex<()>,
    /// Where the gateway is.
    zone: Option<String>,
}

/// Makes the endpoint of a backend.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    known: Known,
    pub(crate) config: Arc<Config>,
    pub(crate) sla: Sla,
    pub(crate) workers: usize,
}

impl Maker {
    fn make(
        &self,
        config: &config::Backend,
    ) -> Result<Endpoint<EndpointService, EndpointGate>, String> {
        let backend = Arc::new(Backend::new(config)?);
        self.known.insert(&backend);
        stack::endpoint(backend, config, self)
    }

    /// The endpoint of a backend that was found: at a URL, or at `host:port`.
    pub(crate) fn endpoint(
        &self,
        target: &Target,
    ) -> Result<Endpoint<EndpointService, EndpointGate>, BoxError> {
        let address = &*target.address;
        let url = match address.contains("://") {
            true => address.to_owned(),
            false => format!("http://{address}"),
        };
        let key = target.labels.get("api_key_env");
        let backend = config::Backend {
            id: Some(target.name.to_string()),
            api_key_env: key.map(ToString::to_string),
            ..config::Backend::new(url)
        };
        match backend.check().into_iter().next() {
            Some(mistake) => Err(mistake.into()),
            None => Ok(self.make(&backend)?),
        }
    }
}

/// Why a backend was not added.
#[derive(Debug)]
pub(crate) enum NotAdded {
    Exists,
    Wrong(String),
}

impl Backends {
    pub(crate) fn new(config: &Config, sla: Sla) -> Self {
        let backends = Self {
            endpoints: Endpoints::named("gateway"),
            maker: Maker {
                known: Known::default(),
                config: Arc::new(config.clone()),
                sla,
                workers: match config.server.workers {
                    0 => workers::usual(),
                    many => many,
                },
            },
            shown: Mutex::default(),
            reads_affinity: AtomicBool::default(),
            changing: Mutex::default(),
            zone: config.zone.clone(),
        };
        backends.set_strategy(config.strategy);
        backends.endpoints.set_zone(config.zone.as_deref());
        backends
    }

    /// Chooses so from the next request on.
    pub(crate) fn set_strategy(&self, strategy: Strategy) {
        let _changing = lock(&self.changing);
        let reads_affinity = strategy == Strategy::ConsistentHash;
        self.reads_affinity.store(reads_affinity, Relaxed);
        self.endpoints.set_strategy(strategy);
    }

    /// Whether it matters now what a request belongs to.
    pub(crate) fn reads_affinity(&self) -> bool {
        self.reads_affinity.load(Relaxed)
    }

    /// How many threads send requests.
    pub(crate) fn workers(&self) -> usize {
        self.maker.workers
    }

    /// Makes endpoints for this set.
    pub(crate) fn maker(&self) -> Maker {
        self.maker.clone()
    }

    pub(crate) fn add(&self, config: &config::Backend) -> Result<(), NotAdded> {
        let _changing = lock(&self.changing);
        let here = self.endpoints.snapshot();
        let is_used = |endpoint: &Snapshot| {
            *endpoint.name == *config.name() && endpoint.state != EndpointState::Draining
        };
        // One that was told to drain but not removed keeps its name.
        let is_held = self.endpoints.with_gate(config.name(), |_| ()).is_some();
        if is_held || here.iter().any(is_used) {
            return Err(NotAdded::Exists);
        }
        let endpoint = self.maker.make(config).map_err(NotAdded::Wrong)?;
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

    /// Where a backend is, unless it has gone.
    pub(crate) fn url(&self, id: &str) -> Option<String> {
        Some(self.maker.known.find(id)?.url.clone())
    }

    /// What the circuit of a backend has counted, unless it has gone.
    pub(crate) fn circuit(&self, id: &str) -> Option<circuit_breaker::Snapshot> {
        self.endpoints
            .with_gate(id, |(breaker, _)| breaker.handle().snapshot())
    }

    /// Whether a request has anywhere to go.
    pub(crate) fn usable(&self) -> bool {
        self.asks_any(&self.endpoints.snapshot())
    }

    /// Whether a request that comes now would go to any of these, be it as a probe.
    pub(crate) fn asks_any(&self, endpoints: &[Snapshot]) -> bool {
        self.serves_any(endpoints)
            || endpoints.iter().any(|endpoint| {
                let probe_is_due = endpoint.retry_in == Some(Duration::ZERO);
                endpoint.state == EndpointState::Probing || probe_is_due
            })
    }

    /// Whether more goes to any of these than probes.
    fn serves_any(&self, endpoints: &[Snapshot]) -> bool {
        endpoints.iter().any(is_healthy) || self.tries_those_out(endpoints)
    }

    /// Whether so few are well that those that are out get requests as well.
    pub(crate) fn tries_those_out(&self, endpoints: &[Snapshot]) -> bool {
        let is_out_for_a_time = |endpoint: &Snapshot| match endpoint.state {
            EndpointState::Probing => true,
            // What is held open has no time to wait for.
            EndpointState::Ejected => endpoint.retry_in.is_some(),
            _ => false,
        };
        self.endpoints.is_panicking() && endpoints.iter().any(is_out_for_a_time)
    }

    /// Sets the gauges that a scrape shows.
    pub(crate) fn publish(&self) {
        let usable = self.serves_any(&self.endpoints.snapshot());
        gauge!(USABLE).set(f64::from(u8::from(usable)));
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
        for name in shown.keys().filter(|name| !active.contains_key(*name)) {
            metrics::forget(name);
        }
        *shown = active;
    }

    /// Asks each backend for its health, for as long as it is polled.
    pub(crate) fn health_checks(
        &self,
        config: &Config,
    ) -> Result<impl Future<Output = ()> + Send + use<>, BoxError> {
        let settings = &config.health_check;
        let checks = HealthChecks::every(config.health_interval)
            .timeout(settings.timeout.min(config.health_interval))
            .rise(settings.rise)
            .fall(settings.fall);
        let mut check = checkup::of(settings)?;
        let known = self.maker.known.clone();
        Ok(self.endpoints.health_checks(checks, move |name, _| {
            let backend = known.find(&name);
            // Its place in the set is about to be another's.
            let gone = || Box::pin(async { Finding::from(false) }) as Checkup;
            backend.map_or_else(gone, |backend| check(backend))
        }))
    }

    /// Asks backends for their load, for as long as it is polled and the strategy wants to know.
    pub(crate) fn probes(&self) -> impl Future<Output = ()> + Send + use<> {
        let (known, connections) = (self.maker.known.clone(), Connections::<Empty<Bytes>>::new());
        let probe = OrcaProbe::new("/load").expect("a path");
        let every = self.maker.config.probe_interval;
        let probes = Probes::default().steady((!every.is_zero()).then_some(every));
        self.endpoints.probes(probes, move |name, _| {
            let asking = known.find(&name).map(|backend| connections.to(backend));
            let probe = probe.clone();
            async move { probe.ask(asking?).await }
        })
    }
}

/// A key as a header. Why it cannot be one is not told: errors of the standard library have the key in them.
fn bearer(key: &OsStr) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.to_str()?)).ok()?;
    value.set_sensitive(true);
    Some(value)
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_key_is_never_shown_and_one_that_is_no_header_says_nothing() {
        let key = bearer(OsStr::new("hunter2")).unwrap();
        assert_eq!(key, "Bearer hunter2");
        assert!(!format!("{key:?}").contains("hunter2"));
        assert_eq!(bearer(OsStr::from_bytes(b"hunter2\xff")), None);
        assert_eq!(bearer(OsStr::new("hunter2\n")), None);
    }
}
