//! Defects that were found, each by the behaviour that was missing.

use demo_backend::{Fault, Reply};
use demo_gateway::config::Backend;
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    CHAT, PROMPT, admin, asked, backend, client, config, eventually, metric, post, posting, raw,
    start,
};

/// A backend that tells no length.
async fn chunked() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let json = r#"{"response":"x","tokens_used":3}"#;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{json}\r\n0\r\n\r\n",
                    json.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn a_backend_may_answer_generate_in_chunks() {
    let mut config = config(&[]);
    config.backends = vec![Backend::new(chunked().await)];
    let gateway = start(config).await;
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(reply.json()["tokens_used"], 3);
}

#[tokio::test]
async fn no_path_below_models_leads_out_of_it() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for path in [
        "/v1/models/../../chaos",
        "/v1/models/a/%2e%2e/x",
        "/v1/models/.%2E/files",
    ] {
        let answer = raw(
            &gateway,
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let seen: Vec<_> = asked(&backend).into_iter().map(|seen| seen.path).collect();
    assert!(seen.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn the_gauge_of_a_backend_that_is_gone_is_zero() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let mut config = config(&[&backend]);
    config.backends[0].id = Some("gone-gauge".into());
    let gateway = start(config).await;
    let waiting = tokio::spawn(client().request(posting(&gateway, "/generate", PROMPT)));
    eventually("there", async || backend.in_flight() == 1).await;
    let active = r#"llm_active_connections{backend="gone-gauge"}"#;
    assert_eq!(metric(&gateway, active).await, 1.0);
    admin(
        &gateway,
        Method::DELETE,
        "/admin/remove-backend/gone-gauge",
        "",
    )
    .await;
    waiting.abort();
    eventually("over", async || {
        gateway.in_flight() == 0 && backend.in_flight() == 0
    })
    .await;
    eventually("the gauge is zero", async || {
        metric(&gateway, active).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_batch_of_nothing_is_signed_too() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for body in [r#"{"requests":[]}"#, r#"{"requests":[{}]}"#] {
        let reply = post(&gateway, "/generate/batch", body).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("x-backend-id"), "unknown", "{body} {reply:?}");
    }
}

#[tokio::test]
async fn who_is_refused_while_still_sending_gets_the_answer_and_no_reset() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    config.identity.keys = vec![demo_gateway::config::ApiKey::new("sk-a", "basic")];
    let gateway = start(config).await;
    let big = format!("{{\"prompt\":\"{}\"}}", "x".repeat(3 << 20));
    let mut broken = 0;
    for _ in 0..10 {
        let mut request = posting(&gateway, "/generate", &big);
        request
            .headers_mut()
            .insert("x-api-key", "sk-b".parse().unwrap());
        match client().request(request).await {
            Ok(response) => assert_eq!(response.status(), 401),
            Err(_) => broken += 1,
        }
    }
    // One that writes all before it reads.
    let mut lost = 0;
    for _ in 0..10 {
        let mut stream = tokio::net::TcpStream::connect(gateway.addr())
            .await
            .unwrap();
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: x\r\nx-api-key: sk-b\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            big.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let wrote = stream.write_all(big.as_bytes()).await;
        let mut answer = vec![0; 15];
        let read = stream.read_exact(&mut answer).await;
        if wrote.is_err() || read.is_err() {
            lost += 1;
        }
    }
    assert_eq!((broken, lost), (0, 0));
}

#[tokio::test]
async fn when_attempts_are_spent_a_503_asks_not_to_retry_either() {
    let backend = backend().await;
    backend.chaos([Fault::error(StatusCode::SERVICE_UNAVAILABLE)]);
    let mut config = config(&[&backend]);
    config.circuit_breaker.failures = 1000;
    let gateway = start(config).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.header("x-attempts"), "3");
    assert_eq!(reply.header("x-should-retry"), "false");
}

#[tokio::test]
async fn a_backends_own_405_is_passed_as_it_is() {
    let backend = backend().await;
    backend.script([Reply::json(405, r#"{"error":"theirs"}"#).header("allow", "PATCH")]);
    let gateway = start(config(&[&backend])).await;
    let reply = post(&gateway, "/v1/chat/completions", CHAT).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(reply.text(), r#"{"error":"theirs"}"#);
    assert_eq!(reply.header("x-backend-id"), "a");
}
