use std::borrow::Cow;

use http::header::HOST;
use palisade_core::{
    head::RequestHead,
    key::{ExtractKey, Key},
};

/// Where a request goes: the host and the port as its URI says, or else its `Host` header, in lower case.
///
/// A port that is left out is not the same as the one that is meant.
///
/// ```
/// use palisade_circuit_breaker::destination;
/// use palisade_core::key::{ExtractKey, Key};
///
/// let request = http::Request::get("http://Models.example:8080/v1").body(())?;
/// let key = destination().key(&(&request).into());
/// assert_eq!(key, Some(Key::from("models.example:8080")));
/// # Ok::<(), http::Error>(())
/// ```
pub fn destination() -> Destination {
    Destination(())
}

/// What [`destination`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Destination(());

impl ExtractKey for Destination {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        let bytes = match head.uri.authority() {
            Some(authority) => {
                let whole = authority.as_str();
                // Who asks is not where it goes.
                let host = whole.rsplit_once('@').map_or(whole, |(_, host)| host);
                host.as_bytes()
            }
            None => head.headers.get(HOST)?.as_bytes(),
        };
        let has_capitals = bytes.iter().any(u8::is_ascii_uppercase);
        (!bytes.is_empty()).then(|| match has_capitals {
            true => Key::Bytes(Cow::Owned(bytes.to_ascii_lowercase())),
            false => bytes.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn find(uri: &str, host: Option<&str>) -> Option<String> {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let request = request.body(()).unwrap();
        match destination().key(&(&request).into())? {
            Key::Bytes(bytes) => Some(String::from_utf8(bytes.into_owned()).unwrap()),
            Key::Address(address) => Some(address.to_string()),
        }
    }

    #[test]
    fn a_destination_is_a_host_and_a_port_whoever_asks_and_however_it_is_written() {
        for (uri, host, expected) in [
            ("http://a.example/x", None, Some("a.example")),
            ("https://A.Example:444", Some("b"), Some("a.example:444")),
            ("http://user:secret@a.example/", None, Some("a.example")),
            ("http://[::1]:80/", None, Some("[::1]:80")),
            ("/x", Some("B.example"), Some("b.example")),
            ("/x", Some(""), None),
            ("/x", None, None),
        ] {
            assert_eq!(find(uri, host).as_deref(), expected, "{uri}");
        }
    }
}
