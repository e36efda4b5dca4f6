//! The layer fits around clients that users have.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use palisade_core::classify::Grpc;
use palisade_retry::{Backoff, Repeatable, ReplayBody, RetryLayer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::{body::Body, client::GrpcService, transport::Endpoint};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::map_request_body::MapRequestBodyLayer;

fn client() -> Client<HttpConnector, ReplayBody<Full<Bytes>>> {
    Client::builder(TokioExecutor::new())
        .retry_canceled_requests(false)
        .build_http()
}

fn retry() -> RetryLayer {
    RetryLayer::new(Backoff::constant(Duration::ZERO))
}

fn put(address: SocketAddr) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::PUT);
    let request = request.uri(format!("http://{address}/"));
    request.body(Full::from("hello")).unwrap()
}

/// Serves one connection: 503 with a body to the first request, 200 to the second; gives back what it was sent.
async fn serve(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut sent = String::new();
    for answer in [
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone",
    ] {
        let start = sent.len();
        while !sent[start..].ends_with("hello") {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            assert_ne!(length, 0, "the connection is used again");
            sent.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    sent
}

#[tokio::test]
async fn around_a_client_of_hyper_whose_connection_is_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener));
    // Spawned, as servers do: it can be sent between threads.
    let call = tokio::spawn(retry().layer(client()).oneshot(put(address)));
    let answer = call.await.unwrap().unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "done");
    let sent = server.await.unwrap();
    assert_eq!(sent.matches("content-length: 5\r\n").count(), 2, "{sent}");
    assert_eq!(sent.matches("x-attempt: 2\r\n").count(), 1, "{sent}");
}

#[tokio::test]
async fn a_connection_that_hyper_could_not_make_is_free_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let layer = retry().attempts(2).repeat(Repeatable::IdempotentOrUnsent);
    let mut request = put(address);
    *request.method_mut() = Method::POST;
    assert!(layer.layer(client()).oneshot(request).await.is_err());
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.retries, snapshot.budget_left), (1, Some(100)));
}

#[tokio::test]
async fn around_a_channel_of_tonic() {
    fn is_grpc<T: GrpcService<Body>>(_: &T) {}
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let service = ServiceBuilder::new()
        .layer(retry().classify(Grpc).repeat(Repeatable::All))
        .layer(MapRequestBodyLayer::new(Body::new))
        .service(channel);
    is_grpc(&service);
}
