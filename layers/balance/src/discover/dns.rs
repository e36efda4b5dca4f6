//! The addresses that a name has, asked for again when they expire.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, future::try_join, stream};
use hickory_resolver::{
    TokioResolver,
    net::NetError,
    proto::rr::{RData, RecordType, rdata::SRV},
};
use palisade_core::{BoxError, time};
use tokio::time::{Instant, sleep_until};

use super::{Source, Target};

const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(5 * 60);
/// How long to believe that there is nothing: a name that comes back should be seen.
const NOTHING: Duration = Duration::from_secs(5);
/// So many hosts of SRV records are looked up side by side.
const SIDE_BY_SIDE: usize = 8;

/// The addresses of a name: A and AAAA records, or the SRV records of a service.
///
/// Asks again when the first of the records expires, after 1 s at the soonest and 5 min at the latest. A server that
/// does not answer or says SERVFAIL is an error; a name that is not there, or has no such records, is an empty list,
/// which is [doubted](super::Empty) unless said otherwise. To believe it, give the whole name with its last dot: search
/// domains make one name several, and the answer to the last of them counts.
///
/// Targets are named by address and port; the label `host` is the name that has the address, for TLS and for the
/// Host header. Of SRV records, a host's weight is shared by its addresses, and the priority is the record's.
///
/// ```no_run
/// use palisade_balance::{Endpoint, Endpoints, discover::{Target, dns::Dns}};
///
/// # let endpoints = Endpoints::<String>::default();
/// let follower = endpoints.follow(Dns::host("backend.example.com.", 8080), |target: &Target| {
///     Endpoint::new(target.name.clone(), format!("client of {}", target.address))
/// });
/// tokio::spawn(follower);
/// ```
pub struct Dns {
    query: Query,
    family: Family,
    given: Option<TokioResolver>,
    /// Made of the system's settings when it is needed, and again after an error: they may have changed.
    system: Option<TokioResolver>,
    due: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Query {
    Host { name: Arc<str>, port: u16 },
    Service { name: Arc<str> },
}

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, and IPv6 if there are none: a host with both is one endpoint.
    #[default]
    V4ThenV6,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// All: a host with both is two endpoints.
    Both,
}

impl Dns {
    /// The A and AAAA records of a name, at this port.
    pub fn host(name: impl Into<Arc<str>>, port: u16) -> Self {
        Self::new(Query::Host {
            name: name.into(),
            port,
        })
    }

    /// The SRV records of a service, such as `_http._tcp.backend.example.com.`
    pub fn service(name: impl Into<Arc<str>>) -> Self {
        Self::new(Query::Service { name: name.into() })
    }

    fn new(query: Query) -> Self {
        Self {
            query,
            family: Family::default(),
            given: None,
            system: None,
            due: None,
        }
    }

    /// Which addresses count.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Asks this resolver; that of the system (`/etc/resolv.conf`, `/etc/hosts`) unless said otherwise.
    #[must_use]
    pub fn resolver(mut self, resolver: TokioResolver) -> Self {
        self.given = Some(resolver);
        self
    }

    async fn look_up(&mut self) -> Result<Answer, BoxError> {
        let resolver = match (&self.given, &mut self.system) {
            (Some(given), _) => given,
            (None, Some(system)) => system,
            (None, none) => none.insert(system()?),
        };
        let lookup = Lookup {
            resolver,
            family: self.family,
        };
        Ok(match &self.query {
            Query::Host { name, port } => lookup.host(name, *port).await?,
            Query::Service { name } => lookup.service(name).await?,
        })
    }
}

impl Source for Dns {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        match self.look_up().await {
            Ok(answer) => {
                self.due = Some(time::now() + answer.valid_for());
                Ok(answer.targets())
            }
            Err(error) => {
                self.due = None;
                self.system = None;
                Err(error)
            }
        }
    }

    fn kind(&self) -> &'static str {
        "dns"
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns")
            .field("query", &self.query)
            .field("family", &self.family)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

fn system() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    // We ask when a record has expired, and want to hear what holds then.
    builder.options_mut().cache_size = 0;
    builder.build()
}

struct Lookup<'a> {
    resolver: &'a TokioResolver,
    family: Family,
}

impl Lookup<'_> {
    async fn host(&self, name: &Arc<str>, port: u16) -> Result<Answer, NetError> {
        let found = self.addresses(name).await?;
        let mut answer = Answer::default();
        answer.expires(found.ttl);
        for address in found.addresses {
            answer.add(SocketAddr::new(address, port), name, None);
        }
        Ok(answer)
    }

    async fn service(&self, name: &str) -> Result<Answer, NetError> {
        let mut answer = Answer::default();
        let records = self.records(name, RecordType::SRV).await?;
        answer.expires(records.ttl);
        let services = records.data.into_iter().filter_map(|data| match data {
            // A root as the target says that there is no such service.
            RData::SRV(service) if !service.target.is_root() => Some(service),
            _ => None,
        });
        let services: Vec<SRV> = services.collect();
        let found = stream::iter(services).map(|service| async move {
            let host = Arc::from(service.target.to_string());
            let found = self.addresses(&host).await?;
            Ok::<_, NetError>((service, host, found))
        });
        let found: Vec<_> = found.buffered(SIDE_BY_SIDE).try_collect().await?;
        for (service, host, found) in found {
            answer.expires(found.ttl);
            let share = f64::from(service.weight) / found.addresses.len().max(1) as f64;
            for address in found.addresses {
                let address = SocketAddr::new(address, service.port);
                answer.add(address, &host, Some((service.priority, share)));
            }
        }
        Ok(answer)
    }

    async fn addresses(&self, name: &str) -> Result<Addresses, NetError> {
        if let Ok(address) = name.parse() {
            return Ok(Addresses {
                addresses: vec![address],
                ttl: None,
            });
        }
        let v4 = async || Ok(Addresses::of(self.records(name, RecordType::A).await?));
        let v6 = async || Ok(Addresses::of(self.records(name, RecordType::AAAA).await?));
        match self.family {
            Family::V4 => v4().await,
            Family::V6 => v6().await,
            Family::V4ThenV6 => {
                let found = v4().await?;
                if found.addresses.is_empty() {
                    v6().await
                } else {
                    Ok(found)
                }
            }
            Family::Both => {
                let (mut v4, v6) = try_join(v4(), v6()).await?;
                v4.addresses.extend(v6.addresses);
                v4.ttl = sooner(v4.ttl, v6.ttl);
                Ok(v4)
            }
        }
    }

    /// None if there are none; an error if nobody knows.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Records, NetError> {
        match self.resolver.lookup(name, kind).await {
            Ok(found) => {
                let records = found.answers().iter();
                let records = records.filter(|record| record.record_type() == kind);
                Ok(Records {
                    ttl: records.clone().map(|record| record.ttl).min(),
                    data: records.map(|record| record.data.clone()).collect(),
                })
            }
            Err(error) if error.is_no_records_found() => Ok(Records {
                ttl: None,
                data: Vec::new(),
            }),
            Err(error) => Err(error),
        }
    }
}

struct Records {
    data: Vec<RData>,
    /// In seconds, of the first that expires.
    ttl: Option<u32>,
}

struct Addresses {
    addresses: Vec<IpAddr>,
    ttl: Option<u32>,
}

impl Addresses {
    fn of(records: Records) -> Self {
        let addresses = records.data.iter().filter_map(RData::ip_addr);
        Self {
            addresses: addresses.collect(),
            ttl: records.ttl,
        }
    }
}

/// What was found, in an order that does not depend on that of the records.
#[derive(Debug, Default)]
struct Answer {
    found: BTreeMap<SocketAddr, Found>,
    ttl: Option<u32>,
}

#[derive(Debug)]
struct Found {
    host: Arc<str>,
    /// Of the SRV record.
    priority: Option<u16>,
    weight: f64,
}

impl Answer {
    fn expires(&mut self, ttl: Option<u32>) {
        self.ttl = sooner(self.ttl, ttl);
    }

    fn add(&mut self, address: SocketAddr, host: &str, service: Option<(u16, f64)>) {
        let priority = service.map(|(priority, _)| priority);
        let weight = service.map_or(0.0, |(_, weight)| weight);
        let found = self.found.entry(address).or_insert_with(|| Found {
            host: Arc::from(host.strip_suffix('.').unwrap_or(host)),
            priority,
            weight: 0.0,
        });
        // One address under two names gets the shares of both, at the better of their places.
        found.priority = found.priority.min(priority);
        found.weight += weight;
    }

    fn valid_for(&self) -> Duration {
        if self.found.is_empty() {
            return NOTHING;
        }
        let ttl = self
            .ttl
            .map_or(LATEST, |ttl| Duration::from_secs(ttl.into()));
        ttl.clamp(SOONEST, LATEST)
    }

    fn targets(self) -> Vec<Target> {
        // By RFC 2782 all zero means that there is no choice to make, and zero among others next to nothing.
        let weighed = self.found.values().any(|found| found.weight > 0.0);
        let targets = self.found.into_iter().map(|(address, found)| {
            let mut target = Target::new(address.to_string()).label("host", found.host);
            if let Some(priority) = found.priority {
                target = target.priority(priority.into());
                target = target.weight(if weighed { found.weight } else { 1.0 });
            }
            target
        });
        targets.collect()
    }
}

fn sooner(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_again_when_the_first_record_expires_within_bounds() {
        for (ttls, seconds) in [
            (vec![], 300),
            (vec![0], 1),
            (vec![7], 7),
            (vec![60, 9, 30], 9),
            (vec![4_000_000_000], 300),
        ] {
            let mut answer = Answer::default();
            answer.add("10.0.0.1:80".parse().unwrap(), "a.", None);
            for ttl in ttls {
                answer.expires(Some(ttl));
                answer.expires(None);
            }
            assert_eq!(answer.valid_for().as_secs(), seconds);
        }
        let mut nothing = Answer::default();
        nothing.expires(Some(3600));
        assert_eq!(nothing.valid_for(), NOTHING);
    }

    #[test]
    fn one_address_under_two_names_is_one_target_with_the_shares_of_both() {
        let mut answer = Answer::default();
        for (host, priority, weight) in [("a.", 20, 1.0), ("b.", 10, 2.0)] {
            answer.add(
                "10.0.0.1:80".parse().unwrap(),
                host,
                Some((priority, weight)),
            );
        }
        let expected = Target::new("10.0.0.1:80")
            .label("host", "a")
            .priority(10)
            .weight(3.0);
        assert_eq!(answer.targets(), [expected]);
    }
}
