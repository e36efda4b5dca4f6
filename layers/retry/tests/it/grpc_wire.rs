//! A client and a server of tonic with the layer between them, over a real connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response, uri::PathAndQuery};
use palisade_core::{classify::Grpc, testing::Raw, time};
use palisade_retry::{Backoff, Handle, Repeatable, ReplayBody, Retry, RetryLayer};
use tokio::{net::TcpListener, time::Instant};
use tonic::{
    Code, Status, Streaming,
    body::Body,
    server::NamedService,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Layer, ServiceBuilder};
use tower_http::map_request_body::{MapRequestBody, MapRequestBodyLayer};

/// What the server does with one attempt.
#[derive(Clone, Copy, Debug)]
enum Line {
    Answers,
    /// Fails before it reads anything, asking for a delay.
    Fails(Code, Option<&'static str>),
    /// Fails once it has read all.
    FailsLate(Code),
    /// So many messages, and then this status, in the trailers.
    Breaks(usize, Code),
}

impl Line {
    fn status(code: Code, pushback: Option<&'static str>) -> Status {
        let mut status = Status::new(code, "on purpose");
        if let Some(millis) = pushback {
            let millis = millis.parse().unwrap();
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", millis);
        }
        status
    }
}

/// What one attempt has brought.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    previous: Option<String>,
    messages: Vec<Bytes>,
}

/// A server that answers from a script, the last line again and again.
#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Line>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Scripted {
    fn note(&self, previous: Option<String>, messages: Vec<Bytes>) {
        self.seen.lock().unwrap().push(Seen {
            at: time::now(),
            previous,
            messages,
        });
    }

    /// All methods are streams, which single messages are too.
    async fn answer(
        self,
        line: Line,
        request: tonic::Request<Streaming<Bytes>>,
    ) -> Result<tonic::Response<Messages>, Status> {
        let previous = request.metadata().get("grpc-previous-rpc-attempts");
        let previous = previous.map(|number| number.to_str().unwrap().to_owned());
        if let Line::Fails(code, pushback) = line {
            self.note(previous, Vec::new());
            return Err(Line::status(code, pushback));
        }
        let read: Vec<_> = request.into_inner().map(Result::unwrap).collect().await;
        self.note(previous, read.clone());
        let messages = match line {
            Line::FailsLate(code) => return Err(Line::status(code, None)),
            Line::Breaks(messages, code) => {
                let end = stream::iter([Err(Line::status(code, None))]);
                let messages = stream::iter(vec![Ok(Bytes::from_static(b"more")); messages]);
                messages.chain(end).boxed()
            }
            _ => stream::iter([Ok(Bytes::from(read.concat()))]).boxed(),
        };
        Ok(tonic::Response::new(messages))
    }
}

impl NamedService for Scripted {
    const NAME: &'static str = "test.Scripted";
}

impl tower::Service<Request<Body>> for Scripted {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut script = self.script.lock().unwrap();
        let line = match script.len() {
            1 => script[0],
            _ => script.pop_front().unwrap(),
        };
        let this = self.clone();
        let method = tower::service_fn(move |request| this.clone().answer(line, request));
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(Raw)
                .streaming(method, request)
                .await)
        })
    }
}

type Inner = MapRequestBody<Channel, fn(ReplayBody<Body>) -> Body>;

/// A client with the layer, and what the server has seen.
struct Wire {
    client: tonic::client::Grpc<Retry<Inner, Grpc>>,
    handle: Handle,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn layer() -> RetryLayer<Grpc> {
    RetryLayer::new(Backoff::constant(Duration::ZERO))
        .classify(Grpc)
        .repeat(Repeatable::All)
}

async fn wire(layer: RetryLayer<Grpc>, script: impl IntoIterator<Item = Line>) -> Wire {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Scripted {
        script: Arc::new(Mutex::new(script.into_iter().collect())),
        seen: Arc::default(),
    };
    let seen = server.seen.clone();
    let serving = Server::builder()
        .add_service(server)
        .serve_with_incoming(TcpIncoming::from(listener));
    // Ends with the runtime of the test.
    tokio::spawn(serving);
    connect(layer, address, seen)
}

fn connect(layer: RetryLayer<Grpc>, address: SocketAddr, seen: Arc<Mutex<Vec<Seen>>>) -> Wire {
    let channel = Endpoint::try_from(format!("http://{address}")).unwrap();
    let to_tonic: fn(ReplayBody<Body>) -> Body = Body::new;
    let inner = ServiceBuilder::new()
        .layer(MapRequestBodyLayer::new(to_tonic))
        .service(channel.connect_lazy());
    Wire {
        client: tonic::client::Grpc::new(layer.layer(inner)),
        handle: layer.handle(),
        seen,
    }
}

impl Wire {
    async fn unary(&mut self) -> Result<Bytes, Status> {
        self.client.ready().await.unwrap();
        let request = tonic::Request::new(Bytes::from_static(b"hello"));
        let answer = self.client.unary(request, path(), Raw).await?;
        Ok(answer.into_inner())
    }

    async fn upload(&mut self, messages: Vec<Bytes>) -> Result<Bytes, Status> {
        self.client.ready().await.unwrap();
        let request = tonic::Request::new(stream::iter(messages));
        let answer = self.client.client_streaming(request, path(), Raw).await?;
        Ok(answer.into_inner())
    }

    async fn download(&mut self) -> Result<Streaming<Bytes>, Status> {
        self.client.ready().await.unwrap();
        let request = tonic::Request::new(Bytes::from_static(b"hello"));
        let answer = self.client.server_streaming(request, path(), Raw).await?;
        Ok(answer.into_inner())
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn path() -> PathAndQuery {
    PathAndQuery::from_static("/test.Scripted/Any")
}

const UNAVAILABLE: Line = Line::Fails(Code::Unavailable, None);

#[tokio::test]
async fn a_call_that_is_unavailable_is_made_again_and_says_how_often_it_was() {
    let late = Line::FailsLate(Code::Unavailable);
    let mut wire = wire(layer(), [UNAVAILABLE, late, Line::Answers]).await;
    assert_eq!(wire.unary().await.unwrap(), "hello");
    let previous: Vec<_> = wire.seen().into_iter().map(|seen| seen.previous).collect();
    assert_eq!(previous, [None, Some("1".into()), Some("2".into())]);
    assert_eq!(wire.handle.snapshot().budget_left, Some(98));
}

#[tokio::test]
async fn a_pushback_is_waited_for_and_a_negative_one_ends_it() {
    let busy = Line::Fails(Code::ResourceExhausted, Some("30"));
    let mut waits = wire(layer(), [busy, Line::Answers]).await;
    waits.unary().await.unwrap();
    let seen = waits.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(30));

    for never in ["-1", "soon"] {
        let never = Line::Fails(Code::Unavailable, Some(never));
        let mut ends = wire(layer(), [never, Line::Answers]).await;
        assert_eq!(ends.unary().await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(ends.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_call_that_was_given_up_asks_its_caller_not_to_try() {
    let mut wire = wire(layer(), [UNAVAILABLE]).await;
    let status = wire.unary().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "on purpose")
    );
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "-1"
    );
    assert_eq!(wire.seen().len(), 3);
}

#[tokio::test]
async fn a_status_that_would_be_the_same_again_is_the_callers() {
    for code in [Code::NotFound, Code::Internal, Code::DeadlineExceeded] {
        let mut wire = wire(layer(), [Line::FailsLate(code), Line::Answers]).await;
        let status = wire.unary().await.unwrap_err();
        assert_eq!((status.code(), wire.seen().len()), (code, 1));
        assert!(status.metadata().get("grpc-retry-pushback-ms").is_none());
    }
}

#[tokio::test]
async fn a_stream_is_made_again_until_it_has_a_head() {
    let broken = |messages| Line::Breaks(messages, Code::Unavailable);
    // Its status alone is no head yet.
    let mut alone = wire(layer(), [UNAVAILABLE, Line::Answers]).await;
    let mut messages = alone.download().await.unwrap();
    assert_eq!(messages.message().await.unwrap().unwrap(), "hello");
    assert_eq!(messages.message().await.unwrap(), None);
    assert_eq!(alone.seen().len(), 2);
    // From there on it is the caller's, as it came, trailers too: gRFC A6.
    for count in [0, 3] {
        let mut wire = wire(layer(), [broken(count), Line::Answers]).await;
        let mut messages = wire.download().await.unwrap();
        for _ in 0..count {
            assert_eq!(messages.message().await.unwrap().unwrap(), "more");
        }
        let status = messages.message().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(wire.seen().len(), 1);
    }
}

#[tokio::test]
async fn messages_that_the_client_streams_are_sent_again_the_same() {
    let messages: Vec<_> = (0..200_u8).map(|n| Bytes::from(vec![n; 100])).collect();
    let late = Line::FailsLate(Code::Unavailable);
    let mut wire = wire(layer(), [UNAVAILABLE, late, Line::Answers]).await;
    let all = wire.upload(messages.clone()).await.unwrap();
    assert_eq!(all, messages.concat());
    let seen = wire.seen();
    assert_eq!(seen[1].messages, messages);
    assert_eq!(seen[2].messages, messages);
}

#[tokio::test]
async fn a_stream_of_messages_over_the_cap_goes_through_once() {
    let messages: Vec<_> = (0..200_u8).map(|n| Bytes::from(vec![n; 1000])).collect();
    let script = [Line::FailsLate(Code::Unavailable), Line::Answers];
    let mut wire = wire(layer(), script).await;
    let status = wire.upload(messages.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.metadata().get("grpc-retry-pushback-ms").is_none(),
        "may try"
    );
    let seen = wire.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        seen[0].messages, messages,
        "all of it, though it was not kept"
    );
    assert_eq!(wire.handle.snapshot().exhausted, 1);
    assert_eq!(
        wire.upload(messages.clone()).await.unwrap(),
        messages.concat()
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_one_attempt_less() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut wire = connect(layer().attempts(2), address, Arc::default());
    assert_eq!(wire.unary().await.unwrap_err().code(), Code::Unavailable);
    let snapshot = wire.handle.snapshot();
    assert_eq!((snapshot.retries, snapshot.budget_left), (1, Some(100)));
}
