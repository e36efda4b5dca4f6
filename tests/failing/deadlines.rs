//! Deadlines between two processes, and beside a breaker.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::Empty;
use palisade::{
    BoxError, Reason, Rejected, RespondLayer,
    circuit_breaker::{CircuitBreakerLayer, CircuitState},
    classify::Verdict,
    deadline::{
        AttemptTimeoutLayer, ConnectTimeoutLayer, DeadlineLayer, DeadlineService, Elapsed, Limit,
        Propagate, TimeoutHeader,
    },
};
use palisade_core::testing::Raw;
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    service::LayerExt as _,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// A gRPC server, of which no method is ever done: a unary one does not answer, a streaming one sends three messages.
#[derive(Clone, Default)]
struct Stuck {
    /// `grpc-timeout` of each call.
    asked: Arc<Mutex<Vec<Option<Duration>>>>,
}

impl NamedService for Stuck {
    const NAME: &'static str = "test.Stuck";
}

impl Service<Request<Body>> for Stuck {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = TimeoutHeader::grpc().read(request.headers());
        self.asked.lock().unwrap().push(asked);
        Box::pin(async move {
            if request.uri().path().ends_with("/Unary") {
                return pending().await;
            }
            let message = Bytes::from_static(b"\0\0\0\0\x01x");
            let (mut sender, body) = http_body_util::channel::Channel::<_, Status>::new(4);
            for _ in 0..3 {
                sender.send(Frame::data(message.clone())).await.unwrap();
            }
            tokio::spawn(async move {
                let _open = sender;
                pending::<()>().await;
            });
            let response = Response::builder().header("content-type", "application/grpc");
            Ok(response.body(Body::new(body)).unwrap())
        })
    }
}

/// Serves on a free port, with a deadline of its own in front.
async fn serve(own: Duration) -> (SocketAddr, Stuck) {
    let stuck = Stuck::default();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let layers = ServiceBuilder::new().layer(RespondLayer::auto()).layer(
        DeadlineLayer::from_header("grpc-timeout")
            .or(own)
            .at_most(own),
    );
    let server = Server::builder().add_service(layers.named_layer(stuck.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    (address, stuck)
}

type Client = tonic::client::Grpc<DeadlineService<Channel>>;

/// A client whose calls have so much time, of which the server is told.
async fn client(address: SocketAddr, limit: Duration) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let told = Propagate::Header(TimeoutHeader::grpc());
    tonic::client::Grpc::new(DeadlineLayer::new(limit).propagate(told).layer(channel))
}

async fn unary(client: &mut Client) -> Status {
    client.ready().await.unwrap();
    let path = "/test.Stuck/Unary".parse().unwrap();
    let request = tonic::Request::new(Bytes::new());
    client.unary(request, path, Raw).await.unwrap_err()
}

async fn streaming(client: &mut Client) -> (Vec<Bytes>, Status) {
    client.ready().await.unwrap();
    let path = "/test.Stuck/Stream".parse().unwrap();
    let request = tonic::Request::new(Bytes::new());
    let answer = client.server_streaming(request, path, Raw).await.unwrap();
    let (mut stream, mut messages) = (answer.into_inner(), Vec::new());
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => panic!("a stream that is never done has ended well"),
            Err(status) => return (messages, status),
        }
    }
}

#[tokio::test]
async fn a_unary_call_arrives_with_less_than_its_parent_has_and_ends_as_deadline_exceeded() {
    let (address, stuck) = serve(300 * MILLI).await;
    let mut client = client(address, 3600 * SECOND).await;
    let status = unary(&mut client).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "no answer after 300ms");
    // What the server was told, and never more.
    let asked = stuck.asked.lock().unwrap()[0].unwrap();
    assert_eq!(asked, 3600 * SECOND);
}

#[tokio::test]
async fn a_stream_that_the_server_cuts_ends_with_its_status_after_what_was_sent() {
    let (address, _) = serve(300 * MILLI).await;
    let mut client = client(address, 3600 * SECOND).await;
    let (messages, status) = streaming(&mut client).await;
    assert_eq!(messages, ["x", "x", "x"]);
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "answer not complete after 300ms");
}

#[tokio::test]
async fn the_deadline_of_a_chain_of_servers_only_shrinks() {
    // What a gateway has left when it calls on: its caller's deadline, of which time has gone.
    let (address, stuck) = serve(3600 * SECOND).await;
    let mut gateway = client(address, 3600 * SECOND).await;
    let caller = palisade::time::now() + 400 * MILLI;
    gateway.ready().await.unwrap();
    let mut request = tonic::Request::new(Bytes::new());
    let deadline = palisade::deadline::Deadline(caller);
    request.extensions_mut().insert(deadline);
    let path = "/test.Stuck/Unary".parse().unwrap();
    let status = gateway.unary(request, path, Raw).await.unwrap_err();
    let asked = stuck.asked.lock().unwrap()[0].unwrap();
    assert!(asked < 400 * MILLI, "{asked:?}");
    // Whoever is first to say so: our layer, the channel of tonic in its own words, or the server.
    assert_eq!(Verdict::of(&status), Verdict::TimedOut, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_accepts_and_never_answers_is_found_behind_a_deadline_shorter_than_its_timeout()
 {
    let breaker = CircuitBreakerLayer::consecutive(5, 10 * SECOND);
    let circuit = breaker.handle();
    let calls = Arc::new(AtomicU32::new(0));
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(20 * SECOND))
        .layer(breaker)
        .layer(AttemptTimeoutLayer::first_byte(30 * SECOND))
        .service(service_fn({
            let calls = calls.clone();
            move |_: Request<()>| {
                calls.fetch_add(1, Relaxed);
                pending::<Result<Response<Empty<Bytes>>, BoxError>>()
            }
        }));
    for _ in 0..5 {
        let Err(error) = service.clone().oneshot(Request::new(())).await else {
            panic!("answered");
        };
        let elapsed = Elapsed::find(&*error).unwrap();
        assert_eq!(
            (elapsed.limit, elapsed.after),
            (Limit::Deadline, 20 * SECOND)
        );
    }
    assert_eq!(circuit.snapshot().state, CircuitState::Open);
    let Err(error) = service.clone().oneshot(Request::new(())).await else {
        panic!("answered");
    };
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::CircuitOpen);
    assert_eq!(calls.load(Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_tonic_that_never_comes_is_judged_unsent() {
    let black_hole = service_fn(|_: http::Uri| pending::<Result<Io, std::io::Error>>());
    let connector = ConnectTimeoutLayer::new(2 * SECOND).layer(black_hole);
    let endpoint = Endpoint::from_static("http://[100::1]:1");
    let mut channel = endpoint.connect_with_connector_lazy(connector);
    let request = Request::new(Body::empty());
    std::future::poll_fn(|cx| channel.poll_ready(cx))
        .await
        .unwrap();
    let error: BoxError = channel.call(request).await.unwrap_err().into();
    assert_eq!(Elapsed::find(&*error).unwrap().limit, Limit::Connect);
    assert_eq!(Verdict::of(&*error), Verdict::Unsent);
}

type Io = hyper_util::rt::TokioIo<tokio::net::TcpStream>;
