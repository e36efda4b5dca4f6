//! How a store is reached, and how long it may take.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use super::{RedisStore, Upkeep};

/// Durations that are longer count as this long.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// How a [`RedisStore`] is reached, and how long it may take.
///
/// ```
/// use std::time::Duration;
/// use palisade_rate_limit::{RedisConfig, RedisConfigError};
///
/// let config = RedisConfig::new("redis://user:secret@127.0.0.1:6379/3")?
///     .prefix("checkout")
///     .secret(b"known to all processes")
///     .deadline(Duration::from_millis(10));
/// let (store, upkeep) = config.open()?;
/// assert!(!store.state().up, "nothing has been connected yet");
///
/// let wrong = RedisConfig::new("http://user:secret@127.0.0.1").unwrap_err();
/// assert_eq!(wrong, RedisConfigError::Scheme);
/// # drop(upkeep);
/// # Ok::<(), RedisConfigError>(())
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) servers: Vec<ConnectionInfo>,
    pub(super) is_cluster: bool,
    pub(super) prefix: Arc<str>,
    pub(super) secret: Option<Arc<[u8]>>,
    pub(super) deadline: Duration,
    pub(super) heartbeat: Duration,
    pub(super) lease_for: Duration,
    pub(super) name: Arc<str>,
    #[cfg(feature = "redis-tls")]
    pub(super) authority: Option<Arc<[u8]>>,
}

impl RedisConfig {
    /// One server: `redis://user:password@host:port/database`, `rediss://` for TLS (with the feature `redis-tls`), or
    /// `unix:///path?db=database&user=user&pass=password`. Percent-encoding is read.
    ///
    /// # Errors
    ///
    /// If the URL is none, or not one of these. No error shows it.
    pub fn new(url: &str) -> Result<Self, RedisConfigError> {
        Ok(Self {
            servers: vec![server(url)?],
            is_cluster: false,
            prefix: "palisade".into(),
            secret: None,
            deadline: Duration::from_millis(20),
            heartbeat: Duration::from_secs(1),
            lease_for: Duration::from_millis(500),
            name: "redis".into(),
            #[cfg(feature = "redis-tls")]
            authority: None,
        })
    }

    /// A cluster, of which some servers are named; they name the others, which are reached with the user, the
    /// password and the TLS of the first.
    ///
    /// # Errors
    ///
    /// If a URL is none, or not one of those of [`new`](Self::new), or there is none, or it has another database than
    /// the first, or is a path.
    pub fn cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisConfigError> {
        let mut urls = urls.into_iter();
        let mut config = Self::new(urls.next().ok_or(RedisConfigError::NoServer)?)?;
        for url in urls {
            config.servers.push(server(url)?);
        }
        for server in &config.servers {
            if server.redis_settings().db() != 0 {
                return Err(RedisConfigError::Database);
            }
            if matches!(server.addr(), ConnectionAddr::Unix(_)) {
                return Err(RedisConfigError::Host);
            }
        }
        config.is_cluster = true;
        Ok(config)
    }

    /// What all keys begin with, followed by a colon. By default `palisade`. Limits that count apart need another.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Keys of callers are stored as their HMAC-SHA256 under this secret, which has to be the same in all processes.
    ///
    /// Without one they are stored as their SHA-256: who reads the store can then try out whether a caller is known.
    #[must_use]
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(secret.as_ref().into());
        self
    }

    /// How long a decision may take. By default 20 ms, and an hour at most. To connect may take ten times as long, and
    /// 100 ms at least.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How often the processes that share the store are counted, and connections are looked at. By default each second,
    /// and each hour at least.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// How long what a process has leased can be spent. By default 500 ms, and an hour at most.
    #[must_use]
    pub fn lease_for(mut self, lasts: Duration) -> Self {
        self.lease_for = lasts;
        self
    }

    /// The label `store` of the metrics. By default `redis`.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Trusts certificates of this authority, in PEM, instead of those that browsers trust.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn authority(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.authority = Some(pem.as_ref().into());
        self
    }

    /// The store, and what keeps it up: see [`RedisStore::open`].
    ///
    /// # Errors
    ///
    /// If the prefix has a brace or is empty, the secret is empty, a duration is zero, or the authority is no certificate.
    pub fn open(self) -> Result<(RedisStore, Upkeep), RedisConfigError> {
        RedisStore::with(self.checked()?)
    }

    /// The servers, with the certificates that they are checked by.
    pub(super) fn servers(&self) -> Result<Vec<ConnectionInfo>, RedisConfigError> {
        #[cfg(feature = "redis-tls")]
        if self
            .servers
            .iter()
            .any(|server| matches!(server.addr(), ConnectionAddr::TcpTls { .. }))
        {
            tls::provide();
        }
        #[cfg(feature = "redis-tls")]
        if let Some(authority) = &self.authority {
            return self
                .servers
                .iter()
                .map(|server| tls::checked(server, authority))
                .collect();
        }
        Ok(self.servers.clone())
    }

    fn checked(mut self) -> Result<Self, RedisConfigError> {
        if self.prefix.is_empty() || self.prefix.contains(['{', '}']) {
            return Err(RedisConfigError::Prefix);
        }
        if self.secret.as_ref().is_some_and(|secret| secret.is_empty()) {
            return Err(RedisConfigError::Secret);
        }
        let durations = [self.deadline, self.heartbeat, self.lease_for];
        if durations.iter().any(Duration::is_zero) {
            return Err(RedisConfigError::NoTime);
        }
        // Beyond, there are sums of times that no clock has.
        for duration in [&mut self.deadline, &mut self.heartbeat, &mut self.lease_for] {
            *duration = (*duration).min(LONGEST);
        }
        Ok(self)
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self
            .servers
            .iter()
            .map(|at| at.addr().to_string())
            .collect();
        f.debug_struct("RedisConfig")
            .field("servers", &addresses)
            .field("is_cluster", &self.is_cluster)
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline)
            .field("heartbeat", &self.heartbeat)
            .field("lease_for", &self.lease_for)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What is wrong with a [`RedisConfig`]. Shows nothing of a URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisConfigError {
    /// It is not a URL.
    NotAUrl,
    /// The URL does not begin with `redis://`, `rediss://` or `unix:`.
    Scheme,
    /// The URL has no host, or one that is every address, or a path where a host is needed.
    Host,
    /// The database is not a number, or a cluster's is not 0.
    Database,
    /// The user or the password is not UTF-8 when percent-decoded, or a parameter is not known.
    Settings,
    /// The URL asks for TLS, and the feature `redis-tls` is not there, or for TLS that does not check the server.
    Tls,
    /// The authority is not a certificate in PEM, or is not for a server that is reached by TLS.
    Authority,
    /// A cluster without a server.
    NoServer,
    /// The prefix is empty or has a brace, which would decide where a cluster keeps a key.
    Prefix,
    /// The secret is empty.
    Secret,
    /// A duration is zero.
    NoTime,
}

impl fmt::Display for RedisConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAUrl => "the address of a redis server is not a url",
            Self::Scheme => "the url of a redis server begins with redis://, rediss:// or unix:",
            Self::Host => "the url of a redis server has no host that can be reached",
            Self::Database => "the database of a redis server is a number, and 0 in a cluster",
            Self::Settings => "the url of a redis server has settings that cannot be read",
            Self::Tls => {
                "redis servers are reached by tls only with the feature redis-tls, and checked"
            }
            Self::Authority => {
                "the authority of a redis server is not a certificate for tls in pem"
            }
            Self::NoServer => "a redis cluster needs a server",
            Self::Prefix => "the prefix of redis keys is empty or has a brace",
            Self::Secret => "the secret of redis keys is empty",
            Self::NoTime => "a duration of a redis store is zero",
        })
    }
}

impl Error for RedisConfigError {}

fn server(url: &str) -> Result<ConnectionInfo, RedisConfigError> {
    let Some(parsed) = redis::parse_redis_url(url) else {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        let is_ours = matches!(scheme, "redis" | "rediss" | "unix" | "valkey" | "valkeys");
        let is_one = scheme.starts_with(|first: char| first.is_ascii_alphabetic());
        return Err(match is_one && !is_ours && url.contains("://") {
            true => RedisConfigError::Scheme,
            false => RedisConfigError::NotAUrl,
        });
    };
    let is_tls = matches!(parsed.scheme(), "rediss" | "valkeys");
    let is_path = parsed.scheme().ends_with("unix");
    if is_tls && (!cfg!(feature = "redis-tls") || parsed.fragment().is_some()) {
        return Err(RedisConfigError::Tls);
    }
    let host = parsed.host_str().unwrap_or_default();
    if !is_path && matches!(host, "" | "0.0.0.0" | "[::]") {
        return Err(RedisConfigError::Host);
    }
    let database = match is_path {
        true => parsed
            .query_pairs()
            .find(|(name, _)| name == "db")
            .map(|(_, db)| db.into_owned()),
        false => Some(parsed.path().trim_matches('/').to_owned()).filter(|path| !path.is_empty()),
    };
    if database.is_some_and(|number| number.parse::<u16>().is_err()) {
        return Err(RedisConfigError::Database);
    }
    let info = parsed.into_connection_info().map_err(|_| match is_path {
        true => RedisConfigError::Host,
        false => RedisConfigError::Settings,
    })?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp))
}

#[cfg(feature = "redis-tls")]
mod tls {
    use redis::{Client, ConnectionInfo, TlsCertificates};
    use rustls::{
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, pem::PemObject},
    };

    use super::RedisConfigError;

    /// A process that has chosen no cryptography gets that of this crate; with two to choose from, connecting would
    /// panic.
    pub(super) fn provide() {
        if CryptoProvider::get_default().is_none() {
            // Another thread may have been faster.
            let _ = ring::default_provider().install_default();
        }
    }

    /// Checked by this authority.
    pub(super) fn checked(
        server: &ConnectionInfo,
        authority: &[u8],
    ) -> Result<ConnectionInfo, RedisConfigError> {
        // None would trust nobody.
        let mut certificates = CertificateDer::pem_slice_iter(authority);
        if !certificates.all(|certificate| certificate.is_ok())
            || CertificateDer::pem_slice_iter(authority).next().is_none()
        {
            return Err(RedisConfigError::Authority);
        }
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: Some(authority.to_vec()),
        };
        let client = Client::build_with_tls(server.clone(), certificates);
        let client = client.map_err(|_| RedisConfigError::Authority)?;
        Ok(client.get_connection_info().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> Option<RedisConfigError> {
        RedisConfig::new(url).err()
    }

    #[test]
    fn urls_of_servers_are_read() {
        for url in [
            "redis://127.0.0.1",
            "redis://127.0.0.1:6380",
            "redis://[::1]:6380/2",
            "redis://:p%40ss@cache.local/15",
            "redis://user:pass@cache.local:6379",
            "unix:///run/redis.sock?db=3&user=u&pass=p",
        ] {
            assert_eq!(error(url), None, "{url}");
        }
        let config = RedisConfig::new("redis://u:p%40ss@cache.local/15").unwrap();
        let settings = config.servers[0].redis_settings();
        assert_eq!(settings.username(), Some("u"));
        assert_eq!(settings.password(), Some("p@ss"));
        assert_eq!(settings.db(), 15);
    }

    #[test]
    fn wrong_urls_are_told_apart() {
        use RedisConfigError::*;

        for (url, expected) in [
            ("", NotAUrl),
            ("127.0.0.1:6379", NotAUrl),
            ("redis://", Host),
            ("http://127.0.0.1", Scheme),
            ("redis+tls://127.0.0.1", Scheme),
            ("redis://0.0.0.0", Host),
            ("redis://127.0.0.1/first", Database),
            ("redis://127.0.0.1/-1", Database),
            ("unix:///run/redis.sock?db=first", Database),
            ("redis://%ff@127.0.0.1", Settings),
            ("redis://127.0.0.1?protocol=4", Settings),
            ("rediss://127.0.0.1/#insecure", Tls),
        ] {
            assert_eq!(error(url), Some(expected), "{url}");
        }
        let tls = error("rediss://127.0.0.1");
        assert_eq!(tls, (!cfg!(feature = "redis-tls")).then_some(Tls));
    }

    #[test]
    fn a_cluster_has_servers_one_database_and_no_paths() {
        use RedisConfigError::*;

        let error = |urls: &[&'static str]| RedisConfig::cluster(urls.iter().copied()).err();
        assert_eq!(error(&["redis://a", "redis://b"]), None);
        assert_eq!(error(&[]), Some(NoServer));
        assert_eq!(error(&["redis://a", "redis://b/1"]), Some(Database));
        assert_eq!(error(&["redis://a", "unix:///run/redis.sock"]), Some(Host));
    }

    #[test]
    fn nothing_shows_a_password() {
        let config = RedisConfig::new("redis://u:hunter2@127.0.0.1").unwrap();
        let shown = format!("{:?}", config.secret(b"hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
        for url in [
            "redis://u:hunter2@",
            "x://u:hunter2@h",
            "redis://u:hunter2@h/x",
        ] {
            let error = error(url).unwrap();
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn what_could_not_work_is_refused() {
        let config = RedisConfig::new("redis://127.0.0.1").unwrap();
        for prefix in ["", "{a}", "a}"] {
            let error = config.clone().prefix(prefix).open().err();
            assert_eq!(error, Some(RedisConfigError::Prefix));
        }
        let error = config.clone().secret("").open().err();
        assert_eq!(error, Some(RedisConfigError::Secret));
        let error = config.deadline(Duration::ZERO).open().err();
        assert_eq!(error, Some(RedisConfigError::NoTime));
    }

    #[tokio::test]
    async fn a_duration_that_no_clock_can_add_is_a_long_one() {
        let config = RedisConfig::new("redis://127.0.0.1:1").unwrap();
        let config = config.deadline(Duration::MAX).heartbeat(Duration::MAX);
        let (store, upkeep) = config.lease_for(Duration::MAX).open().unwrap();
        let upkeep = tokio::spawn(upkeep);
        let asked = crate::central::Central::peek(&store, Vec::new()).await;
        assert!(asked.is_ok(), "nothing was asked");
        while store.state().errors == 0 {
            assert!(!upkeep.is_finished());
            tokio::task::yield_now().await;
        }
        drop(store);
        upkeep.await.unwrap();
    }
}
