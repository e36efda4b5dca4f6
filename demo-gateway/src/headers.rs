//! What passes from one side of the gateway to the other.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, TE},
};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const BACKEND_ID: HeaderName = HeaderName::from_static("x-backend-id");
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-attempts");
/// How a caller stands, and with which rules.
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(crate) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The longest request id that is kept.
const LONGEST_ID: usize = 128;

/// Whether a header is about one connection only (RFC 9110, 7.6.1, and what old clients send).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether a header shows who the caller is, or is written anew for the backend.
fn stays_here(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "x-api-key"
            | "api-key"
            | "cookie"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "forwarded"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-proto"
            | "x-real-ip"
            | "host"
            | "content-length"
            | "expect"
            | "accept-encoding"
            | "x-attempt"
    )
}

/// The headers of a request as a backend gets them: without what is about the caller's connection or shows the
/// caller's credentials.
pub(crate) fn to_backend(headers: HeaderMap) -> HeaderMap {
    let named = connection_names(&headers);
    let wants_trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| lists(value, "trailers"));
    let mut passed = HeaderMap::with_capacity(headers.keys_len() + 2);
    let mut last = None;
    for (name, value) in headers {
        // Of several values of one name only the first comes with it.
        last = name.or(last);
        let Some(name) = &last else { continue };
        let text = name.as_str();
        if is_hop_by_hop(text) || stays_here(text) || named.iter().any(|named| named == text) {
            continue;
        }
        passed.append(name.clone(), value);
    }
    if wants_trailers {
        passed.insert(TE, HeaderValue::from_static("trailers"));
    }
    passed.insert(
        http::header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    passed
}

/// Takes out of an answer what is about the backend's connection, or for the gateway only.
pub(crate) fn to_caller(headers: &mut HeaderMap) {
    for name in connection_names(headers) {
        headers.remove(&*name);
    }
    // A look at the few that there are costs less than a search for each that there may be.
    while let Some(name) = headers.keys().find(|name| ends_here(name.as_str())) {
        let name = name.clone();
        headers.remove(name);
    }
}

/// Whether a header of an answer goes no further.
fn ends_here(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "set-cookie"
            | "endpoint-load-metrics"
            | "endpoint-load-metrics-bin"
            | "x-instance-id"
    )
}

/// The headers that `Connection` names, which go no further than it does.
fn connection_names(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter();
    let lists = values.filter_map(|value| value.to_str().ok());
    let names = lists.flat_map(|list| list.split(','));
    // The usual ones go anyway, and cost no allocation here.
    let names = names.map(str::trim).filter(|name| {
        !name.is_empty()
            && !name.eq_ignore_ascii_case("keep-alive")
            && !name.eq_ignore_ascii_case("close")
    });
    names.map(str::to_ascii_lowercase).collect()
}

fn lists(value: &HeaderValue, word: &str) -> bool {
    let text = value.to_str().unwrap_or_default();
    text.split(',')
        .any(|item| item.trim().eq_ignore_ascii_case(word))
}

/// The caller's request id if it can be kept, or else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        // Copied: logs keep it for long, and would keep all that was read with it alive.
        Some(id) if is_request_id(id.as_bytes()) => {
            HeaderValue::from_bytes(id.as_bytes()).expect("visible characters")
        }
        _ => new_request_id(),
    }
}

fn is_request_id(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn new_request_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hexadecimal digits and hyphens")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn credentials_and_what_is_about_the_connection_stay_here() {
        let passed = to_backend(map(&[
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("cookie", "session=secret"),
            ("proxy-authorization", "Basic secret"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-forwarded-for", "6.6.6.6"),
            ("accept-encoding", "gzip"),
            ("host", "gateway"),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("x-custom", "a"),
            ("x-custom", "b"),
            ("idempotency-key", "k"),
        ]));
        let mut left: Vec<_> = passed
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [
                ("accept-encoding", "identity"),
                ("content-type", "application/json"),
                ("idempotency-key", "k"),
                ("x-custom", "a"),
                ("x-custom", "b"),
            ]
        );
    }

    #[test]
    fn te_trailers_is_kept() {
        let passed = to_backend(map(&[("te", "gzip, trailers"), ("connection", "te")]));
        assert_eq!(passed[TE], "trailers");
    }

    #[test]
    fn an_answer_loses_what_is_about_the_backends_connection() {
        let mut headers = map(&[
            ("connection", "close, x-secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("endpoint-load-metrics", "TEXT cpu_utilization=0.3"),
            ("set-cookie", "backend=1"),
            ("content-type", "application/json"),
            ("retry-after", "3"),
        ]);
        to_caller(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "retry-after"]);
    }

    #[test]
    fn a_request_id_is_kept_if_it_is_short_and_visible() {
        let kept = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            request_id(&headers) == id
        };
        assert!(kept("abc-1/2=3"));
        assert!(kept(&"x".repeat(LONGEST_ID)));
        assert!(!kept(&"x".repeat(LONGEST_ID + 1)));
        assert!(!kept("two words"));
        assert!(!kept("tab\there"));
        assert!(!kept("größe"));
        assert!(!kept(""));
        let (a, b) = (request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
        assert!(a != b && is_request_id(a.as_bytes()));
    }

    #[test]
    fn an_id_that_is_kept_keeps_nothing_else_of_the_request_alive() {
        struct Read(Arc<[u8]>);

        impl AsRef<[u8]> for Read {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        let alive: Arc<[u8]> = [b'x'; 8192].into();
        let read = Bytes::from_owner(Read(alive.clone()));
        let mut headers = HeaderMap::new();
        let id = HeaderValue::from_maybe_shared(read.slice(..17)).unwrap();
        headers.insert(REQUEST_ID, id);
        let kept = request_id(&headers);
        drop((headers, read));
        assert_eq!(kept, "x".repeat(17));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
