use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::{ExtractKey, Key};
use crate::head::RequestHead;

#[cfg(test)]
mod tests;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the other end of the connection, for servers on plain hyper to put into the extensions.
///
/// With the features `axum` and `tonic` the address is also found where those servers put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The address at the other end of the connection.
pub fn peer() -> ClientAddress {
    client_address_behind(0)
}

/// The address of the client, which may have come through proxies in the `trusted` networks.
///
/// `X-Forwarded-For`, or else `Forwarded`, is read from its end for as long as the address that says so is
/// trusted: the first that is not is the client. What cannot be read ends the walk.
///
/// ```
/// use std::net::IpAddr;
/// use palisade_core::key::{self, ExtractKey, Key, PeerAddr};
///
/// let client = key::client_address(["10.0.0.0/8".parse()?]);
/// let mut request = http::Request::builder()
///     .header("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.0.0.2")
///     .body(())?;
/// request.extensions_mut().insert(PeerAddr("10.0.0.1:999".parse()?));
/// let address: IpAddr = "192.0.2.7".parse()?;
/// assert_eq!(client.key(&(&request).into()), Some(Key::from(address)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn client_address(trusted: impl IntoIterator<Item = Network>) -> ClientAddress {
    ClientAddress::trusting(Trust::Networks(trusted.into_iter().collect()))
}

/// The address of the client behind so many proxies of one's own, whatever their addresses are.
///
/// Each proxy adds whom it was asked by at the end of the header: the client is what the outermost of them added, the
/// one so many from the right. No proxies is the [`peer`]. Of a shorter list it is the leftmost, and what cannot be
/// read ends the walk, as in [`client_address`].
///
/// Only right if every request passes all of the proxies: who can go around one of them chooses the address.
///
/// ```
/// use std::net::IpAddr;
/// use palisade_core::key::{self, PeerAddr};
///
/// // A load balancer, and before it a content delivery network.
/// let client = key::client_address_behind(2);
/// let mut request = http::Request::builder()
///     .header("x-forwarded-for", "6.6.6.6, 192.0.2.7, 203.0.113.5")
///     .body(())?;
/// request.extensions_mut().insert(PeerAddr("198.51.100.1:999".parse()?));
/// let address: IpAddr = "192.0.2.7".parse()?;
/// assert_eq!(client.find(&(&request).into()), Some(address));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn client_address_behind(proxies: usize) -> ClientAddress {
    ClientAddress::trusting(Trust::Proxies(proxies))
}

/// The header in which proxies say whom they were asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardedBy {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// What [`peer`], [`client_address`] and [`client_address_behind`] return.
#[derive(Clone, Debug)]
pub struct ClientAddress {
    trust: Trust,
    header: Option<ForwardedBy>,
    ipv6_prefix: u8,
}

#[derive(Clone, Debug)]
enum Trust {
    Networks(Vec<Network>),
    /// So many steps.
    Proxies(usize),
}

impl ClientAddress {
    fn trusting(trust: Trust) -> Self {
        Self {
            trust,
            header: None,
            ipv6_prefix: SITE,
        }
    }

    /// Reads only the header that the proxies write; as it is, `X-Forwarded-For` or else `Forwarded`.
    ///
    /// Proxies hand on what they do not write: behind ones that write `Forwarded`, a client could put anything into
    /// an `X-Forwarded-For` of its own.
    #[must_use]
    pub fn header(mut self, header: ForwardedBy) -> Self {
        self.header = Some(header);
        self
    }

    /// The bits of an IPv6 address that tell one caller from another: as it is, 64; from 128 on, all.
    ///
    /// Providers that give each customer a /56 or a /48 give it as many /64 to send from.
    ///
    /// ```
    /// use palisade_core::key;
    ///
    /// let client = key::peer().ipv6_prefix(48);
    /// let key = |text: &str| text.parse().map(|address| client.key_of(address));
    /// assert_eq!(key("2001:db8:1:2::3")?, key("2001:db8:1:ffff::1")?);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits;
        self
    }

    /// The address itself, whole, if the connection has one.
    pub fn find(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        let mut client = peer_address(head)?.to_canonical();
        let most = match &self.trust {
            Trust::Networks(networks) if networks.is_empty() => 0,
            Trust::Networks(_) => usize::MAX,
            Trust::Proxies(proxies) => *proxies,
        };
        if most == 0 {
            return Some(client);
        }
        for hop in hops(head.headers, self.header).take(most) {
            if !self.trusts(client) {
                break;
            }
            match hop {
                Some(address) => client = address.to_canonical(),
                None => break,
            }
        }
        Some(client)
    }

    /// The key of this address: that of all requests from its site.
    pub fn key_of(&self, address: IpAddr) -> Key<'static> {
        Key::Address(site(address, self.ipv6_prefix))
    }

    fn trusts(&self, address: IpAddr) -> bool {
        match &self.trust {
            Trust::Networks(networks) => networks.iter().any(|network| network.contains(address)),
            Trust::Proxies(_) => true,
        }
    }
}

impl ExtractKey for ClientAddress {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        self.find(head).map(|address| self.key_of(address))
    }
}

/// The bits of an IPv6 address that one site has.
pub(super) const SITE: u8 = 64;

/// What one caller is given: an IPv4 address, or so many first bits of an IPv6 address.
pub(super) fn site(address: IpAddr, bits: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & !host).into()
        }
    }
}

fn peer_address(head: &RequestHead<'_>) -> Option<IpAddr> {
    if let Some(PeerAddr(address)) = head.extensions.get() {
        return Some(address.ip());
    }
    #[cfg(feature = "axum")]
    if let Some(axum::extract::ConnectInfo(address)) = head
        .extensions
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(address.ip());
    }
    #[cfg(feature = "tonic")]
    if let Some(info) = head
        .extensions
        .get::<tonic::transport::server::TcpConnectInfo>()
    {
        return info.remote_addr().map(|address| address.ip());
    }
    None
}

/// The hops that the headers name, nearest first; `None` for one that cannot be read.
fn hops(headers: &HeaderMap, header: Option<ForwardedBy>) -> impl Iterator<Item = Option<IpAddr>> {
    let plain = match header {
        Some(header) => header == ForwardedBy::XForwardedFor,
        None => headers.contains_key(&X_FORWARDED_FOR),
    };
    let name = if plain { X_FORWARDED_FOR } else { FORWARDED };
    let lines = headers.get_all(name).into_iter().rev();
    let entries = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
    entries.map(move |entry| {
        let entry = entry.trim();
        // A comma inside of quotes, where a proxy may have put what a stranger wrote, has cut it in two.
        if entry.contains('\\') || entry.matches('"').count() % 2 == 1 {
            return None;
        }
        let node = if plain {
            Some(entry)
        } else {
            forwarded_for(entry)
        };
        node.and_then(node_address)
    })
}

/// The `for` parameter of one element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let is_for = name.trim().eq_ignore_ascii_case("for");
        is_for.then(|| value.trim().trim_matches('"'))
    })
}

/// An address with or without a port or brackets.
fn node_address(node: &str) -> Option<IpAddr> {
    if let Ok(address) = node.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = node.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    let bare = node.strip_prefix('[')?.strip_suffix(']')?;
    bare.parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

/// Addresses that share their first bits, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                let differ = u32::from(network) ^ u32::from(address);
                differ.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                let differ = u128::from(network) ^ u128::from(address);
                differ.checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// An address alone is a network of one.
impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let wrong = || ParseNetworkError(text.into());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        // Addresses are compared by what they map to.
        if address != address.to_canonical() {
            return Err(wrong());
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| wrong())?,
            None => most,
        };
        if bits > most {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The text is not a network such as `10.0.0.0/8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseNetworkError(Box<str>);

impl fmt::Display for ParseNetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an address or a network such as 10.0.0.0/8",
            self.0
        )
    }
}

impl Error for ParseNetworkError {}
