//! A real provider answers.

use std::{error::Error, fmt, sync::atomic::Ordering::Relaxed};

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
    request::Parts,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use palisade_core::time;
use serde_json::json;

use crate::{
    api::{GenerateRequest, GenerateResponse, openai::Chat},
    errors::{self, Failure},
    instance::Instance,
    routes,
    ticket::Call,
};

#[cfg(feature = "tls")]
type Connector = hyper_rustls::HttpsConnector<HttpConnector>;
#[cfg(not(feature = "tls"))]
type Connector = HttpConnector;

/// The most of an answer that is read for `/generate`.
const ANSWER_LIMIT: usize = 16 << 20;

/// What concerns one connection only (RFC 9110, 7.6.1), and what the caller has no business to send or to get.
const STRIPPED: [HeaderName; 14] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    COOKIE,
    HOST,
    CONTENT_LENGTH,
];

/// A provider with OpenAI's API, and the key for it.
///
/// `/v1/...` is handed on as it is, `/generate` as a chat of one message. The caller's own credentials are not. Slots,
/// pace and lengths are the provider's; tokens are counted for `/generate` only, whose usage is read anyway.
///
/// ```
/// use demo_backend::Forward;
///
/// let forward = Forward::new("http://127.0.0.1:9000/v1", "sk-secret")?;
/// assert!(!format!("{forward:?}").contains("secret"));
/// assert!(Forward::new("127.0.0.1:9000", "sk-secret").is_err());
/// # Ok::<(), demo_backend::InvalidForward>(())
/// ```
#[derive(Clone)]
pub struct Forward {
    client: Client<Connector, Full<Bytes>>,
    /// Without a slash at the end.
    base: String,
    authorization: HeaderValue,
}

impl Forward {
    /// `base` is what `/chat/completions` is put behind, `https://api.openai.com/v1` for one.
    ///
    /// # Errors
    ///
    /// When `base` is no `http` URL (or `https`, with feature `tls`) with a host, or `key` cannot be part of a header.
    pub fn new(base: &str, key: &str) -> Result<Self, InvalidForward> {
        let base = base.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| InvalidForward::Base)?;
        let scheme = uri.scheme_str();
        let known = scheme == Some("http") || cfg!(feature = "tls") && scheme == Some("https");
        if !known || uri.host().is_none() || uri.query().is_some() {
            return Err(InvalidForward::Base);
        }
        let authorization = HeaderValue::try_from(format!("Bearer {key}"));
        let mut authorization = authorization.map_err(|_| InvalidForward::Key)?;
        if key.trim().is_empty() {
            return Err(InvalidForward::Key);
        }
        authorization.set_sensitive(true);
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector()),
            base: base.to_owned(),
            authorization,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>, Failure> {
        let uri: Uri = format!("{}{path}", self.base).parse().map_err(|_| {
            let detail = format!("the provider cannot be asked for {path}");
            Failure::new(StatusCode::BAD_REQUEST, "invalid_path", detail)
        })?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let authorization = self.authorization.clone();
        request.headers_mut().insert(AUTHORIZATION, authorization);
        let answer = self.client.request(request).await;
        // Its words name hosts and addresses.
        answer.map_err(|_| bad_gateway("the provider cannot be reached"))
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// Why a provider cannot be forwarded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidForward {
    /// The base is no URL that can be asked.
    Base,
    /// The key is empty, or cannot be part of a header.
    Key,
}

impl fmt::Display for InvalidForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base if cfg!(feature = "tls") => "the base is not http(s)://HOST[:PORT][/PATH]",
            Self::Base => "the base is not http://HOST[:PORT][/PATH]",
            Self::Key => "the key is empty or has characters that no header may have",
        })
    }
}

impl Error for InvalidForward {}

#[cfg(feature = "tls")]
fn connector() -> Connector {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.enforce_http(false);
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http)
}

#[cfg(not(feature = "tls"))]
fn connector() -> Connector {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http
}

/// The answer to a request to `/generate` or `/v1`.
pub(crate) async fn answer(
    forward: &Forward,
    instance: &Instance,
    parts: &Parts,
    call: &Call,
) -> Response<Body> {
    let path = parts.uri.path();
    let result = if path == "/generate" {
        generate(forward, instance, &parts.method, call).await
    } else {
        pass_on(forward, parts, call).await
    };
    result.unwrap_or_else(|failure| failure.answer(path))
}

async fn pass_on(forward: &Forward, parts: &Parts, call: &Call) -> Result<Response<Body>, Failure> {
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let mut headers = call.headers.clone();
    strip(&mut headers);
    // Compressed events would reach the client late, if at all.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let method = parts.method.clone();
    let answer = forward
        .send(method, path, headers, call.body.clone())
        .await?;
    let (mut head, body) = answer.into_parts();
    let length = head.headers.get(CONTENT_LENGTH).cloned();
    strip(&mut head.headers);
    if let Some(length) = length {
        head.headers.insert(CONTENT_LENGTH, length);
    }
    head.version = parts.version;
    Ok(Response::from_parts(head, Body::new(body)))
}

async fn generate(
    forward: &Forward,
    instance: &Instance,
    method: &Method,
    call: &Call,
) -> Result<Response<Body>, Failure> {
    if method != Method::POST {
        let detail = "/generate takes POST";
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Failure::new(status, "method_not_allowed", detail));
    }
    let request: GenerateRequest = routes::read(call)?;
    let mut chat = json!({
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    });
    if let Some(user) = request.user_id {
        chat["user"] = user.into();
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = Bytes::from(chat.to_string());
    let answer = forward
        .send(Method::POST, "/chat/completions", headers, body)
        .await?;
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        let detail = format!("the provider answered {}", head.status);
        // Not `strip`ped: only the delay and the status say something here.
        let mut response = Failure::new(head.status, "provider", detail).answer("/generate");
        if let Some(delay) = head.headers.get(RETRY_AFTER) {
            response.headers_mut().insert(RETRY_AFTER, delay.clone());
        }
        return Ok(response);
    }
    let body = Limited::new(body, ANSWER_LIMIT).collect().await;
    let body = body.map_err(|_| bad_gateway("the provider's answer broke off"))?;
    let chat = serde_json::from_slice::<Chat>(&body.to_bytes());
    let mut chat = chat.map_err(|_| bad_gateway("the provider's answer is no chat completion"))?;
    let text = chat
        .choices
        .pop()
        .and_then(|choice| choice.message?.content);
    let usage = chat.usage.unwrap_or_default();
    let tokens = usage.completion_tokens.unwrap_or_default();
    call.sent.store(tokens, Relaxed);
    instance.meters.tokens(tokens);
    let took = time::now().saturating_duration_since(call.at);
    Ok(errors::json(&GenerateResponse {
        response: text.unwrap_or_default(),
        backend_id: instance.id.clone(),
        processing_time_ms: routes::millis(took),
        tokens_used: usage.total_tokens,
        request_id: call.request_id.to_str().unwrap_or_default().to_owned(),
    }))
}

fn bad_gateway(detail: &'static str) -> Failure {
    Failure::new(StatusCode::BAD_GATEWAY, "bad_gateway", detail)
}

fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter();
    let named: Vec<HeaderName> = named
        .filter_map(|names| names.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&STRIPPED) {
        headers.remove(name);
    }
}
