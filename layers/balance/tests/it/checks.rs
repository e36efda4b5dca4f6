//! Ready-made health checks, against real servers on the loopback.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, header::RETRY_AFTER};
use http_body::Frame;
use http_body_util::{BodyExt, Channel, Full};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade_balance::{
    Client, Endpoint, EndpointState, Endpoints, Finding, GrpcCheck, Health, HealthChecks,
    HttpCheck, TcpCheck,
};
use palisade_core::BoxError;
use tokio::net::TcpListener;
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt;

use crate::{
    server::{Server, TestClient, dead, get, plain, until},
    support::{balance, of, state},
};

fn often() -> HealthChecks {
    HealthChecks::every(Duration::from_millis(4)).timeout(Duration::from_secs(5))
}

fn health() -> HttpCheck {
    HttpCheck::new("/health").unwrap()
}

fn failed<S>(endpoints: &Endpoints<S>, name: &str) -> Option<String> {
    match of(endpoints, name).last_check?.finding {
        Finding::Passed => None,
        Finding::Failed(why) => Some(why.to_string()),
    }
}

async fn serves<S>(endpoints: &Endpoints<S>, name: &str) {
    until(|| state(endpoints, name) != EndpointState::Unhealthy).await;
}

async fn fails<S>(endpoints: &Endpoints<S>, name: &str) {
    until(|| state(endpoints, name) == EndpointState::Unhealthy).await;
}

#[tokio::test]
async fn an_endpoint_that_only_fails_its_checks_is_out_and_comes_back() {
    let servers = [Server::start().await, Server::start().await];
    let endpoints = Endpoints::default();
    for (at, server) in servers.iter().enumerate() {
        endpoints.insert(Endpoint::new(at.to_string(), server.client()));
    }
    let sick = |seen: &crate::server::Seen| match seen.uri.path() {
        "/health" => plain(503, "the model is not loaded"),
        _ => plain(200, "ok"),
    };
    servers[0].answer(sick);
    let checker = tokio::spawn(endpoints.health_checks(often(), health().through_endpoint()));
    fails(&endpoints, "0").await;
    assert_eq!(failed(&endpoints, "0").unwrap(), "the status is 503");
    assert_eq!(of(&endpoints, "0").health, Health::Unhealthy);

    let service = balance(&endpoints);
    for _ in 0..10 {
        let response = service.clone().oneshot(get("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    let (out, stays) = (of(&endpoints, "0"), of(&endpoints, "1"));
    // Checks are no requests.
    assert_eq!((out.requests, out.failures), (0, 0));
    assert_eq!(
        (stays.requests, stays.failures, stays.in_flight),
        (10, 0, 0)
    );

    servers[0].answer(|_| plain(204, ""));
    serves(&endpoints, "0").await;
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
    until(|| failed(&endpoints, "0").is_none()).await;
    let seen = servers[0].last();
    assert_eq!(seen.headers["user-agent"], "palisade-health");
    assert_eq!((seen.method.as_str(), seen.uri.path()), ("GET", "/health"));
    // All over one connection, the answers being read.
    assert_eq!(servers[0].counts().accepted, 1);
    checker.abort();
}

#[tokio::test]
async fn an_ejected_endpoint_is_probed_at_once_when_its_checks_pass_again() {
    let mut servers = Vec::new();
    let endpoints = Endpoints::default();
    for at in 0..3 {
        let server = Server::start().await;
        endpoints.insert(Endpoint::new(at.to_string(), server.client()));
        servers.push(server);
    }
    let service = balance(&endpoints);
    servers[0].answer(|_| {
        let mut response = plain(503, "");
        response.headers_mut().insert(RETRY_AFTER, 300.into());
        response
    });
    while of(&endpoints, "0").ejections == 0 {
        let response = service.clone().oneshot(get("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert!(of(&endpoints, "0").retry_in > Some(Duration::from_secs(250)));

    let checker = tokio::spawn(endpoints.health_checks(often(), health().through_endpoint()));
    fails(&endpoints, "0").await;
    servers[0].answer(|_| plain(200, "ok"));
    serves(&endpoints, "0").await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    let response = service.clone().oneshot(get("/probe")).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
    checker.abort();
}

#[tokio::test]
async fn one_that_is_not_there_fails_its_checks_and_says_why() {
    let endpoints = Endpoints::default();
    let url = format!("http://{}", dead().await);
    endpoints.insert(Endpoint::new("0", TestClient::new(url).unwrap()));
    let checker = tokio::spawn(endpoints.health_checks(often(), health().through_endpoint()));
    fails(&endpoints, "0").await;
    let why = failed(&endpoints, "0").unwrap();
    assert!(why.to_lowercase().contains("connection refused"), "{why}");
    checker.abort();
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_failed() {
    let server = Server::start().await;
    server.answer(|_| {
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        sender
            .try_send(Frame::data(Bytes::from("half of")))
            .unwrap();
        sender.abort("gone".into());
        Response::new(body.boxed())
    });
    let mut check = health().through_endpoint();
    let found = check("0".into(), server.client()).await;
    assert!(matches!(found, Finding::Failed(_)), "{found:?}");
}

#[tokio::test]
async fn another_port_is_asked_when_that_is_where_health_is() {
    let (server, admin) = (Server::start().await, Server::start().await);
    server.keep_silent();
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", server.client()));
    let client = admin.client();
    let check = health().through(move |_| client.clone());
    let checker = tokio::spawn(endpoints.health_checks(often(), check));
    admin.answer(|_| plain(500, ""));
    fails(&endpoints, "0").await;
    admin.answer(|_| plain(200, ""));
    serves(&endpoints, "0").await;
    assert_eq!(server.counts().accepted, 0);
    checker.abort();
}

#[tokio::test]
async fn tcp_is_healthy_while_somebody_listens() {
    let server = Server::start().await;
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new(server.address.to_string(), ()));
    let name = server.address.to_string();
    let check = TcpCheck::at(|name| name.to_owned());
    let checker = tokio::spawn(endpoints.health_checks(often(), check));
    server.until(|counts| counts.accepted > 3).await;
    assert_eq!(failed(&endpoints, &name), None);
    let address = server.stop().await;
    fails(&endpoints, &name).await;
    let why = failed(&endpoints, &name).unwrap();
    assert!(why.to_lowercase().contains("refused"), "{why}");
    let _server = Server::again(address).await;
    serves(&endpoints, &name).await;
    checker.abort();
}

/// A health service as tonic has it.
async fn grpc() -> (String, HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    });
    (url, reporter)
}

#[tokio::test]
async fn grpc_is_healthy_while_the_service_says_serving() {
    let (url, reporter) = grpc().await;
    let client = TestClient::new(url).unwrap().http2();
    let found = async |service: &str| {
        let mut check = GrpcCheck::new(service).through_endpoint(Full::<Bytes>::new);
        check("0".into(), client.clone()).await.to_string()
    };
    assert_eq!(found("").await, "passed");
    // A name of two bytes in its length.
    let name = "llm.".repeat(50);
    for (status, said) in [
        (ServingStatus::Serving, "passed"),
        (ServingStatus::NotServing, "the service is NOT_SERVING"),
        (ServingStatus::Unknown, "the service is UNKNOWN"),
    ] {
        reporter.set_service_status(&name, status).await;
        assert_eq!(found(&name).await, said);
    }
    let unknown = found("nobody").await;
    assert!(unknown.starts_with("grpc status 5 "), "{unknown}");
}

#[tokio::test]
async fn grpc_checks_take_out_and_bring_back() {
    let (url, reporter) = grpc().await;
    let endpoints = Endpoints::default();
    let client = TestClient::new(url).unwrap().http2();
    endpoints.insert(Endpoint::new("0", client));
    let check = GrpcCheck::new("llm").through_endpoint(Full::<Bytes>::new);
    reporter
        .set_service_status("llm", ServingStatus::NotServing)
        .await;
    let checker = tokio::spawn(endpoints.health_checks(often(), check));
    fails(&endpoints, "0").await;
    reporter
        .set_service_status("llm", ServingStatus::Serving)
        .await;
    serves(&endpoints, "0").await;
    checker.abort();
}

#[tokio::test]
async fn a_body_of_tonic_does_as_well() {
    let (url, _reporter) = grpc().await;
    let client = Client::<tonic::body::Body>::new(url).unwrap().http2();
    let body = |message| tonic::body::Body::new(Full::new(message));
    let mut check = GrpcCheck::new("").through(move |_| client.clone(), body);
    assert_eq!(check("0".into(), ()).await, Finding::Passed);
}

#[tokio::test]
async fn servers_without_the_health_service_fail_its_checks() {
    let server = Server::start().await;
    let client = server.client().http2();
    let found = async || {
        let mut check = GrpcCheck::new("").through_endpoint(Full::<Bytes>::new);
        check("0".into(), client.clone()).await.to_string()
    };
    server.answer(|_| {
        let mut response = plain(200, "");
        response.headers_mut().insert("grpc-status", 12.into());
        response
    });
    assert_eq!(found().await, "the server has no health service of gRPC");
    let seen = server.last();
    assert_eq!(seen.uri.path(), "/grpc.health.v1.Health/Check");
    assert_eq!(seen.headers["content-type"], "application/grpc");
    assert_eq!(seen.headers["te"], "trailers");
    server.answer(|_| plain(200, "hello"));
    assert_eq!(found().await, "the answer is not gRPC");
    server.answer(|_| plain(404, ""));
    assert_eq!(found().await, "the status is 404");
    server.answer(|_| {
        let mut response = plain(200, "garbage");
        response.headers_mut().insert("grpc-status", 0.into());
        response
    });
    assert_eq!(found().await, "the answer is no health check's");
}

#[tokio::test]
async fn a_server_that_takes_no_grpc_at_all_fails() {
    let server = Server::start().await;
    // HTTP/1.1: no trailers are read.
    let mut check = GrpcCheck::new("").through_endpoint(Full::<Bytes>::new);
    let found = check("0".into(), server.client()).await;
    assert_eq!(found.to_string(), "the answer is not gRPC");
}
