//! Backends that fail, and what callers see of it.

use std::time::Duration;

use demo_backend::{Fault, Reply};
use http::{Method, StatusCode};

use crate::support::{CHAT, PROMPT, admin, asked, backend, config, get, post, start};

#[tokio::test]
async fn whatever_one_backend_does_before_the_first_byte_is_made_good_by_another() {
    for fault in [
        Fault::error(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::error(StatusCode::SERVICE_UNAVAILABLE),
        Fault::refuse(),
        // In the middle of a plain answer, of which the caller has seen nothing.
        Fault::reset(0),
        Fault::malformed(0),
        Fault::content_length(16),
        Fault::content_length(-16),
    ] {
        let (bad, good) = (backend().await, backend().await);
        bad.chaos([fault.clone()]);
        let gateway = start(config(&[&bad, &good])).await;
        let mut attempts = 0;
        for (path, body) in [("/generate", PROMPT), ("/v1/chat/completions", CHAT)] {
            for _ in 0..5 {
                let reply = post(&gateway, path, body).await;
                assert_eq!(reply.status, StatusCode::OK, "{fault:?}: {}", reply.text());
                assert_eq!(reply.header("x-backend-id"), "b", "{fault:?}");
                attempts += reply.header("x-attempts").parse::<u32>().unwrap();
            }
        }
        assert!(attempts > 10, "{fault:?}: the bad one was never tried");
        // It has told against the backend.
        let health = get(&gateway, "/health").await.json();
        assert!(
            health["load_balancer"]["backends"][0]["error_count"].as_u64() > Some(0),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_backend_that_is_gone_is_made_good_by_another() {
    let (gone, good) = (backend().await, backend().await);
    let config = config(&[&gone, &good]);
    gone.stop().await;
    let gateway = start(config).await;
    for _ in 0..10 {
        let reply = post(&gateway, "/generate", PROMPT).await;
        assert_eq!(
            (reply.status, reply.header("x-backend-id")),
            (StatusCode::OK, "b")
        );
    }
}

#[tokio::test]
async fn when_all_attempts_are_spent_the_answer_is_502_and_asks_not_to_retry() {
    let backend = backend().await;
    backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    let mut config = config(&[&backend]);
    config.circuit_breaker.failures = 1000;
    let gateway = start(config).await;
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert_eq!(reply.header("x-attempts"), "3");
    assert_eq!(reply.header("x-should-retry"), "false");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.json()["reason"], "bad_gateway");
    assert!(
        reply.text().contains("after 3 attempts"),
        "{}",
        reply.text()
    );
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert_eq!(reply.json()["error"]["type"], "server_error");
    assert_eq!(asked(&backend)[1].headers["x-attempt"], "2");
}

#[tokio::test]
async fn an_overloaded_backend_passes_its_delay_on() {
    let backend = backend().await;
    backend.script([Reply::status(503).header("retry-after", "600")]);
    let gateway = start(config(&[&backend])).await;
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.header("retry-after"), "600");
    assert_eq!(reply.json()["reason"], "overloaded");
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_told_in_the_backends_words() {
    let said = r#"{"error":{"message":"no such model","type":"invalid_request_error","param":"model","code":null}}"#;
    let backend = backend().await;
    backend.script([Reply::json(404, said)]);
    let gateway = start(config(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        (reply.status, reply.text()),
        (StatusCode::NOT_FOUND, said.to_owned())
    );
    // It is not the backend's fault, and trying again would not help.
    assert_eq!(asked(&backend).len(), 1);
    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["backends"][0]["error_count"], 0);
}

#[tokio::test]
async fn a_backend_that_does_not_know_the_gateway_is_no_401_for_the_caller() {
    let backend = backend().await;
    backend.script([Reply::status(401)]);
    let gateway = start(config(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn without_a_backend_the_answer_is_503_with_a_delay() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    admin(&gateway, Method::DELETE, "/admin/remove-backend/a", "").await;
    for (path, body) in [("/generate", PROMPT), ("/v1/chat/completions", CHAT)] {
        let reply = post(&gateway, path, body).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reply.text().contains("no_endpoint"), "{}", reply.text());
        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert_eq!(
            (reply.header("x-backend-id"), reply.header("x-attempts")),
            ("unknown", "0")
        );
    }
}

#[tokio::test]
async fn a_backend_that_never_answers_is_504_within_the_time_for_a_request() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let mut config = config(&[&backend]);
    config.timeouts.request = Duration::from_millis(300);
    let gateway = start(config).await;
    for (path, body) in [("/generate", PROMPT), ("/v1/chat/completions", CHAT)] {
        let reply = post(&gateway, path, body).await;
        assert_eq!(
            reply.status,
            StatusCode::GATEWAY_TIMEOUT,
            "{}",
            reply.text()
        );
    }
    assert_eq!(gateway.in_flight(), 0);
}

#[tokio::test]
async fn a_backend_that_hangs_is_given_up_for_another_after_the_time_for_an_attempt() {
    let (hangs, good) = (backend().await, backend().await);
    hangs.chaos([Fault::hang()]);
    let mut config = config(&[&hangs, &good]);
    // What the good one has to keep on a busy machine.
    config.timeouts.first_byte = Duration::from_secs(1);
    let gateway = start(config).await;
    for _ in 0..6 {
        let reply = post(&gateway, "/generate", PROMPT).await;
        assert_eq!(
            (reply.status, reply.header("x-backend-id")),
            (StatusCode::OK, "b")
        );
    }
    assert!(!asked(&hangs).is_empty());
}

#[tokio::test]
async fn five_failures_in_a_row_open_the_circuit_and_requests_go_elsewhere() {
    let (bad, good) = (backend().await, backend().await);
    bad.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    let mut config = config(&[&bad, &good]);
    config.circuit_breaker.cooldown = Duration::from_secs(3600);
    config.circuit_breaker.longest_cooldown = Duration::from_secs(3600);
    let gateway = start(config).await;
    for _ in 0..30 {
        assert_eq!(
            post(&gateway, "/generate", PROMPT).await.status,
            StatusCode::OK
        );
    }
    assert_eq!(asked(&bad).len(), 5);
    let health = get(&gateway, "/health").await.json();
    let report = &health["load_balancer"]["backends"][0];
    assert_eq!(
        (&report["circuit_breaker_open"], &report["healthy"]),
        (&true.into(), &false.into())
    );
    assert_eq!(health["status"], "degraded");
}

#[tokio::test]
async fn a_backend_whose_health_checks_fail_gets_no_requests_until_they_pass() {
    let (ill, good) = (backend().await, backend().await);
    let hurt = |fault: Fault| fault.on(demo_backend::Target::Health);
    ill.chaos([hurt(Fault::error(StatusCode::INTERNAL_SERVER_ERROR))]);
    let mut config = config(&[&ill, &good]);
    config.health_interval = Duration::from_millis(20);
    let gateway = start(config).await;
    let healthy = async || {
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["healthy_backends"]
            .as_u64()
            .unwrap()
    };
    crate::support::eventually("one is out", async || healthy().await == 1).await;
    for _ in 0..10 {
        assert_eq!(
            post(&gateway, "/generate", PROMPT)
                .await
                .header("x-backend-id"),
            "b"
        );
    }
    ill.chaos([]);
    crate::support::eventually("it is back", async || healthy().await == 2).await;
}

#[tokio::test]
async fn a_delay_that_one_backend_asks_for_sends_requests_elsewhere_at_once() {
    let (busy, good) = (backend().await, backend().await);
    let overload = Fault::rate_limit(Duration::from_secs(600));
    busy.chaos([overload.clone()]);
    let gateway = start(config(&[&busy, &good])).await;
    for _ in 0..5 {
        let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
        assert_eq!(
            (reply.status, reply.header("x-backend-id")),
            (StatusCode::OK, "b"),
            "{}",
            reply.text()
        );
    }
    assert!(!asked(&busy).is_empty());
    // When nobody is left, the caller hears of it.
    good.chaos([overload]);
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(reply.header("retry-after"), "600");
    assert!(!reply.headers.contains_key("palisade-retry-after"));
}
