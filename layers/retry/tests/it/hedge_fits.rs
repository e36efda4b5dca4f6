//! The layer fits around clients that users have.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use palisade_core::classify::Grpc;
use palisade_retry::{HedgeBody, Repeatable, RetryLayer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{body::Body, client::GrpcService, transport::Endpoint};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::map_request_body::MapRequestBodyLayer;

use crate::hedge_support::hedge;

/// What comes on a connection until its body has come.
async fn request(stream: &mut TcpStream) -> String {
    let mut sent = String::new();
    while !sent.ends_with("hello") {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0);
        sent.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    sent
}

/// Never answers the first connection, which is closed as soon as the second has answered.
async fn serve(listener: TcpListener) -> [String; 2] {
    let (mut first, _) = listener.accept().await.unwrap();
    let sent = request(&mut first).await;
    let (mut second, _) = listener.accept().await.unwrap();
    let again = request(&mut second).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";
    second.write_all(answer).await.unwrap();
    let closed = first.read(&mut [0; 1]).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "the loser is let go");
    [sent, again]
}

#[tokio::test]
async fn around_a_client_of_hyper_that_sends_the_whole_body_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener));
    let client: Client<HttpConnector, HedgeBody<Full<Bytes>>> =
        Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .build_http();
    let request = Request::builder().method(Method::PUT);
    let request = request.uri(format!("http://{address}/"));
    let request = request.body(Full::from("hello")).unwrap();
    // Spawned, as servers do: it can be sent between threads.
    let call = tokio::spawn(hedge().layer(client).oneshot(request));
    let answer = call.await.unwrap().unwrap();
    let sent = server.await.unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "done");
    assert!(
        sent.iter()
            .all(|sent| sent.contains("content-length: 5\r\n"))
    );
    assert!(!sent[0].contains("x-attempt") && sent[1].contains("x-attempt: 2\r\n"));
}

#[tokio::test]
async fn between_a_retry_and_a_channel_of_tonic() {
    fn is_grpc<T: GrpcService<Body>>(_: &T) {}
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let retry = RetryLayer::default().classify(Grpc).repeat(Repeatable::All);
    let budget = retry.handle().budget().clone();
    let hedge = hedge()
        .classify(Grpc)
        .repeat(Repeatable::All)
        .budget(budget);
    let service = ServiceBuilder::new()
        .layer(retry)
        .layer(hedge)
        .layer(MapRequestBodyLayer::new(Body::new))
        .service(channel);
    is_grpc(&service);
}
