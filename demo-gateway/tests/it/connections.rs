//! Connections: how many there may be, and how they end.

use std::time::Duration;

use demo_backend::{Ended, Fault, Reply};
use demo_gateway::Config;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{CHAT_STREAM, backend, config, get, posting, start};

const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

async fn alive(stream: &mut TcpStream) {
    stream.write_all(LIVEZ).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // The rest, of which the length does not matter here.
    let mut rest = [0; 1024];
    let _many = stream.read(&mut rest).await.unwrap();
}

#[tokio::test]
async fn one_connection_more_than_there_may_be_waits_unharmed() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    config.server.max_connections = 2;
    let gateway = start(config).await;
    let mut first = TcpStream::connect(gateway.addr()).await.unwrap();
    let mut second = TcpStream::connect(gateway.addr()).await.unwrap();
    alive(&mut first).await;
    alive(&mut second).await;
    let mut third = TcpStream::connect(gateway.addr()).await.unwrap();
    third.write_all(LIVEZ).await.unwrap();
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), third.read(&mut byte)).await;
    assert!(early.is_err(), "it was answered while there was no place");
    drop(first);
    third.read_exact(&mut byte).await.unwrap();
    alive(&mut second).await;
}

#[tokio::test]
async fn a_gateway_without_backends_waits_for_the_first_to_be_added() {
    let gateway = start(Config {
        embedded_backends: 0,
        backends: Vec::new(),
        ..config(&[])
    })
    .await;
    let ready = get(&gateway, "/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    let backend = backend().await;
    let body = serde_json::json!({"id": "first", "url": backend.url()}).to_string();
    let method = http::Method::POST;
    crate::support::admin(&gateway, method, "/admin/add-backend", &body).await;
    assert_eq!(get(&gateway, "/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight_and_not_for_ever() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let mut config = config(&[&backend]);
    config.server.shutdown_timeout = Duration::from_millis(300);
    let gateway = start(config).await;
    let client = crate::support::client();
    let request = posting(&gateway, "/v1/chat/completions", CHAT_STREAM);
    let response = client.request(request).await.unwrap();
    assert_eq!(gateway.in_flight(), 1);
    let stopped = timeout(Duration::from_secs(20), gateway.shutdown()).await;
    assert!(stopped.is_ok());
    // Cut off, which the backend hears too.
    let rest = http_body_util::BodyExt::collect(response.into_body()).await;
    assert!(rest.is_err());
    let told = backend.until(|seen| {
        let streams = seen.iter().filter(|seen| seen.path.starts_with("/v1"));
        streams.clone().count() == 1
            && streams
                .clone()
                .all(|seen| matches!(seen.ended, Ended::ClientLeft { .. }))
    });
    timeout(Duration::from_secs(20), told).await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_is_dropped_lets_its_port_go() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let address = gateway.addr();
    drop(gateway);
    crate::support::eventually("the port is free", async || {
        tokio::net::TcpListener::bind(address).await.is_ok()
    })
    .await;
}
