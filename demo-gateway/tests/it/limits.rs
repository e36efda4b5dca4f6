//! Who is over a rate, and how that is told.

use demo_backend::MockBackend;
use demo_gateway::{
    Config, Gateway,
    config::{Identifier, LimitStrategy, Rule, Switch},
};
use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    CHAT, CHAT_STREAM, PROMPT, admin, asked, backend, config, get, metric, post_with, start,
};

/// Two requests a minute for each user.
async fn two_for_each(backend: &MockBackend) -> Gateway {
    let hour = std::time::Duration::from_secs(3600);
    let rule = |name: &str, identifier, max_requests: u64| Rule {
        strategy: LimitStrategy::FixedWindow,
        ..Rule::new(name, identifier, max_requests, hour)
    };
    start(Config {
        rate_limit: Switch::Default,
        rate_limits: vec![
            rule("global", Identifier::Global, 1000),
            rule("per_user", Identifier::User, 2),
            rule("per_ip", Identifier::Ip, 500),
        ],
        ..config(&[backend])
    })
    .await
}

#[tokio::test]
async fn the_request_over_the_limit_is_429_with_the_rule_and_the_delay() {
    let backend = backend().await;
    let gateway = two_for_each(&backend).await;
    let alice = [("x-user-id", "alice")];
    let first = post_with(&gateway, "/generate", PROMPT, &alice).await;
    assert_eq!(first.status, StatusCode::OK);
    let policy = first.header("ratelimit-policy");
    assert!(policy.contains("\"per_user\";q=2;w=3600"), "{policy}");
    assert!(
        first.header("ratelimit").starts_with("\"per_user\";r=1;"),
        "{first:?}"
    );
    post_with(&gateway, "/generate", PROMPT, &alice).await;

    for path in ["/generate", "/v1/chat/completions"] {
        let body = if path == "/generate" { PROMPT } else { CHAT };
        let refused = post_with(&gateway, path, body, &alice).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let delay: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=3600).contains(&delay), "{delay}");
        assert!(
            refused.header("ratelimit").starts_with("\"per_user\";r=0;"),
            "{refused:?}"
        );
        assert!(refused.header("ratelimit-policy").contains("per_ip"));
        assert_eq!(
            (refused.header("x-attempts"), refused.header("x-backend-id")),
            ("0", "unknown")
        );
        assert!(refused.text().contains("per_user"), "{}", refused.text());
        assert!(!refused.text().contains("alice"), "{}", refused.text());
    }
    // Others are not concerned.
    let bob = post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "bob")]).await;
    assert_eq!(bob.status, StatusCode::OK);
    assert_eq!(asked(&backend).len(), 3);
}

#[tokio::test]
async fn who_has_nothing_left_is_refused_before_the_body_is_read() {
    let backend = backend().await;
    let gateway = two_for_each(&backend).await;
    let alice = [("x-user-id", "alice")];
    // What is wrong is not charged.
    for _ in 0..5 {
        let reply = post_with(&gateway, "/generate", "{}", &alice).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    }
    for _ in 0..2 {
        let reply = post_with(&gateway, "/generate", PROMPT, &alice).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\nx-user-id: alice\r\nconnection: close\r\n\
        content-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    let answer = crate::support::raw(&gateway, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
}

#[tokio::test]
async fn openai_clients_are_told_in_their_own_headers() {
    let backend = backend().await;
    let gateway = two_for_each(&backend).await;
    for (body, remaining) in [(CHAT, "1"), (CHAT_STREAM, "0"), (CHAT, "0")] {
        let headers = [("authorization", "Bearer sk-1")];
        let reply = post_with(&gateway, "/v1/chat/completions", body, &headers).await;
        assert_eq!(reply.header("x-ratelimit-limit-requests"), "2");
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), remaining);
        assert!(reply.header("x-ratelimit-reset-requests").ends_with('s'));
    }
}

#[tokio::test]
async fn an_identifier_can_be_looked_up_and_reset() {
    let backend = backend().await;
    let gateway = two_for_each(&backend).await;
    let key = [("x-api-key", "sk-secret")];
    post_with(&gateway, "/generate", PROMPT, &key).await;
    let path = format!("/rate-limits/api_key:{}", gateway.public_id("sk-secret"));
    for _ in 0..5 {
        let state = get(&gateway, &path).await.json();
        assert_eq!(state["identifier"], path["/rate-limits/".len()..]);
        assert!(state["timestamp"].is_string());
        let rule = &state["per_user"];
        assert_eq!((&rule["remaining"], &rule["limit"]), (&json!(1), &json!(2)));
        assert_eq!(
            (&rule["allowed"], &rule["applies"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(rule["strategy"], "fixed_window");
        assert_eq!(state["per_ip"]["applies"], false);
        assert_eq!(state["global"]["remaining"], 999);
    }
    let address = get(&gateway, "/rate-limits/ip:127.0.0.1").await.json();
    assert_eq!(address["per_ip"]["remaining"], 499);

    let reset = path.replace("/rate-limits/", "/admin/reset-rate-limit/");
    let reply = admin(
        &gateway,
        Method::POST,
        &format!("{reset}?rule_type=per_user"),
        "",
    )
    .await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(
        get(&gateway, &path).await.json()["per_user"]["remaining"],
        2
    );
    let reply = admin(
        &gateway,
        Method::POST,
        &format!("{reset}?rule_type=per_planet"),
        "",
    )
    .await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.text().contains("per_ip"), "{}", reply.text());
}

#[tokio::test]
async fn hits_are_counted_by_kind_and_a_key_is_shown_nowhere() {
    let backend = backend().await;
    let gateway = two_for_each(&backend).await;
    let hits = r#"llm_rate_limit_hits_total{identifier_type="api_key"}"#;
    let before = metric(&gateway, hits).await;
    let key = [("x-api-key", "sk-very-secret")];
    let mut told = String::new();
    for _ in 0..4 {
        let reply = post_with(&gateway, "/generate", PROMPT, &key).await;
        told += &format!("{:?}{}", reply.headers, reply.text());
    }
    assert!(metric(&gateway, hits).await >= before + 2.0);
    for path in ["/metrics", "/status", "/health"] {
        told += &get(&gateway, path).await.text();
    }
    assert!(!told.contains("sk-very-secret"), "{told}");
    let status = get(&gateway, "/status").await.json();
    assert_eq!(status["rate_limit"]["rules"][1]["admitted"], 2);
}

#[tokio::test]
async fn limits_that_are_off_limit_nobody() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for _ in 0..250 {
        let reply = post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "alice")]).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(!reply.headers.contains_key("ratelimit"));
    }
}

#[tokio::test]
async fn the_limit_by_default_is_a_hundred_requests_for_a_user() {
    let backend = backend().await;
    let gateway = start(Config {
        rate_limit: Switch::Default,
        ..config(&[&backend])
    })
    .await;
    let mut refused = 0;
    for _ in 0..103 {
        let reply = post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "alice")]).await;
        refused += u32::from(reply.status == StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(refused, 3);
}
