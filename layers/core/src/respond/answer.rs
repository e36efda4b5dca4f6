//! The same refusal in three languages.

use std::{error::Error, fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{
    classify::Verdict,
    head::RequestHead,
    reject::{Reason, Rejected},
};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

const GRPC_UNKNOWN: u8 = 2;

/// The language of an answer, chosen before the request is given away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Answer {
    Grpc,
    OpenAi,
    Problem,
}

impl Answer {
    pub(super) fn to(head: &RequestHead<'_>) -> Self {
        let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let path = head.uri.path();
        if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            Self::Grpc
        } else if path == "/v1" || path.starts_with("/v1/") {
            Self::OpenAi
        } else {
            Self::Problem
        }
    }

    pub(super) fn error(self, error: &(dyn Error + 'static)) -> Response<Full<Bytes>> {
        let refusal = Refusal::new(error);
        match self {
            Self::Grpc => refusal.grpc(),
            Self::OpenAi => refusal.http("application/json", refusal.openai()),
            Self::Problem => refusal.http("application/problem+json", refusal.problem()),
        }
    }

    /// The data of an event that ends a stream: one line of JSON.
    pub(super) fn event(self, error: &(dyn Error + 'static)) -> String {
        let refusal = Refusal::new(error);
        match self {
            Self::OpenAi => refusal.openai(),
            Self::Grpc | Self::Problem => refusal.object(""),
        }
    }

    /// What ends a gRPC stream.
    pub(super) fn trailers(error: &(dyn Error + 'static)) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        Refusal::new(error).status_to(&mut trailers);
        trailers
    }
}

struct Refusal<'a> {
    rejected: Option<&'a Rejected>,
    reason: Option<Reason>,
    delay: Option<Duration>,
    detail: String,
}

impl<'a> Refusal<'a> {
    fn new(error: &'a (dyn Error + 'static)) -> Self {
        let rejected = Rejected::find(error);
        let source = rejected.and_then(Error::source);
        // A client that keeps to the time it was told ends by an error of its own.
        let late = rejected.is_none() && Verdict::of(error) == Verdict::TimedOut;
        let reason = late.then_some(Reason::TimedOut);
        // Only our own words: other errors name hosts and paths.
        let other = if late {
            "no answer in time"
        } else {
            "bad gateway"
        };
        Self {
            rejected,
            reason: rejected.map(Rejected::reason).or(reason),
            delay: rejected.and_then(Rejected::delay),
            detail: source.map_or(other.into(), ToString::to_string),
        }
    }

    /// Trailers-only: a tonic server would turn an error into a reset of the stream.
    fn grpc(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        let headers = response.headers_mut();
        self.status_to(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    /// The status as gRPC tells it, in a head or in trailers.
    fn status_to(&self, headers: &mut HeaderMap) {
        self.extend(headers);
        let status = self.reason.map_or(GRPC_UNKNOWN, Reason::grpc);
        grpc_status(headers, status, &self.detail);
        if self.is_final() {
            headers.insert(GRPC_PUSHBACK, HeaderValue::from_static("-1"));
        } else if let Some(delay) = self.delay {
            headers.insert(GRPC_PUSHBACK, value(millis(delay)));
        }
        if let Some(details) = self.details(status) {
            headers.insert(GRPC_DETAILS, details);
        }
    }

    fn http(&self, kind: &'static str, body: String) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        self.extend(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.is_final() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        } else if let Some(delay) = self.delay {
            insert_delay(headers, delay);
        }
        response
    }

    /// A `google.rpc.Status` with a `QuotaFailure` that names the policy and a `RetryInfo` that names the delay, where
    /// gRPC clients look for them.
    ///
    /// Written out: a whole protobuf library for fifty bytes would be in every user's build.
    fn details(&self, status: u8) -> Option<HeaderValue> {
        let mut details = Vec::new();
        if let Some(policy) = self.policy() {
            let violation = Message::default().text(2, &self.detail).text(5, policy);
            let failure = Message::default().message(1, violation);
            details.push(failure.any("type.googleapis.com/google.rpc.QuotaFailure"));
        }
        if let Some(delay) = self.delay.filter(|_| !self.is_final()) {
            let seconds = delay.as_secs().min(LONGEST_DURATION);
            let duration = Message::default().number(1, seconds);
            let duration = duration.number(2, delay.subsec_nanos().into());
            let retry_info = Message::default().message(1, duration);
            details.push(retry_info.any("type.googleapis.com/google.rpc.RetryInfo"));
        }
        if details.is_empty() {
            return None;
        }
        let head = Message::default().number(1, status.into());
        let head = head.text(2, &self.detail);
        let all = details
            .into_iter()
            .fold(head, |all, any| all.message(3, any));
        Some(value(STANDARD_NO_PAD.encode(all.0)))
    }

    /// The policy that was violated: one that could not be asked about was not.
    fn policy(&self) -> Option<&str> {
        let rejected = self.rejected?;
        let violated = rejected.reason() != Reason::StoreUnavailable;
        rejected.policy().filter(|_| violated)
    }

    fn extend(&self, headers: &mut HeaderMap) {
        if let Some(more) = self.rejected.and_then(Rejected::headers) {
            headers.clone_from(more);
        }
    }

    fn openai(&self) -> String {
        self.object(r#""param":null,"#)
    }

    /// An error object as OpenAI's clients know it, with or without the field that is about a parameter.
    fn object(&self, param: &'static str) -> String {
        let kind = match self.status() {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let (message, code) = (Json(&self.detail), self.code());
        format!(r#"{{"error":{{"message":{message},"type":"{kind}",{param}"code":"{code}"}}}}"#)
    }

    fn problem(&self) -> String {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or_default();
        let (status, detail, code) = (status.as_u16(), Json(&self.detail), self.code());
        let mut problem = String::from("{");
        if let Some(kind) = self.reason.and_then(Reason::problem_type) {
            problem.push_str(&format!(r#""type":"{kind}","#));
        }
        problem.push_str(&format!(
            r#""title":"{title}","status":{status},"detail":{detail},"reason":"{code}""#
        ));
        if let Some(policy) = self.policy() {
            problem.push_str(&format!(r#","violated-policies":[{}]"#, Json(policy)));
        }
        problem.push('}');
        problem
    }

    fn status(&self) -> StatusCode {
        self.reason.map_or(StatusCode::BAD_GATEWAY, Reason::status)
    }

    fn code(&self) -> &'static str {
        self.reason.map_or("bad_gateway", Reason::name)
    }

    fn is_final(&self) -> bool {
        self.rejected.is_some_and(Rejected::is_final)
    }
}

/// How a gRPC call ended, in a head or in trailers.
pub(super) fn grpc_status(headers: &mut HeaderMap, status: u8, message: &str) {
    /// What the gRPC protocol lets stand in `grpc-message`: printable ASCII but `%`.
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

    headers.insert(GRPC_STATUS, u16::from(status).into());
    headers.insert(GRPC_MESSAGE, value(utf8_percent_encode(message, ESCAPED)));
}

fn insert_delay(headers: &mut HeaderMap, delay: Duration) {
    // Rounded up: a client that comes back early is refused again.
    let seconds = delay
        .as_secs()
        .saturating_add(u64::from(delay.subsec_nanos() > 0));
    headers.insert(RETRY_AFTER, seconds.max(1).into());
    headers.insert(RETRY_AFTER_MS, value(millis(delay)));
}

fn millis(delay: Duration) -> u128 {
    delay.as_nanos().div_ceil(1_000_000)
}

fn value(text: impl fmt::Display) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text.to_string())).expect("printable ASCII")
}

/// The seconds of a `google.protobuf.Duration` at most: 10 000 years.
const LONGEST_DURATION: u64 = 315_576_000_000;

/// A protobuf message, as it goes over the wire.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u8, number: u64) -> Self {
        const VARINT: u8 = 0;

        self.0.push(field << 3 | VARINT);
        self.varint(number);
        self
    }

    fn text(self, field: u8, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u8, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Itself as a `google.protobuf.Any`.
    fn any(self, url: &str) -> Self {
        Self::default().text(1, url).message(2, self)
    }

    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        const BYTES: u8 = 2;

        self.0.push(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// A text between quotes, as JSON wants it.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                '\0'..' ' => write!(f, "\\u{:04x}", u32::from(char))?,
                _ => write!(f, "{char}")?,
            }
        }
        f.write_str("\"")
    }
}
