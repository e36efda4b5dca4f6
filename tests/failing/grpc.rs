//! Retry, deadline, breaker and fallback between a real tonic client and real tonic servers.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use palisade::{
    BoxError, RespondLayer,
    circuit_breaker::{CircuitBreakerLayer, CircuitState},
    classify::Grpc,
    deadline::{DeadlineLayer, Propagate, TimeoutHeader},
    fallback::FallbackLayer,
    replay::ReplayBody,
    retry::{Backoff, Repeatable, RetryLayer},
};
use palisade_core::testing::Raw;
use tonic::{
    Code, Request, Status, Streaming, body::Body, client::Grpc as Client, transport::Endpoint,
};
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::map_request_body::MapRequestBodyLayer;

use crate::server::{Reply, Server};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What stands before one server: retry > what is left of the deadline > breaker > channel.
struct Destination {
    server: Server,
    retry: RetryLayer<Grpc>,
    breaker: CircuitBreakerLayer<Grpc>,
}

type Called = BoxCloneSyncService<http::Request<ReplayBody<Body>>, http::Response<Body>, BoxError>;
type Calls = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

impl Destination {
    async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        let backoff = Backoff::exponential(MILLI, MILLI).unwrap();
        Self {
            server: Server::start(replies).await,
            retry: RetryLayer::new(backoff)
                .repeat(Repeatable::All)
                .classify(Grpc),
            breaker: CircuitBreakerLayer::consecutive(3, HOUR).classify(Grpc),
        }
    }

    fn service(&self) -> Called {
        let channel = Endpoint::from_shared(format!("http://{}", self.server.address));
        let told = DeadlineLayer::new(HOUR).propagate(Propagate::Header(TimeoutHeader::grpc()));
        let service = ServiceBuilder::new()
            .map_response(|answer: http::Response<_>| answer.map(Body::new))
            .layer(self.retry.clone())
            .layer(told)
            .layer(MapRequestBodyLayer::new(Body::new))
            .layer(self.breaker.clone())
            .service(channel.unwrap().connect_lazy());
        BoxCloneSyncService::new(service)
    }

    fn attempts(&self) -> Vec<HeaderMap> {
        self.server.seen()
    }
}

/// respond > deadline > fallback > destinations.
fn client(limit: Duration, first: &Destination, second: Option<&Destination>) -> Client<Calls> {
    let mut fallback = FallbackLayer::new();
    if let Some(second) = second {
        fallback = fallback.service("second", second.service());
    }
    let service = ServiceBuilder::new()
        .map_response(|answer: http::Response<_>| answer.map(Body::new))
        .layer(RespondLayer::auto())
        .layer(DeadlineLayer::new(limit).propagate(Propagate::Extension))
        .layer(fallback.classify(Grpc))
        .service(first.service());
    Client::new(BoxCloneSyncService::new(service))
}

async fn unary(client: &mut Client<Calls>) -> Result<tonic::Response<Bytes>, Status> {
    assert!(client.ready().await.is_ok());
    let path = "/test.Script/Call".parse().unwrap();
    client
        .unary(Request::new(Bytes::from_static(b"asked")), path, Raw)
        .await
}

async fn streaming(
    client: &mut Client<Calls>,
) -> Result<tonic::Response<Streaming<Bytes>>, Status> {
    assert!(client.ready().await.is_ok());
    let path = "/test.Script/Call".parse().unwrap();
    client
        .server_streaming(Request::new(Bytes::from_static(b"asked")), path, Raw)
        .await
}

/// The messages of a stream, and what it ended with.
async fn read(stream: tonic::Response<Streaming<Bytes>>) -> (Vec<Bytes>, Option<Status>) {
    let (mut stream, mut messages) = (stream.into_inner(), Vec::new());
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(status) => return (messages, Some(status)),
        }
    }
}

fn unavailable() -> Status {
    Status::unavailable("not now")
}

/// What is left of a deadline, as it was told.
fn left(metadata: &HeaderMap) -> Duration {
    let told = metadata["grpc-timeout"].to_str().unwrap();
    let (number, unit) = told.split_at(told.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        _ => panic!("{told}"),
    }
}

#[tokio::test]
async fn a_status_in_the_trailers_is_retried_and_every_attempt_is_told_what_is_left() {
    let first = Destination::new([Reply::Status(unavailable()), Reply::Message("hello")]).await;
    let mut client = client(30 * SECOND, &first, None);
    let answer = unary(&mut client).await.unwrap();
    assert_eq!(answer.into_inner(), "hello");

    let attempts = first.attempts();
    assert_eq!(attempts.len(), 2);
    assert!(attempts[0].get("grpc-previous-rpc-attempts").is_none());
    assert_eq!(attempts[1]["grpc-previous-rpc-attempts"], "1");
    let told: Vec<_> = attempts.iter().map(left).collect();
    assert!(told[0] <= 30 * SECOND && told[1] < told[0], "{told:?}");
    assert_eq!(first.retry.handle().snapshot().retries, 1);
}

#[tokio::test]
async fn what_no_other_attempt_would_change_is_the_callers_at_once() {
    let no_such = Status::not_found("no such thing");
    let first = Destination::new([Reply::Status(no_such)]).await;
    let second = Destination::new([Reply::Message("never asked")]).await;
    let mut client = client(30 * SECOND, &first, Some(&second));
    for _ in 0..5 {
        let status = unary(&mut client).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "no such thing")
        );
    }
    assert_eq!((first.attempts().len(), second.attempts().len()), (5, 0));
    assert_eq!(
        first.breaker.handle().snapshot().state,
        CircuitState::Closed
    );
}

#[tokio::test]
async fn a_stream_that_has_begun_is_neither_retried_nor_replaced_and_its_trailers_count() {
    let broken = Reply::Stream(&["one", "two"], Some(unavailable()));
    let first = Destination::new([broken]).await;
    let second = Destination::new([Reply::Stream(&["else"], Some(Status::ok("")))]).await;
    let mut client = client(30 * SECOND, &first, Some(&second));
    for call in 1..=3 {
        let (messages, end) = read(streaming(&mut client).await.unwrap()).await;
        assert_eq!(messages, ["one", "two"]);
        assert_eq!(end.unwrap().code(), Code::Unavailable);
        assert_eq!(first.attempts().len(), call, "one attempt for a call");
    }
    // Three in a row, each of which said 200 at its head.
    assert_eq!(first.breaker.handle().snapshot().state, CircuitState::Open);
    let answer = streaming(&mut client).await.unwrap();
    assert_eq!(answer.metadata().get("x-fallback").unwrap(), "second");
    let (messages, end) = read(answer).await;
    assert_eq!((messages, end.is_none()), (vec![Bytes::from("else")], true));
    assert_eq!((first.attempts().len(), second.attempts().len()), (3, 1));
}

#[tokio::test]
async fn another_server_answers_once_the_attempts_are_spent_and_at_once_while_the_circuit_is_open()
{
    let first = Destination::new([Reply::Status(unavailable())]).await;
    let second = Destination::new([Reply::Message("from the second")]).await;
    let mut client = client(30 * SECOND, &first, Some(&second));
    for _ in 0..4 {
        let answer = unary(&mut client).await.unwrap();
        assert_eq!(answer.metadata().get("x-fallback").unwrap(), "second");
        assert_eq!(answer.into_inner(), "from the second");
    }
    // Three attempts of the first call have opened it.
    assert_eq!((first.attempts().len(), second.attempts().len()), (3, 4));
    assert_eq!(first.breaker.handle().snapshot().state, CircuitState::Open);
}

#[tokio::test]
async fn a_server_that_never_answers_ends_at_the_deadline_with_its_status() {
    let first = Destination::new([Reply::Silence]).await;
    let mut client = client(SECOND, &first, None);
    let status = unary(&mut client).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(first.attempts().len(), 1);
    assert!(left(&first.attempts()[0]) <= SECOND);
}

#[tokio::test]
async fn a_stream_that_goes_on_for_too_long_ends_with_a_status_in_its_trailers() {
    let first = Destination::new([Reply::Stream(&["one"], None)]).await;
    let mut client = client(SECOND, &first, None);
    let (messages, end) = read(streaming(&mut client).await.unwrap()).await;
    assert_eq!(messages, ["one"]);
    assert_eq!(end.unwrap().code(), Code::DeadlineExceeded);
}
