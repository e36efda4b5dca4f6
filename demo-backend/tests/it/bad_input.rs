use bytes::Bytes;
use demo_backend::{MockBackend, api::Problem, api::openai::ErrorBody};
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::{GENERATE, Whole, ask, get, http1, post, request, send, whole};

#[tokio::test]
async fn wrong_requests_to_generate_say_what_is_wrong_and_where() {
    let backend = MockBackend::builder().start().await.unwrap();
    for (body, says) in [
        (
            "",
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            "{",
            "the body is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"{"prompt": "x"} y"#,
            "the body is not JSON: trailing characters at line 1 column 17",
        ),
        (
            "{\n\"prompt\" 1}",
            "the body is not JSON: expected `:` at line 2 column 10",
        ),
        ("[]", "invalid length 0"),
        ("7", "invalid type: integer `7`"),
        ("{}", "missing field `prompt` at line 1 column 2"),
        (
            r#"{"prompt": 7}"#,
            "prompt: invalid type: integer `7`, expected a string",
        ),
        (
            r#"{"prompt": "x", "max_tokens": "many"}"#,
            "max_tokens: invalid type: string \"many\"",
        ),
        (
            r#"{"prompt": "x", "max_tokens": -1}"#,
            "max_tokens: invalid value: integer `-1`",
        ),
        (
            r#"{"prompt": "x", "max_tokens": 0}"#,
            "max_tokens: 0 is not at least 1",
        ),
        (
            r#"{"prompt": "x", "temperature": 2.5}"#,
            "temperature: 2.5 is not from 0 to 2",
        ),
        (
            r#"{"prompt": "x", "user_id": 7}"#,
            "user_id: invalid type: integer `7`",
        ),
    ] {
        let answer = post(&backend, "/generate", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let problem = problem(&answer);
        assert!(
            problem.detail.starts_with(says),
            "{body}: {}",
            problem.detail
        );
        assert_eq!(
            (problem.status, problem.title.as_str()),
            (400, "Bad Request")
        );
    }
    let invalid = post(
        &backend,
        "/generate",
        Bytes::from_static(b"{\"prompt\": \"\xff\"}"),
    )
    .await;
    assert_eq!(invalid.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn wrong_requests_to_openai_paths_name_the_field() {
    let backend = MockBackend::builder().start().await.unwrap();
    let chat = "/v1/chat/completions";
    let (text, vectors) = ("/v1/completions", "/v1/embeddings");
    for (path, body, param) in [
        (chat, "nonsense", None),
        (chat, r#"{"model": "m"}"#, None),
        (chat, r#"{"model": 7, "messages": []}"#, Some("model")),
        (chat, r#"{"model": "m", "messages": []}"#, Some("messages")),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": 1}]}"#,
            Some("messages[0].role"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user", "content": 1}]}"#,
            Some("messages[0].content"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "n": 0}"#,
            Some("n"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "n": 129}"#,
            Some("n"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "stream": "yes"}"#,
            Some("stream"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "stream_options": {}}"#,
            Some("stream_options"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "max_completion_tokens": 0}"#,
            Some("max_completion_tokens"),
        ),
        (
            chat,
            r#"{"model": "m", "messages": [{"role": "user"}], "temperature": -1}"#,
            Some("temperature"),
        ),
        (text, r#"{"model": "m", "prompt": {}}"#, Some("prompt")),
        (text, r#"{"model": "m", "prompt": []}"#, Some("prompt")),
        (vectors, r#"{"model": "m", "input": ""}"#, Some("input")),
        (
            vectors,
            r#"{"model": "m", "input": "x", "dimensions": 0}"#,
            Some("dimensions"),
        ),
        (
            vectors,
            r#"{"model": "m", "input": "x", "encoding_format": "hex"}"#,
            Some("encoding_format"),
        ),
    ] {
        let answer = post(&backend, path, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let error = error(&answer).error;
        assert_eq!(error.param.as_deref(), param, "{body}: {}", error.message);
        assert_eq!(error.kind, "invalid_request_error");
        assert!(
            param.is_none_or(|param| error.message.starts_with(param)),
            "{}",
            error.message
        );
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_told_apart() {
    let backend = MockBackend::builder().start().await.unwrap();
    let missing = get(&backend, "/nowhere").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(
        problem(&missing)
            .detail
            .starts_with("there is no GET /nowhere; there are POST /generate")
    );
    let missing = post(&backend, "/v1/nowhere", "{}").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(error(&missing).error.code.as_deref(), Some("not_found"));

    let wrong = get(&backend, "/generate").await;
    assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(wrong.headers["allow"], "POST");
    assert!(
        problem(&wrong)
            .detail
            .starts_with("/generate does not take GET")
    );
    let wrong = ask(&backend, Method::DELETE, "/v1/models", "").await;
    assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        error(&wrong).error.code.as_deref(),
        Some("method_not_allowed")
    );
    assert_eq!(
        ask(&backend, Method::PUT, "/chaos", "[]").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn other_content_types_are_refused_and_none_is_taken_for_json() {
    let backend = MockBackend::builder().start().await.unwrap();
    for (kind, status) in [
        (Some("application/json; charset=utf-8"), StatusCode::OK),
        (Some("application/vnd.me+json"), StatusCode::OK),
        (None, StatusCode::OK),
        (Some("text/plain"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (
            Some("application/x-www-form-urlencoded"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
    ] {
        let mut request = request(&backend, Method::POST, "/generate", GENERATE);
        request.headers_mut().remove("content-type");
        if let Some(kind) = kind {
            request
                .headers_mut()
                .insert("content-type", kind.parse().unwrap());
        }
        let answer = whole(send(&http1(), request).await.unwrap()).await;
        assert_eq!(answer.status, status, "{kind:?}");
    }
}

#[tokio::test]
async fn a_body_over_four_mebibytes_is_refused_and_one_below_is_read() {
    let backend = MockBackend::builder().start().await.unwrap();
    let large = |length| format!(r#"{{"prompt": "{}"}}"#, "x".repeat(length));
    let fits = post(&backend, "/generate", large((4 << 20) - 14)).await;
    assert_eq!(fits.status, StatusCode::OK);
    let refused = post(&backend, "/generate", large((4 << 20) - 13)).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(problem(&refused).detail.contains("4194304 bytes"));
    let refused = post(&backend, "/v1/completions", large(8 << 20)).await;
    assert_eq!(
        error(&refused).error.code.as_deref(),
        Some("body_too_large")
    );
}

#[tokio::test]
async fn what_claims_to_be_huge_is_refused_before_it_is_read() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn half_a_request_leaves_nothing_behind() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"prompt\"";
    stream.write_all(head.as_bytes()).await.unwrap();
    while backend.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    backend.idle().await;
    assert!(backend.seen().is_empty(), "it never came whole");
}

#[tokio::test]
async fn garbage_is_a_bad_request() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    stream
        .write_all(b"\x16\x03\x01 nonsense\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

fn problem(answer: &Whole) -> Problem {
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    serde_json::from_slice(&answer.body).unwrap()
}

fn error(answer: &Whole) -> ErrorBody {
    assert_eq!(answer.headers["content-type"], "application/json");
    serde_json::from_slice(&answer.body).unwrap()
}
