use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use palisade_core::classify::{Grpc, Http};
use palisade_retry::{Repeatable, RetryLayer};

use crate::support::{Backend, get, head, layer, request, send, status};

fn call() -> Request<Full<Bytes>> {
    let mut request = request(Method::POST);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc+proto".parse().unwrap());
    request
}

fn grpc() -> RetryLayer<Grpc> {
    layer().classify(Grpc).repeat(Repeatable::All)
}

#[tokio::test(start_paused = true)]
async fn unavailable_is_retried_and_says_how_often() {
    let unavailable = || head(200, &[("grpc-status", "14")]);
    let backend = Backend::new([unavailable(), unavailable(), status(200)]);
    let response = send(&grpc(), &backend, call()).await.unwrap();
    assert!(response.headers().is_empty());
    let seen = backend.seen();
    let numbers: Vec<_> = seen
        .iter()
        .map(|seen| seen.headers.get("grpc-previous-rpc-attempts"))
        .collect();
    assert_eq!(numbers[0], None);
    assert_eq!([numbers[1].unwrap(), numbers[2].unwrap()], ["1", "2"]);
    assert!(seen[1].headers.get("x-attempt").is_none());
}

#[tokio::test(start_paused = true)]
async fn no_other_status_is_retried_without_a_hint() {
    for code in 0..=16 {
        let backend = Backend::new([head(200, &[("grpc-status", &code.to_string())])]);
        send(&grpc(), &backend, call()).await.unwrap();
        assert_eq!(backend.attempts(), if code == 14 { 3 } else { 1 }, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pushback_is_waited_for() {
    for code in ["8", "14"] {
        let pushed_back = head(
            200,
            &[("grpc-status", code), ("grpc-retry-pushback-ms", "700")],
        );
        let backend = Backend::new([pushed_back, status(200)]);
        send(&grpc(), &backend, call()).await.unwrap();
        assert_eq!(backend.times(), [0, 700], "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn giving_up_is_told_in_the_language_of_the_call() {
    let busy = || {
        head(
            200,
            &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "10")],
        )
    };
    let response = send(&grpc(), &Backend::new([busy()]), call())
        .await
        .unwrap();
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
    assert!(response.headers().get("x-should-retry").is_none());

    let http = layer().classify(Http);
    let response = send(&http, &Backend::new([status(503)]), get())
        .await
        .unwrap();
    assert!(response.headers().get("grpc-retry-pushback-ms").is_none());
}
