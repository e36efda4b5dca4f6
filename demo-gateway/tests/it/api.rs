//! What is answered where.

use std::collections::BTreeSet;

use demo_backend::Reply;
use demo_gateway::Config;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    CHAT, PROMPT, asked, backend, config, eventually, get, metric, post, post_with, request, send,
    start,
};

#[tokio::test]
async fn without_a_configuration_three_backends_answer_and_all_get_requests() {
    let gateway = start(Config {
        listen: "127.0.0.1:0".into(),
        ..Config::default()
    })
    .await;
    // As many at once as one backend alone is slow with.
    let replies = join_all((0..30).map(async |number| {
        let body = format!(r#"{{"prompt":"{number}","max_tokens":2}}"#);
        post(&gateway, "/generate", &body).await
    }));
    let mut backends = BTreeSet::new();
    for reply in replies.await {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let id = reply.json()["backend_id"].as_str().unwrap().to_owned();
        assert_eq!(reply.header("x-backend-id"), id);
        backends.insert(id);
    }
    assert_eq!(backends.len(), 3, "{backends:?}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn generate_answers_with_all_of_its_fields() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let reply = post_with(&gateway, "/generate", PROMPT, &[("x-request-id", "my-id")]).await;
    assert_eq!(reply.status, StatusCode::OK);
    let answer = reply.json();
    assert!(
        answer["response"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    assert!(answer["processing_time_ms"].as_f64().unwrap() > 0.0);
    assert!(answer["tokens_used"].as_u64().unwrap() > 0);
    assert_eq!(answer["backend_id"], "a");
    assert_eq!(answer["request_id"], "my-id");
    assert_eq!(reply.header("x-request-id"), "my-id");
    assert_eq!(reply.header("x-attempts"), "1");
    assert_eq!(asked(&backend)[0].headers["x-request-id"], "my-id");
}

#[tokio::test]
async fn a_request_gets_an_id_if_it_has_none_that_can_be_kept() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let long = "x".repeat(129);
    for given in ["", &long, "two words"] {
        let reply = post_with(&gateway, "/generate", PROMPT, &[("x-request-id", given)]).await;
        let id = reply.header("x-request-id");
        assert!(id.len() == 36 && id != given, "{id}");
        assert_eq!(reply.json()["request_id"], id);
    }
    // Also where no backend is involved, and where nothing is found.
    for path in ["/health", "/nowhere", "/v1/nowhere"] {
        assert_eq!(get(&gateway, path).await.header("x-request-id").len(), 36);
    }
}

#[tokio::test]
async fn v1_passes_answers_through_byte_for_byte() {
    let text = "{ \"id\":\"x\", \"choices\": [],\n\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}, \"odd\" :1e0}";
    let backend = backend().await;
    backend.script([Reply::json(200, text).header("x-custom", "kept")]);
    let gateway = start(config(&[&backend])).await;
    let sent = r#"{ "messages" : [{"role":"user","content":"h\u0069"}],"model":"m", "odd": 1e0 }"#;
    let reply = post(&gateway, "/v1/chat/completions", sent).await;
    assert_eq!(reply.text(), text);
    assert_eq!(reply.header("x-custom"), "kept");
    assert_eq!(reply.header("x-backend-id"), "a");
    assert_eq!(asked(&backend)[0].body, sent);
    assert_eq!(asked(&backend)[0].path, "/v1/chat/completions");
}

#[tokio::test]
async fn what_is_about_the_connection_or_the_caller_does_not_reach_the_backend() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let headers = [
        ("authorization", "Bearer secret"),
        ("x-api-key", "secret"),
        ("cookie", "a=secret"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("accept-encoding", "gzip"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-custom", "kept"),
        ("idempotency-key", "kept"),
    ];
    let reply = post_with(&gateway, "/v1/chat/completions", CHAT, &headers).await;
    assert_eq!(reply.status, StatusCode::OK);
    let seen = asked(&backend).remove(0).headers;
    for gone in [
        "authorization",
        "x-api-key",
        "cookie",
        "connection",
        "x-hop",
        "x-forwarded-for",
    ] {
        assert!(!seen.contains_key(gone), "{gone}: {seen:?}");
    }
    for (name, value) in [
        ("te", "trailers"),
        ("accept-encoding", "identity"),
        ("x-custom", "kept"),
        ("idempotency-key", "kept"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen[name], value);
    }
    assert_eq!(seen["host"], backend.addr().to_string());
    for internal in ["x-instance-id", "endpoint-load-metrics"] {
        assert!(!reply.headers.contains_key(internal), "{internal}");
    }
}

#[tokio::test]
async fn the_other_paths_of_v1_answer_as_openai_does() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let completion = post(
        &gateway,
        "/v1/completions",
        r#"{"model":"m","prompt":"hi"}"#,
    )
    .await;
    assert_eq!(completion.json()["object"], "text_completion");
    let embedding = post(&gateway, "/v1/embeddings", r#"{"model":"m","input":"hi"}"#).await;
    assert_eq!(embedding.json()["data"][0]["object"], "embedding");
    let models = get(&gateway, "/v1/models").await;
    assert_eq!(models.json()["object"], "list");
    assert_eq!(models.header("x-backend-id"), "a");
    let head = request(&gateway, Method::HEAD, "/v1/models");
    let head = send(head.body(Default::default()).unwrap()).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn a_batch_answers_each_request_on_its_own_and_in_order() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let body = r#"{"requests":[{"prompt":"a"},{"prompt":7},{"prompt":"c"}]}"#;
    let reply = post_with(&gateway, "/generate/batch", body, &[("x-request-id", "b")]).await;
    assert_eq!(reply.status, StatusCode::OK);
    let answer = reply.json();
    assert_eq!(answer["processed_count"], 3);
    assert_eq!(answer["results"][0]["ok"]["request_id"], "b-0");
    let error = &answer["results"][1]["error"];
    assert_eq!(
        (&error["status"], &error["param"]),
        (&json!(400), &json!("prompt"))
    );
    assert_eq!(answer["results"][2]["ok"]["backend_id"], "a");
    assert_eq!(reply.header("x-attempts"), "2");
}

#[tokio::test]
async fn a_batch_runs_side_by_side_and_has_a_bound() {
    let backend = backend().await;
    for _ in 0..20 {
        backend.script([Reply::text("x").after(std::time::Duration::from_millis(200))]);
    }
    let gateway = start(config(&[&backend])).await;
    let batch = |many| {
        let requests = vec![json!({"prompt": "x"}); many];
        json!({ "requests": requests }).to_string()
    };
    let (gateway, body) = (&gateway, batch(20));
    let running = post(gateway, "/generate/batch", &body);
    let together = eventually("all are under way at once", async || {
        gateway.in_flight() == 20
    });
    let (reply, ()) = tokio::join!(running, together);
    assert_eq!(reply.json()["processed_count"], 20);

    assert_eq!(
        post(gateway, "/generate/batch", &batch(100)).await.status,
        StatusCode::OK
    );
    let reply = post(gateway, "/generate/batch", &batch(101)).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json()["param"], "requests");
    let reply = post(gateway, "/generate/batch", r#"{"requests":[]}"#).await;
    assert_eq!(reply.json(), json!({"processed_count": 0, "results": []}));
}

#[tokio::test]
async fn health_and_status_have_the_fields_of_the_contract() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let empty = get(&gateway, "/status").await.json();
    assert_eq!(empty["performance_summary"]["total_requests"], 0);
    assert_eq!(
        empty["performance_summary"]["latency_metrics"]["p99_seconds"],
        0.0
    );
    assert_eq!(
        post(&gateway, "/generate", PROMPT).await.status,
        StatusCode::OK
    );

    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["status"], "healthy");
    let balancer = &health["load_balancer"];
    assert_eq!(balancer["strategy"], "round_robin");
    assert_eq!(
        (&balancer["total_backends"], &balancer["healthy_backends"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(balancer["overall_health"], 1.0);
    let report = &balancer["backends"][0];
    for (field, value) in [
        ("id", json!("a")),
        ("url", json!(backend.url())),
        ("healthy", json!(true)),
        ("circuit_breaker_open", json!(false)),
        ("current_connections", json!(0)),
        ("max_connections", json!(100)),
        ("total_requests", json!(1)),
        ("error_count", json!(0)),
        ("error_rate_percent", json!(0.0)),
        ("weight", json!(1.0)),
    ] {
        assert_eq!(report[field], value, "{field}");
    }
    assert!(report["avg_response_time_ms"].as_f64().unwrap() > 0.0);
    eventually("the first health check", async || {
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["backends"][0]["last_health_check"].is_string()
    })
    .await;

    let status = get(&gateway, "/status").await.json();
    for field in [
        "timestamp",
        "performance_summary",
        "backend_status",
        "active_backends",
        "total_backends",
        "system_health",
        "slo",
        "rate_limit",
        "autoscaler",
    ] {
        assert!(status.get(field).is_some(), "{field}");
    }
    let summary = &status["performance_summary"];
    assert_eq!(
        (&summary["total_requests"], &summary["error_count"]),
        (&json!(1), &json!(0))
    );
    for group in [
        "latency_metrics",
        "throughput_metrics",
        "error_metrics",
        "token_metrics",
        "sla_compliance",
    ] {
        assert!(summary[group].is_object(), "{group}");
    }
    assert!(status["slo"]["availability"]["error_budget_left"].is_number());
    assert!(status["rate_limit"].is_null() && status["autoscaler"].is_null());
}

#[tokio::test]
async fn ready_means_that_a_request_has_somewhere_to_go() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    assert_eq!(get(&gateway, "/readyz").await.status, StatusCode::OK);
    let removed =
        crate::support::admin(&gateway, Method::DELETE, "/admin/remove-backend/a", "").await;
    assert_eq!(removed.status, StatusCode::OK);
    let reply = get(&gateway, "/readyz").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(get(&gateway, "/livez").await.status, StatusCode::OK);
    let health = get(&gateway, "/health").await;
    assert_eq!(
        (health.status, &health.json()["status"]),
        (StatusCode::OK, &json!("unhealthy"))
    );
}

#[tokio::test]
async fn metrics_have_the_names_of_the_contract() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    // Of its own, as all gateways of a process share the page.
    config.backends[0].id = Some("metrics-test".into());
    let gateway = start(config).await;
    for _ in 0..3 {
        post(&gateway, "/generate", PROMPT).await;
    }
    let success = r#"llm_requests_total{backend="metrics-test",status="success"}"#;
    assert_eq!(metric(&gateway, success).await, 3.0);
    let count = r#"llm_request_duration_seconds_count{backend="metrics-test"}"#;
    assert_eq!(metric(&gateway, count).await, 3.0);
    let page = get(&gateway, "/metrics").await;
    assert!(page.header("content-type").starts_with("text/plain"));
    let page = page.text();
    for name in [
        r#"llm_request_duration_seconds_bucket{backend="metrics-test",le="0.005"}"#,
        r#"llm_active_connections{backend="metrics-test"} 0"#,
        r#"llm_rate_limit_hits_total{identifier_type="api_key"}"#,
        r#"llm_requests_total{backend="unknown",status="error"}"#,
        "gen_ai_client_token_usage_bucket",
        "gen_ai_server_request_duration_seconds_bucket",
        "palisade_gateway_overhead_seconds_bucket",
        "palisade_balance_attempts_total",
        "palisade_sla_requests_total",
    ] {
        assert!(page.contains(name), "{name}\n{page}");
    }
    // Histograms, never summaries.
    assert!(!page.contains("quantile="), "{page}");
}
