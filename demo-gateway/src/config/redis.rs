//! The store that several gateways share.

use std::time::Duration;

use palisade::rate_limit::{RedisConfig, RedisConfigError};
use serde::{Deserialize, Serialize};

use super::{Mistake, Secret, duration, secret::HIDDEN};

/// A Redis server or cluster, in which several gateways count together.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// One server: `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, or `unix:///path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Secret>,
    /// Instead of it, some servers of a cluster, which name the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster: Vec<Secret>,
    /// What all keys begin with. Gateways that are to count apart need another.
    pub prefix: String,
    /// How long one decision may take; then `on_store_error` decides.
    #[serde(with = "duration")]
    pub deadline: Duration,
    /// Under which callers are hashed, the same in all gateways; without one, `identity.secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            cluster: Vec::new(),
            prefix: "palisade".into(),
            deadline: Duration::from_millis(20),
            secret: None,
        }
    }
}

impl Redis {
    /// One server, with the defaults for the rest.
    pub fn new(url: impl Into<Secret>) -> Self {
        Self {
            url: Some(url.into()),
            ..Self::default()
        }
    }

    /// Counts in this server from now on.
    pub fn set_url(&mut self, url: Secret) {
        self.url = Some(url);
        self.cluster.clear();
    }

    /// How the layer wants it.
    pub(crate) fn to_store(
        &self,
        fallback: Option<&Secret>,
    ) -> Result<RedisConfig, RedisConfigError> {
        let servers = self.cluster.iter().map(Secret::reveal);
        let config = match &self.url {
            Some(url) => RedisConfig::new(url.reveal())?,
            None => RedisConfig::cluster(servers)?,
        };
        let config = config
            .prefix(&*self.prefix)
            .deadline(self.deadline)
            .named("gateway");
        Ok(match self.secret.as_ref().or(fallback) {
            Some(secret) => config.secret(secret.reveal().as_bytes()),
            None => config,
        })
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        let forms = "`redis://[user:password@]host[:port][/database]`, `rediss://` for TLS or `unix:///path`";
        // No message shows a URL, which may hold a password.
        let mut wrong = |path: String, error: RedisConfigError| {
            found.push(Mistake::new(path, error.to_string(), forms));
        };
        match &self.url {
            Some(url) => {
                if let Err(error) = RedisConfig::new(url.reveal()) {
                    wrong("redis.url".into(), error);
                }
            }
            None => {
                let mut whole = true;
                for (at, url) in self.cluster.iter().enumerate() {
                    if let Err(error) = RedisConfig::new(url.reveal()) {
                        wrong(format!("redis.cluster[{at}]"), error);
                        whole = false;
                    }
                }
                let urls = self.cluster.iter().map(Secret::reveal);
                if whole
                    && !self.cluster.is_empty()
                    && let Err(error) = RedisConfig::cluster(urls)
                {
                    wrong("redis.cluster".into(), error);
                }
            }
        }
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        check(
            self.url.is_some() || !self.cluster.is_empty(),
            "redis",
            "has neither `url` nor `cluster`",
            "for example `url = \"redis://127.0.0.1:6379\"`",
        );
        check(
            self.url.is_none() || self.cluster.is_empty(),
            "redis.cluster",
            "stands beside `url`",
            "`url` is one server, `cluster` names some of many",
        );
        check(
            !self.prefix.is_empty()
                && self.prefix.len() <= 64
                && self.prefix.bytes().all(|byte| byte.is_ascii_graphic())
                && !self.prefix.contains(['{', '}']),
            "redis.prefix",
            "must be 1 to 64 visible ASCII characters without braces",
            "for example `palisade`",
        );
        check(
            !self.deadline.is_zero() && self.deadline <= Duration::from_secs(5),
            "redis.deadline",
            "is 0 or longer than 5s",
            "each request may wait that long; \"20ms\" is usual",
        );
    }

    /// Leaves out what is secret.
    pub(super) fn hide(&mut self) {
        let urls = self.url.iter_mut().chain(&mut self.cluster);
        urls.for_each(|url| *url = without_password(url.reveal()).into());
        if let Some(secret) = &mut self.secret {
            secret.hide();
        }
    }
}

/// A URL without its password.
fn without_password(url: &str) -> String {
    let parts = url
        .split_once("://")
        .filter(|_| RedisConfig::new(url).is_ok());
    // Of what is none, nobody knows where the password is.
    let Some((scheme, rest)) = parts else {
        return HIDDEN.into();
    };
    let (server, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server = match server.rsplit_once('@') {
        Some((user, server)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{user}:{HIDDEN}@{server}")
        }
        None => server.to_owned(),
    };
    let mut url = format!("{scheme}://{server}");
    for (at, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        url.push(if at == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some(("pass", _)) => url.push_str("pass=hidden"),
            _ => url.push_str(pair),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/2", "redis://127.0.0.1:6379/2"),
            ("redis://:hunter2@cache", "redis://:(hidden)@cache"),
            (
                "redis://me:hun%40ter2@cache/1",
                "redis://me:(hidden)@cache/1",
            ),
            (
                "unix:///run/redis.sock?db=1&pass=hunter2",
                "unix:///run/redis.sock?db=1&pass=hidden",
            ),
            ("redis://me:hunter?2@cache", "(hidden)"),
            ("hunter2", "(hidden)"),
        ] {
            assert_eq!(without_password(url), shown, "{url}");
            let read = RedisConfig::new(shown);
            assert_eq!(read.is_err(), shown == HIDDEN, "{shown}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_the_password() {
        let mistakes = |change: fn(&mut Redis)| {
            let mut redis = Redis::new("redis://127.0.0.1");
            change(&mut redis);
            let mut found = Vec::new();
            redis.check(&mut found);
            assert!(
                !format!("{found:?} {redis:?}").contains("hunter2"),
                "{found:?}"
            );
            let paths = found.into_iter().map(|mistake| mistake.path);
            paths.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(mistakes(|_| {}), "");
        for (change, path) in [
            (
                (|redis| redis.url = Some("http://me:hunter2@cache".into())) as fn(&mut Redis),
                "redis.url",
            ),
            (|redis| redis.url = None, "redis"),
            (
                |redis| {
                    redis.set_url("redis://a".into());
                    redis.url = None;
                    redis.cluster = vec!["redis://a".into(), "hunter2".into()];
                },
                "redis.cluster[1]",
            ),
            (
                |redis| {
                    redis.url = None;
                    redis.cluster = vec!["redis://a".into(), "redis://b/1".into()];
                },
                "redis.cluster",
            ),
            (
                |redis| redis.cluster = vec!["redis://a".into()],
                "redis.cluster",
            ),
            (|redis| redis.prefix = "a{b}".into(), "redis.prefix"),
            (|redis| redis.deadline = Duration::ZERO, "redis.deadline"),
        ] {
            assert_eq!(mistakes(change), path);
        }
    }
}
