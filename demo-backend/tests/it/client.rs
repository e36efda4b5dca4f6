//! A client that takes answers as they come.

use std::time::Duration;

use bytes::Bytes;
use demo_backend::MockBackend;
use http::{HeaderMap, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Long enough for the slowest machine; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Http = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn http1() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn http2() -> Http {
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http()
}

pub(crate) fn request(
    backend: &MockBackend,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("{}{path}", backend.url()))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(crate) async fn send(
    http: &Http,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Error> {
    tokio::time::timeout(PATIENCE, http.request(request))
        .await
        .expect("an answer in time")
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Whole {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> Whole {
    let (head, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .expect("an end in time");
    Whole {
        status: head.status,
        headers: head.headers,
        body: body.unwrap().to_bytes(),
    }
}

pub(crate) async fn ask(
    backend: &MockBackend,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Whole {
    let request = request(backend, method, path, body);
    whole(send(&http1(), request).await.unwrap()).await
}

pub(crate) async fn post(backend: &MockBackend, path: &str, body: impl Into<Bytes>) -> Whole {
    ask(backend, Method::POST, path, body).await
}

pub(crate) async fn get(backend: &MockBackend, path: &str) -> Whole {
    ask(backend, Method::GET, path, "").await
}

pub(crate) const GENERATE: &str = r#"{"prompt": "Why is the sky blue?"}"#;
pub(crate) const CHAT: &str =
    r#"{"model": "gpt-4o", "messages": [{"role": "user", "content": "Why?"}]}"#;
pub(crate) const CHAT_STREAM: &str =
    r#"{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "Why?"}]}"#;

pub(crate) fn stream_request(backend: &MockBackend) -> Request<Full<Bytes>> {
    request(backend, Method::POST, "/v1/chat/completions", CHAT_STREAM)
}

/// The data of each event.
pub(crate) fn events(text: &str) -> Vec<&str> {
    let events = text.split_terminator("\n\n");
    events
        .map(|event| event.strip_prefix("data: ").expect(event))
        .collect()
}
