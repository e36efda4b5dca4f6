use std::time::Duration;

use demo_backend::{
    Ended, MockBackend,
    api::openai::{Chat, Finish},
};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::client::{
    CHAT, CHAT_STREAM, PATIENCE, events, http1, http2, post, request, send, stream_request, whole,
};

/// A pace at which only the first token comes within the life of a test.
const FROZEN: f64 = 0.000_1;

/// Reads until as many events have come.
async fn read_events(body: &mut Incoming, count: usize) -> String {
    let mut text = String::new();
    while text.matches("\n\n").count() < count {
        let frame = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .expect("a frame in time");
        let data = frame.expect("more").unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    text
}

#[tokio::test]
async fn a_streamed_chat_has_the_chunks_of_openai() {
    let backend = MockBackend::builder().tokens(5).start().await.unwrap();
    let body = CHAT_STREAM.replace("true", r#"true, "max_tokens": 3"#);
    let answer = post(&backend, "/v1/chat/completions", body).await;
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/event-stream"));
    assert_eq!(answer.headers["cache-control"], "no-cache");
    let events = events(answer.text());
    assert_eq!(events.last(), Some(&"[DONE]"));
    assert!(!answer.text().contains("usage"));
    let chunks: Vec<Chat> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).expect(event))
        .collect();
    // The role, three tokens, the end.
    assert_eq!(chunks.len(), 5);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.object == "chat.completion.chunk")
    );
    assert!(chunks.iter().all(|chunk| chunk.id == chunks[0].id));
    let delta = |chunk: &Chat| chunk.choices[0].delta.clone().unwrap();
    assert_eq!(delta(&chunks[0]).role.as_deref(), Some("assistant"));
    assert_eq!(delta(&chunks[0]).content.as_deref(), Some(""));
    let text: String = chunks[1..4]
        .iter()
        .map(|chunk| delta(chunk).content.unwrap())
        .collect();
    assert_eq!(text.split(' ').count(), 3, "{text}");
    assert_eq!(delta(&chunks[4]), Default::default());
    assert_eq!(chunks[4].choices[0].finish_reason, Some(Finish::Length));
    assert!(
        chunks[..4]
            .iter()
            .all(|chunk| chunk.choices[0].finish_reason.is_none())
    );
}

#[tokio::test]
async fn usage_comes_last_and_is_null_before_when_asked_for() {
    let backend = MockBackend::builder().tokens(5).start().await.unwrap();
    let options = r#"true, "stream_options": {"include_usage": true}"#;
    let body = CHAT_STREAM.replace("true", options);
    let answer = post(&backend, "/v1/chat/completions", body).await;
    let events = events(answer.text());
    let (usage, before) = events[..events.len() - 1].split_last().unwrap();
    assert!(
        before
            .iter()
            .all(|event| event.ends_with(r#""usage":null}"#)),
        "{before:?}"
    );
    let usage: Chat = serde_json::from_str(usage).unwrap();
    assert!(usage.choices.is_empty());
    let usage = usage.usage.unwrap();
    assert_eq!(usage.completion_tokens, Some(5));
    assert_eq!(usage.total_tokens, usage.prompt_tokens + 5);
}

#[tokio::test]
async fn the_streamed_and_the_whole_answer_to_one_request_are_the_same() {
    let backend = MockBackend::builder().tokens(20).start().await.unwrap();
    let seeded = |body: &str| body.replacen('{', r#"{"seed": 3, "#, 1);
    let whole = post(&backend, "/v1/chat/completions", seeded(CHAT))
        .await
        .json();
    let stream = post(&backend, "/v1/chat/completions", seeded(CHAT_STREAM)).await;
    let streamed: String = events(stream.text())
        .iter()
        .filter_map(|event| serde_json::from_str::<Chat>(event).ok())
        .filter_map(|chunk| chunk.choices[0].delta.clone()?.content)
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed);
}

#[tokio::test]
async fn a_chunk_arrives_before_the_next_is_made() {
    for http in [http1(), http2()] {
        let backend = MockBackend::builder()
            .tokens_per_second(FROZEN)
            .start()
            .await
            .unwrap();
        let mut body = send(&http, stream_request(&backend))
            .await
            .unwrap()
            .into_body();
        let first = read_events(&mut body, 1).await;
        assert!(first.contains(r#""role":"assistant""#));
        assert!(!first.contains("DONE"));
        assert_eq!(backend.in_flight(), 1);
        assert_eq!(backend.seen()[0].ended, Ended::InFlight);
    }
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_slot_back_at_once() {
    for http in [http1(), http2()] {
        let backend = MockBackend::builder()
            .slots(1)
            .tokens_per_second(FROZEN)
            .start()
            .await
            .unwrap();
        let mut body = send(&http, stream_request(&backend))
            .await
            .unwrap()
            .into_body();
        read_events(&mut body, 1).await;
        assert_eq!(backend.load().active, 1);
        drop(body);
        drop(http);
        backend.idle().await;
        assert_eq!(backend.load().active, 0);
        assert_eq!(
            backend.seen()[0].ended,
            Ended::ClientLeft { tokens_sent: 0 }
        );
    }
}

#[tokio::test]
async fn tokens_are_counted_as_they_are_sent() {
    let backend = MockBackend::builder()
        .tokens(200)
        .tokens_per_second(200.0)
        .start()
        .await
        .unwrap();
    let http = http1();
    let mut body = send(&http, stream_request(&backend))
        .await
        .unwrap()
        .into_body();
    let read = read_events(&mut body, 4).await;
    let events = read.matches("\n\n").count() as u32;
    drop((body, http));
    backend.idle().await;
    let Ended::ClientLeft { tokens_sent } = backend.seen()[0].ended else {
        panic!("{:?}", backend.seen());
    };
    // All but the first event carry a token; some may have been under way.
    assert!(
        (events - 1..200).contains(&tokens_sent),
        "{events} {tokens_sent}"
    );
    let metrics = crate::client::get(&backend, "/metrics").await;
    assert!(
        metrics
            .text()
            .contains(&format!("llm_instance_tokens_total {tokens_sent}\n"))
    );
    assert!(
        metrics
            .text()
            .contains("llm_instance_clients_left_total 1\n")
    );
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_gives_its_place_back() {
    let backend = MockBackend::builder()
        .slots(1)
        .tokens_per_second(FROZEN)
        .start()
        .await
        .unwrap();
    let first = http1();
    let mut body = send(&first, stream_request(&backend))
        .await
        .unwrap()
        .into_body();
    read_events(&mut body, 1).await;

    let second = http1();
    let waiting = tokio::spawn({
        let request = request(&backend, Method::POST, "/v1/chat/completions", CHAT);
        async move { second.request(request).await }
    });
    backend.until(|seen| seen.len() == 2).await;
    while backend.load().queued == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    backend
        .until(|seen| seen[1].ended == Ended::ClientLeft { tokens_sent: 0 })
        .await;
    assert_eq!(backend.load().queued, 0);
    assert_eq!(backend.in_flight(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_is_noticed() {
    let backend = MockBackend::builder()
        .first_token(Duration::from_secs(9000))
        .start()
        .await
        .unwrap();
    let http = http1();
    let waiting = tokio::spawn(http.request(stream_request(&backend)));
    backend.until(|seen| seen.len() == 1).await;
    waiting.abort();
    drop(http);
    backend.idle().await;
    assert_eq!(
        backend.seen()[0].ended,
        Ended::ClientLeft { tokens_sent: 0 }
    );
}

#[tokio::test]
async fn fifty_open_streams_are_fifty_in_flight_and_none_when_all_have_left() {
    let backend = MockBackend::builder()
        .tokens_per_second(FROZEN)
        .start()
        .await
        .unwrap();
    let http = http2();
    let mut bodies = Vec::new();
    for _ in 0..50 {
        bodies.push(
            send(&http, stream_request(&backend))
                .await
                .unwrap()
                .into_body(),
        );
    }
    assert_eq!(backend.in_flight(), 50);
    drop(bodies);
    backend.idle().await;
    assert_eq!((backend.in_flight(), backend.load().active), (0, 0));
}

#[tokio::test]
async fn a_kept_connection_serves_one_stream_after_another() {
    let backend = MockBackend::builder().start().await.unwrap();
    let http = http1();
    for _ in 0..3 {
        let answer = whole(send(&http, stream_request(&backend)).await.unwrap()).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
    }
    let seen = backend.seen();
    assert!(seen.iter().all(|seen| matches!(
        seen.ended,
        Ended::Completed {
            tokens_sent: 16,
            ..
        }
    )));
}
