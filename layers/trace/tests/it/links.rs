//! How spans of several programs are one trace.

use http_body_util::BodyExt;
use opentelemetry::trace::SpanId;
use palisade_core::{
    BoxError,
    attempt::{Attempts, EndpointId},
};
use palisade_trace::{OpenTelemetry, TraceLayer};
use tower::{Layer, Service, ServiceExt};

use crate::support::{PARENT, Spans, inner, ok, request, request_with};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Sends one request through a request's span and that of an attempt.
async fn send(headers: &[(&'static str, &str)]) -> (Option<String>, Option<String>) {
    let inner = inner(ok);
    let service = TraceLayer::request().propagate(OpenTelemetry).layer(
        TraceLayer::attempt()
            .propagate(OpenTelemetry)
            .layer(inner.clone()),
    );
    let answer = service.oneshot(request_with(headers)).await.unwrap();
    answer.into_body().collect().await.unwrap();
    (inner.header("traceparent"), inner.header("tracestate"))
}

#[tokio::test]
async fn a_trace_goes_from_the_caller_through_the_attempt_to_the_service() {
    let (spans, _listening) = Spans::listen();
    let (parent, state) = send(&[("traceparent", PARENT), ("tracestate", "a=1,b@c=2")]).await;
    let ended = spans.take();
    let [attempt, request] = &ended[..] else {
        panic!("{ended:?}")
    };
    for span in [attempt, request] {
        assert_eq!(span.0.span_context.trace_id().to_string(), TRACE);
    }
    assert_eq!(request.0.parent_span_id.to_string(), CALLER);
    assert!(request.0.parent_span_is_remote);
    assert_eq!(attempt.0.parent_span_id, request.id());
    assert_eq!(parent, Some(format!("00-{TRACE}-{}-01", attempt.id())));
    assert_eq!(state.as_deref(), Some("a=1,b@c=2"));
}

#[tokio::test]
async fn what_is_not_well_formed_begins_a_new_trace() {
    for headers in [
        &[][..],
        &[("tracestate", "a=1")],
        &[("traceparent", "00-zz"), ("tracestate", "a=1")],
        &[("traceparent", PARENT), ("traceparent", PARENT)],
    ] {
        let (spans, _listening) = Spans::listen();
        let (parent, state) = send(headers).await;
        let ended = spans.take();
        let [attempt, request] = &ended[..] else {
            panic!("{ended:?}")
        };
        let trace = request.0.span_context.trace_id();
        assert_ne!(trace.to_string(), TRACE);
        assert_eq!(request.0.parent_span_id, SpanId::INVALID);
        assert_eq!(attempt.0.span_context.trace_id(), trace);
        assert_eq!(parent, Some(format!("00-{trace}-{}-01", attempt.id())));
        assert_eq!(state, None, "it belonged to what nobody could read");
    }
}

#[tokio::test]
async fn what_the_caller_does_not_keep_is_not_kept_here() {
    let (spans, _listening) = Spans::listen();
    let unsampled = format!("{}00", &PARENT[..53]);
    let (parent, _) = send(&[("traceparent", &unsampled)]).await;
    assert_eq!(spans.count(), 0);
    let parent = parent.unwrap();
    assert!(
        parent.starts_with(&PARENT[..36]) && parent.ends_with("-00"),
        "{parent}"
    );
    assert_ne!(
        parent, unsampled,
        "whoever comes next hears of this program"
    );
}

#[tokio::test]
async fn without_anybody_who_listens_the_callers_trace_is_passed_on() {
    let sent = [("traceparent", PARENT), ("tracestate", "a=1")];
    let (parent, state) = send(&sent).await;
    assert_eq!(
        (parent.as_deref(), state.as_deref()),
        (Some(PARENT), Some("a=1"))
    );
    // So it is by whoever listens, but gives no names.
    let (_spans, _listening) = Spans::listen();
    let inner = inner(ok);
    let service = TraceLayer::attempt().layer(inner.clone());
    service.oneshot(request_with(&sent)).await.unwrap();
    assert_eq!(inner.header("traceparent").as_deref(), Some(PARENT));
}

#[tokio::test]
async fn each_attempt_of_a_request_has_its_span_and_its_number() {
    let (spans, _listening) = Spans::listen();
    let inner = inner(ok);
    let attempt = TraceLayer::attempt().propagate(OpenTelemetry);
    let attempt = attempt.layer(inner.clone());
    let twice = tower::service_fn(move |_: http::Request<_>| {
        let (mut attempt, attempts) = (attempt.clone(), Attempts::default());
        async move {
            let mut last = None;
            for _ in 0..2 {
                attempts.note(EndpointId::new());
                let mut again = request();
                again.extensions_mut().insert(attempts.clone());
                last = Some(attempt.call(again).await?);
            }
            Ok::<_, BoxError>(last.unwrap())
        }
    });
    let service = TraceLayer::request().propagate(OpenTelemetry).layer(twice);
    let answer = service.oneshot(request()).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let ended = spans.take();
    let [first, second, request] = &ended[..] else {
        panic!("{ended:?}")
    };
    // The first was let go of when the second was sent.
    assert_eq!(first.says("palisade.verdict"), "canceled");
    assert_eq!(second.says("palisade.verdict"), "success");
    assert_eq!(first.says("http.request.resend_count"), "");
    assert_eq!(second.says("http.request.resend_count"), "1");
    for attempt in [first, second] {
        assert_eq!(attempt.0.parent_span_id, request.id());
    }
    let seen = inner.seen.lock().unwrap();
    let sent: Vec<_> = seen
        .iter()
        .map(|headers| headers["traceparent"].to_str().unwrap())
        .collect();
    assert!(sent[0].contains(&first.id().to_string()));
    assert!(sent[1].contains(&second.id().to_string()));
}
