//! Callers who leave, at every point where they can.

use std::time::Duration;

use demo_backend::{Ended, Fault, Reply};
use demo_gateway::Gateway;
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    CHAT_STREAM, PROMPT, asked, backend, client, config, eventually, get, limited, open, post,
    posting, start,
};

#[tokio::test]
async fn a_caller_who_leaves_before_the_answer_ends_the_attempt() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let gateway = start(config(&[&backend])).await;
    let waiting = tokio::spawn(client().request(posting(&gateway, "/generate", PROMPT)));
    eventually("the backend has it", async || backend.in_flight() == 1).await;
    waiting.abort();
    eventually("the backend is told", async || {
        backend.in_flight() == 0 && gateway.in_flight() == 0
    })
    .await;
    assert!(matches!(asked(&backend)[0].ended, Ended::ClientLeft { .. }));
    // Nobody's fault.
    let health = get(&gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["backends"][0]["error_count"], 0);
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_of_a_stream_ends_the_attempt() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let gateway = start(config(&[&backend])).await;
    let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(gateway.in_flight(), 1);
    drop(body);
    eventually("the backend is told", async || {
        backend.in_flight() == 0 && gateway.in_flight() == 0
    })
    .await;
    assert!(matches!(asked(&backend)[0].ended, Ended::ClientLeft { .. }));
}

#[tokio::test]
async fn a_caller_who_leaves_between_two_attempts_sees_no_second_one() {
    let backend = backend().await;
    // Less than the gateway would not wait for, more than this test takes.
    backend.script([Reply::status(503).header("retry-after", "5")]);
    let gateway = start(config(&[&backend])).await;
    let waiting = tokio::spawn(client().request(posting(&gateway, "/generate", PROMPT)));
    eventually("the first attempt is over", async || {
        asked(&backend)
            .first()
            .is_some_and(|seen| seen.ended != Ended::InFlight)
    })
    .await;
    // Another request is asked and answered meanwhile: the first one waits for its turn, and has not ended.
    let other = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(other.status, StatusCode::OK, "{}", other.text());
    assert!(!waiting.is_finished() && gateway.in_flight() == 1);
    waiting.abort();
    eventually("the request is over", async || gateway.in_flight() == 0).await;
    assert_eq!(asked(&backend).len(), 2, "one attempt of each");
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_of_a_batch_ends_all_of_it() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let gateway = start(config(&[&backend])).await;
    let body = format!("{{\"requests\":[{}]}}", [PROMPT; 40].join(","));
    let waiting = tokio::spawn(client().request(posting(&gateway, "/generate/batch", &body)));
    // As many as are under way at once.
    eventually("the backend has them", async || backend.in_flight() == 32).await;
    waiting.abort();
    eventually("all are over", async || {
        backend.in_flight() == 0 && gateway.in_flight() == 0
    })
    .await;
    assert_eq!(asked(&backend).len(), 32);
}

#[tokio::test]
async fn a_caller_who_leaves_with_half_a_body_sent_reaches_nobody() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let half = format!("{head}content-length: 100\r\n\r\n{{\"prompt\":");
    stream.write_all(half.as_bytes()).await.unwrap();
    drop(stream);
    // Answered afterwards, so whatever the first did has happened.
    crate::support::post(&gateway, "/generate", PROMPT).await;
    assert_eq!(asked(&backend).len(), 1);
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_that_runs() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let backend = backend().await;
    // It waits for Redis, which is not there.
    let config = limited(&[&backend], "[redis]\nurl = \"redis://127.0.0.1:1\"\n");
    let before = tasks();
    let start = Gateway::start(config);
    let started = tokio::time::timeout(Duration::from_millis(200), start).await;
    assert!(started.is_err(), "it did not wait");
    eventually("all has ended", async || tasks() == before).await;
}
