//! A tonic client through the layer to tonic servers, over loopback.

use std::pin::Pin;

use palisade_core::classify::Grpc;
use palisade_fallback::{Answer, FallbackLayer, ReplayBody};
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codegen::tokio_stream::{self, Stream, StreamExt},
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{Layer, ServiceBuilder};
use tower_http::map_request_body::MapRequestBodyLayer;

/// A server that answers alike every time.
#[derive(Clone, Copy)]
enum Script {
    /// With messages that hold this number.
    Serves(i32),
    /// With this status, before any message.
    Fails(Code),
    /// With one message of this number, then a status.
    FailsLate(i32, Code),
}

#[tonic::async_trait]
impl Health for Script {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        assert_eq!(request.into_inner().service, "models");
        match *self {
            Self::Serves(status) => Ok(Response::new(HealthCheckResponse { status })),
            Self::Fails(code) | Self::FailsLate(_, code) => Err(Status::new(code, "on purpose")),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.into_inner().service, "models");
        let message = |status| Ok(HealthCheckResponse { status });
        let items = match *self {
            Self::Serves(status) => vec![message(status), message(status)],
            Self::Fails(code) => return Err(Status::new(code, "on purpose")),
            Self::FailsLate(status, code) => {
                vec![message(status), Err(Status::new(code, "on purpose"))]
            }
        };
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }
}

/// A client of a server that runs until the test is over.
async fn server(script: Script) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(HealthServer::new(script));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Endpoint::new(url).unwrap().connect_lazy()
}

/// Nobody listens there.
async fn nowhere() -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    Endpoint::new(url).unwrap().connect_lazy()
}

/// A channel as the layer wants it: tonic's takes tonic's own bodies only.
macro_rules! replayed {
    ($channel:expr) => {
        ServiceBuilder::new()
            .layer(MapRequestBodyLayer::new(|body: ReplayBody<Body>| {
                Body::new(body)
            }))
            .service($channel)
    };
}

macro_rules! client {
    ($layer:expr, $first:expr) => {
        HealthClient::new($layer.classify(Grpc).layer(replayed!($first)))
    };
}

fn models() -> HealthCheckRequest {
    HealthCheckRequest {
        service: "models".into(),
    }
}

async fn to(script: Script) -> FallbackLayer<Body> {
    FallbackLayer::new().service("second", replayed!(server(script).await))
}

#[tokio::test]
async fn a_unary_call_is_served_by_the_second_server() {
    for first in [
        server(Script::Fails(Code::Unavailable)).await,
        server(Script::Fails(Code::Internal)).await,
        server(Script::Fails(Code::ResourceExhausted)).await,
        server(Script::Fails(Code::DeadlineExceeded)).await,
        nowhere().await,
    ] {
        let mut client = client!(to(Script::Serves(2)).await, first);
        let response = client.check(models()).await.unwrap();
        assert_eq!(response.metadata().get("x-fallback").unwrap(), "second");
        assert_eq!(response.into_inner().status, 2);
    }
}

#[tokio::test]
async fn a_unary_call_that_is_served_or_the_callers_fault_stays_with_the_first_server() {
    let mut client = client!(to(Script::Serves(2)).await, server(Script::Serves(1)).await);
    let response = client.check(models()).await.unwrap();
    assert!(response.metadata().get("x-fallback").is_none());
    assert_eq!(response.into_inner().status, 1);

    let wrong = server(Script::Fails(Code::InvalidArgument)).await;
    let mut client = client!(to(Script::Serves(2)).await, wrong);
    let status = client.check(models()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stream_is_served_by_the_second_server_until_it_has_begun() {
    let first = server(Script::Fails(Code::Unavailable)).await;
    let mut client = client!(to(Script::Serves(2)).await, first);
    let response = client.watch(models()).await.unwrap();
    assert_eq!(response.metadata().get("x-fallback").unwrap(), "second");
    let messages: Vec<_> = response.into_inner().collect().await;
    let statuses: Vec<_> = messages
        .into_iter()
        .map(|each| each.unwrap().status)
        .collect();
    assert_eq!(statuses, [2, 2]);

    let first = server(Script::FailsLate(1, Code::Unavailable)).await;
    let mut client = client!(to(Script::Serves(2)).await, first);
    let response = client.watch(models()).await.unwrap();
    assert!(response.metadata().get("x-fallback").is_none());
    let messages: Vec<_> = response.into_inner().collect().await;
    assert_eq!(messages[0].as_ref().unwrap().status, 1);
    let status = messages[1].as_ref().unwrap_err();
    assert_eq!((messages.len(), status.code()), (2, Code::Unavailable));
}

#[tokio::test]
async fn when_both_servers_fail_the_status_of_the_second_is_the_callers() {
    let first = server(Script::Fails(Code::Unavailable)).await;
    let mut client = client!(to(Script::Fails(Code::Internal)).await, first);
    let status = client.check(models()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "on purpose")
    );
    assert!(status.metadata().get("x-fallback").is_none());
}

#[tokio::test]
async fn a_tonic_client_reads_values() {
    let first = server(Script::Fails(Code::Unavailable)).await;
    let closed = Answer::grpc_status(9, "closed: 100 %");
    let mut client = client!(FallbackLayer::new().value("closed", closed), first.clone());
    let status = client.check(models()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "closed: 100 %")
    );

    // `status: 3`, as protobuf writes it.
    let known = Answer::grpc([0x08, 3]);
    let mut client = client!(FallbackLayer::new().value("known", known), first);
    let response = client.check(models()).await.unwrap();
    assert_eq!(response.into_inner().status, 3);
    let response = client.watch(models()).await.unwrap();
    let messages: Vec<_> = response.into_inner().collect().await;
    assert_eq!(messages[0].as_ref().unwrap().status, 3);
    assert_eq!(messages.len(), 1);
}
