//! What is measured by route, model, tier and endpoint, and what heeds it.

use std::time::Duration;

use demo_backend::Fault;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::{
    process::program,
    support::{self, CHAT, CHAT_STREAM, PROMPT, backend, eventually, get, post},
};

/// The part of this label, with `Null` for one that is not there.
fn part<'a>(status: &'a Value, dimension: &str, label: &str) -> &'a Value {
    let by = status["by"].as_array().unwrap().iter();
    let of = by
        .clone()
        .find(|by| by["dimension"] == dimension)
        .unwrap_or_else(|| panic!("no {dimension}: {}", status["by"]));
    let mut labels = of["labels"].as_array().unwrap().iter();
    labels
        .find(|part| part["label"] == label)
        .unwrap_or(&Value::Null)
}

#[tokio::test]
async fn requests_are_measured_by_route_model_and_tier_and_attempts_by_endpoint() {
    let (a, b) = (backend().await, backend().await);
    let gateway = support::start(support::config(&[&a, &b])).await;
    for body in [CHAT, CHAT, CHAT_STREAM] {
        assert_eq!(
            post(&gateway, "/v1/chat/completions", body).await.status,
            200
        );
    }
    assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 200);
    let status = get(&gateway, "/status").await.json();
    let total = |dimension, label| part(&status, dimension, label)["total_requests"].clone();
    assert_eq!(total("route", "chat"), 3);
    assert_eq!(total("route", "generate_content"), 1);
    assert_eq!(total("tier", "basic"), 4);
    // The first of a model that nobody has configured makes it known.
    assert_eq!(total("model", "m"), 2, "{}", status["by"]);
    assert_eq!(total("model", "other"), 2);
    assert_eq!(
        (total("endpoint", "a"), total("endpoint", "b")),
        (2.into(), 2.into())
    );
    assert_eq!(
        status["performance_summary"]["total_requests"], 4,
        "each once"
    );
}

#[tokio::test]
async fn an_attempt_that_failed_counts_against_its_endpoint_and_not_against_the_service() {
    let (broken, good) = (backend().await, backend().await);
    broken.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    let gateway = support::start(support::config(&[&broken, &good])).await;
    for _ in 0..2 {
        assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 200);
    }
    let status = get(&gateway, "/status").await.json();
    assert!(part(&status, "endpoint", "a")["error_count"].as_u64() > Some(0));
    assert_eq!(part(&status, "endpoint", "b")["error_count"], 0);
    assert_eq!(status["performance_summary"]["error_count"], 0);
    assert_eq!(status["performance_summary"]["total_requests"], 2);
}

#[tokio::test]
async fn a_refusal_before_the_body_is_read_counts_as_one_after_it_does() {
    let backend = backend().await;
    let rules = "[[rate_limits]]\nname = \"per_ip\"\nidentifier = \"ip\"\nmax_requests = 2\nwindow = \"1h\"\n";
    let gateway = support::start(support::limited(&[&backend], rules)).await;
    let before = support::metric(
        &gateway,
        "palisade_sla_requests_total{layer=\"gateway\",verdict=\"rate_limited\"}",
    )
    .await;
    for (body, path, expected) in [
        (PROMPT, "/generate", 200),
        (CHAT, "/v1/chat/completions", 200),
        (PROMPT, "/generate", 429),
        (CHAT, "/v1/chat/completions", 429),
        (r#"{"requests":[{"prompt":"hi"}]}"#, "/generate/batch", 429),
    ] {
        assert_eq!(post(&gateway, path, body).await.status, expected, "{path}");
    }
    let status = get(&gateway, "/status").await.json();
    let summary = &status["performance_summary"];
    // A caller over its rate says nothing about the service.
    assert_eq!(
        (&summary["total_requests"], &summary["error_count"]),
        (&2.into(), &0.into())
    );
    assert_eq!(summary["verdicts"]["rate_limited"], 3, "{summary}");
    assert_eq!(summary["in_flight"], 0);
    assert_eq!(
        part(&status, "route", "chat")["verdicts"]["rate_limited"],
        1
    );
    assert_eq!(status["slo"]["availability"]["events"], 2);
    let counted = support::metric(
        &gateway,
        "palisade_sla_requests_total{layer=\"gateway\",verdict=\"rate_limited\"}",
    );
    // Other tests count in the same process.
    assert!(counted.await >= before + 3.0);
    gateway.shutdown().await;
}

#[tokio::test]
async fn no_request_is_asked_twice_while_the_error_budget_burns() {
    let (a, b) = (backend().await, backend().await);
    let mut config = support::config(&[&a, &b]);
    config.hedge.after = Some(Duration::from_millis(20));
    config.hedge.percent = 20;
    // The windows of the fastest alert are 36 s and 3 s.
    config.objective.period = Duration::from_secs(25_920);
    config.objective.latency = Duration::from_millis(10);
    let gateway = support::start(config).await;
    let held_back = async |why: &str| {
        let line = "palisade_hedge_held_back_total{layer=\"gateway\",reason=\"";
        support::metric(&gateway, &format!("{line}{why}\"}} ")).await
    };
    let slow = [Fault::latency(Duration::from_millis(60))];
    a.chaos(slow.clone());
    b.chaos(slow);
    eventually("a hedge that was due and paused", async || {
        post(&gateway, "/generate", PROMPT).await;
        held_back("paused").await > 0.0
    })
    .await;
    let status = get(&gateway, "/status").await.json();
    let first = &status["slo"]["latency"]["alerts"][0];
    assert_eq!(first["kind"], "page");
    assert!(first["long"]["events"].as_u64() >= Some(50), "{first}");
}

#[tokio::test]
async fn what_two_gateways_export_is_added_up_and_nobody_gets_it_without_the_token() {
    let (fast, slow) = (backend().await, backend().await);
    slow.chaos([Fault::latency(Duration::from_millis(200))]);
    let mut exports = String::new();
    for (backend, many) in [(&fast, 30), (&slow, 10)] {
        let gateway = support::start(support::config(&[backend])).await;
        for _ in 0..many {
            assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 200);
        }
        assert_eq!(get(&gateway, "/admin/sla").await.status, 401);
        let wrong = support::admin(&gateway, Method::GET, "/admin/sla?window=5", "").await;
        assert_eq!(wrong.status, 400, "{}", wrong.text());
        let export = support::admin(&gateway, Method::GET, "/admin/sla?window=5m", "").await;
        assert_eq!(export.json()["verdicts"]["success"], many);
        exports += &export.text();
        exports += "\n";
        gateway.shutdown().await;
    }
    let file = std::env::temp_dir().join(format!("palisade-sla-{}", std::process::id()));
    std::fs::write(&file, &exports).unwrap();
    let merged = program(&["sla", file.to_str().unwrap()])
        .output()
        .await
        .unwrap();
    assert!(merged.status.success(), "{merged:?}");
    let summary: Value = serde_json::from_slice(&merged.stdout).unwrap();
    assert_eq!(summary["total_requests"], 40);
    // Of all requests: neither the one gateway's nor the other's, nor what lies between.
    let latency = |name: &str| summary["latency_metrics"][name].as_f64().unwrap();
    assert!(latency("p50_seconds") < 0.19, "{summary}");
    assert!(latency("p95_seconds") > 0.19, "{summary}");

    std::fs::write(&file, "{}").unwrap();
    let wrong = program(&["sla", file.to_str().unwrap()])
        .output()
        .await
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        String::from_utf8(wrong.stderr)
            .unwrap()
            .contains("palisade-sla-")
    );
}
