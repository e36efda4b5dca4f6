//! What a span says, and when it ends.

use http::{Method, Response};
use http_body::Body;
use http_body_util::BodyExt;
use opentelemetry::trace::SpanKind;
use palisade_core::{
    classify::{Grpc, Sse},
    reject::{Reason, Rejected},
    settle::End,
    testing::{Step, Steps},
};
use palisade_trace::{Kind, TraceLayer, record_end, record_head, request_span};
use tower::{Layer, ServiceExt};
use tracing::Span;

use crate::support::{Spans, inner, ok, request, says};

const FAILS: Step = Step::Error("broken");

#[tokio::test]
async fn a_span_ends_with_the_body_and_not_with_the_head() {
    let (spans, _listening) = Spans::listen();
    let service = TraceLayer::request().layer(inner(ok));
    let answer = service.oneshot(request()).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(spans.count(), 0, "the body goes on");
    assert!(body.frame().await.is_none());
    // It does not wait for whoever still holds the body.
    let span = spans.one();
    assert_eq!(span.0.name, "POST");
    assert_eq!(span.0.span_kind, SpanKind::Server);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/models"),
        ("url.scheme", "http"),
        ("server.address", "llm.example"),
        ("server.port", "8080"),
        ("network.protocol.version", "1.1"),
        ("palisade.verdict", "success"),
        ("error.type", ""),
        ("http.request.resend_count", ""),
    ] {
        assert_eq!(span.says(key), value, "{key}");
    }
    assert!(!span.is_error());
    assert!(!format!("{span:?}").contains("secret"), "no query");
    drop(body);
    assert_eq!(spans.count(), 0);
}

#[tokio::test]
async fn a_span_ends_once_whatever_the_body_says_of_its_end() {
    let (spans, _listening) = Spans::listen();
    let body = || Steps::new([Step::Data("a")]).saying_its_end();
    let service = TraceLayer::request().layer(inner(move || Ok(Response::new(body()))));
    let answer = service.oneshot(request()).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    // A server that knows the length does not ask again.
    assert!(body.is_end_stream());
    assert_eq!(spans.one().says("palisade.verdict"), "success");
    let empty = || Ok(Response::new(Steps::new([]).saying_its_end()));
    let service = TraceLayer::request().layer(inner(empty));
    let answer = service.oneshot(request()).await.unwrap();
    assert_eq!(spans.one().says("palisade.verdict"), "success");
    drop(answer);
    assert_eq!(spans.count(), 0);
}

#[tokio::test]
async fn an_answer_to_head_has_ended_with_its_head() {
    let (spans, _listening) = Spans::listen();
    let service = TraceLayer::request().layer(inner(ok));
    let mut asked = request();
    *asked.method_mut() = Method::HEAD;
    drop(service.oneshot(asked).await.unwrap());
    let span = spans.one();
    assert_eq!(span.says("palisade.verdict"), "success");
    assert_eq!(span.0.name, "HEAD");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_with_its_tokens_and_its_first_data() {
    let (spans, _listening) = Spans::listen();
    let usage = "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\n";
    let steps = move || [Step::Data(": ping\n\n"), Step::Data(usage), FAILS];
    let layer = TraceLayer::request().classify(Sse);
    let service = layer.layer(inner(move || says(200, "text/event-stream", steps())));
    let answer = service.oneshot(request()).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
    let span = spans.one();
    assert!(span.is_error());
    assert_eq!(span.says("palisade.verdict"), "failure");
    assert_eq!(span.says("error.type"), "failure");
    assert_eq!(span.says("http.response.status_code"), "200");
    assert_eq!(span.says("gen_ai.usage.input_tokens"), "3");
    assert_eq!(span.says("gen_ai.usage.output_tokens"), "5");
    let first: f64 = span
        .says("gen_ai.response.time_to_first_chunk")
        .parse()
        .unwrap();
    assert!(first >= 0.0);
    assert!(span.keys().values().all(|&times| times == 1), "{span:?}");
}

#[tokio::test]
async fn only_a_stream_has_a_first_chunk() {
    let (spans, _listening) = Spans::listen();
    let service = TraceLayer::request().layer(inner(ok));
    let answer = service.oneshot(request()).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(spans.one().says("gen_ai.response.time_to_first_chunk"), "");
}

#[tokio::test]
async fn a_call_of_grpc_ends_with_its_trailers() {
    let (spans, _listening) = Spans::listen();
    let trailers = || {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "13".parse().unwrap());
        [Step::Data("x"), Step::Trailers(trailers)]
    };
    let layer = TraceLayer::attempt().classify(Grpc);
    let service = layer.layer(inner(move || says(200, "application/grpc", trailers())));
    let answer = service.oneshot(request()).await.unwrap();
    let mut body = answer.into_body();
    while spans.count() == 0 {
        assert!(body.frame().await.unwrap().is_ok());
    }
    let span = spans.one();
    assert_eq!(span.0.span_kind, SpanKind::Client);
    assert_eq!(span.says("palisade.verdict"), "failure");
    assert!(span.is_error());
}

#[tokio::test]
async fn data_trailers_and_length_pass_as_they_are() {
    let (_spans, _listening) = Spans::listen();
    let trailers = || {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers
    };
    let steps = move || {
        [
            Step::Data("one "),
            Step::Data("two"),
            Step::Trailers(trailers()),
        ]
    };
    let service = TraceLayer::request().layer(inner(move || says(200, "text/plain", steps())));
    let answer = service.oneshot(request()).await.unwrap();
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers(), Some(&trailers()));
    assert_eq!(whole.to_bytes(), "one two");

    let full = tower::service_fn(async |_: http::Request<_>| {
        let body = http_body_util::Full::from("hello");
        Ok::<_, palisade_core::BoxError>(Response::new(body.map_err(palisade_core::BoxError::from)))
    });
    let answer = TraceLayer::request()
        .layer(full)
        .oneshot(request())
        .await
        .unwrap();
    let mut body = answer.into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    assert!(!body.is_end_stream());
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "hello"
    );
    assert_eq!(
        (body.is_end_stream(), body.size_hint().exact()),
        (true, Some(0))
    );
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_status_is_an_error_by_whose_fault_it_is() {
    for (status, of_request, of_attempt) in
        [(404, "", "404"), (429, "", "429"), (502, "502", "502")]
    {
        let (spans, _listening) = Spans::listen();
        let all = TraceLayer::request().layer(
            TraceLayer::attempt()
                .layer(inner(move || says(status, "text/plain", [Step::Data("x")]))),
        );
        let answer = all.oneshot(request()).await.unwrap();
        answer.into_body().collect().await.unwrap();
        let ended = spans.take();
        let [attempt, request] = &ended[..] else {
            panic!("{ended:?}")
        };
        assert_eq!(attempt.says("error.type"), of_attempt);
        assert_eq!(request.says("error.type"), of_request);
        assert_eq!(attempt.is_error(), !of_attempt.is_empty());
        assert_eq!(request.is_error(), !of_request.is_empty());
    }
}

#[tokio::test]
async fn a_refusal_says_its_reason_and_an_error_its_verdict() {
    let (spans, _listening) = Spans::listen();
    let refuses = || Err(Rejected::new(Reason::CircuitOpen, "open").into());
    let service = TraceLayer::attempt().layer(inner(refuses));
    let error = service.oneshot(request()).await.unwrap_err();
    assert!(Rejected::find(&*error).is_some(), "unchanged");
    let span = spans.one();
    assert_eq!(span.says("palisade.verdict"), "refused");
    assert_eq!(span.says("error.type"), "circuit_open");
    assert_eq!(span.says("http.response.status_code"), "");
    let refused = || Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into());
    let service = TraceLayer::attempt().layer(inner(refused));
    assert!(service.oneshot(request()).await.is_err());
    let span = spans.one();
    assert_eq!(span.says("error.type"), "unsent");
    assert!(span.is_error());
}

#[tokio::test]
async fn a_span_of_ones_own_says_more_and_can_be_none() {
    let (spans, _listening) = Spans::listen();
    let layer = TraceLayer::request().span(|head| {
        if head.uri.path() == "/livez" {
            return Span::none();
        }
        let span = request_span!(
            shop.tenant = "acme",
            "http.request.header.x-request-id" = "17"
        );
        record_head(&span, head);
        span.record("otel.name", "chat m");
        span
    });
    let service = layer.layer(inner(ok));
    let answer = service.clone().oneshot(request()).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let span = spans.one();
    assert_eq!(span.0.name, "chat m");
    assert_eq!(span.says("shop.tenant"), "acme");
    assert_eq!(span.says("http.request.header.x-request-id"), "17");
    assert_eq!(span.says("palisade.verdict"), "success");
    let mut probe = request();
    *probe.uri_mut() = "/livez".parse().unwrap();
    let answer = service.oneshot(probe).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(spans.count(), 0);
}

/// Says how it ended on whatever span is current then.
struct Knows(Steps);

impl Body for Knows {
    type Data = bytes::Bytes;
    type Error = palisade_core::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }
}

impl Drop for Knows {
    fn drop(&mut self) {
        let end = End::new(palisade_core::classify::Verdict::Refused(
            Reason::Overloaded,
        ));
        record_end(&Span::current(), Kind::Request, None, &end);
    }
}

#[tokio::test]
async fn whoever_knows_more_says_how_it_ended_also_while_it_is_dropped() {
    let (spans, _listening) = Spans::listen();
    let layer = TraceLayer::request().unjudged();
    let service = layer.layer(tower::service_fn(async |_: http::Request<_>| {
        let body = Knows(Steps::new([Step::Data("a"), Step::Hang]));
        Ok::<_, palisade_core::BoxError>(Response::new(body))
    }));
    let answer = service.oneshot(request()).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let span = spans.one();
    assert_eq!(span.says("palisade.verdict"), "refused");
    assert_eq!(span.says("error.type"), "overloaded");
    assert_eq!(span.says("http.response.status_code"), "200");
}
