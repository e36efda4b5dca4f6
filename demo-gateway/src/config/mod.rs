//! What can be set, by file, environment and command line; and what is wrong with it.

mod duration;
mod file;

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use http::Uri;
use palisade::key::Network;
use serde::{Deserialize, Serialize};

pub use self::{
    duration::parse as parse_duration,
    file::{Fault, load, parse},
};

/// Everything that can be set. The default is what `demo-gateway` does without any argument.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 picks a free one.
    pub listen: String,
    /// What `/admin` asks for; made up and printed when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// How endpoints are chosen.
    pub strategy: Strategy,
    /// Whether the rules of `rate_limits` hold.
    pub rate_limit: Switch,
    /// How many simulated backends run inside of the gateway while `backends` is empty; the third is slower. With 0
    /// there is none until `/admin/add-backend` adds one.
    pub embedded_backends: usize,
    /// How often each backend is asked for its health.
    #[serde(with = "duration")]
    pub health_interval: Duration,
    /// How long `/readyz` says 503 before a stopping gateway closes its port, for balancers in front of it.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// Connections and bodies.
    pub server: Server,
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// Attempts beyond the first.
    pub retry: Retry,
    /// When a backend is left alone.
    pub circuit_breaker: Breaker,
    /// What the service should reach.
    pub objective: Objective,
    /// Who is asking.
    pub identity: Identity,
    /// Who may ask how often.
    pub rate_limits: Vec<Rule>,
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
            rate_limit: Switch::default(),
            embedded_backends: 3,
            health_interval: Duration::from_secs(5),
            drain_delay: Duration::ZERO,
            server: Server::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            circuit_breaker: Breaker::default(),
            objective: Objective::default(),
            identity: Identity::default(),
            rate_limits: Rule::defaults(),
            backends: Vec::new(),
        }
    }
}

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The cheapest by latency, requests in flight and weight.
    #[default]
    Adaptive,
    /// One after the other, in proportion to their weights.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Adaptive, Self::RoundRobin, Self::LeastConnections];

    /// The name in files, flags and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
        }
    }

    /// The strategy of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == name)
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

/// How long a request may take.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the request to the end of an answer that is not a stream, all attempts together.
    #[serde(with = "duration")]
    pub request: Duration,
    /// The same for a stream, to its last event.
    #[serde(with = "duration")]
    pub stream: Duration,
    /// From one attempt to the first data of its answer.
    #[serde(with = "duration")]
    pub first_byte: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(60),
            stream: Duration::from_secs(600),
            first_byte: Duration::from_secs(30),
        }
    }
}

/// Attempts beyond the first.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, the first included.
    pub attempts: u32,
    /// Attempts beyond the first, in percent of the requests.
    pub budget_percent: u32,
    /// The longest first pause; each further one may be twice as long.
    #[serde(with = "duration")]
    pub min_backoff: Duration,
    /// The longest pause.
    #[serde(with = "duration")]
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget_percent: 20,
            min_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
        }
    }
}

/// When a backend is left alone.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open the circuit of a backend.
    pub failures: u32,
    /// How long it stays open the first time; a probe that fails doubles it.
    #[serde(with = "duration")]
    pub cooldown: Duration,
    /// The longest that it stays open.
    #[serde(with = "duration")]
    pub longest_cooldown: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 5,
            cooldown: Duration::from_secs(1),
            longest_cooldown: Duration::from_secs(30),
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
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            success: 0.99,
            latency: Duration::from_secs(2),
            within: 0.95,
        }
    }
}

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// Whether `X-User-ID` is believed.
    pub user_header: UserHeader,
    /// Makes the public ids of keys, which are otherwise a plain hash, unguessable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Networks whose `X-Forwarded-For` is believed; loopback is not among them by itself.
    pub trusted_proxies: Vec<String>,
    /// The keys that are known. While there are none, a key is only a name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
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
    pub key: String,
    /// Which rules hold for it.
    #[serde(default)]
    pub tier: Tier,
}

/// Which rules hold for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The rules for users.
    #[default]
    Basic,
    /// The rules for premium users instead.
    Premium,
}

/// Who may ask how often.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The name in headers, answers and metrics.
    pub name: String,
    /// What it counts by.
    pub identifier: Identifier,
    /// How many requests pass within `window`.
    pub max_requests: u64,
    /// The time that `max_requests` is for.
    #[serde(with = "duration")]
    pub window: Duration,
    /// How many pass at once; only for `token_bucket`, which takes `max_requests` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// How they are counted.
    #[serde(default)]
    pub strategy: LimitStrategy,
}

impl Rule {
    fn defaults() -> Vec<Self> {
        use Identifier::{Global, Ip, Premium, User};

        [
            ("global", Global, 1000),
            ("per_user", User, 100),
            ("per_ip", Ip, 200),
            ("premium_user", Premium, 500),
        ]
        .map(|(name, identifier, max_requests)| Self {
            name: name.into(),
            identifier,
            max_requests,
            window: Duration::from_secs(60),
            burst: None,
            strategy: LimitStrategy::default(),
        })
        .into()
    }
}

/// What a rule counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Identifier {
    /// All requests together.
    Global,
    /// The key or the user, unless the key is a premium one.
    User,
    /// The address, whoever asks from there.
    Ip,
    /// The key or the user behind it, if the key is a premium one.
    Premium,
}

/// How the requests of a rule are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitStrategy {
    /// In the trailing window, estimated from two counters.
    #[default]
    SlidingWindow,
    /// In windows that follow each other.
    FixedWindow,
    /// As a steady rate with a burst.
    TokenBucket,
}

impl LimitStrategy {
    /// The name in files and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlidingWindow => "sliding_window",
            Self::FixedWindow => "fixed_window",
            Self::TokenBucket => "token_bucket",
        }
    }
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The name in answers and metrics; `host:port` of the URL when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `http://host[:port][/path]`.
    pub url: String,
    /// Its share relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// The most requests that it gets at once.
    #[serde(default = "hundred")]
    pub max_connections: usize,
    /// The environment variable that holds the key to send to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
}

fn one() -> f64 {
    1.0
}

fn hundred() -> usize {
    100
}

impl Backend {
    /// At this URL, with the defaults for the rest.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            id: None,
            url: url.into(),
            weight: one(),
            max_connections: hundred(),
            api_key_env: None,
        }
    }

    /// The name in answers and metrics.
    pub fn name(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = rest.split('/').next().unwrap_or_default();
        self.id.as_deref().unwrap_or(host)
    }

    /// What is wrong with it.
    pub fn check(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if let Err(message) = base_url(&self.url) {
            mistakes.push(Mistake::new("url", message, "write `http://host:port`"));
        }
        if !is_label(self.name()) {
            let message = "must be 1 to 64 letters, digits or `-._:[]`";
            mistakes.push(Mistake::new("id", message, "for example `gpu-1`"));
        }
        if !(self.weight > 0.0 && self.weight <= 1000.0) {
            let message = format!("{} is not above 0 and up to 1000", self.weight);
            mistakes.push(Mistake::new("weight", message, "1 is the usual share"));
        }
        if self.max_connections == 0 {
            let message = "0 would keep all requests away";
            mistakes.push(Mistake::new("max_connections", message, "at least 1"));
        }
        mistakes
    }
}

/// `[ID=]URL[,weight=W][,max_connections=N]`, as on the command line.
impl std::str::FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (id, url) = match first.split_once('=') {
            Some((id, url)) if !id.contains("://") => (Some(id.to_owned()), url),
            _ => (None, first),
        };
        let mut backend = Self {
            id,
            ..Self::new(url)
        };
        for part in parts {
            let number = |error: &dyn fmt::Display| format!("`{part}`: {error}");
            match part.split_once('=') {
                Some(("weight", value)) => {
                    backend.weight = value.parse().map_err(|error| number(&error))?;
                }
                Some(("max_connections", value)) => {
                    backend.max_connections = value.parse().map_err(|error| number(&error))?;
                }
                _ => {
                    return Err(format!(
                        "`{part}` is neither `weight=W` nor `max_connections=N`"
                    ));
                }
            }
        }
        match backend.check().first() {
            None => Ok(backend),
            Some(mistake) => Err(format!("{}: {}", mistake.path, mistake.message)),
        }
    }
}

/// A URL that requests can be sent below.
pub(crate) fn base_url(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|error| format!("`{url}`: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("`{url}` does not begin with `http://`"));
    }
    if uri.query().is_some() {
        return Err(format!("`{url}` has a query"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("credentials do not belong into a URL".into())
        }
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(format!("`{url}` has no host")),
    }
}

/// Whether a name can stand in paths, headers and metrics as it is.
pub(crate) fn is_label(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}

/// Something that cannot be as it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Which setting, as in `rate_limits[1].window`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl Mistake {
    fn new(path: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            hint: hint.into(),
        }
    }

    fn below(mut self, path: &str) -> Self {
        self.path = format!("{path}.{}", self.path);
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &*self.hint {
            "" => Ok(()),
            hint => write!(f, " ({hint})"),
        }
    }
}

impl std::error::Error for Mistake {}

impl Config {
    /// Everything that is wrong beyond the types.
    pub fn check(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        let address = listens(&self.listen);
        check(
            address,
            "listen",
            "is not an address with a port",
            "for example `127.0.0.1:8000`",
        );
        check(
            self.admin_token.as_ref().is_none_or(|token| {
                token.len() >= 8 && token.bytes().all(|byte| byte.is_ascii_graphic())
            }),
            "admin_token",
            "must be at least 8 visible ASCII characters",
            "leave it out, and one is made up and printed",
        );
        check(
            self.embedded_backends <= 64,
            "embedded_backends",
            "more than 64 simulated backends",
            "three are enough to see how requests move",
        );
        let durations = [
            ("health_interval", self.health_interval),
            ("server.header_timeout", self.server.header_timeout),
            ("server.body_timeout", self.server.body_timeout),
            ("timeouts.request", self.timeouts.request),
            ("timeouts.stream", self.timeouts.stream),
            ("timeouts.first_byte", self.timeouts.first_byte),
            ("circuit_breaker.cooldown", self.circuit_breaker.cooldown),
            ("objective.latency", self.objective.latency),
        ];
        for (path, duration) in durations {
            check(!duration.is_zero(), path, "is 0", "for example \"10s\"");
        }
        check(
            self.server.workers <= 1024,
            "server.workers",
            "more than 1024 threads",
            "0 is one for each CPU",
        );
        check(
            self.server.max_connections > 0,
            "server.max_connections",
            "0 would keep all callers away",
            "at least 1",
        );
        check(
            self.server.body_limit > 0,
            "server.body_limit",
            "0 would refuse all bodies",
            "4194304 is 4 MiB",
        );
        check(
            self.timeouts.request <= self.timeouts.stream,
            "timeouts.stream",
            "is shorter than `timeouts.request`",
            "streams take longer than plain answers",
        );
        check(
            (1..=10).contains(&self.retry.attempts),
            "retry.attempts",
            "is not 1 to 10",
            "3 is usual, 1 never retries",
        );
        check(
            (1..=100).contains(&self.retry.budget_percent),
            "retry.budget_percent",
            "is not 1 to 100",
            "20 keeps an outage from becoming a storm",
        );
        check(
            !self.retry.min_backoff.is_zero() && self.retry.min_backoff <= self.retry.max_backoff,
            "retry.min_backoff",
            "is 0 or longer than `retry.max_backoff`",
            "for example \"25ms\" and \"1s\"",
        );
        check(
            self.circuit_breaker.failures > 0,
            "circuit_breaker.failures",
            "0 would never close the circuit",
            "at least 1",
        );
        check(
            self.circuit_breaker.cooldown <= self.circuit_breaker.longest_cooldown,
            "circuit_breaker.longest_cooldown",
            "is shorter than `circuit_breaker.cooldown`",
            "",
        );
        let share = |share: f64| share > 0.0 && share < 1.0;
        check(
            share(self.objective.success),
            "objective.success",
            "is not between 0 and 1",
            "0.999 allows one failure in a thousand requests",
        );
        check(
            share(self.objective.within),
            "objective.within",
            "is not between 0 and 1",
            "0.99 is usual",
        );
        self.check_identity(&mut found);
        self.check_rules(&mut found);
        self.check_backends(&mut found);
        found
    }

    fn check_identity(&self, found: &mut Vec<Mistake>) {
        let identity = &self.identity;
        for (at, network) in identity.trusted_proxies.iter().enumerate() {
            if network.parse::<Network>().is_err() {
                let path = format!("identity.trusted_proxies[{at}]");
                let message = format!("`{network}` is not a network");
                found.push(Mistake::new(path, message, "for example `10.0.0.0/8`"));
            }
        }
        let mut seen = BTreeSet::new();
        for (at, key) in identity.keys.iter().enumerate() {
            let path = format!("identity.keys[{at}].key");
            if key.key.is_empty() || !key.key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = "must be visible ASCII characters";
                found.push(Mistake::new(&*path, message, ""));
            }
            if !seen.insert(&key.key) {
                found.push(Mistake::new(path, "is there twice", ""));
            }
        }
        if identity.user_header == UserHeader::WithKey && identity.keys.is_empty() {
            let message = "`with_key` needs `identity.keys`";
            let hint = "without them anybody can make up a key";
            found.push(Mistake::new("identity.user_header", message, hint));
        }
    }

    fn check_rules(&self, found: &mut Vec<Mistake>) {
        let mut seen = BTreeSet::new();
        for (at, rule) in self.rate_limits.iter().enumerate() {
            let path = |field| format!("rate_limits[{at}].{field}");
            if !is_label(&rule.name) {
                let message = "must be 1 to 64 letters, digits or `-._:[]`";
                found.push(Mistake::new(path("name"), message, ""));
            }
            if !seen.insert(&rule.name) {
                found.push(Mistake::new(path("name"), "is there twice", ""));
            }
            if rule.max_requests == 0 {
                let hint = "at least 1; `rate_limit = \"off\"` turns limits off";
                found.push(Mistake::new(path("max_requests"), "0 admits nobody", hint));
            }
            if rule.window < Duration::from_secs(1) {
                let message = "is shorter than a second, which headers cannot say";
                found.push(Mistake::new(path("window"), message, "for example \"60s\""));
            }
            if rule.burst == Some(0) {
                found.push(Mistake::new(path("burst"), "0 admits nobody", "at least 1"));
            }
            if rule.burst.is_some() && rule.strategy != LimitStrategy::TokenBucket {
                let hint = "a window admits `max_requests` at once";
                let message = "only `token_bucket` has a burst";
                found.push(Mistake::new(path("burst"), message, hint));
            }
        }
    }

    fn check_backends(&self, found: &mut Vec<Mistake>) {
        let mut seen = BTreeSet::new();
        for (at, backend) in self.backends.iter().enumerate() {
            let path = format!("backends[{at}]");
            let mistakes = backend.check().into_iter();
            found.extend(mistakes.map(|mistake| mistake.below(&path)));
            if !seen.insert(backend.name()) {
                let message = format!("`{}` is there twice", backend.name());
                found.push(Mistake::new(format!("{path}.id"), message, ""));
            }
            if let Some(name) = &backend.api_key_env
                && std::env::var_os(name).is_none()
            {
                let message = format!("`{name}` is not in the environment");
                found.push(Mistake::new(format!("{path}.api_key_env"), message, ""));
            }
        }
    }

    /// As TOML, with what is secret left out.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut shown = self.clone();
        let hide = |secret: &mut Option<String>| {
            if let Some(secret) = secret {
                *secret = "(hidden)".into();
            }
        };
        hide(&mut shown.admin_token);
        hide(&mut shown.identity.secret);
        for key in &mut shown.identity.keys {
            key.key = "(hidden)".into();
        }
        toml::to_string(&shown)
    }
}

fn listens(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let is_name = is_label(host) && !host.contains(':');
    address.parse::<SocketAddr>().is_ok() || is_name && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests;
