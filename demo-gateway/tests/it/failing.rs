//! Other models, hedges, time-outs and windows of circuits, as they are set.

use std::time::Duration;

use demo_backend::{Ended, Fault, MockBackend, Reply};
use demo_gateway::{
    Config,
    config::{Breaker, Hedge, Retry, Timeouts, Window},
};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::support::{
    CHAT, CHAT_STREAM, PROMPT, admin, asked, backend, config, eventually, get, post, post_with,
    start,
};

const FAILS: u16 = 503;

/// One attempt a model, and two models to ask after `m`.
fn with_fallbacks(backends: &[&MockBackend]) -> Config {
    Config {
        retry: Retry {
            attempts: 1,
            ..Retry::default()
        },
        fallbacks: [("m".into(), vec!["n".into(), "o".into()])].into(),
        ..config(backends)
    }
}

fn models(backend: &MockBackend) -> Vec<Value> {
    let seen = asked(backend).into_iter();
    seen.map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["model"].take())
        .collect()
}

#[tokio::test]
async fn another_model_answers_when_the_one_that_was_asked_for_cannot() {
    let backend = backend().await;
    backend.script([
        Reply::status(FAILS),
        Reply::status(FAILS),
        Reply::text("hi"),
    ]);
    let gateway = start(with_fallbacks(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(
        (reply.header("x-fallback"), reply.header("x-attempts")),
        ("o", "3")
    );
    assert_eq!(models(&backend), ["m", "n", "o"]);
    // The rest of the request is as it was.
    let bodies: Vec<Value> = asked(&backend)
        .iter()
        .map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["messages"].take())
        .collect();
    assert_eq!(bodies[0], bodies[2]);

    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        (reply.status, reply.header("x-fallback")),
        (StatusCode::OK, "")
    );
}

#[tokio::test]
async fn without_another_model_the_failure_is_what_it_was() {
    let backend = backend().await;
    backend.script([Reply::status(FAILS), Reply::status(FAILS)]);
    let gateway = start(Config {
        fallbacks: [("another".into(), vec!["n".into()])].into(),
        ..with_fallbacks(&[&backend])
    })
    .await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(asked(&backend).len(), 2);
}

#[tokio::test]
async fn all_models_are_asked_and_then_the_caller_hears_of_the_failure() {
    let backend = backend().await;
    backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    let gateway = start(with_fallbacks(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.text());
    assert_eq!(models(&backend), ["m", "n", "o"]);
}

#[tokio::test]
async fn attempts_at_another_model_count_also_when_time_runs_out() {
    let backend = backend().await;
    backend.script([
        Reply::status(FAILS),
        Reply::text("late").after(Duration::from_secs(3600)),
    ]);
    let gateway = start(with_fallbacks(&[&backend])).await;
    let soon = [("x-request-timeout", "2")];
    let reply = post_with(&gateway, "/v1/chat/completions", CHAT, &soon).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(reply.header("x-attempts"), "2");
    assert_eq!(models(&backend), ["m", "n"]);
}

#[tokio::test]
async fn a_stream_falls_back_until_its_first_event_and_never_after() {
    let backend = backend().await;
    backend.script([
        Reply::tokens(4).fault(Fault::reset(0)),
        Reply::tokens(4),
        Reply::tokens(4).fault(Fault::reset(2)),
    ]);
    let gateway = start(with_fallbacks(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    assert_eq!(reply.header("x-fallback"), "n");
    assert!(
        reply.text().trim_end().ends_with("[DONE]"),
        "{}",
        reply.text()
    );
    assert_eq!(models(&backend), ["m", "n"]);

    let reply = post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    assert_eq!(reply.header("x-fallback"), "");
    let text = reply.text();
    assert!(
        text.contains("event: error") && !text.contains("[DONE]"),
        "{text}"
    );
    assert_eq!(models(&backend), ["m", "n", "m"]);
}

#[tokio::test]
async fn a_slow_backend_is_overtaken_by_another_and_left_at_once() {
    let (slow, fast) = (backend().await, backend().await);
    let gateway = start(Config {
        hedge: Hedge {
            after: Some(Duration::from_millis(500)),
            percent: 20,
            ..Hedge::default()
        },
        ..config(&[&slow, &fast])
    })
    .await;
    // Hedges are earned: a fifth of one for each request.
    for _ in 0..6 {
        let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    slow.script([Reply::text("late").after(Duration::from_secs(3600))]);
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    let other = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        (reply.status, other.status),
        (StatusCode::OK, StatusCode::OK)
    );
    let attempts = [reply.header("x-attempts"), other.header("x-attempts")];
    assert!(attempts.contains(&"2"), "{attempts:?}");
    let hedged = if attempts[0] == "2" { &reply } else { &other };
    assert_eq!(hedged.header("x-backend-id"), "b");
    eventually("the slow one is left", async || {
        let left = |seen: &demo_backend::Seen| matches!(seen.ended, Ended::ClientLeft { .. });
        asked(&slow).iter().any(left) && slow.in_flight() == 0
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_stalls_ends_with_an_event_that_says_so() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let gateway = start(Config {
        timeouts: Timeouts {
            idle: Duration::from_millis(100),
            ..Timeouts::default()
        },
        ..config(&[&backend])
    })
    .await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    assert_eq!(reply.status, StatusCode::OK);
    let text = reply.text();
    assert!(
        text.contains("event: error") && !text.contains("[DONE]"),
        "{text}"
    );
    eventually("the backend is left", async || backend.in_flight() == 0).await;
}

#[tokio::test]
async fn callers_say_how_long_they_wait_and_backends_hear_what_is_left() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let timeout = "x-request-timeout";
    let reply = post_with(&gateway, "/generate", PROMPT, &[(timeout, "20")]).await;
    assert_eq!(reply.status, StatusCode::OK);
    // Without a header it is what the gateway allows, and a caller cannot ask for more.
    post(&gateway, "/generate", PROMPT).await;
    post_with(&gateway, "/generate", PROMPT, &[(timeout, "86400")]).await;
    let told: Vec<u64> = asked(&backend)
        .iter()
        .map(|seen| seen.headers[timeout].to_str().unwrap().parse().unwrap())
        .collect();
    for (told, most) in told.iter().zip([20, 60, 60]) {
        assert!((most - 10..most).contains(told), "{told} of {most}");
    }
    assert_eq!(told.len(), 3);

    backend.chaos([Fault::hang()]);
    let reply = post_with(&gateway, "/generate", PROMPT, &[(timeout, "0.1")]).await;
    assert_eq!(
        reply.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn a_circuit_counts_in_the_window_that_is_set() {
    for window in [Window::Count, Window::Time] {
        let backend = backend().await;
        let gateway = start(Config {
            circuit_breaker: Breaker {
                window,
                minimum_calls: 4,
                cooldown: Duration::from_secs(600),
                longest_cooldown: Duration::from_secs(600),
                ..Breaker::default()
            },
            retry: Retry {
                attempts: 1,
                ..Retry::default()
            },
            ..config(&[&backend])
        })
        .await;
        // Never two in a row.
        for status in [500, 200, 500] {
            backend.script([match status {
                200 => Reply::text("hi"),
                status => Reply::status(status),
            }]);
            post(&gateway, "/generate", PROMPT).await;
        }
        let open = async || {
            let health = get(&gateway, "/health").await.json();
            health["load_balancer"]["backends"][0]["circuit_breaker_open"].as_bool()
        };
        assert_eq!(open().await, Some(false), "{window:?}");
        post(&gateway, "/generate", PROMPT).await;
        assert_eq!(open().await, Some(true), "{window:?}: two of four");
    }
}

#[tokio::test]
async fn a_model_that_does_not_suit_is_passed_over() {
    let backend = backend().await;
    backend.script([Reply::status(FAILS), Reply::status(404), Reply::text("hi")]);
    let gateway = start(with_fallbacks(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        (reply.status, reply.header("x-fallback")),
        (StatusCode::OK, "o")
    );
    assert_eq!(models(&backend), ["m", "n", "o"]);
}

#[tokio::test]
async fn what_all_others_fall_back_to_is_not_for_embeddings() {
    let backend = backend().await;
    backend.script([Reply::status(FAILS)]);
    let gateway = start(Config {
        fallbacks: [("default".into(), vec!["n".into()])].into(),
        ..with_fallbacks(&[&backend])
    })
    .await;
    let reply = post(&gateway, "/v1/embeddings", r#"{"model":"m","input":"hi"}"#).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(models(&backend), ["m"]);
    backend.script([Reply::status(FAILS)]);
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        (reply.status, reply.header("x-fallback")),
        (StatusCode::OK, "n")
    );
}

#[tokio::test]
async fn no_other_model_is_asked_when_there_is_no_backend_for_any() {
    let backend = backend().await;
    backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    let gateway = start(Config {
        circuit_breaker: Breaker {
            failures: 1,
            cooldown: Duration::from_secs(600),
            longest_cooldown: Duration::from_secs(600),
            ..Breaker::default()
        },
        ..with_fallbacks(&[&backend])
    })
    .await;
    // The first failure opens the only circuit.
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert!(reply.status.is_server_error());
    let asked_first = asked(&backend).len();
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(
        reply.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        reply.text()
    );
    assert_eq!((asked_first, asked(&backend).len()), (1, 1));
}

#[tokio::test]
async fn backends_that_are_out_and_asked_all_the_same_are_told_from_none() {
    let three = [backend().await, backend().await, backend().await];
    for backend in &three {
        backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    }
    let all: Vec<_> = three.iter().collect();
    let mut config = config(&all);
    config.circuit_breaker.cooldown = Duration::from_secs(3600);
    config.circuit_breaker.longest_cooldown = Duration::from_secs(3600);
    let gateway = start(config).await;
    let told = async || {
        let status = get(&gateway, "/status").await.json();
        let state = status["verdict"]["state"].as_str().unwrap().to_owned();
        let panic = status["backend_status"]["panic"].as_bool().unwrap();
        (state, panic, get(&gateway, "/readyz").await.status.as_u16())
    };
    eventually("all circuits are open", async || {
        post(&gateway, "/generate", PROMPT).await;
        let status = get(&gateway, "/status").await.json();
        status["backend_status"]["healthy_backends"] == 0
    })
    .await;
    assert_eq!(told().await, ("degraded".into(), true, 200));
    let status = get(&gateway, "/status").await.json();
    let text = status["verdict"]["text"].as_str().unwrap();
    assert!(
        text.ends_with("those that are out are asked as well."),
        "{text}"
    );
    // That is no empty word.
    for backend in &three {
        backend.chaos([]);
    }
    assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 200);

    for id in ["a", "b", "c"] {
        let path = format!("/admin/circuit-breaker/{id}");
        let held = admin(&gateway, Method::POST, &path, r#"{"state":"open"}"#).await;
        assert_eq!(held.status, 200);
    }
    assert_eq!(told().await, ("down".into(), true, 503));
    assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 503);
    gateway.shutdown().await;
}
