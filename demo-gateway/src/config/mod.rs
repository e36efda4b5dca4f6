//! What can be set, by file, environment and command line; and what is wrong with it.

mod access_log;
mod backend;
mod balance;
mod check;
mod discovery;
mod duration;
mod failing;
mod file;
mod health;
mod limits;
mod notify;
mod redis;
mod secret;
mod store;
mod trace;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    access_log::Target,
    backend::base_url,
    balance::strategies,
    discovery::Source,
    limits::{BASIC, PREMIUM, told},
    notify::split,
    store::{Place, without_password},
};
pub use self::{
    access_log::{AccessLog, Format},
    backend::Backend,
    balance::Affinity,
    check::Mistake,
    discovery::Discovery,
    duration::parse as parse_duration,
    failing::{Breaker, Hedge, Retry, Timeouts, WhileBurning, Window},
    file::{Fault, load, parse},
    health::{CheckKind, HealthCheck, Statuses},
    limits::{
        Adaptive, Amount, Estimate, Exception, Identifier, LimitStrategy, Mode, OnStoreError,
        Price, Rule, TierQuota, Unit,
    },
    notify::{MinSeverity, Notify, NotifyFormat, NotifyKind},
    redis::Redis,
    secret::Secret,
    store::Store,
    trace::{Protocol, Trace},
};
pub use palisade::balance::Strategy;

/// Everything that can be set. The default is what `demo-gateway` does without any argument.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 picks a free one.
    pub listen: String,
    /// What `/admin` asks for; made up and printed when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<Secret>,
    /// How endpoints are chosen.
    #[serde(with = "balance")]
    pub strategy: Strategy,
    /// What requests have in common that should go to the same backend, with the strategy `consistent_hash`.
    pub affinity: Affinity,
    /// The header that names a session, with `affinity = "session"`.
    pub session_header: String,
    /// Where the gateway itself is: it prefers backends of the same `zone`, as long as enough of them are well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether the rules of `rate_limits` hold.
    pub rate_limit: Switch,
    /// How many simulated backends run inside of the gateway while there is neither `backends` nor `discovery`; the
    /// third is slower. With 0 there is none until `/admin/add-backend` adds one.
    pub embedded_backends: usize,
    /// How often each backend is asked for its health.
    #[serde(with = "duration")]
    pub health_interval: Duration,
    /// How often `adaptive` asks each backend at `/load` how busy it is and how many of its answers were errors; never with
    /// 0. One that does not say is asked thirty times less often.
    #[serde(with = "duration")]
    pub probe_interval: Duration,
    /// How long `/readyz` says 503 before a stopping gateway closes its port, for balancers in front of it.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// How long requests that are over their rate wait for it instead of being refused; 0 for not at all.
    #[serde(with = "duration")]
    pub wait_up_to: Duration,
    /// How many of them wait at a time.
    pub waiting: usize,
    /// Where files are kept. Without one, in a folder that goes when the gateway does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Connections and bodies.
    pub server: Server,
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// Attempts beyond the first.
    pub retry: Retry,
    /// A second attempt while the first still runs.
    pub hedge: Hedge,
    /// Which models answer instead of one that cannot, by its name; `default` is for all others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fallbacks: BTreeMap<String, Vec<String>>,
    /// When a backend is left alone.
    pub circuit_breaker: Breaker,
    /// How backends are asked for their health.
    pub health_check: HealthCheck,
    /// Where backends are found that nobody has named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// What the service should reach.
    pub objective: Objective,
    /// Spans of requests and attempts.
    pub trace: Trace,
    /// One line for each request.
    pub access_log: AccessLog,
    /// Who is asking.
    pub identity: Identity,
    /// Where several gateways count together; without it each counts for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// Who is told when something breaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// What models take for their tokens, by their names; `default` is for all others, which else cost as the dearest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prices: BTreeMap<String, Price>,
    /// Who may ask how often.
    pub rate_limits: Vec<Rule>,
    /// The request log.
    pub store: Store,
    /// Where requests go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8000".into(),
            admin_token: None,
            strategy: Strategy::default(),
            affinity: Affinity::default(),
            session_header: "x-session-id".into(),
            zone: None,
            rate_limit: Switch::default(),
            embedded_backends: 3,
            health_interval: Duration::from_secs(5),
            probe_interval: Duration::from_secs(1),
            drain_delay: Duration::ZERO,
            wait_up_to: Duration::ZERO,
            waiting: 100,
            data_dir: None,
            server: Server::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            fallbacks: BTreeMap::new(),
            circuit_breaker: Breaker::default(),
            health_check: HealthCheck::default(),
            discovery: None,
            objective: Objective::default(),
            trace: Trace::default(),
            access_log: AccessLog::default(),
            identity: Identity::default(),
            redis: None,
            notify: None,
            prices: BTreeMap::new(),
            rate_limits: Rule::defaults(),
            store: Store::default(),
            backends: Vec::new(),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// As set.
    #[default]
    Default,
    /// Not at all.
    Off,
}

/// Connections and bodies.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Threads that serve connections; 0 is one for each CPU.
    pub workers: usize,
    /// Connections held at once; beyond it the next one waits in the backlog of the port.
    pub max_connections: usize,
    /// How long the head of a request may take to come.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long the body of a request may take to come.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// How long a stopping gateway waits for what is in flight.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            workers: 0,
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            body_limit: 4 * 1024 * 1024,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// What the service should reach.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// The share of requests that succeed.
    pub success: f64,
    /// The latency to the first data that `within` of the requests keep.
    #[serde(with = "duration")]
    pub latency: Duration,
    /// The share of requests that keep `latency`.
    pub within: f64,
    /// What an error budget is for; the windows of its alerts scale with it.
    #[serde(with = "duration")]
    pub period: Duration,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            success: 0.99,
            latency: Duration::from_secs(2),
            within: 0.95,
            period: Duration::from_secs(30 * 86_400),
        }
    }
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// Whether `X-User-ID` is believed.
    pub user_header: UserHeader,
    /// Makes the public ids of keys, which are otherwise a plain hash, unguessable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// Networks of proxies that are believed about whom they were asked by; loopback is not among them by itself.
    pub trusted_proxies: Vec<String>,
    /// Instead of it, how many proxies of one's own every request passes, whatever their addresses are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted_hops: Option<usize>,
    /// The header that the proxies write [default: `X-Forwarded-For`, or else `Forwarded`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<Forwarded>,
    /// The bits of an IPv6 address that tell one caller from another.
    pub ipv6_prefix: u8,
    /// The keys that are known. While there are none, a key is only a name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            user_header: UserHeader::default(),
            secret: None,
            trusted_proxies: Vec::new(),
            trusted_hops: None,
            forwarded: None,
            ipv6_prefix: 64,
            keys: Vec::new(),
        }
    }
}

/// The header in which proxies say whom they were asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarded {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Whether `X-User-ID` is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UserHeader {
    /// From anybody who sends no key: for a demo, or behind something that sets it.
    #[default]
    Believe,
    /// Only beside a known key, whose owner then speaks for many users.
    WithKey,
    /// Never.
    Off,
}

/// A key that is known.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key itself, as callers send it.
    pub key: Secret,
    /// `premium` keys have rules of their own; rules have numbers of their own for other tiers. Others are `basic`.
    #[serde(default = "basic")]
    pub tier: String,
}

impl ApiKey {
    /// Of a tier.
    pub fn new(key: impl Into<Secret>, tier: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            tier: tier.into(),
        }
    }
}

fn basic() -> String {
    BASIC.into()
}

impl Config {
    /// As TOML, with what is secret left out.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut shown = self.clone();
        let secrets = shown.admin_token.iter_mut();
        let secrets = secrets.chain(&mut shown.identity.secret);
        secrets
            .chain(shown.identity.keys.iter_mut().map(|key| &mut key.key))
            .for_each(Secret::hide);
        if let Some(redis) = &mut shown.redis {
            redis.hide();
        }
        shown.store.hide();
        shown.trace.hide();
        if let Some(notify) = &mut shown.notify {
            notify.hide();
        }
        toml::to_string(&shown)
    }
}

#[cfg(test)]
mod tests;
