//! Each fault, as a client meets it.

use std::{error::Error, io, num::NonZero, time::Duration};

use bytes::Bytes;
use demo_backend::{Ended, Fault, MockBackend, Target};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::{
    CHAT, GENERATE, Http, PATIENCE, events, get, http1, http2, post, request, send, stream_request,
    whole,
};

async fn with(fault: Fault) -> MockBackend {
    MockBackend::builder().fault(fault).start().await.unwrap()
}

fn generate(backend: &MockBackend) -> http::Request<Full<Bytes>> {
    request(backend, Method::POST, "/generate", GENERATE)
}

/// What comes of a body, and how it breaks off.
async fn broken(mut body: Incoming) -> (String, Option<hyper::Error>) {
    let mut text = String::new();
    loop {
        match tokio::time::timeout(PATIENCE, body.frame())
            .await
            .expect("in time")
        {
            Some(Ok(frame)) => {
                text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
            }
            Some(Err(error)) => return (text, Some(error)),
            None => return (text, None),
        }
    }
}

fn is_reset(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionReset;
        }
        next = error.source();
    }
    false
}

#[tokio::test]
async fn error_answers_with_its_status_in_the_language_of_the_path() {
    let fault = "error,status=503,retry-after=1500ms".parse().unwrap();
    let backend = with(fault).await;
    let answer = post(&backend, "/generate", GENERATE).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "2");
    assert_eq!(answer.json()["detail"], "a fault on purpose");
    let answer = post(&backend, "/v1/chat/completions", CHAT).await;
    assert_eq!(answer.json()["error"]["code"], "fault");
    assert_eq!(get(&backend, "/health").await.status, StatusCode::OK);
    let metrics = get(&backend, "/metrics").await;
    assert!(
        metrics
            .text()
            .contains("llm_instance_faults_total{fault=\"error\"} 2\n")
    );
}

#[tokio::test]
async fn rate_limit_answers_429_with_a_delay() {
    let backend = with(Fault::rate_limit(Duration::from_secs(7))).await;
    let answer = post(&backend, "/v1/chat/completions", CHAT).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "7");
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
}

#[tokio::test]
async fn health_can_fail_alone() {
    let backend = with(Fault::error(StatusCode::BAD_GATEWAY).on(Target::Health)).await;
    assert_eq!(
        get(&backend, "/health").await.status,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn latency_answers_exactly_that_much_later() {
    let backend = with(Fault::latency(Duration::from_millis(300))).await;
    let start = palisade_core::time::now();
    let answer = backend.answer(generate(&backend)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        palisade_core::time::now() - start,
        Duration::from_millis(300)
    );
}

#[tokio::test]
async fn hang_takes_the_request_and_never_answers() {
    for http in [http1(), http2()] {
        let backend = with(Fault::hang()).await;
        let hanging = tokio::spawn(http.request(generate(&backend)));
        backend.until(|seen| seen.len() == 1).await;
        assert_eq!(get(&backend, "/health").await.status, StatusCode::OK);
        assert_eq!(backend.in_flight(), 1);
        assert!(!hanging.is_finished());
        hanging.abort();
        drop(http);
        backend.idle().await;
        assert_eq!(
            backend.seen()[0].ended,
            Ended::ClientLeft { tokens_sent: 0 }
        );
    }
}

#[tokio::test]
async fn refuse_resets_a_connection_before_anything_is_read() {
    let backend = with(Fault::refuse()).await;
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    let end = stream.read(&mut [0; 16]).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(backend.seen().is_empty());
    backend.chaos([]);
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn refuse_resets_kept_connections_at_their_next_request() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    let request = b"GET /load HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 2048];
    assert!(stream.read(&mut answer).await.unwrap() > 0);

    backend.chaos([Fault::refuse()]);
    stream.write_all(request).await.unwrap();
    let end = stream.read(&mut answer).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn reset_breaks_a_stream_after_so_many_events() {
    let backend = with(Fault::reset(3)).await;
    let answer = send(&http1(), stream_request(&backend)).await.unwrap();
    let (text, error) = broken(answer.into_body()).await;
    assert_eq!(events(&text).len(), 3, "{text}");
    assert!(is_reset(&error.unwrap()));
    // The role is no token.
    assert_eq!(backend.seen()[0].ended, Ended::Broken { tokens_sent: 2 });
}

#[tokio::test]
async fn reset_breaks_a_whole_answer_in_its_middle() {
    let backend = with(Fault::reset(3)).await;
    let answer = send(&http1(), generate(&backend)).await.unwrap();
    let length: usize = answer.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let (text, error) = broken(answer.into_body()).await;
    assert_eq!(text.len(), length / 2);
    assert!(is_reset(&error.unwrap()));
}

#[tokio::test]
async fn reset_ends_one_stream_of_http2_and_not_its_neighbours() {
    let backend = with(Fault::reset(2)).await;
    let http = http2();
    let answer = send(&http, stream_request(&backend)).await.unwrap();
    let (text, error) = broken(answer.into_body()).await;
    assert_eq!(events(&text).len(), 2);
    assert!(error.is_some());
    backend.chaos([]);
    let connections = || async { whole(send(&http, generate(&backend)).await.unwrap()).await };
    assert_eq!(connections().await.status, StatusCode::OK);
}

#[tokio::test]
async fn stall_sends_so_many_events_and_then_neither_more_nor_an_end() {
    for http in [http1(), http2()] {
        let backend = with(Fault::stall(2)).await;
        let mut body = send(&http, stream_request(&backend))
            .await
            .unwrap()
            .into_body();
        let mut text = String::new();
        while text.matches("\n\n").count() < 2 {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            text.push_str(std::str::from_utf8(&frame).unwrap());
        }
        // Whatever else it could send would come before the answer to this.
        assert_eq!(get(&backend, "/health").await.status, StatusCode::OK);
        let more = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(http_body::Body::poll_frame(
                std::pin::Pin::new(&mut body),
                cx,
            ))
        });
        assert!(more.await.is_pending());
        assert_eq!(backend.in_flight(), 1);
        drop((body, http));
        backend.idle().await;
        assert_eq!(
            backend.seen()[0].ended,
            Ended::ClientLeft { tokens_sent: 1 }
        );
    }
}

#[tokio::test]
async fn stall_stops_a_whole_answer_in_its_middle() {
    let backend = with(Fault::stall(2)).await;
    let http = http1();
    let answer = send(&http, generate(&backend)).await.unwrap();
    let length: usize = answer.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let mut body = answer.into_body();
    let half = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(half.len(), length / 2);
    assert_eq!(backend.in_flight(), 1);
    drop((body, http));
    backend.idle().await;
}

#[tokio::test(start_paused = true)]
async fn drip_sends_a_few_bytes_at_a_time() {
    let every = Duration::from_millis(100);
    let backend = with(Fault::drip(NonZero::new(10).unwrap(), every)).await;
    let answer = backend.answer(generate(&backend)).await.unwrap();
    let mut body = answer.into_body();
    let start = palisade_core::time::now();
    let mut bytes = Vec::new();
    let mut frames = 0_u32;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!((1..=10).contains(&data.len()));
        assert_eq!(palisade_core::time::now() - start, every * frames);
        bytes.extend_from_slice(&data);
        frames += 1;
    }
    assert_eq!(frames as usize, bytes.len().div_ceil(10));
    serde_json::from_slice::<demo_backend::api::GenerateResponse>(&bytes).unwrap();
    assert!(matches!(backend.seen()[0].ended, Ended::Completed { .. }));
}

#[tokio::test]
async fn drip_comes_whole_over_the_wire() {
    let backend = with("drip,bytes=50,every=1ms".parse().unwrap()).await;
    let answer = post(&backend, "/generate", GENERATE).await;
    assert_eq!(answer.json()["tokens_used"], 21);
    let answer = whole(send(&http1(), stream_request(&backend)).await.unwrap()).await;
    assert_eq!(events(answer.text()).len(), 19);
}

#[tokio::test]
async fn malformed_is_whole_for_http_and_broken_for_json() {
    let backend = with(Fault::malformed(2)).await;
    let answer = post(&backend, "/generate", GENERATE).await;
    assert_eq!(answer.status, StatusCode::OK);
    let error = serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_err();
    assert!(error.is_eof());

    let answer = whole(send(&http1(), stream_request(&backend)).await.unwrap()).await;
    let events = events(answer.text());
    let is_json = |event: &&str| serde_json::from_str::<serde_json::Value>(event).is_ok();
    let broken = events.iter().position(|event| !is_json(event));
    assert_eq!(broken, Some(2));
    assert_eq!(events.len(), 19, "the others come");
    assert!(events[3..18].iter().all(is_json));
}

#[tokio::test]
async fn content_length_claims_more_or_less_than_comes() {
    let backend = with(Fault::content_length(16)).await;
    for http in [http1(), http2()] {
        let answer = send(&http, generate(&backend)).await.unwrap();
        let (text, error) = broken(answer.into_body()).await;
        assert!(text.ends_with('}') || text.is_empty());
        assert!(error.is_some(), "it ends before its end");
    }
    backend.chaos([Fault::content_length(-5)]);
    let answer = post(&backend, "/generate", GENERATE).await;
    assert!(
        serde_json::from_slice::<serde_json::Value>(&answer.body)
            .unwrap_err()
            .is_eof()
    );
    backend.chaos([Fault::content_length(40)]);
    let answer = whole(send(&http1(), stream_request(&backend)).await.unwrap()).await;
    assert_eq!(answer.body.len(), 40);
}

#[tokio::test]
async fn crash_drops_all_connections_and_takes_no_more() {
    let backend = with("crash,share=0.999999".parse().unwrap()).await;
    let http: Http = http1();
    let idle = TcpStream::connect(backend.addr()).await.unwrap();
    let error = http.request(generate(&backend)).await;
    assert!(error.is_err());
    backend.crashed().await;
    assert_eq!(backend.seen()[0].ended, Ended::Broken { tokens_sent: 0 });
    let mut idle = idle;
    assert!(matches!(idle.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    backend.crash().await;
    let refused = TcpStream::connect(backend.addr()).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test(start_paused = true)]
async fn a_certain_crash_comes_at_its_time_without_a_request() {
    let backend = with(Fault::crash().starting(Duration::from_secs(10))).await;
    let start = palisade_core::time::now();
    backend.crashed().await;
    assert_eq!(palisade_core::time::now() - start, Duration::from_secs(10));
    let error = backend.answer(generate(&backend)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn a_fault_has_its_window() {
    let backend = with("error,status=500,from=10s,for=5s".parse().unwrap()).await;
    let status = async || backend.answer(generate(&backend)).await.unwrap().status();
    assert_eq!(status().await, StatusCode::OK);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(status().await, StatusCode::INTERNAL_SERVER_ERROR);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(status().await, StatusCode::OK);
}

#[tokio::test]
async fn a_share_of_the_requests_is_struck_and_a_seed_says_which() {
    async fn run(seed: u64) -> Vec<StatusCode> {
        let fault = Fault::error(StatusCode::BAD_GATEWAY).share(0.5).unwrap();
        let backend = MockBackend::builder()
            .seed(seed)
            .fault(fault)
            .start()
            .await
            .unwrap();
        let mut statuses = Vec::new();
        for _ in 0..40 {
            let answer = backend.answer(generate(&backend)).await.unwrap();
            statuses.push(answer.status());
        }
        statuses
    }
    let first = run(3).await;
    let failed = first
        .iter()
        .filter(|status| **status == StatusCode::BAD_GATEWAY)
        .count();
    assert!((8..32).contains(&failed), "{failed}");
    assert_eq!(first, run(3).await);
    assert_ne!(first, run(4).await);
}
