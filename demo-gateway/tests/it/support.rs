//! A gateway, backends, and a client that hides nothing.

use std::time::Duration;

use bytes::Bytes;
use demo_backend::{MockBackend, Seen};
use demo_gateway::{
    Config, Gateway,
    config::{Backend, Strategy, Switch},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const TOKEN: &str = "the-admin-token";
pub(crate) const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
pub(crate) const CHAT_STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
pub(crate) const PROMPT: &str = r#"{"prompt":"hi"}"#;

/// A configuration for these backends, without limits.
pub(crate) fn config(backends: &[&MockBackend]) -> Config {
    let backends = backends.iter().zip('a'..);
    let backends = backends.map(|(backend, id)| Backend {
        id: Some(id.to_string()),
        ..Backend::new(backend.url())
    });
    Config {
        listen: "127.0.0.1:0".into(),
        admin_token: Some(TOKEN.into()),
        rate_limit: Switch::Off,
        // Takes turns, whatever it has measured of whom.
        strategy: Strategy::RoundRobin,
        // No check gets in the way of what a test is about.
        health_interval: Duration::from_secs(3600),
        backends: backends.collect(),
        ..Config::default()
    }
}

/// The same with what this file says about limits and callers.
pub(crate) fn limited(backends: &[&MockBackend], toml: &str) -> Config {
    let read = demo_gateway::config::parse(toml);
    let read = read.unwrap_or_else(|faults| panic!("{faults:#?}"));
    Config {
        rate_limit: Switch::Default,
        rate_limits: read.rate_limits,
        wait_up_to: read.wait_up_to,
        waiting: read.waiting,
        prices: read.prices,
        redis: read.redis,
        identity: read.identity,
        ..config(backends)
    }
}

pub(crate) async fn start(config: Config) -> Gateway {
    Gateway::start(config).await.unwrap()
}

/// What a backend was asked for; a health check may come at any time.
pub(crate) fn asked(backend: &MockBackend) -> Vec<Seen> {
    let mut seen = backend.seen();
    seen.retain(|seen| seen.path != "/health");
    seen
}

/// A fast backend.
pub(crate) async fn backend() -> MockBackend {
    MockBackend::builder()
        .first_token(Duration::ZERO)
        .tokens_per_second(0.0)
        .start()
        .await
        .unwrap()
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) fn client() -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

pub(crate) fn request(gateway: &Gateway, method: Method, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("{}{path}", gateway.url()))
}

/// Sends a request, and reads the head of the answer.
pub(crate) async fn open(request: Request<Full<Bytes>>) -> Response<Incoming> {
    client().request(request).await.unwrap()
}

pub(crate) async fn send(request: Request<Full<Bytes>>) -> Reply {
    let (parts, body) = open(request).await.into_parts();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

pub(crate) fn posting(gateway: &Gateway, path: &str, body: &str) -> Request<Full<Bytes>> {
    request(gateway, Method::POST, path)
        .header("content-type", "application/json")
        .body(Full::from(body.to_owned()))
        .unwrap()
}

pub(crate) async fn post(gateway: &Gateway, path: &str, body: &str) -> Reply {
    send(posting(gateway, path, body)).await
}

pub(crate) async fn post_with(
    gateway: &Gateway,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Reply {
    let mut request = posting(gateway, path, body);
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    send(request).await
}

pub(crate) async fn get(gateway: &Gateway, path: &str) -> Reply {
    let request = request(gateway, Method::GET, path);
    send(request.body(Full::default()).unwrap()).await
}

pub(crate) async fn admin(gateway: &Gateway, method: Method, path: &str, body: &str) -> Reply {
    let request = request(gateway, method, path)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .body(Full::from(body.to_owned()));
    send(request.unwrap()).await
}

/// How somebody stands with a rule.
pub(crate) async fn standing(gateway: &Gateway, identifier: &str, rule: &str) -> Value {
    let all = get(gateway, &format!("/rate-limits/{identifier}")).await;
    all.json()[rule].take()
}

/// What of a rule is left to somebody.
pub(crate) async fn left(gateway: &Gateway, identifier: &str, rule: &str) -> f64 {
    let standing = standing(gateway, identifier, rule).await;
    let remaining = standing["remaining"].as_f64();
    remaining.unwrap_or_else(|| panic!("{rule}: {standing}"))
}

/// What comes back for bytes that no client library would send.
pub(crate) async fn raw(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is fine.
    let _end = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Looks again until it holds; a test that never gets there fails by its own message.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let patience = Duration::from_secs(20);
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(patience, waiting).await;
    assert!(waited.is_ok(), "never: {what}");
}

/// The value of a line of the metrics page that begins so.
pub(crate) async fn metric(gateway: &Gateway, line: &str) -> f64 {
    let page = get(gateway, "/metrics").await.text();
    let found = page.lines().find_map(|text| text.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().unwrap())
}
