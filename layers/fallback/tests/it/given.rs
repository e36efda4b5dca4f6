use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{
    classify::{Grpc, Verdict},
    reject::Reason,
};
use palisade_fallback::{Answer, FallbackLayer};

use crate::support::{Backend, get, outcome, rejects, request, says, secondary, send, status};

#[tokio::test(start_paused = true)]
async fn a_value_is_given_whole_each_time() {
    let mut value = Response::new("closed");
    *value.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let value = Answer::from(value).retry_after(Duration::from_millis(1500));
    let layer = FallbackLayer::new().value("closed", value);
    let first = Backend::new([status(500)]);
    for _ in 0..2 {
        let response = get(&layer, &first).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.body().size_hint().exact(), Some(6));
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "closed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_value_is_over_with_its_head() {
    let layer = FallbackLayer::new().value("empty", Response::new(""));
    let response = get(&layer, &Backend::new([status(500)])).await.unwrap();
    assert!(response.body().is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_function_sees_the_head_and_what_has_failed() {
    let layer = secondary(&Backend::new([rejects(Reason::CircuitOpen)])).function(
        "function",
        |head, failure| {
            assert_eq!(failure.verdict(), Verdict::Refused(Reason::CircuitOpen));
            assert_eq!(failure.reason(), Some(Reason::CircuitOpen));
            assert_eq!(failure.by(), Some("secondary"));
            assert!(failure.answer().is_none());
            let path = head.uri.path().to_owned();
            Some(Answer::json(StatusCode::OK, path))
        },
    );
    let mut asked = request();
    *asked.uri_mut() = "/path".parse().unwrap();
    let response = send(&layer, &Backend::new([status(500)]), asked)
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "/path"
    );
}

#[tokio::test(start_paused = true)]
async fn a_function_that_has_nothing_passes_the_request_on() {
    let layer = FallbackLayer::new()
        .function("nothing", |_, failure| {
            assert_eq!(failure.by(), None);
            assert_eq!(failure.answer().unwrap().status, 500);
            None
        })
        .value("value", Response::new("value"));
    let first = Backend::new([status(500)]);
    let served = outcome(&layer, &first).await;
    assert_eq!(served, (200, Some("value".into()), "value".into()));

    let layer = FallbackLayer::new().function("nothing", |_, _| None);
    assert_eq!(outcome(&layer, &first).await.0, 500);
    assert_eq!(layer.handle().snapshot().exhausted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_value_of_grpc_is_trailers_only_or_a_message_with_trailers() {
    let first = Backend::new([says(200, &[("grpc-status", "14")], "")]);
    let layer = FallbackLayer::new().value(
        "status",
        Answer::grpc_status(9, "50 % off").retry_after(Duration::from_millis(1500)),
    );
    let response = get(&layer.classify(Grpc), &first).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "9");
    assert_eq!(response.headers()["grpc-message"], "50 %25 off");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1500");
    assert!(response.body().is_end_stream());

    let layer = FallbackLayer::new().value("message", Answer::grpc(b"message"));
    let response = get(&layer.classify(Grpc), &first).await.unwrap();
    assert!(!response.headers().contains_key("grpc-status"));
    let body = response.into_body().collect().await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), &b"\0\0\0\0\x07message"[..]);
}

#[test]
fn nobody_is_asked_back_too_early() {
    let after = |nanos| Answer::grpc_status(14, "").retry_after(Duration::from_nanos(nanos));
    for (nanos, millis) in [(0, "0"), (1, "1"), (1_000_000, "1"), (1_000_001, "2")] {
        let head = after(nanos).head();
        assert_eq!(
            head.headers()["grpc-retry-pushback-ms"],
            millis,
            "{nanos} ns"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn each_status_of_grpc_is_replaced_by_its_verdict() {
    let layer = FallbackLayer::new().value("value", Response::new("value"));
    let layer = layer.classify(Grpc);
    // OK; CANCELLED; and what the caller did wrong.
    let kept = ["0", "1", "3", "5", "6", "7", "9", "11", "16"];
    for code in 0..=16 {
        let code: &'static str = code.to_string().leak();
        let first = Backend::new([says(200, &[("grpc-status", code)], "")]);
        let replaced = outcome(&layer, &first).await.1.is_some();
        assert_eq!(replaced, !kept.contains(&code), "{code}");
    }
}
