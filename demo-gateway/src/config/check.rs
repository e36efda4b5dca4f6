//! What cannot be as it is set, beyond the types.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use http::HeaderName;
use palisade::key::Network;

use super::{Config, UserHeader, backend::is_label};

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
    pub(super) fn new(
        path: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            hint: hint.into(),
        }
    }

    pub(super) fn below(mut self, path: &str) -> Self {
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
                let token = token.reveal();
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
            ("objective.latency", self.objective.latency),
            ("objective.period", self.objective.period),
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
        check(
            self.zone.as_deref().is_none_or(is_label),
            "zone",
            "must be 1 to 64 letters, digits or `-._:[]`",
            "for example `eu-1a`",
        );
        check(
            HeaderName::try_from(&self.session_header).is_ok(),
            "session_header",
            "is not the name of a header",
            "for example `x-session-id`",
        );
        self.check_failing(&mut found);
        self.health_check.check(&mut found);
        self.trace.check(&mut found);
        self.access_log.check(&mut found);
        if let Some(discovery) = &self.discovery {
            discovery.check(&mut found);
        }
        self.check_identity(&mut found);
        self.check_limits(&mut found);
        if let Some(redis) = &self.redis {
            redis.check(&mut found);
        }
        self.store.check(&mut found);
        if let Some(notify) = &self.notify {
            notify.check(&mut found);
        }
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
            let path = |field| format!("identity.keys[{at}].{field}");
            let text = key.key.reveal();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = "must be visible ASCII characters";
                found.push(Mistake::new(path("key"), message, ""));
            }
            if !seen.insert(text) {
                found.push(Mistake::new(path("key"), "is there twice", ""));
            }
            if !self.knows_tier(&key.tier) {
                let message = format!("no rule has a tier `{}`", key.tier);
                let hint = "`premium`, `basic`, or one of `[[rate_limits.tiers]]`";
                found.push(Mistake::new(path("tier"), message, hint));
            }
        }
        if identity.trusted_hops.is_some() && !identity.trusted_proxies.is_empty() {
            let message = "stands beside `trusted_proxies`";
            let hint = "proxies are known by their addresses or by their number";
            found.push(Mistake::new("identity.trusted_hops", message, hint));
        }
        if identity.forwarded.is_some()
            && identity.trusted_hops.is_none_or(|hops| hops == 0)
            && identity.trusted_proxies.is_empty()
        {
            let message = "no proxy is trusted to write it";
            let hint = "set `trusted_proxies` or `trusted_hops` as well";
            found.push(Mistake::new("identity.forwarded", message, hint));
        }
        if !(32..=128).contains(&identity.ipv6_prefix) {
            let message = "is not 32 to 128";
            let hint = "64 is what one site has, 56 or 48 what many providers give";
            found.push(Mistake::new("identity.ipv6_prefix", message, hint));
        }
        if identity.user_header == UserHeader::WithKey && identity.keys.is_empty() {
            let message = "`with_key` needs `identity.keys`";
            let hint = "without them anybody can make up a key";
            found.push(Mistake::new("identity.user_header", message, hint));
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
}

fn listens(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let is_name = is_label(host) && !host.contains(':');
    address.parse::<SocketAddr>().is_ok() || is_name && port.parse::<u16>().is_ok()
}
