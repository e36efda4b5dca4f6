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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn find(trusted: &[&str], peer: &str, name: &str, values: &[&str]) -> Option<String> {
        let client = client_address(trusted.iter().map(|text| text.parse().unwrap()));
        let headers: Vec<_> = values.iter().map(|value| (name, *value)).collect();
        find_by(&client, peer, &headers)
    }

    fn find_by(client: &ClientAddress, peer: &str, headers: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
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
    fn behind_proxies_the_client_is_so_many_from_the_right_and_never_beyond() {
        let list = "6.6.6.6, 1.1.1.1, 2.2.2.2";
        for (proxies, values, client) in [
            (0, vec![list], "9.9.9.9"),
            (1, vec![list], "2.2.2.2"),
            (2, vec![list], "1.1.1.1"),
            (3, vec![list], "6.6.6.6"),
            (4, vec![list], "6.6.6.6"),
            (usize::MAX, vec![list], "6.6.6.6"),
            (2, vec!["6.6.6.6, 1.1.1.1", "2.2.2.2"], "1.1.1.1"),
            (2, vec![], "9.9.9.9"),
            (2, vec!["6.6.6.6, unknown, 2.2.2.2"], "2.2.2.2"),
            (3, vec!["6.6.6.6, unknown, 2.2.2.2"], "2.2.2.2"),
            (2, vec!["6.6.6.6, , 2.2.2.2"], "2.2.2.2"),
        ] {
            let headers: Vec<_> = values.iter().map(|v| ("x-forwarded-for", *v)).collect();
            let found = find_by(&client_address_behind(proxies), "9.9.9.9", &headers);
            assert_eq!(found.as_deref(), Some(client), "{proxies} {values:?}");
        }
    }

    #[test]
    fn pieces_of_a_quoted_text_are_no_hops_that_could_be_counted() {
        // What the outer of two proxies writes for `Host: a, for=6.6.6.6, b`.
        let forwarded = "for=1.1.1.1;host=\"a, for=6.6.6.6, b\", for=2.2.2.2";
        for proxies in 2..6 {
            let client = client_address_behind(proxies);
            let found = find_by(&client, "9.9.9.9", &[("forwarded", forwarded)]);
            assert_eq!(found.as_deref(), Some("2.2.2.2"), "{proxies}");
        }
    }

    #[test]
    fn a_header_that_the_proxies_do_not_write_is_not_read() {
        let headers = [
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=192.0.2.9"),
        ];
        let any = client_address(["10.0.0.0/8".parse().unwrap()]);
        let (plain, standard) = (ForwardedBy::XForwardedFor, ForwardedBy::Forwarded);
        for (client, headers, found) in [
            (any.clone(), &headers[..], "6.6.6.6"),
            (any.clone().header(plain), &headers[..], "6.6.6.6"),
            (any.clone().header(standard), &headers[..], "192.0.2.9"),
            (any.clone().header(standard), &headers[..1], "10.0.0.1"),
            (any.header(plain), &headers[1..], "10.0.0.1"),
            (
                client_address_behind(1).header(standard),
                &headers[..1],
                "10.0.0.1",
            ),
        ] {
            let address = find_by(&client, "10.0.0.1", headers);
            assert_eq!(address.as_deref(), Some(found), "{client:?} {headers:?}");
        }
    }

    #[test]
    fn so_many_bits_of_an_ipv6_address_and_all_of_an_ipv4_one_are_the_key() {
        let same = |bits, a: &str, b: &str| {
            let client = peer().ipv6_prefix(bits);
            client.key_of(a.parse().unwrap()) == client.key_of(b.parse().unwrap())
        };
        for bits in 0..=128u8 {
            let one: u128 = 0x2001_0db8_aaaa_5555_aaaa_5555_aaaa_5555;
            let text = |number: u128| Ipv6Addr::from(number).to_string();
            if let Some(last) = bits.checked_sub(1) {
                let other = one ^ 1 << (127 - last);
                assert!(!same(bits, &text(one), &text(other)), "{bits}");
            }
            if bits < 128 {
                let other = one ^ 1 << (127 - bits);
                assert!(same(bits, &text(one), &text(other)), "{bits}");
            }
            assert!(!same(bits, "192.0.2.1", "192.0.2.2"), "{bits}");
        }
        assert!(!same(255, "2001:db8::1", "2001:db8::2"));
        let default: IpAddr = "2001:db8:1:2:3::4".parse().unwrap();
        assert_eq!(peer().key_of(default), Key::from(default));
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
