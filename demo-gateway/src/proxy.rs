//! One attempt at one backend.
//!
//! An answer that is not a stream is read to its end, and its JSON to its last brace, as part of the attempt: so one
//! that is cut short or garbled counts against the backend and can be retried, instead of reaching the caller.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
    response::Parts,
    uri::{Authority, PathAndQuery, Scheme, Uri},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Collected, Full, Limited, combinators::Collect};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use palisade::{
    BoxError,
    classify::Usage,
    deadline::{Deadline, TimeoutHeader},
    time,
};
use pin_project::pin_project;
use serde::Deserialize;
use tower::Service;

use crate::{
    backends::Backend,
    exchange::{Exchange, Generated, Operation, Waiting},
    headers::{BACKEND_ID, LIMIT, POLICY},
    workers,
};

/// A plain answer that is longer is passed on as it comes, or refused where it has to be read.
const LONGEST_PLAIN: usize = 4 * 1024 * 1024;

/// A backend in the same network answers in milliseconds or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Shorter than the idle time-outs that are usual in servers, the shortest of which is 5 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Sends requests to one backend, over connections of its own.
pub(crate) struct Upstream<B> {
    /// One for each worker, and one for all other threads.
    clients: Arc<[Client<HttpConnector, B>]>,
    backend: Arc<Backend>,
    /// In which it is told how long the caller still waits.
    told: TimeoutHeader,
}

impl<B> Upstream<B>
where
    B: Body<Data: Send> + Send,
{
    pub(crate) fn new(backend: Arc<Backend>, told: TimeoutHeader, workers: usize) -> Self {
        let clients = (0..=workers).map(|_| client()).collect();
        Self {
            clients,
            backend,
            told,
        }
    }
}

impl<B> Clone for Upstream<B> {
    fn clone(&self) -> Self {
        Self {
            clients: self.clients.clone(),
            backend: self.backend.clone(),
            told: self.told.clone(),
        }
    }
}

impl<B> fmt::Debug for Upstream<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.backend.id).finish()
    }
}

impl<B> Service<Request<B>> for Upstream<B>
where
    B: Body<Data: Send> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UpstreamBody>;
    type Error = BoxError;
    type Future = Attempt;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Attempt {
        let exchange = request.extensions_mut().remove::<Arc<Exchange>>();
        let deadline = request.extensions_mut().remove::<Deadline>();
        // The rest is for the layers only.
        request.extensions_mut().clear();
        let waiting = exchange.map(|exchange| {
            exchange.reached(self.backend.clone());
            Waiting::new(exchange)
        });
        *request.uri_mut() = self.backend.address.at(request.uri());
        let headers = request.headers_mut();
        if let Some(deadline) = deadline {
            self.told.write(headers, deadline.remaining(time::now()));
        }
        headers.insert(HOST, self.backend.address.host.clone());
        if let Some(key) = &self.backend.authorization {
            headers.insert(AUTHORIZATION, key.clone());
        }
        let client = &self.clients[workers::number() % self.clients.len()];
        Attempt {
            step: Step::Head {
                answer: client.request(request),
            },
            waiting,
            backend: self.backend.clone(),
        }
    }
}

/// Where a backend is.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    base: Uri,
    host: HeaderValue,
}

impl Address {
    pub(crate) fn new(base: Uri) -> Option<Self> {
        let host = HeaderValue::from_str(base.authority()?.as_str()).ok()?;
        Some(Self { base, host })
    }

    /// The host, and the port if it is said.
    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.base.authority()
    }

    /// Where to connect to.
    pub(crate) fn host_and_port(&self) -> String {
        let host = self.base.host().unwrap_or_default();
        let port = self.base.port_u16().unwrap_or(80);
        format!("{host}:{port}")
    }

    /// The path and query of another, here.
    pub(crate) fn at(&self, target: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = self.base.authority().cloned();
        let path = target.path_and_query();
        parts.path_and_query = match self.base.path().trim_end_matches('/') {
            "" => path.cloned(),
            prefix => {
                let path = path.map_or("/", PathAndQuery::as_str);
                format!("{prefix}{path}").parse().ok()
            }
        };
        Uri::from_parts(parts).unwrap_or_else(|_| self.base.clone())
    }
}

/// The future of [`Upstream`].
#[pin_project]
pub(crate) struct Attempt {
    #[pin]
    step: Step,
    waiting: Option<Waiting>,
    backend: Arc<Backend>,
}

#[pin_project(project = StepProj)]
#[allow(
    clippy::large_enum_variant,
    reason = "a box would be one more allocation for each attempt"
)]
enum Step {
    Head {
        answer: legacy::ResponseFuture,
    },
    Body {
        parts: Option<Parts>,
        #[pin]
        body: Collect<Limited<Incoming>>,
    },
}

impl Future for Attempt {
    type Output = Result<Response<UpstreamBody>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.step.as_mut().project() {
                StepProj::Head { answer } => {
                    let response = ready!(Pin::new(answer).poll(cx))?;
                    let (mut parts, body) = response.into_parts();
                    parts.headers.insert(BACKEND_ID, this.backend.name.clone());
                    if let Some(waiting) = this.waiting.as_ref() {
                        // Of two that were asked, this one answers.
                        waiting.exchange().reached(this.backend.clone());
                    }
                    // What it says of its own limits is not about those of the caller.
                    for name in [LIMIT, POLICY] {
                        parts.headers.remove(name);
                    }
                    let operation = this.waiting.as_ref().map(|it| it.exchange().operation);
                    if !is_plain(&parts, &body, operation) {
                        let waiting = this.waiting.take();
                        let body = UpstreamBody::Stream { body, waiting };
                        return Poll::Ready(Ok(Response::from_parts(parts, body)));
                    }
                    this.step.set(Step::Body {
                        parts: Some(parts),
                        body: Limited::new(body, LONGEST_PLAIN).collect(),
                    });
                }
                StepProj::Body { parts, body } => {
                    let body = ready!(body.poll(cx)).map(Collected::to_bytes)?;
                    let parts = parts.take().expect("polled after completion");
                    if let Some(waiting) = this.waiting.take() {
                        read(waiting.exchange(), &parts, &body)?;
                    }
                    let body = UpstreamBody::Plain(Full::new(body));
                    return Poll::Ready(Ok(Response::from_parts(parts, body)));
                }
            }
        }
    }
}

/// Whether an answer is read as a whole: a stream is not, even one that tells its length, and one to `/generate` always,
/// as it is told in other words.
fn is_plain(parts: &Parts, body: &Incoming, operation: Option<Operation>) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_stream = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
    let length = body.size_hint().exact();
    let is_short = length.is_some_and(|length| length <= LONGEST_PLAIN as u64);
    !is_stream && (is_short || operation == Some(Operation::Generate))
}

/// Reads what the gateway itself wants to know of a plain answer.
fn read(exchange: &Exchange, parts: &Parts, body: &Bytes) -> Result<(), Malformed> {
    if !parts.status.is_success() || parts.status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    if exchange.operation == Operation::Generate {
        let answer: GenerateAnswer = serde_json::from_slice(body).map_err(Malformed)?;
        exchange.used(exchange.divide(answer.tokens_used));
        exchange.generated(Generated {
            response: answer.response,
            tokens_used: answer.tokens_used,
        });
    } else if is_json(parts) {
        let answer: OpenAiAnswer = serde_json::from_slice(body).map_err(Malformed)?;
        if let Some(tokens) = answer.usage {
            exchange.used(Usage {
                prompt: tokens.prompt_tokens,
                completion: tokens.completion_tokens,
            });
        }
    }
    Ok(())
}

fn is_json(parts: &Parts) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/json"))
}

#[derive(Deserialize)]
struct GenerateAnswer {
    #[serde(alias = "text")]
    response: String,
    #[serde(default)]
    tokens_used: u64,
}

#[derive(Deserialize)]
struct OpenAiAnswer {
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// A backend answered something that is not what was asked for.
#[derive(Debug)]
pub(crate) struct Malformed(serde_json::Error);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the backend's answer cannot be read")
    }
}

impl Error for Malformed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// The body of an answer, still to come or already here.
#[pin_project(project = UpstreamBodyProj)]
pub(crate) enum UpstreamBody {
    Plain(#[pin] Full<Bytes>),
    Stream {
        #[pin]
        body: Incoming,
        /// Until the first frame.
        waiting: Option<Waiting>,
    },
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            UpstreamBodyProj::Plain(body) => body
                .poll_frame(cx)
                .map_err(|never: std::convert::Infallible| match never {}),
            UpstreamBodyProj::Stream { body, waiting } => {
                let frame = ready!(body.poll_frame(cx));
                *waiting = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

/// Asks a backend how it is, over connections that requests do not use.
#[derive(Clone, Debug)]
pub(crate) struct Asking<B> {
    client: Client<HttpConnector, B>,
    backend: Arc<Backend>,
}

/// The connections for that.
#[derive(Clone, Debug)]
pub(crate) struct Connections<B>(Client<HttpConnector, B>);

impl<B> Connections<B>
where
    B: Body<Data: Send> + Send,
{
    pub(crate) fn new() -> Self {
        Self(client())
    }

    /// Of HTTP/2 without TLS, which the backend has to know of.
    pub(crate) fn http2() -> Self {
        Self(builder().http2_only(true).build(connector()))
    }

    pub(crate) fn to(&self, backend: Arc<Backend>) -> Asking<B> {
        Asking {
            client: self.0.clone(),
            backend,
        }
    }
}

impl<B> Service<Request<B>> for Asking<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = legacy::ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), legacy::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        *request.uri_mut() = self.backend.address.at(request.uri());
        if request.version() != Version::HTTP_2 {
            let host = self.backend.address.host.clone();
            request.headers_mut().insert(HOST, host);
        }
        if let Some(key) = &self.backend.authorization {
            request.headers_mut().insert(AUTHORIZATION, key.clone());
        }
        self.client.request(request)
    }
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: Body<Data: Send> + Send,
{
    builder().build(connector())
}

fn builder() -> legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        // Attempts are counted in one place.
        .retry_canceled_requests(false);
    builder
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_below_the_path_of_the_backend() {
        let at = |base: &'static str, target: &'static str| {
            let address = Address::new(Uri::from_static(base)).unwrap();
            address.at(&Uri::from_static(target)).to_string()
        };
        assert_eq!(at("http://a:1", "/generate"), "http://a:1/generate");
        assert_eq!(
            at("http://a:1/", "/v1/models?x=1"),
            "http://a:1/v1/models?x=1"
        );
        assert_eq!(
            at("http://a:1/llm/", "/v1/models"),
            "http://a:1/llm/v1/models"
        );
        assert_eq!(
            at("http://a:1", "http://evil/generate"),
            "http://a:1/generate"
        );
    }

    #[test]
    fn the_usage_of_a_plain_answer_is_read_and_garbage_is_not() {
        let read =
            |text: &str| serde_json::from_str::<OpenAiAnswer>(text).map(|answer| answer.usage);
        let text = r#"{"choices":[{"x":{}}],"usage":{"prompt_tokens":3,"completion_tokens":4,"details":{}}}"#;
        let tokens = read(text).unwrap().unwrap();
        assert_eq!((tokens.prompt_tokens, tokens.completion_tokens), (3, 4));
        assert!(read("{\"data\":[]}").unwrap().is_none());
        assert!(read("{\"data\":[").is_err());
        assert!(read("<html>").is_err());
    }
}
