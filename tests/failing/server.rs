//! A real server of gRPC that answers as it is told, and remembers what it was asked.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, pending, ready},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use palisade_core::testing::Raw;
use tokio::net::TcpListener;
use tonic::{
    Status,
    body::Body,
    server::{NamedService, ServerStreamingService, UnaryService},
    transport::server::{Router, TcpIncoming},
};
use tower::Service;

/// What a call is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// One message.
    Message(&'static str),
    /// No message, but this.
    Status(Status),
    /// These messages, and then the status, in the trailers; or never an end.
    Stream(&'static [&'static str], Option<Status>),
    /// Nothing, ever.
    Silence,
}

/// A server on a free port of loopback, which ends with the test's runtime.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    script: Script,
}

#[derive(Clone, Debug, Default)]
struct Script(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    replies: VecDeque<Reply>,
    seen: Vec<HeaderMap>,
}

impl Server {
    /// Answers with these, one after the other, and then with the last of them.
    pub(crate) async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let script = Script::default();
        script.0.lock().unwrap().replies = replies.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router: Router = tonic::transport::Server::builder().add_service(script.clone());
        tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        Self { address, script }
    }

    /// The metadata of each call so far.
    pub(crate) fn seen(&self) -> Vec<HeaderMap> {
        self.script.0.lock().unwrap().seen.clone()
    }
}

impl Script {
    fn next(&self, headers: &HeaderMap) -> Reply {
        let mut shared = self.0.lock().unwrap();
        shared.seen.push(headers.clone());
        match shared.replies.len() {
            1 => shared.replies[0].clone(),
            _ => shared.replies.pop_front().expect("a reply is left"),
        }
    }
}

impl NamedService for Script {
    const NAME: &'static str = "test.Script";
}

impl Service<Request<Body>> for Script {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reply = self.next(request.headers());
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match reply {
                Reply::Silence => pending().await,
                Reply::Message(text) => grpc.unary(Message(Ok(text)), request).await,
                Reply::Status(status) => grpc.unary(Message(Err(status)), request).await,
                Reply::Stream(messages, end) => {
                    grpc.server_streaming(Messages(messages, end), request)
                        .await
                }
            })
        })
    }
}

struct Message(Result<&'static str, Status>);

impl UnaryService<Bytes> for Message {
    type Response = Bytes;
    type Future = Ready<Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        ready(
            self.0
                .clone()
                .map(|text| tonic::Response::new(Bytes::from_static(text.as_bytes()))),
        )
    }
}

struct Messages(&'static [&'static str], Option<Status>);

impl ServerStreamingService<Bytes> for Messages {
    type Response = Bytes;
    type ResponseStream = Told;
    type Future = Ready<Result<tonic::Response<Told>, Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let messages = self.0.iter();
        let end = self.1.take();
        ready(Ok(tonic::Response::new(Told { messages, end })))
    }
}

/// A stream of messages.
struct Told {
    messages: std::slice::Iter<'static, &'static str>,
    end: Option<Status>,
}

impl tokio_stream::Stream for Told {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(text) = self.messages.next() {
            return Poll::Ready(Some(Ok(Bytes::from_static(text.as_bytes()))));
        }
        match self.end.take() {
            Some(status) if status.code() == tonic::Code::Ok => Poll::Ready(None),
            Some(status) => Poll::Ready(Some(Err(status))),
            // The test is about who ends it.
            None => Poll::Pending,
        }
    }
}
