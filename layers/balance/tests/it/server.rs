//! A real server on the loopback, which is told what to do and says what it has seen.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Channel, Full, channel::Sender, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use palisade_balance::Client;
use palisade_core::BoxError;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tower::ServiceExt;

pub(crate) type TestClient = Client<Full<Bytes>>;
pub(crate) type Answered = Response<BoxBody<Bytes, BoxError>>;
type Answers = dyn Fn(&Seen) -> Pin<Box<dyn Future<Output = Answered> + Send>> + Send + Sync;
#[cfg(feature = "hyper-tls")]
pub(crate) type Acceptor = tokio_rustls::TlsAcceptor;
#[cfg(not(feature = "hyper-tls"))]
pub(crate) type Acceptor = Infallible;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    counts: watch::Sender<Counts>,
    seen: Mutex<Vec<Seen>>,
    answers: Mutex<Arc<Answers>>,
    held: Mutex<Vec<Sender<Bytes, BoxError>>>,
    acceptor: Option<Acceptor>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) accepted: usize,
    pub(crate) open: usize,
    pub(crate) most: usize,
    pub(crate) requests: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

impl Server {
    /// Answers 200 with `ok`.
    pub(crate) async fn start() -> Self {
        Self::with(([127, 0, 0, 1], 0).into(), None).await
    }

    #[cfg(feature = "hyper-tls")]
    pub(crate) async fn with_tls(acceptor: Acceptor) -> Self {
        Self::with(([127, 0, 0, 1], 0).into(), Some(acceptor)).await
    }

    async fn with(address: SocketAddr, acceptor: Option<Acceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            counts: watch::Sender::default(),
            seen: Mutex::default(),
            answers: Mutex::new(Arc::new(|_| Box::pin(async { plain(200, "ok") }))),
            held: Mutex::default(),
            acceptor,
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> TestClient {
        Client::new(self.url()).unwrap()
    }

    /// Closes its port and all its connections.
    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.task.abort();
        (&mut self.task).await.unwrap_err();
        self.address
    }

    pub(crate) async fn again(address: SocketAddr) -> Self {
        Self::with(address, None).await
    }

    pub(crate) fn answer(&self, answers: impl Fn(&Seen) -> Answered + Send + Sync + 'static) {
        *self.shared.answers.lock().unwrap() = Arc::new(move |seen| {
            let answer = answers(seen);
            Box::pin(async { answer })
        });
    }

    /// Takes requests, and never answers.
    pub(crate) fn keep_silent(&self) {
        *self.shared.answers.lock().unwrap() = Arc::new(|_| Box::pin(pending()));
    }

    /// Answers with a head and a first piece, and with the rest when it is told to.
    pub(crate) fn hold(&self) {
        let shared = Arc::downgrade(&self.shared);
        self.answer(move |_| {
            let (mut sender, body) = Channel::new(2);
            sender
                .try_send(http_body::Frame::data(Bytes::from("first")))
                .unwrap();
            shared.upgrade().unwrap().held.lock().unwrap().push(sender);
            Response::new(body.boxed())
        });
    }

    pub(crate) fn release(&self) {
        self.shared.held.lock().unwrap().clear();
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    pub(crate) async fn until(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        *counts.wait_for(wanted).await.unwrap()
    }

    pub(crate) fn last(&self) -> Seen {
        self.shared.seen.lock().unwrap().last().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        connections.spawn(connection(stream, Open::new(shared.clone())));
    }
}

async fn connection(stream: TcpStream, open: Open) {
    match &open.0.acceptor {
        None => serve(stream, &open.0).await,
        #[cfg(feature = "hyper-tls")]
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, &open.0).await;
            }
        }
        #[cfg(not(feature = "hyper-tls"))]
        Some(never) => match *never {},
    }
}

async fn serve<T>(stream: T, shared: &Arc<Shared>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let shared = shared.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let seen = Seen {
            method: head.method,
            uri: head.uri,
            version: head.version,
            headers: head.headers,
        };
        shared.seen.lock().unwrap().push(seen.clone());
        let answer = shared.answers.lock().unwrap()(&seen);
        shared.counts.send_modify(|counts| counts.requests += 1);
        async move {
            body.collect().await.ok();
            Ok::<_, Infallible>(answer.await)
        }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.counts.send_modify(|counts| {
            counts.accepted += 1;
            counts.open += 1;
            counts.most = counts.most.max(counts.open);
        });
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.open -= 1);
    }
}

pub(crate) fn plain(status: u16, text: &'static str) -> Answered {
    let body = Full::new(Bytes::from(text));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status.try_into().unwrap();
    response
}

/// Nobody listens there.
pub(crate) async fn dead() -> SocketAddr {
    Server::start().await.stop().await
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}

pub(crate) async fn send(client: &TestClient) -> Result<Bytes, BoxError> {
    let response = client.clone().oneshot(get("/")).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

/// Lets everything else go on until it is so.
pub(crate) async fn until(mut is: impl FnMut() -> bool) {
    while !is() {
        tokio::task::yield_now().await;
    }
}
