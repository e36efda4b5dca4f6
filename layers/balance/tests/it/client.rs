//! Requests through the client of an endpoint, against real servers on the loopback.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Version, header::HOST};
use http_body_util::BodyExt;
use palisade_balance::{Client, Connections, Endpoint, Endpoints};
use palisade_core::{attempt::Attempts, classify::Verdict, reject::Rejected};
use tokio::task::JoinSet;
use tower::{Service, ServiceExt};

use crate::{
    server::{Server, TestClient, dead, get, send},
    support::{balance, of},
};

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let server = Server::start().await;
    let client = server.client();
    for _ in 0..10 {
        assert_eq!(send(&client).await.unwrap(), "ok");
    }
    assert_eq!(server.counts().accepted, 1);
    assert_eq!(server.last().version, Version::HTTP_11);
    let Connections {
        open,
        opened,
        failed,
        ..
    } = client.connections();
    assert_eq!((open, opened, failed), (1, 1, 0));
}

#[tokio::test]
async fn with_http2_requests_at_once_share_a_connection() {
    let server = Server::start().await;
    server.hold();
    let client = server.client().http2();
    let mut sent = JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        sent.spawn(async move { send(&client).await.unwrap() });
    }
    let counts = server.until(|counts| counts.requests == 20).await;
    assert_eq!((counts.accepted, counts.open), (1, 1));
    assert_eq!(server.last().version, Version::HTTP_2);
    server.release();
    assert_eq!(sent.join_all().await, vec![Bytes::from("first"); 20]);
}

#[tokio::test]
async fn a_request_arrives_as_one_to_the_endpoint_whatever_it_came_as() {
    let server = Server::start().await;
    for client in [server.client(), server.client().http2()] {
        let client: TestClient = client;
        let mut request = get("https://elsewhere:9/v1/models?x=1");
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("elsewhere:9"));
        headers.insert("x-kept", HeaderValue::from_static("yes"));
        client.clone().oneshot(request).await.unwrap();
        let seen = server.last();
        assert_eq!(seen.method, Method::GET);
        assert_eq!(seen.uri.path_and_query().unwrap(), "/v1/models?x=1");
        assert_eq!(seen.headers[HOST], server.address.to_string());
        assert_eq!(seen.headers["x-kept"], "yes");
        if seen.version == Version::HTTP_2 {
            assert_eq!(
                seen.uri.authority().unwrap().as_str(),
                server.address.to_string()
            );
        }
    }
    let client = TestClient::new(format!("{}/llm/", server.url())).unwrap();
    let mut request = get("/v1");
    *request.version_mut() = Version::HTTP_10;
    client.oneshot(request).await.unwrap();
    assert_eq!(server.last().uri, "/llm/v1");
}

#[tokio::test]
async fn an_address_is_connected_to_and_the_host_is_asked_for() {
    let server = Server::start().await;
    let client = TestClient::new("http://llm.example.com:81/x").unwrap();
    let client = client.address(server.address);
    assert_eq!(send(&client).await.unwrap(), "ok");
    assert_eq!(server.last().headers[HOST], "llm.example.com:81");
    assert_eq!(server.last().uri, "/x/");
}

#[tokio::test]
async fn what_layers_put_beside_a_request_goes_no_further() {
    let server = Server::start().await;
    let mut client = server.client();
    let note = Arc::new(());
    let mut request = get("/");
    request.extensions_mut().insert(note.clone());
    let answer = client.call(request);
    assert_eq!(Arc::strong_count(&note), 1);
    answer.await.unwrap();
}

#[tokio::test]
async fn a_path_that_fits_nowhere_is_the_callers_fault() {
    let server = Server::start().await;
    let client = TestClient::new(format!("{}/{}", server.url(), "x".repeat(100))).unwrap();
    let request = get(&format!("/{}", "y".repeat(65_500)));
    let error = client.oneshot(request).await.unwrap_err();
    let rejected = Rejected::find(&*error).unwrap();
    assert!(rejected.reason().is_final());
    assert_eq!(server.counts().accepted, 0);
}

#[tokio::test]
async fn a_refused_connection_counts_against_the_endpoint_and_the_request_goes_elsewhere() {
    let alive = Server::start().await;
    let endpoints = Endpoints::default();
    let refuses = TestClient::new(format!("http://{}", dead().await)).unwrap();
    endpoints.insert(Endpoint::new("refuses", refuses.clone()));
    endpoints.insert(Endpoint::new("alive", alive.client()));
    let service = balance(&endpoints);

    let error = send(&refuses).await.unwrap_err();
    assert_eq!(Verdict::of(&*error), Verdict::Unsent);
    assert_eq!(refuses.connections().failed, 1);

    let mut refused = 0;
    for _ in 0..20 {
        let attempts = Attempts::default();
        let attempt = async || {
            let mut request = get("/");
            request.extensions_mut().insert(attempts.clone());
            let response = service.clone().oneshot(request).await?;
            response.into_body().collect().await
        };
        if let Err(error) = attempt().await {
            assert_eq!(Verdict::of(&*error), Verdict::Unsent);
            refused += 1;
            attempt().await.unwrap();
        }
    }
    // The price of a failure keeps the others away.
    assert!((1..=5).contains(&refused), "{refused}");
    let (refuses, alive) = (of(&endpoints, "refuses"), of(&endpoints, "alive"));
    assert_eq!((refuses.requests, refuses.failures), (refused, refused));
    assert_eq!((alive.requests, alive.failures), (20, 0));
    assert_eq!((refuses.in_flight, alive.in_flight), (0, 0));
}

#[tokio::test]
async fn a_request_needs_no_client_of_its_own_body_type() {
    use http_body_util::combinators::UnsyncBoxBody;

    let server = Server::start().await;
    let client = Client::<UnsyncBoxBody<Bytes, std::io::Error>>::new(server.url()).unwrap();
    let request = Request::new(UnsyncBoxBody::default());
    let response = client.oneshot(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ok"
    );
}
