//! What spans say.

use std::time::Duration;

use http::{Method, StatusCode, header::HOST, uri::Authority};
use palisade_core::{attempt::Attempts, classify::Verdict, head::RequestHead, settle::End};
use tracing::Span;

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request, on the server that was sent it.
    Request,
    /// One call for it, on the client that makes it.
    Attempt,
}

/// The span of a request with the fields that the layer fills, and yours.
///
/// Its target is `palisade_trace` and its level `DEBUG`.
///
/// ```
/// use palisade_trace::{TraceLayer, record_head, request_span};
///
/// let layer = TraceLayer::request().span(|head| {
///     let tenant = head.headers.get("x-tenant").and_then(|tenant| tenant.to_str().ok());
///     let span = request_span!(shop.tenant = tenant);
///     record_head(&span, head);
///     span
/// });
/// # let _ = layer;
/// ```
#[macro_export]
macro_rules! request_span {
    ($($fields:tt)*) => { $crate::span!("request", "server", $($fields)*) };
}

/// The span of an attempt with the fields that the layer fills, and yours.
///
/// Its target is `palisade_trace` and its level `DEBUG`.
#[macro_export]
macro_rules! attempt_span {
    ($($fields:tt)*) => { $crate::span!("attempt", "client", $($fields)*) };
}

/// A span with the fields that the layer fills, and yours: for what is neither a request nor an attempt, such as a part
/// of a request.
///
/// The names are those of OpenTelemetry's conventions for HTTP and for generative AI.
///
/// ```
/// let part = palisade_trace::span!("part", "internal", shop.part = 3);
/// # let _ = part;
/// ```
#[macro_export]
macro_rules! span {
    ($name:literal, $kind:literal, $($fields:tt)*) => {
        $crate::tracing::span!(
            target: "palisade_trace",
            $crate::tracing::Level::DEBUG,
            $name,
            otel.kind = $kind,
            otel.name = $crate::tracing::field::Empty,
            otel.status_code = $crate::tracing::field::Empty,
            http.request.method = $crate::tracing::field::Empty,
            http.request.resend_count = $crate::tracing::field::Empty,
            http.route = $crate::tracing::field::Empty,
            http.response.status_code = $crate::tracing::field::Empty,
            url.scheme = $crate::tracing::field::Empty,
            url.path = $crate::tracing::field::Empty,
            network.protocol.version = $crate::tracing::field::Empty,
            server.address = $crate::tracing::field::Empty,
            server.port = $crate::tracing::field::Empty,
            error.type = $crate::tracing::field::Empty,
            palisade.verdict = $crate::tracing::field::Empty,
            gen_ai.operation.name = $crate::tracing::field::Empty,
            gen_ai.request.model = $crate::tracing::field::Empty,
            gen_ai.request.stream = $crate::tracing::field::Empty,
            gen_ai.response.time_to_first_chunk = $crate::tracing::field::Empty,
            gen_ai.usage.input_tokens = $crate::tracing::field::Empty,
            gen_ai.usage.output_tokens = $crate::tracing::field::Empty,
            $($fields)*
        )
    };
}

/// Says what is asked for, of whom, and the how manieth attempt it is, if whoever sends them counts; names the span after
/// the method.
pub fn record_head(span: &Span, head: &RequestHead<'_>) {
    record_head_as(span, head, None, head.uri.path());
    record_host(span, head);
}

/// Says what is asked for, with the route that serves it, which is then part of the name, and a path in which nothing
/// stands that is not for everybody.
pub fn record_head_as(span: &Span, head: &RequestHead<'_>, route: Option<&str>, path: &str) {
    if span.is_disabled() {
        return;
    }
    let method = method(head.method);
    span.record("http.request.method", method);
    match route {
        Some(route) => {
            span.record("otel.name", format!("{method} {route}"));
            span.record("http.route", route);
        }
        None => {
            span.record("otel.name", method);
        }
    }
    span.record("url.path", path);
    if let Some(scheme) = head.uri.scheme_str() {
        span.record("url.scheme", scheme);
    }
    if let Some(version) = version(head) {
        span.record("network.protocol.version", version);
    }
    let attempts = head.extensions.get().map_or(0, Attempts::count);
    if attempts > 1 {
        span.record("http.request.resend_count", i64::from(attempts - 1));
    }
}

/// Says whom it is asked of, as far as the head does.
pub fn record_host(span: &Span, head: &RequestHead<'_>) {
    if span.is_disabled() {
        return;
    }
    let host = || head.headers.get(HOST)?.to_str().ok()?.parse().ok();
    if let Some(server) = head.uri.authority().cloned().or_else(host) {
        record_server(span, &server);
    }
}

/// Says whom it is asked of.
pub fn record_server(span: &Span, server: &Authority) {
    span.record("server.address", server.host());
    if let Some(port) = server.port_u16() {
        span.record("server.port", i64::from(port));
    }
}

/// Says what status was answered.
pub fn record_status(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", i64::from(status.as_u16()));
}

/// Says how long it took until the first data of a stream.
pub fn record_first_data(span: &Span, took: Duration) {
    span.record("gen_ai.response.time_to_first_chunk", took.as_secs_f64());
}

/// Says how it ended: the verdict, the tokens, and whether that is an error of this kind of span.
///
/// What the caller did wrong is an error of an attempt and none of a request; that the caller left is none of either.
pub fn record_end(span: &Span, kind: Kind, status: Option<StatusCode>, end: &End) {
    if span.is_disabled() {
        return;
    }
    span.record("palisade.verdict", end.verdict.name());
    if let Some(usage) = end.usage {
        let number = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        span.record("gen_ai.usage.input_tokens", number(usage.prompt));
        span.record("gen_ai.usage.output_tokens", number(usage.completion));
    }
    if let Some(error) = error(kind, status.as_ref(), &end.verdict) {
        span.record("error.type", error);
        span.record("otel.status_code", "ERROR");
    }
}

/// The class of the error, if it is one.
fn error<'a>(kind: Kind, status: Option<&'a StatusCode>, verdict: &Verdict) -> Option<&'a str> {
    let of_caller = status.is_some_and(|status| status.is_client_error());
    match (verdict, kind) {
        (Verdict::Success | Verdict::Canceled, _) => return None,
        (Verdict::CallerFault, Kind::Request) => return None,
        (_, Kind::Request) if of_caller => return None,
        _ => {}
    }
    if let Verdict::Refused(reason) = verdict {
        return Some(reason.name());
    }
    let failed = status.filter(|status| status.is_client_error() || status.is_server_error());
    Some(failed.map_or(verdict.name(), StatusCode::as_str))
}

/// Callers make up methods, which would be as many names of spans.
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ];
    match known.contains(method) {
        true => method.as_str(),
        false => "_OTHER",
    }
}

fn version(head: &RequestHead<'_>) -> Option<&'static str> {
    Some(match head.version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_11 => "1.1",
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_3 => "3",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use palisade_core::reject::Reason;

    use super::*;

    #[test]
    fn what_the_caller_did_wrong_is_an_error_of_an_attempt_only() {
        let overload = Verdict::Overload { retry_after: None };
        let limited = Verdict::Refused(Reason::RateLimited);
        let open = Verdict::Refused(Reason::CircuitOpen);
        for (verdict, status, request, attempt) in [
            (Verdict::Success, 200, None, None),
            (Verdict::Canceled, 200, None, None),
            (Verdict::Canceled, 0, None, None),
            (Verdict::CallerFault, 404, None, Some("404")),
            (overload, 429, None, Some("429")),
            (overload, 503, Some("503"), Some("503")),
            (limited, 429, None, Some("rate_limited")),
            (open, 503, Some("circuit_open"), Some("circuit_open")),
            (Verdict::Failure, 502, Some("502"), Some("502")),
            // A stream that broke off.
            (Verdict::Failure, 200, Some("failure"), Some("failure")),
            (Verdict::TimedOut, 200, Some("timed_out"), Some("timed_out")),
            (Verdict::Unsent, 0, Some("unsent"), Some("unsent")),
        ] {
            let status = StatusCode::from_u16(status).ok();
            let says = |kind| error(kind, status.as_ref(), &verdict);
            assert_eq!(says(Kind::Request), request, "{verdict:?} {status:?}");
            assert_eq!(says(Kind::Attempt), attempt, "{verdict:?} {status:?}");
        }
    }

    #[test]
    fn a_method_that_somebody_made_up_names_nothing() {
        assert_eq!(method(&Method::PATCH), "PATCH");
        assert_eq!(method(&"POSTT".parse().unwrap()), "_OTHER");
        assert_eq!(method(&"post".parse().unwrap()), "_OTHER");
    }
}
