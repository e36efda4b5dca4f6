//! What is measured by route, model, tier and endpoint, and what heeds it.

use std::time::Duration;

use demo_backend::Fault;
use http::StatusCode;
use serde_json::Value;

use crate::support::{self, CHAT, CHAT_STREAM, PROMPT, backend, eventually, get, post};

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
