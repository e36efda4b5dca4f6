use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::{ExtractKey, Key};
use crate::head::RequestHead;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the other end of the connection, for servers on plain hyper to put into the extensions.
///
/// With the features `axum` and `tonic` the address is also found where those servers put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The address at the other end of the connection.
pub fn peer() -> ClientAddress {
    ClientAddress {
        trusted: Vec::new(),
    }
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
    ClientAddress {
        trusted: trusted.into_iter().collect(),
    }
}

/// What [`peer`] and [`client_address`] return.
#[derive(Clone, Debug)]
pub struct ClientAddress {
    trusted: Vec<Network>,
}

impl ClientAddress {
    /// The address itself, whole, if the connection has one.
    pub fn find(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        let mut client = peer_address(head)?.to_canonical();
        if self.trusted.is_empty() {
            return Some(client);
        }
        for hop in hops(head.headers) {
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

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }
}

impl ExtractKey for ClientAddress {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        self.find(head).map(Key::from)
    }
}

/// What one caller is given: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(super) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).into()
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
fn hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let plain = headers.contains_key(&X_FORWARDED_FOR);
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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn find(trusted: &[&str], peer: &str, name: &str, values: &[&str]) -> Option<String> {
        let client = client_address(trusted.iter().map(|text| text.parse().unwrap()));
        let mut request = Request::builder();
        for value in values {
            request = request.header(name, *value);
        }
        let mut request = request.body(()).unwrap();
        let peer = SocketAddr::new(peer.parse().unwrap(), 999);
        request.extensions_mut().insert(PeerAddr(peer));
        client
            .find(&(&request).into())
            .map(|address| address.to_string())
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let found = find(
            &["10.0.0.0/8"],
            "192.0.2.1",
            "x-forwarded-for",
            &["6.6.6.6"],
        );
        assert_eq!(found.as_deref(), Some("192.0.2.1"));
        let found = find(&[], "127.0.0.1", "x-forwarded-for", &["6.6.6.6"]);
        assert_eq!(found.as_deref(), Some("127.0.0.1"));
    }

    #[test]
    fn the_walk_ends_at_the_first_that_is_not_trusted_and_never_at_the_leftmost_blindly() {
        let trusted = ["10.0.0.0/8", "::1"];
        for (name, values, client) in [
            (
                "x-forwarded-for",
                vec!["6.6.6.6, 192.0.2.9, 10.1.1.1"],
                "192.0.2.9",
            ),
            (
                "x-forwarded-for",
                vec!["6.6.6.6", "192.0.2.9:80", "10.1.1.1"],
                "192.0.2.9",
            ),
            ("x-forwarded-for", vec!["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
            (
                "x-forwarded-for",
                vec!["1.2.3.4, nonsense, 10.1.1.1"],
                "10.1.1.1",
            ),
            ("x-forwarded-for", vec!["[2001:db8::1]:80"], "2001:db8::1"),
            (
                "forwarded",
                vec!["for=6.6.6.6, For=\"[2001:db8::2]\";proto=https"],
                "2001:db8::2",
            ),
            ("forwarded", vec!["for=_hidden"], "10.0.0.1"),
        ] {
            let found = find(&trusted, "10.0.0.1", name, &values);
            assert_eq!(found.as_deref(), Some(client), "{values:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_one_it_maps() {
        let found = find(
            &["10.0.0.0/8"],
            "::ffff:10.0.0.1",
            "x-forwarded-for",
            &["192.0.2.9"],
        );
        assert_eq!(found.as_deref(), Some("192.0.2.9"));
    }

    #[test]
    fn addresses_of_one_ipv6_site_share_a_key() {
        let key = |text: &str| Key::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2::9"));
        assert_ne!(key("2001:db8:1:2::9"), key("2001:db8:1:3::9"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }

    #[test]
    fn a_network_of_no_bits_is_everybody_and_wrong_ones_say_so() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("1.2.3.4".parse().unwrap()));
        for text in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "host"] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        }
    }
}
