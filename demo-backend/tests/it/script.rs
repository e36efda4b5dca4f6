//! Answers that were written beforehand.

use std::time::Duration;

use bytes::Bytes;
use demo_backend::{Ended, Fault, MockBackend, Reply};
use http::{Method, Response, StatusCode};
use serde_json::json;

use crate::client::{
    CHAT, GENERATE, events, get, http1, post, request, send, stream_request, whole,
};

#[tokio::test]
async fn answers_come_in_order_and_then_the_simulation() {
    let script = [
        Reply::status(500),
        Reply::status(429).header("retry-after", "2"),
        Reply::status(204),
        Reply::text("Hello \"there\""),
        Reply::tokens(40),
        Reply::json(200, r#"{"own": true}"#),
        Reply::response(
            Response::builder()
                .status(418)
                .body(Bytes::from("tea"))
                .unwrap(),
        ),
        Reply::simulated(),
    ];
    let backend = MockBackend::builder().script(script).start().await.unwrap();
    let next = async || post(&backend, "/generate", GENERATE).await;

    // What is no request to a model takes nothing from the script.
    get(&backend, "/health").await;
    let failed = next().await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(failed.json()["reason"], "scripted");
    let limited = next().await;
    assert_eq!(
        (limited.status.as_u16(), &limited.headers["retry-after"]),
        (429, &"2".parse().unwrap())
    );
    let empty = next().await;
    assert_eq!((empty.status.as_u16(), empty.body.len()), (204, 0));
    assert_eq!(next().await.json()["response"], "Hello \"there\"");
    assert_eq!(
        next().await.json()["response"]
            .as_str()
            .unwrap()
            .split(' ')
            .count(),
        40
    );
    assert_eq!(next().await.json(), json!({"own": true}));
    let own = next().await;
    assert_eq!((own.status.as_u16(), own.text()), (418, "tea"));
    assert_eq!(
        next().await.json()["response"]
            .as_str()
            .unwrap()
            .split(' ')
            .count(),
        16
    );
    assert_eq!(next().await.status, StatusCode::OK);

    backend.script([Reply::status(503)]);
    assert_eq!(next().await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        backend
            .seen()
            .iter()
            .all(|seen| matches!(seen.ended, Ended::Completed { .. }))
    );
}

#[tokio::test]
async fn a_text_is_given_in_the_shape_that_is_asked_for() {
    let text = || Reply::text("One \"two\"\nthree");
    let backend = MockBackend::builder()
        .script([text(), text()])
        .start()
        .await
        .unwrap();
    let chat = post(&backend, "/v1/chat/completions", CHAT).await.json();
    assert_eq!(
        chat["choices"][0]["message"]["content"],
        "One \"two\"\nthree"
    );
    let answer = whole(send(&http1(), stream_request(&backend)).await.unwrap()).await;
    let events = events(answer.text());
    assert!(
        events[1].contains(r#""delta":{"content":"One "}"#),
        "{}",
        events[1]
    );
    assert!(
        events[2].contains(r#""delta":{"content":"\"two\"\nthree"}"#),
        "{}",
        events[2]
    );
    assert_eq!(
        backend.seen()[1].ended,
        Ended::Completed {
            status: StatusCode::OK,
            tokens_sent: 2
        }
    );
}

#[tokio::test]
async fn one_answer_can_be_struck_by_a_fault() {
    let script = [
        Reply::tokens(3).fault("error,status=502,share=0".parse().unwrap()),
        Reply::text("a b c d").fault(Fault::malformed(0)),
    ];
    let backend = MockBackend::builder().script(script).start().await.unwrap();
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::BAD_GATEWAY
    );
    let broken = post(&backend, "/generate", GENERATE).await;
    assert!(serde_json::from_slice::<serde_json::Value>(&broken.body).is_err());
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_can_come_later() {
    let script = [
        Reply::status(500).after(Duration::from_secs(3)),
        Reply::status(500)
            .fault(Fault::latency(Duration::from_secs(2)))
            .after(Duration::from_secs(1)),
    ];
    let backend = MockBackend::builder().script(script).start().await.unwrap();
    for _ in 0..2 {
        let start = palisade_core::time::now();
        let request = request(&backend, Method::POST, "/generate", GENERATE);
        let answer = backend.answer(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(palisade_core::time::now() - start, Duration::from_secs(3));
    }
}

#[test]
#[should_panic(expected = "a status from 200 to 599")]
fn what_is_no_status_is_a_mistake_of_the_test() {
    let _reply = Reply::status(99);
}
