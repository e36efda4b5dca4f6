//! Whatever comes in: the right 4xx, with words that say what and where, and never a 5xx.

use http::{Method, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use crate::support::{
    CHAT, PROMPT, asked, backend, config, post, post_with, raw, request, send, start,
};

#[tokio::test]
async fn every_wrong_input_is_told_what_is_wrong_with_it() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let (post, get, put) = (Method::POST, Method::GET, Method::PUT);
    let json = "application/json";
    let huge = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(4 * 1024 * 1024));
    #[rustfmt::skip]
    let cases: &[(&Method, &str, &str, &str, u16, &str)] = &[
        (&post, "/generate", json, "{\"prompt\":\"a\"", 400, "line 1 column 13"),
        (&post, "/generate", json, "", 400, "line 1 column 0"),
        (&post, "/generate", json, "{}", 400, "missing field `prompt`"),
        (&post, "/generate", json, "{\"prompt\":[1]}", 400, "`prompt`"),
        (&post, "/generate", json, "\u{0}", 400, "line 1"),
        (&post, "/generate", json, "{\"prompt\":\"a\",\"max_tokens\":\"many\"}", 400, "`max_tokens`"),
        (&post, "/generate", json, "{\"prompt\":\"a\",\"temperature\":-1}", 400, "`temperature`"),
        (&post, "/generate", "text/plain", PROMPT, 415, "application/json"),
        (&post, "/generate", "", PROMPT, 415, "application/json"),
        (&post, "/generate", json, &huge, 413, "4194304"),
        (&get, "/generate", "", "", 405, "POST"),
        (&post, "/generate/batch", json, "{\"requests\":{}}", 400, "`requests`"),
        (&post, "/generate/batch", json, "[[]]", 400, "array"),
        (&post, "/nowhere", json, "{}", 404, "/nowhere"),
        (&post, "/generate/", json, PROMPT, 404, "/generate/"),
        (&post, "/health", "", "", 405, "GET"),
        (&put, "/metrics", "", "", 405, "GET"),
        (&get, "/rate-limits/alice", "", "", 400, "alice"),
        (&get, "/rate-limits/user:a%00b", "", "", 400, "control"),
        (&get, "/rate-limits/user:%ff", "", "", 400, "UTF-8"),
        (&get, "/rate-limits/", "", "", 400, "path"),
        (&post, "/v1/chat/completions", json, "{\"model\":\"m\"}", 400, "`messages`"),
        (&post, "/v1/chat/completions", json, "{\"messages\":[{}]}", 400, "missing field `model`"),
        (&post, "/v1/chat/completions", json, "{\"model\":\"m\",\"messages\":[{}],\"stream\":1}", 400, "`stream`"),
        (&post, "/v1/completions", json, "{\"model\":\"m\"}", 400, "`prompt`"),
        (&post, "/v1/embeddings", json, "{\"model\":\"m\"}", 400, "`input`"),
        (&post, "/v1/chat/completions", "text/html", CHAT, 415, "application/json"),
        (&get, "/v1/chat/completions", "", "", 405, "POST"),
        (&post, "/v1/models", "", "", 405, "GET"),
        (&post, "/v1/nowhere", json, "{}", 404, "/v1/nowhere"),
    ];
    for (method, path, kind, body, status, says) in cases {
        let mut builder = request(&gateway, (*method).clone(), path);
        if !kind.is_empty() {
            builder = builder.header("content-type", *kind);
        }
        let reply = send(builder.body(Full::from((*body).to_owned())).unwrap()).await;
        let case = format!(
            "{method} {path} {}: {}",
            &body[..body.len().min(60)],
            reply.text()
        );
        assert_eq!(reply.status.as_u16(), *status, "{case}");
        let told = reply.json();
        let detail = if path.starts_with("/v1") {
            assert_eq!(reply.header("content-type"), "application/json", "{case}");
            let error = &told["error"];
            assert_eq!(error["type"], "invalid_request_error", "{case}");
            assert!(
                error["code"].is_string() && error.get("param").is_some(),
                "{case}"
            );
            error["message"].clone()
        } else {
            assert_eq!(
                reply.header("content-type"),
                "application/problem+json",
                "{case}"
            );
            assert_eq!(told["status"], *status, "{case}");
            told["detail"].clone()
        };
        assert!(detail.as_str().unwrap().contains(says), "{case}");
        if path.starts_with("/generate") && *path != "/generate/" {
            assert_eq!(reply.header("x-attempts"), "0", "{case}");
            assert_eq!(reply.header("x-backend-id"), "unknown", "{case}");
        }
        if *status == 405 {
            assert!(reply.header("allow").contains(says), "{case}");
        }
    }
    // None of it reached a backend.
    let reached: Vec<_> = asked(&backend).into_iter().map(|seen| seen.path).collect();
    assert!(reached.is_empty(), "{reached:?}");
}

#[tokio::test]
async fn the_paths_of_models_are_matched_as_all_others_are() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/generate",
    ] {
        for method in [Method::HEAD, Method::OPTIONS, Method::PUT] {
            let request = request(&gateway, method.clone(), path).body(Full::default());
            let reply = send(request.unwrap()).await;
            assert_eq!(reply.status, 405, "{method} {path}");
            assert_eq!(reply.header("allow"), "POST", "{method} {path}");
            assert_eq!(reply.text().is_empty(), method == Method::HEAD);
        }
        let last = path.chars().next_back().unwrap();
        let written = format!("{}%{:x}", path.trim_end_matches(last), u32::from(last));
        for path in [written, format!("/{path}"), format!("{path}/")] {
            let reply = post(&gateway, &path, CHAT).await;
            assert_eq!(reply.status, 404, "{path}");
        }
    }
    assert!(asked(&backend).is_empty());
    for (path, body) in [
        ("/generate?a=b", PROMPT),
        ("/v1/chat/completions?a=b", CHAT),
    ] {
        assert_eq!(post(&gateway, path, body).await.status, 200, "{path}");
    }
    let reached = asked(&backend).into_iter().map(|seen| seen.path);
    let reached: Vec<_> = reached.collect();
    assert_eq!(reached, ["/generate", "/v1/chat/completions?a=b"]);
}

#[tokio::test]
async fn a_body_without_a_length_is_stopped_at_the_limit_too() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    config.server.body_limit = 1000;
    let gateway = start(config).await;
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    let answer = raw(
        &gateway,
        format!(
            "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunk}{chunk}0\r\n\r\n"
        )
        .as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn requests_that_are_no_http_or_end_early_do_no_harm() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    config.server.header_timeout = std::time::Duration::from_millis(200);
    config.server.body_timeout = std::time::Duration::from_millis(200);
    let gateway = start(config).await;
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for (bytes, expected) in [
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /health HTTP/9.9\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (
            "GET /health HTTP/1.1\r\nx-user-id: a\u{1}b\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        (
            format!("{head}content-length: nine\r\n\r\n"),
            "HTTP/1.1 400",
        ),
        // Half a head and half of the beginning of HTTP/2: let go of without a word.
        (head.to_owned(), ""),
        ("PRI * HT".to_owned(), ""),
        (String::new(), ""),
        // Half a body.
        (
            format!("{head}content-length: 100\r\n\r\n{{\"prompt\""),
            "HTTP/1.1 408",
        ),
    ] {
        let answer = raw(&gateway, bytes.as_bytes()).await;
        assert!(answer.starts_with(expected), "{bytes:?}: {answer:?}");
        assert!(!answer.starts_with("HTTP/1.1 5"), "{bytes:?}: {answer:?}");
        assert!(
            !expected.is_empty() || answer.is_empty(),
            "{bytes:?}: {answer:?}"
        );
    }
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn an_id_with_control_characters_is_refused_wherever_it_comes_from() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let reply = post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "a\tb")]).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json()["param"], "x-user-id");
    let body = r#"{"prompt":"x","user_id":"a\u0007b"}"#;
    let reply = post(&gateway, "/generate", body).await;
    assert_eq!(
        (reply.status, &reply.json()["param"]),
        (StatusCode::BAD_REQUEST, &Value::from("user_id"))
    );
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_too() {
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let response = client
        .request(crate::support::posting(&gateway, "/generate", PROMPT))
        .await
        .unwrap();
    assert_eq!(
        (response.status(), response.version()),
        (StatusCode::OK, http::Version::HTTP_2)
    );
}
