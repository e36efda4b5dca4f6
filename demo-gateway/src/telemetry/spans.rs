//! The spans of a request and of its attempts.

use std::sync::{Arc, LazyLock};

use palisade::{
    classify::Http,
    head::RequestHead,
    settle::End,
    trace::{
        Kind, OpenTelemetry, Propagate, TraceContext, TraceLayer, attempt_span, record_end,
        record_first_data, record_head_as, record_host, record_server, request_span, span,
    },
};
use tracing::{Span, field::Empty};

use crate::{
    backends::Backend,
    classify::Llm,
    exchange::{Exchange, Operation},
    fallbacks::Instead,
    record::{Entry, Observe, Part, Record, shown},
};

/// What a caller made up is not repeated for ever.
const LONGEST_NAME: usize = 128;

/// What backends speak, whoever made them.
const PROVIDER: &str = "openai";

/// Whether anybody keeps spans.
pub(crate) fn are_kept() -> bool {
    tracing::enabled!(target: "palisade_trace", tracing::Level::DEBUG)
}

/// Around everything that is done for a request, the body of its answer included.
pub(crate) fn requests() -> &'static TraceLayer<Http, OpenTelemetry> {
    static REQUESTS: LazyLock<TraceLayer<Http, OpenTelemetry>> = LazyLock::new(|| {
        TraceLayer::request()
            .propagate(OpenTelemetry)
            // Its record knows how it ended.
            .unjudged()
            .span(request)
    });
    &REQUESTS
}

/// Around one attempt at a backend.
pub(crate) fn attempts(backend: &Arc<Backend>) -> TraceLayer<Llm, OpenTelemetry> {
    let backend = backend.clone();
    TraceLayer::attempt()
        .propagate(OpenTelemetry)
        .classify(Llm)
        .span(move |head| attempt(&backend, head))
}

/// Around one request of a batch.
pub(crate) fn item() -> Span {
    span!(
        "item",
        "internal",
        gen_ai.provider.name = Empty,
        palisade.backend = Empty,
        palisade.attempts = Empty,
        palisade.reason = Empty,
        palisade.rule = Empty,
        palisade.why = Empty,
    )
}

/// Where the current span is among those of other programs, if anybody keeps it.
pub(crate) fn current() -> Option<TraceContext> {
    OpenTelemetry.context(&Span::current())
}

fn request(head: &RequestHead<'_>) -> Span {
    let path = head.uri.path();
    // Somebody asks every few seconds, and nobody wants to know.
    if matches!(path, "/livez" | "/readyz" | "/metrics") {
        return Span::none();
    }
    let span = request_span!(
        "http.request.header.x-request-id" = Empty,
        client.address = Empty,
        gen_ai.provider.name = Empty,
        palisade.caller = Empty,
        palisade.backend = Empty,
        palisade.attempts = Empty,
        palisade.reason = Empty,
        palisade.rule = Empty,
        palisade.why = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    record_head_as(&span, head, route(path), shown(path));
    record_host(&span, head);
    if let Some(entry) = head.extensions.get::<Arc<Entry>>() {
        let id = entry.id().to_str().unwrap_or_default();
        span.record("http.request.header.x-request-id", id);
        let address = entry.peer().ip().to_string();
        span.record("client.address", &*address);
    }
    span
}

fn attempt(backend: &Backend, head: &RequestHead<'_>) -> Span {
    let span = attempt_span!(gen_ai.provider.name = Empty, palisade.backend = Empty);
    if span.is_disabled() {
        return span;
    }
    let path = head.uri.path();
    record_head_as(&span, head, None, path);
    if let Some(server) = backend.address.authority() {
        record_server(&span, server);
    }
    span.record("palisade.backend", &*backend.id);
    if let Some(exchange) = head.extensions.get::<Arc<Exchange>>() {
        let other = head.extensions.get().map(|Instead(model)| model.clone());
        let model = other.or_else(|| exchange.model());
        record_operation(
            &span,
            exchange.operation,
            model.as_deref(),
            exchange.is_stream(),
        );
        let model = model.as_deref().map(short).unwrap_or_default();
        let name = format!("{} {model}", exchange.operation.name());
        span.record("otel.name", name.trim_end());
    }
    span
}

/// Says what is asked of a model.
fn record_operation(span: &Span, operation: Operation, model: Option<&str>, stream: bool) {
    span.record("gen_ai.operation.name", operation.name());
    span.record("gen_ai.provider.name", PROVIDER);
    if let Some(model) = model {
        span.record("gen_ai.request.model", short(model));
    }
    if stream {
        span.record("gen_ai.request.stream", true);
    }
}

/// Says on the span of a request what became of it.
///
/// Records are made inside of the span, also where they are made because it is dropped.
#[derive(Debug)]
pub(crate) struct Telling;

impl Observe for Telling {
    fn ended(&self, record: &Record) {
        let span = Span::current();
        if span.is_disabled() {
            return;
        }
        let end = End {
            usage: record.usage,
            age: record.took,
            ..End::new(record.verdict)
        };
        record_end(&span, Kind::Request, Some(record.status), &end);
        if let Some(took) = record.first_token {
            record_first_data(&span, took);
        }
        if let Some(operation) = record.operation {
            record_operation(&span, operation, record.model.as_deref(), record.stream);
        }
        // Those of a batch are those of its parts.
        if record.operation.is_some() && record.part != Part::Batch {
            span.record("palisade.attempts", i64::from(record.attempts));
        }
        if let Some(caller) = &record.caller {
            span.record("palisade.caller", &*caller.shown());
        }
        if let Some(backend) = &record.backend {
            span.record("palisade.backend", &**backend);
        }
        if let Some(reason) = record.reason {
            span.record("palisade.reason", reason);
        }
        if let Some(rule) = &record.rule {
            span.record("palisade.rule", &**rule);
        }
        if let Some(why) = &record.why {
            span.record("palisade.why", &**why);
        }
    }
}

/// As much of a name as is shown.
pub(crate) fn short(name: &str) -> &str {
    &name[..name.floor_char_boundary(LONGEST_NAME)]
}

/// The route of a path, of which there are few.
fn route(path: &str) -> Option<&'static str> {
    const ROUTES: [&str; 10] = [
        "/",
        "/generate",
        "/generate/batch",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/health",
        "/status",
        "/events",
    ];
    const BELOW: [(&str, &str); 3] = [
        ("/v1/models/", "/v1/models/{model}"),
        ("/rate-limits/", "/rate-limits/{identifier}"),
        ("/admin/", "/admin/{command}"),
    ];
    let below = |&&(prefix, _): &&(&str, &str)| path.starts_with(prefix);
    let exact = ROUTES.into_iter().find(|route| *route == path);
    exact.or_else(|| BELOW.iter().find(below).map(|(_, route)| *route))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_callers_ask_for_there_are_few_routes() {
        assert_eq!(route("/generate"), Some("/generate"));
        assert_eq!(
            route("/rate-limits/api_key:sk-1"),
            Some("/rate-limits/{identifier}")
        );
        assert_eq!(route("/v1/models/a/b"), Some("/v1/models/{model}"));
        assert_eq!(route("/generate/"), None);
        assert_eq!(route("/wp-login.php"), None);
    }

    #[test]
    fn a_long_name_is_cut_between_its_characters() {
        assert_eq!(short("gpt"), "gpt");
        let long = "é".repeat(100);
        assert_eq!(short(&long).len(), 128);
        let odd = format!("a{long}");
        assert_eq!(short(&odd).len(), 127);
    }
}
