//! A real provider, played by another backend.

use demo_backend::{Ended, Fault, Forward, MockBackend, Reply};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::client::{
    CHAT, GENERATE, events, get, http1, post, request, send, stream_request, whole,
};

async fn pair(provider: demo_backend::Builder) -> (MockBackend, MockBackend) {
    let provider = provider.id("provider").start().await.unwrap();
    let forward = Forward::new(&format!("{}/v1/", provider.url()), "sk-secret").unwrap();
    let front = MockBackend::builder()
        .id("front")
        .forward(forward)
        .start()
        .await
        .unwrap();
    (front, provider)
}

#[tokio::test]
async fn generate_is_a_chat_of_one_message_for_the_provider() {
    let (front, provider) =
        pair(MockBackend::builder().script([Reply::text("Because of air")])).await;
    let body = r#"{"prompt": "Why?", "max_tokens": 9, "user_id": "alice", "model": "gpt-4o"}"#;
    let answer = post(&front, "/generate", body).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answer = answer.json();
    assert_eq!(answer["response"], "Because of air");
    assert_eq!(answer["backend_id"], "front");
    assert_eq!(answer["tokens_used"], 3 + 7);
    let seen = &provider.seen()[0];
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(seen.headers["authorization"], "Bearer sk-secret");
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(
        sent["messages"],
        json!([{"role": "user", "content": "Why?"}])
    );
    assert_eq!(
        (&sent["max_tokens"], &sent["user"]),
        (&9.into(), &"alice".into())
    );
    assert!(
        get(&front, "/metrics")
            .await
            .text()
            .contains("llm_instance_tokens_total 3\n")
    );
}

#[tokio::test]
async fn openai_paths_pass_unchanged_but_for_the_key() {
    let (front, provider) = pair(MockBackend::builder()).await;
    let mut request = request(&front, Method::POST, "/v1/chat/completions?x=1", CHAT);
    let headers = request.headers_mut();
    headers.insert("authorization", "Bearer mine".parse().unwrap());
    headers.insert("cookie", "a=b".parse().unwrap());
    headers.insert("connection", "x-hop".parse().unwrap());
    headers.insert("x-hop", "1".parse().unwrap());
    headers.insert("openai-beta", "y".parse().unwrap());
    let answer = whole(send(&http1(), request).await.unwrap()).await;
    assert_eq!(answer.json()["object"], "chat.completion");
    assert_eq!(answer.headers["x-instance-id"], "front");
    let seen = &provider.seen()[0];
    assert_eq!(seen.path, "/v1/chat/completions?x=1");
    assert_eq!(seen.body, CHAT);
    assert_eq!(seen.headers["authorization"], "Bearer sk-secret");
    assert_eq!(seen.headers["openai-beta"], "y");
    assert!(!seen.headers.contains_key("cookie") && !seen.headers.contains_key("x-hop"));
    assert_eq!(get(&front, "/v1/models").await.json()["object"], "list");
    assert_eq!(provider.seen().len(), 2);
}

#[tokio::test]
async fn streams_pass_chunk_by_chunk_and_leaving_reaches_the_provider() {
    let (front, provider) = pair(MockBackend::builder().fault(Fault::stall(2))).await;
    let http = http1();
    let mut body = send(&http, stream_request(&front))
        .await
        .unwrap()
        .into_body();
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&frame).unwrap());
    }
    drop((body, http));
    provider.idle().await;
    assert_eq!(
        provider.seen()[0].ended,
        Ended::ClientLeft { tokens_sent: 1 }
    );
    provider.chaos([]);
    let answer = whole(send(&http1(), stream_request(&front)).await.unwrap()).await;
    assert_eq!(events(answer.text()).last(), Some(&"[DONE]"));
}

#[tokio::test]
async fn what_the_provider_refuses_is_refused_with_its_status_and_delay() {
    let limited = || Reply::status(429).header("retry-after", "9");
    let (front, _provider) = pair(MockBackend::builder().script([limited(), limited()])).await;
    let answer = post(&front, "/generate", GENERATE).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "9");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let answer = post(&front, "/v1/chat/completions", CHAT).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "9");
}

#[tokio::test]
async fn a_provider_that_is_gone_or_talks_nonsense_is_a_bad_gateway() {
    let (front, provider) = pair(MockBackend::builder().script([Reply::json(200, "{}")])).await;
    let answer = post(&front, "/generate", GENERATE).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(
        answer.json()["detail"],
        "the provider's answer is no chat completion"
    );
    provider.crash().await;
    for path in ["/generate", "/v1/chat/completions"] {
        let answer = post(&front, path, GENERATE).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        let says = answer.text();
        assert!(
            says.contains("cannot be reached") && !says.contains(&provider.url()),
            "{says}"
        );
    }
}

#[tokio::test]
async fn faults_strike_what_is_forwarded() {
    let (front, provider) = pair(MockBackend::builder()).await;
    front.chaos([Fault::error(StatusCode::BAD_GATEWAY)]);
    assert_eq!(
        post(&front, "/generate", GENERATE).await.status,
        StatusCode::BAD_GATEWAY
    );
    assert!(provider.seen().is_empty());
}

#[test]
fn a_base_that_cannot_be_asked_and_a_key_that_is_none_are_mistakes() {
    for base in [
        "",
        "localhost:1",
        "ftp://x",
        "http://",
        "http://x/v1?a=b",
        "not a url",
    ] {
        assert!(Forward::new(base, "k").is_err(), "{base}");
    }
    assert!(Forward::new("http://x/v1", " ").is_err());
    assert!(Forward::new("http://x/v1", "a\nb").is_err());
    assert_eq!(
        Forward::new("https://x/v1", "k").is_ok(),
        cfg!(feature = "tls")
    );
}
