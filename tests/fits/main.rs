//! The layers fit where users put them: on an axum router, in a tonic server, around a tonic channel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{convert::Infallible, time::Duration};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use palisade::{
    LayerExt as _, RespondLayer,
    circuit_breaker::{CircuitBreaker, CircuitBreakerLayer},
    classify::Grpc,
    gate::GateLayer,
    key,
    rate_limit::{Quota, RateLimit, RateLimitLayer},
};
use palisade_core::testing::Raw;
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    server::NamedService,
    service::{LayerExt as _, Routes},
    transport::Endpoint,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

fn three_routes() -> Router {
    Router::new()
        .route("/a", get(async || "a"))
        .route("/b", get(async || "b"))
        .route("/c", get(async || "c"))
        .layer(RateLimitLayer::new(Quota::per_hour(5)).responding())
}

async fn admitted(router: &Router) -> usize {
    let mut admitted = 0;
    for path in ["/a", "/b", "/c"].into_iter().cycle().take(30) {
        let request = Request::builder().uri(path).body(axum::body::Body::empty());
        let Ok(response) = router.clone().oneshot(request.unwrap()).await;
        admitted += usize::from(response.status().is_success());
    }
    admitted
}

#[tokio::test(start_paused = true)]
async fn three_routes_share_one_limit() {
    assert_eq!(admitted(&three_routes()).await, 5);
}

#[tokio::test(start_paused = true)]
async fn three_routes_share_one_limit_also_with_state() {
    let router = Router::new()
        .route("/a", get(async || "a"))
        .route("/b", get(async || "b"))
        .route("/c", get(async || "c"))
        .layer(RateLimitLayer::new(Quota::per_hour(5)).responding())
        .with_state(());
    assert_eq!(admitted(&router).await, 5);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_quota() {
    let limit = RateLimitLayer::new(Quota::per_minute(1)).key(key::header("x-api-key"));
    let router: Router = Router::new()
        .route("/", get(async || "hello"))
        .layer(limit.responding());
    let mut statuses = Vec::new();
    for key in ["a", "b", "a"] {
        let request = Request::builder().header("x-api-key", key);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let Ok(response) = router.clone().oneshot(request).await;
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
}

#[test]
fn fused_gates_in_front_of_an_axum_router() {
    let _router: Router = Router::new().route("/", get(async || "hello")).layer(
        ServiceBuilder::new()
            .layer(RespondLayer::auto())
            .layer(gates()),
    );
}

#[tokio::test]
async fn around_a_tonic_channel() {
    fn is_grpc<T: GrpcService<Body>>(_: &T) {}
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let service = ServiceBuilder::new()
        .layer(gates().classify(Grpc))
        .service(channel);
    is_grpc(&service);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_arrives_as_its_status_at_a_tonic_client() {
    let layer = CircuitBreakerLayer::consecutive(1, 10 * SECOND)
        .jitter(None)
        .classify(Grpc);
    let handle = layer.handle();
    let stack = ServiceBuilder::new().layer(layer.responding());
    let mut client = client(Routes::new(stack.named_layer(Broken)));

    let status = unary(&mut client).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "broken")
    );
    let status = unary(&mut client).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "circuit open for another 10.0s");
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "10000"
    );
    handle.release();
    let status = unary(&mut client).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
}

fn gates() -> GateLayer<(RateLimit, CircuitBreaker)> {
    GateLayer::new(RateLimit::new(Quota::per_second(50)))
        .and(CircuitBreaker::consecutive(5, SECOND))
}

/// A gRPC server whose method always fails.
#[derive(Clone)]
struct Broken;

impl NamedService for Broken {
    const NAME: &'static str = "test.Broken";
}

impl tower::Service<Request<Body>> for Broken {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Status::internal("broken").into_http()))
    }
}

fn client<S>(server: S) -> tonic::client::Grpc<impl GrpcService<Body, ResponseBody = Body>>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    tonic::client::Grpc::new(service_fn(move |request: Request<Body>| {
        server.clone().oneshot(request)
    }))
}

async fn unary(
    client: &mut tonic::client::Grpc<impl GrpcService<Body, ResponseBody = Body>>,
) -> Result<tonic::Response<Bytes>, Status> {
    assert!(client.ready().await.is_ok());
    let path = "/test.Broken/Call".parse().unwrap();
    client
        .unary(tonic::Request::new(Bytes::new()), path, Raw)
        .await
}
