//! The time that answers take, to the token, on a paused clock and without sockets.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use demo_backend::{AnswerBody, Builder, Lengths, MockBackend};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_core::time;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::CHAT_STREAM;

const MILLI: Duration = Duration::from_millis(1);

fn generate(prompt: &str) -> Request<Full<Bytes>> {
    let body = serde_json::json!({"prompt": prompt}).to_string();
    Request::post("/generate").body(Full::from(body)).unwrap()
}

fn chat() -> Request<Full<Bytes>> {
    Request::post("/v1/chat/completions")
        .body(Full::from(CHAT_STREAM))
        .unwrap()
}

async fn answer(backend: &MockBackend, request: Request<Full<Bytes>>) -> Response<AnswerBody> {
    backend.answer(request).await.unwrap()
}

/// When the answer was whole.
async fn finish(backend: &MockBackend, request: Request<Full<Bytes>>) -> Instant {
    let answer = answer(backend, request).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.into_body().collect().await.unwrap();
    time::now()
}

async fn start(builder: Builder) -> (Arc<MockBackend>, Instant) {
    let backend = builder.start().await.unwrap();
    (Arc::new(backend), time::now())
}

fn close(took: Duration, wanted: Duration) -> bool {
    // A timer of tokio's fires up to a millisecond late.
    took >= wanted && took <= wanted + 2 * MILLI
}

#[tokio::test(start_paused = true)]
async fn the_first_token_waits_for_the_prompt_and_the_others_for_their_turn() {
    let builder = MockBackend::builder()
        .first_token(100 * MILLI)
        .tokens(4)
        .tokens_per_second(10.0);
    let (backend, start) = start(builder).await;
    let answer = answer(&backend, chat()).await;
    assert_eq!(
        time::now() - start,
        100 * MILLI,
        "the head comes with the first token in sight"
    );
    let mut body = answer.into_body();
    let mut times = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        if std::str::from_utf8(&data)
            .unwrap()
            .contains(r#""delta":{"content""#)
        {
            times.push(time::now() - start);
        }
    }
    assert_eq!(times.len(), 4);
    for (token, took) in times.into_iter().enumerate() {
        let wanted = 100 * MILLI * (token as u32 + 2);
        assert!(close(took, wanted), "{token}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_longer_prompt_takes_longer_and_a_known_beginning_less() {
    let builder = MockBackend::builder()
        .first_token(10 * MILLI)
        .prompt_token(MILLI);
    let (backend, _) = start(builder).await;
    let long = "0123456789abcdef".repeat(32);
    let mut took = Vec::new();
    for prompt in ["", &long[..400], &long, &long] {
        let start = time::now();
        took.push(finish(&backend, generate(prompt)).await - start);
    }
    assert_eq!(took[0], 10 * MILLI);
    assert_eq!(took[1], 110 * MILLI);
    // 128 tokens, of which 96 are in six whole blocks of the prompt before.
    assert_eq!(took[2], 42 * MILLI);
    assert_eq!(took[3], 10 * MILLI);
    let body = format!(r#"{{"model": "m", "prompt": "{long}"}}"#);
    let request = Request::post("/v1/completions")
        .body(Full::from(body))
        .unwrap();
    let answer = answer(&backend, request)
        .await
        .into_body()
        .collect()
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.to_bytes()).unwrap();
    assert_eq!(
        answer["usage"]["prompt_tokens_details"]["cached_tokens"],
        128
    );
}

#[tokio::test(start_paused = true)]
async fn two_at_once_share_the_rate() {
    let builder = MockBackend::builder().tokens(10).tokens_per_second(10.0);
    let (backend, start) = start(builder).await;
    let alone = finish(&backend, generate("x")).await - start;
    assert!(close(alone, Duration::from_secs(1)), "{alone:?}");
    let start = time::now();
    let (a, b) = tokio::join!(finish(&backend, generate("x")), finish(&backend, chat()));
    assert!(close(a - start, Duration::from_secs(2)), "{:?}", a - start);
    assert!(close(b - start, Duration::from_secs(2)), "{:?}", b - start);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_speeds_up_the_others() {
    let builder = MockBackend::builder().tokens(10).tokens_per_second(10.0);
    let (backend, start) = start(builder).await;
    let left = answer(&backend, chat()).await;
    let other = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move { finish(&backend, generate("x")).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(left);
    // Half of its tokens in the first second, the other half at the whole rate; one step was taken at the old one.
    let took = other.await.unwrap() - start;
    assert!((1500 * MILLI..=1602 * MILLI).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_slot_waits_in_line() {
    let builder = MockBackend::builder()
        .slots(2)
        .tokens(10)
        .tokens_per_second(20.0);
    let (backend, start) = start(builder).await;
    let ends = [(); 6].map(|()| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { finish(&backend, generate("x")).await })
    });
    tokio::task::yield_now().await;
    let load = backend.load();
    assert_eq!((load.active, load.queued), (2, 4));
    assert_eq!(load.cpu_simulation, 100.0);
    assert!(load.simulated_load_seconds > 1.0);
    for (number, end) in ends.into_iter().enumerate() {
        let took = end.await.unwrap() - start;
        let wanted = Duration::from_secs(number as u64 / 2 + 1);
        assert!(
            took >= wanted && took <= wanted + 10 * MILLI,
            "{number}: {took:?}"
        );
    }
    assert_eq!(backend.load().active, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_says_when_to_come_again() {
    let builder = MockBackend::builder()
        .slots(1)
        .queue(1)
        .tokens(30)
        .tokens_per_second(10.0);
    let (backend, _) = start(builder).await;
    let busy = [(); 2].map(|()| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { finish(&backend, generate("x")).await })
    });
    tokio::task::yield_now().await;
    let refused = answer(&backend, generate("x")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Two answers of thirty tokens are ahead.
    assert_eq!(refused.headers()["retry-after"], "6");
    for request in busy {
        request.await.unwrap();
    }
    assert_eq!(
        answer(&backend, generate("x")).await.status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_when_the_last_token_is_out_and_not_when_it_is_read() {
    let (backend, _) = start(MockBackend::builder().slots(1).tokens(2)).await;
    let mut body = answer(&backend, chat()).await.into_body();
    assert_eq!(backend.load().active, 1);
    for _ in 0..4 {
        body.frame().await.unwrap().unwrap();
    }
    assert_eq!(backend.load().active, 0, "the role, two tokens, the end");
    assert_eq!(
        backend.in_flight(),
        1,
        "the usual last event is still to come"
    );
    body.collect().await.unwrap();
    assert_eq!(backend.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_limits_no_time_passes() {
    let lengths = Lengths::try_from(100..=200).unwrap();
    let (backend, start) = start(MockBackend::builder().tokens(lengths)).await;
    for _ in 0..10 {
        finish(&backend, generate("x")).await;
        finish(&backend, chat()).await;
    }
    assert_eq!(time::now(), start);
}
