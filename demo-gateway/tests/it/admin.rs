//! What the holder of the token can do, and nobody else.

use demo_backend::{Fault, Reply};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::{
    CHAT_STREAM, PROMPT, TOKEN, admin, backend, config, eventually, get, open, post, posting,
    request, send, start,
};

#[tokio::test]
async fn without_the_token_all_of_admin_is_401() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let wrong = format!("Bearer {TOKEN}x");
    let short = format!("Bearer {}", &TOKEN[1..]);
    let basic = format!("Basic {TOKEN}");
    for credentials in [
        None,
        Some(&*wrong),
        Some(&short),
        Some(&basic),
        Some(TOKEN),
        Some("Bearer"),
    ] {
        for (method, path) in [
            (Method::POST, "/admin/add-backend"),
            (Method::DELETE, "/admin/remove-backend/a"),
            (Method::POST, "/admin/backends/a"),
            (Method::POST, "/admin/circuit-breaker/a"),
            (Method::POST, "/admin/strategy"),
            (Method::POST, "/admin/reset-rate-limit/global"),
            (Method::GET, "/admin"),
            (Method::GET, "/admin/"),
            (Method::GET, "/admin/unknown"),
            (Method::PATCH, "/admin/strategy"),
        ] {
            let mut builder = request(&gateway, method.clone(), path);
            if let Some(credentials) = credentials {
                builder = builder.header("authorization", credentials);
            }
            let reply = send(builder.body(Full::default()).unwrap()).await;
            let case = format!("{method} {path} {credentials:?}");
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{case}");
            assert_eq!(reply.header("www-authenticate"), "Bearer", "{case}");
            assert_eq!(reply.json()["status"], 401, "{case}");
        }
    }
    // None of it was done.
    assert_eq!(
        post(&gateway, "/generate", PROMPT).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn with_the_token_what_is_wrong_is_told() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let used = json!({"id": "a", "url": "http://127.0.0.1:1"}).to_string();
    for (method, path, body, status) in [
        (Method::GET, "/admin", "", 404),
        (Method::GET, "/admin/unknown", "", 404),
        (Method::GET, "/admin/strategy", "", 405),
        (Method::POST, "/admin/remove-backend/a", "", 405),
        (Method::DELETE, "/admin/remove-backend/zzz", "", 404),
        (
            Method::POST,
            "/admin/strategy",
            r#"{"strategy":"magic"}"#,
            400,
        ),
        (
            Method::POST,
            "/admin/strategy",
            r#"{"strategy":"adaptive","x":1}"#,
            400,
        ),
        (Method::POST, "/admin/add-backend", "{", 400),
        (Method::POST, "/admin/add-backend", r#"{"id":"b"}"#, 400),
        (
            Method::POST,
            "/admin/add-backend",
            r#"{"id":"b","url":"ftp://x"}"#,
            400,
        ),
        (
            Method::POST,
            "/admin/add-backend",
            r#"{"id":"b","url":"http://x","weight":0}"#,
            400,
        ),
        (
            Method::POST,
            "/admin/add-backend",
            r#"{"id":"b","url":"http://x","api_key_env":"PATH"}"#,
            400,
        ),
        (
            Method::POST,
            "/admin/add-backend",
            r#"{"id":"a b","url":"http://x"}"#,
            400,
        ),
        (Method::POST, "/admin/add-backend", &used, 409),
        (
            Method::POST,
            "/admin/backends/zzz",
            r#"{"drain":true}"#,
            404,
        ),
        (Method::POST, "/admin/backends/a", "{}", 400),
        (Method::POST, "/admin/backends/a", r#"{"weight":-1}"#, 400),
        (
            Method::POST,
            "/admin/circuit-breaker/zzz",
            r#"{"state":"open"}"#,
            404,
        ),
        (
            Method::POST,
            "/admin/circuit-breaker/a",
            r#"{"state":"ajar"}"#,
            400,
        ),
        (Method::POST, "/admin/reset-rate-limit/alice", "", 400),
        (
            Method::POST,
            "/admin/reset-rate-limit/global?rule=x",
            "",
            400,
        ),
    ] {
        let reply = admin(&gateway, method.clone(), path, body).await;
        assert_eq!(
            reply.status,
            status,
            "{method} {path} {body}: {}",
            reply.text()
        );
        assert_eq!(reply.json()["status"], status);
    }
}

#[tokio::test]
async fn a_backend_that_is_added_gets_requests_and_one_that_is_removed_ends_what_it_has() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start(config(&[&first])).await;
    let added = json!({"id": "b", "url": second.url(), "weight": 2.0, "max_connections": 7});
    let reply = admin(
        &gateway,
        Method::POST,
        "/admin/add-backend",
        &added.to_string(),
    )
    .await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(reply.json()["message"], "Backend b added successfully");
    let health = get(&gateway, "/health").await.json();
    let report = &health["load_balancer"]["backends"][1];
    assert_eq!(
        (&report["weight"], &report["max_connections"]),
        (&json!(2.0), &json!(7))
    );

    admin(&gateway, Method::DELETE, "/admin/remove-backend/a", "").await;
    second.script([Reply::tokens(8).fault(Fault::stall(3))]);
    let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    assert_eq!(response.headers()["x-backend-id"], "b");
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let reply = admin(&gateway, Method::DELETE, "/admin/remove-backend/b", "").await;
    assert!(reply.text().contains("finishes 1"), "{}", reply.text());
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    // What it had is still there, and so is its report.
    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["backends"][0]["state"], "draining");
    assert_eq!(gateway.in_flight(), 1);
    drop(body);
    eventually("it is gone", async || {
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["total_backends"] == 0
    })
    .await;
    // The name is free again.
    let reply = admin(
        &gateway,
        Method::POST,
        "/admin/add-backend",
        &added.to_string(),
    )
    .await;
    assert_eq!(reply.status, StatusCode::OK);
}

async fn served_by(gateway: &demo_gateway::Gateway, many: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..many {
        ids.push(
            post(gateway, "/generate", PROMPT)
                .await
                .header("x-backend-id")
                .to_owned(),
        );
    }
    ids
}

#[tokio::test]
async fn a_backend_can_be_drained_and_brought_back() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start(config(&[&first, &second])).await;
    let reply = admin(
        &gateway,
        Method::POST,
        "/admin/backends/a",
        r#"{"drain":true,"weight":3}"#,
    )
    .await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert!(served_by(&gateway, 10).await.iter().all(|id| id == "b"));
    let health = get(&gateway, "/health").await.json();
    let report = &health["load_balancer"]["backends"][0];
    assert_eq!(
        (&report["state"], &report["weight"]),
        (&json!("draining"), &json!(3.0))
    );
    // The name is not free while it may come back.
    let again = json!({"id": "a", "url": second.url()}).to_string();
    let reply = admin(&gateway, Method::POST, "/admin/add-backend", &again).await;
    assert_eq!(reply.status, StatusCode::CONFLICT);
    admin(
        &gateway,
        Method::POST,
        "/admin/backends/a",
        r#"{"drain":false}"#,
    )
    .await;
    assert!(served_by(&gateway, 50).await.contains(&"a".to_owned()));
}

#[tokio::test]
async fn a_circuit_can_be_held_open() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start(config(&[&first, &second])).await;
    let set = async |state: &str| {
        let body = json!({ "state": state }).to_string();
        let reply = admin(&gateway, Method::POST, "/admin/circuit-breaker/a", &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["backends"][0]["circuit_breaker_open"].clone()
    };
    assert_eq!(set("open").await, Value::Bool(true));
    assert!(served_by(&gateway, 10).await.iter().all(|id| id == "b"));
    assert_eq!(set("auto").await, Value::Bool(false));
    assert!(served_by(&gateway, 50).await.contains(&"a".to_owned()));
}

#[tokio::test]
async fn the_strategy_changes_with_the_next_request() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start(config(&[&first, &second])).await;
    let body = r#"{"strategy":"round_robin"}"#;
    let reply = admin(&gateway, Method::POST, "/admin/strategy", body).await;
    assert_eq!(reply.status, StatusCode::OK);
    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["strategy"], "round_robin");
    let ids = served_by(&gateway, 20).await;
    let firsts = ids.iter().filter(|id| *id == "a").count();
    assert!((9..=11).contains(&firsts), "{ids:?}");
}
