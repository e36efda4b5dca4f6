//! Down and up again.

use std::{io, time::Duration};

use demo_backend::{Ended, Fault, MockBackend};
use http::StatusCode;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::client::{GENERATE, events, get, http1, post, send, stream_request, whole};

#[tokio::test]
async fn a_crashed_backend_comes_back_on_the_same_port_with_its_record() {
    let backend = MockBackend::builder().start().await.unwrap();
    post(&backend, "/generate", GENERATE).await;
    let addr = backend.addr();
    backend.crash().await;
    let refused = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    backend.restart().await.unwrap();
    assert_eq!(backend.addr(), addr);
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::OK
    );
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_crash_that_was_set_does_not_strike_twice() {
    let backend = MockBackend::builder()
        .fault(Fault::crash())
        .start()
        .await
        .unwrap();
    backend.crashed().await;
    backend.restart().await.unwrap();
    assert_eq!(get(&backend, "/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_crash_cuts_streams_that_are_open() {
    let backend = MockBackend::builder()
        .fault(Fault::stall(2))
        .start()
        .await
        .unwrap();
    let http = http1();
    let answer = send(&http, stream_request(&backend)).await.unwrap();
    backend.crash().await;
    let end = http_body_util::BodyExt::collect(answer.into_body()).await;
    assert!(end.is_err());
    assert_eq!(backend.in_flight(), 0);
    assert!(matches!(backend.seen()[0].ended, Ended::Broken { .. }));
}

#[tokio::test]
async fn a_stop_lets_a_stream_end_and_takes_no_new_connection() {
    let backend = MockBackend::builder()
        .tokens(20)
        .tokens_per_second(100.0)
        .start()
        .await
        .unwrap();
    let http = http1();
    let answer = send(&http, stream_request(&backend)).await.unwrap();
    let mut idle = TcpStream::connect(backend.addr()).await.unwrap();
    let (answer, ()) = tokio::join!(whole(answer), backend.stop());
    assert_eq!(events(answer.text()).last(), Some(&"[DONE]"));
    assert!(matches!(idle.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(backend.addr()).await.is_err());
    assert!(matches!(
        backend.seen()[0].ended,
        Ended::Completed {
            tokens_sent: 20,
            ..
        }
    ));
}

#[tokio::test]
async fn a_stop_waits_no_longer_than_its_grace() {
    let grace = Duration::from_millis(1);
    let backend = MockBackend::builder()
        .grace(grace)
        .fault(Fault::stall(2))
        .start()
        .await
        .unwrap();
    let http = http1();
    let answer = send(&http, stream_request(&backend)).await.unwrap();
    backend.stop().await;
    assert_eq!(backend.in_flight(), 0);
    assert!(matches!(backend.seen()[0].ended, Ended::Broken { .. }));
    drop(answer);
}

#[tokio::test]
async fn dropping_it_cuts_all_connections() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut stream = TcpStream::connect(backend.addr()).await.unwrap();
    drop(backend);
    assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error() {
    let backend = MockBackend::builder().start().await.unwrap();
    let second = MockBackend::builder().listen(backend.addr()).start().await;
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}
