//! Events one by one, to their end or to where they break off.

use std::time::Duration;

use demo_backend::{Fault, MockBackend, Reply};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use crate::support::{
    CHAT_STREAM, asked, backend, config, eventually, get, metric, open, post, posting, start,
};

const ASKING: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#;

/// The data of all events.
fn data(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    lines.map(str::trim).collect()
}

async fn frame(body: &mut Incoming) -> String {
    let frame = body.frame().await.expect("there is more").unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

/// Ten tokens, a quarter of a second apart.
async fn slow() -> MockBackend {
    MockBackend::builder()
        .first_token(Duration::ZERO)
        .tokens_per_second(4.0)
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn events_come_while_the_backend_still_writes() {
    let backend = slow().await;
    backend.script([Reply::tokens(10)]);
    let gateway = start(config(&[&backend])).await;
    let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        ("x-backend-id", "a"),
        ("x-attempts", "1"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let mut body = response.into_body();
    for _ in 0..3 {
        assert!(frame(&mut body).await.ends_with("\n\n"));
        assert_eq!(backend.in_flight(), 1, "the backend is not done yet");
    }
    assert_eq!(gateway.in_flight(), 1);
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    eventually("the request is over", async || gateway.in_flight() == 0).await;
}

#[tokio::test]
async fn the_usage_is_asked_for_and_shown_only_to_whom_asked() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for (sent, shown) in [(CHAT_STREAM, false), (ASKING, true)] {
        let text = post(&gateway, "/v1/chat/completions", sent).await.text();
        let events = data(&text);
        assert_eq!(events.last(), Some(&"[DONE]"));
        let usage = events
            .iter()
            .filter(|event| event.contains("prompt_tokens"));
        assert_eq!(usage.count(), usize::from(shown), "{text}");
        let chunks = events.iter().filter(|event| event.contains("\"delta\""));
        assert!(chunks.count() >= 2, "{text}");
    }
    for seen in asked(&backend) {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(body["stream_options"]["include_usage"], true);
    }
    // Either way the gateway knows.
    let tokens = get(&gateway, "/status").await.json();
    let tokens = &tokens["performance_summary"]["token_metrics"];
    assert!(tokens["output_tokens"].as_u64().unwrap() > 0, "{tokens}");
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so_and_counts_as_a_failure() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::reset(3))]);
    let mut config = config(&[&backend]);
    config.backends[0].id = Some("breaks-off".into());
    let gateway = start(config).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    assert_eq!(reply.status, 200);
    let text = reply.text();
    let (before, last) = text.split_once("event: error\n").unwrap();
    assert!(before.ends_with("\n\n"), "{text}");
    assert!(
        data(before).len() >= 2 && !text.contains("[DONE]"),
        "{text}"
    );
    let error: Value = serde_json::from_str(data(last)[0]).unwrap();
    assert_eq!(
        (&error["error"]["type"], &error["error"]["code"]),
        (&"server_error".into(), &"bad_gateway".into())
    );
    assert!(last.ends_with("\n\n"), "{text}");

    let failed = r#"llm_requests_total{backend="breaks-off",status="error"}"#;
    assert_eq!(metric(&gateway, failed).await, 1.0);
    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["backends"][0]["error_count"], 1);
    let summary = get(&gateway, "/status").await.json();
    assert_eq!(summary["performance_summary"]["error_count"], 1);
    // Nothing was tried again: the caller had seen the beginning.
    assert_eq!(asked(&backend).len(), 1);
}

#[tokio::test]
async fn a_stream_over_its_time_ends_with_an_event() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(2))]);
    let mut config = config(&[&backend]);
    // Enough for the first events on a busy machine.
    config.timeouts.stream = Duration::from_millis(1500);
    config.timeouts.request = Duration::from_millis(1500);
    let gateway = start(config).await;
    let text = post(&gateway, "/v1/chat/completions", CHAT_STREAM)
        .await
        .text();
    let (_, last) = text.split_once("event: error\n").unwrap();
    let error: Value = serde_json::from_str(data(last)[0]).unwrap();
    assert_eq!(error["error"]["code"], "timed_out", "{text}");
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
}

#[tokio::test]
async fn a_stream_that_fails_before_its_first_event_is_tried_elsewhere() {
    let (bad, good) = (backend().await, backend().await);
    bad.chaos([Fault::reset(0)]);
    let gateway = start(config(&[&bad, &good])).await;
    let mut tried = false;
    for _ in 0..10 {
        let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
        tried |= response.headers()["x-attempts"] == "2";
        assert_eq!(response.headers()["x-backend-id"], "b");
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(text.ends_with(b"data: [DONE]\n\n"));
    }
    assert!(tried && !asked(&bad).is_empty());
}

#[tokio::test]
async fn fifty_open_streams_are_fifty_requests_in_flight_and_none_when_they_are_dropped() {
    let backend = MockBackend::builder()
        .slots(100)
        .first_token(Duration::ZERO)
        .tokens_per_second(100.0)
        .start()
        .await
        .unwrap();
    let mut config = config(&[&backend]);
    config.backends[0].id = Some("fifty".into());
    let gateway = start(config).await;
    for _ in 0..50 {
        backend.script([Reply::tokens(100_000)]);
    }
    let mut bodies = Vec::new();
    for _ in 0..50 {
        let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
        let mut body = response.into_body();
        frame(&mut body).await;
        bodies.push(body);
    }
    let connections = async || {
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["backends"][0]["current_connections"]
            .as_u64()
            .unwrap()
    };
    let active = r#"llm_active_connections{backend="fifty"}"#;
    assert_eq!((gateway.in_flight(), connections().await), (50, 50));
    assert_eq!(metric(&gateway, active).await, 50.0);

    drop(bodies);
    eventually("all are let go", async || {
        gateway.in_flight() == 0 && connections().await == 0 && backend.in_flight() == 0
    })
    .await;
    assert_eq!(metric(&gateway, active).await, 0.0);
}
