//! Whom a limit or a cache entry belongs to.
//!
//! A key is taken from the head of a request and borrowed from it where possible. Addresses come from the
//! connection; what callers say about themselves in `X-Forwarded-For` counts only as far as trusted proxies say it.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderName, header::AUTHORIZATION};

use crate::head::RequestHead;

mod address;

pub use self::address::{
    ClientAddress, ForwardedBy, Network, ParseNetworkError, PeerAddr, client_address,
    client_address_behind, peer,
};

/// The bytes that tell one caller from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// A name, a token, a path.
    Bytes(Cow<'a, [u8]>),
    /// An address; of IPv6 only the first bits, as it is 64, which is what one caller is given.
    Address(IpAddr),
}

impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(Cow::Borrowed(bytes))
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        text.as_bytes().into()
    }
}

impl From<String> for Key<'_> {
    fn from(text: String) -> Self {
        Self::Bytes(Cow::Owned(text.into_bytes()))
    }
}

impl From<IpAddr> for Key<'_> {
    fn from(address: IpAddr) -> Self {
        Self::Address(address::site(address, address::SITE))
    }
}

/// Finds the key of a request. Closures over the head do.
///
/// ```
/// use palisade_core::{head::RequestHead, key::{ExtractKey, Key}};
///
/// fn tenant<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
///     head.headers.get("x-tenant").map(|value| value.as_bytes().into())
/// }
///
/// let request = http::Request::builder().header("x-tenant", "acme").body(())?;
/// assert_eq!(tenant.key(&(&request).into()), Some(Key::from("acme")));
/// # Ok::<(), http::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not find the key of a request",
    note = "use `key::header(\"x-api-key\")`, `key::peer()` or a function `for<'a> fn(&RequestHead<'a>) -> Option<Key<'a>>`"
)]
pub trait ExtractKey: Send + Sync + 'static {
    /// The key, or `None` when the request does not say.
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>>;
}

impl<F> ExtractKey for F
where
    F: for<'a> Fn(&RequestHead<'a>) -> Option<Key<'a>> + Send + Sync + 'static,
{
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        self(head)
    }
}

/// The value of a header, or of gRPC metadata of that name.
///
/// ```
/// use palisade_core::key::{self, ExtractKey, Key};
///
/// let request = http::Request::builder().header("x-api-key", "k1").body(())?;
/// let key = key::header("x-api-key").key(&(&request).into());
/// assert_eq!(key, Some(Key::from("k1")));
/// # Ok::<(), http::Error>(())
/// ```
///
/// # Panics
///
/// If `name` is not a header name in lower case.
pub fn header(name: &'static str) -> Header {
    Header(HeaderName::from_static(name))
}

/// What [`header`] returns.
#[derive(Clone, Debug)]
pub struct Header(HeaderName);

impl ExtractKey for Header {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        let value = head.headers.get(&self.0)?.as_bytes();
        (!value.is_empty()).then(|| value.into())
    }
}

/// The token of `Authorization: Bearer`.
pub fn bearer() -> Bearer {
    Bearer(())
}

/// What [`bearer`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Bearer(());

impl ExtractKey for Bearer {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        bearer_token(head.headers.get(AUTHORIZATION)?.as_bytes()).map(Into::into)
    }
}

/// The token in the value of an `Authorization` header of the scheme `Bearer`.
pub fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";

    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

/// The API key: `X-API-Key`, or else the bearer token.
pub fn api_key() -> FirstOf<Header, Bearer> {
    first_of(header("x-api-key"), bearer())
}

/// The path of the request.
pub fn path() -> Path {
    Path(())
}

/// What [`path`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Path(());

impl ExtractKey for Path {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        Some(head.uri.path().into())
    }
}

/// The key that `first` finds, or else the one that `second` finds.
pub fn first_of<A: ExtractKey, B: ExtractKey>(first: A, second: B) -> FirstOf<A, B> {
    FirstOf(first, second)
}

/// What [`first_of`] returns.
#[derive(Clone, Copy, Debug)]
pub struct FirstOf<A, B>(A, B);

impl<A: ExtractKey, B: ExtractKey> ExtractKey for FirstOf<A, B> {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        self.0.key(head).or_else(|| self.1.key(head))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn find(extract: impl ExtractKey, name: &str, value: &str) -> Option<String> {
        let request = Request::builder().header(name, value).body(()).unwrap();
        match extract.key(&(&request).into())? {
            Key::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Key::Address(address) => Some(address.to_string()),
        }
    }

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_its_scheme() {
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(
                find(bearer(), "authorization", value).as_deref(),
                Some("abc")
            );
        }
        for value in ["Basic abc", "Bearer", "Bearer ", "", "b"] {
            assert_eq!(find(bearer(), "authorization", value), None, "{value}");
        }
    }

    #[test]
    fn an_api_key_comes_before_a_token_and_an_empty_one_is_none() {
        assert_eq!(find(api_key(), "x-api-key", "k").as_deref(), Some("k"));
        assert_eq!(
            find(api_key(), "authorization", "Bearer t").as_deref(),
            Some("t")
        );
        assert_eq!(find(api_key(), "x-api-key", ""), None);
    }
}
