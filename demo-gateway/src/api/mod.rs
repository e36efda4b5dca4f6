//! What is answered on which path.
//!
//! Matched by hand: the few paths that carry the load would each be boxed twice by a router, and here 404, 405 and
//! the admin token are decided in one place.

mod batch;
pub(crate) mod forward;
mod generate;
mod health;
mod input;
pub(crate) mod openai;
mod rate_limits;
mod status;

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use http::{HeaderValue, Method, Request};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

pub(crate) use self::input::{json, read};
use crate::{
    admin,
    app::App,
    body::{self, Answer},
    errors::{ApiError, Language},
    exchange::Operation,
    headers::{self, REQUEST_ID},
};

/// A request as the handlers get it.
pub(crate) struct Inbound {
    pub(crate) app: Arc<App>,
    pub(crate) peer: SocketAddr,
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
    pub(crate) request: Request<Incoming>,
}

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
    let id = headers::request_id(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let inbound = Inbound {
        app,
        peer,
        id: id.clone(),
        request,
    };
    let mut answer = match route(inbound).await {
        Ok(answer) => answer,
        Err(error) => {
            let mut answer = body::full(error.answer(Language::of(uri.path())));
            if asks_backends(uri.path()) {
                forward::sign_unsent(answer.headers_mut());
            }
            answer
        }
    };
    tracing::debug!(%peer, %method, path = uri.path(), ?id, status = answer.status().as_u16(), "answered");
    answer.headers_mut().insert(REQUEST_ID, id);
    answer
}

fn asks_backends(path: &str) -> bool {
    matches!(path, "/generate" | "/generate/batch") || Language::of(path) == Language::OpenAi
}

async fn route(inbound: Inbound) -> Result<Answer, ApiError> {
    let (method, uri) = (
        inbound.request.method().clone(),
        inbound.request.uri().clone(),
    );
    let path = uri.path();
    let post = || allow(&method, &[Method::POST], "POST");
    let get = || allow(&method, &[Method::GET, Method::HEAD], "GET, HEAD");
    match path {
        "/generate" => {
            post()?;
            generate::answer(inbound).await
        }
        "/generate/batch" => {
            post()?;
            batch::answer(inbound).await
        }
        "/v1/chat/completions" => {
            post()?;
            openai::answer(inbound, Operation::Chat).await
        }
        "/v1/completions" => {
            post()?;
            openai::answer(inbound, Operation::Completion).await
        }
        "/v1/embeddings" => {
            post()?;
            openai::answer(inbound, Operation::Embeddings).await
        }
        "/v1/models" => {
            get()?;
            openai::models(inbound).await
        }
        "/health" => {
            get()?;
            Ok(health::health(&inbound.app))
        }
        "/livez" => {
            get()?;
            Ok(health::livez())
        }
        "/readyz" => {
            get()?;
            health::readyz(&inbound.app)
        }
        "/metrics" => {
            get()?;
            status::metrics(&inbound.app)
        }
        "/status" => {
            get()?;
            Ok(status::status(&inbound.app))
        }
        "/" => {
            get()?;
            Ok(status::index())
        }
        _ if path == "/admin" || path.starts_with("/admin/") => admin::answer(inbound).await,
        _ => {
            if let Some(identifier) = path.strip_prefix("/rate-limits/") {
                get()?;
                let identifier = segment(identifier)?;
                return rate_limits::answer(&inbound.app, &identifier);
            }
            if path.starts_with("/v1/models/") {
                get()?;
                return openai::models(inbound).await;
            }
            Err(ApiError::not_found(format!("there is no `{path}` here")))
        }
    }
}

/// Only these methods.
pub(crate) fn allow(
    method: &Method,
    allowed: &[Method],
    list: &'static str,
) -> Result<(), ApiError> {
    if allowed.contains(method) {
        Ok(())
    } else {
        Err(ApiError::method_not_allowed(list))
    }
}

/// One segment of a path, decoded.
pub(crate) fn segment(text: &str) -> Result<Cow<'_, str>, ApiError> {
    let decoded = percent_decode_str(text).decode_utf8();
    match decoded {
        Ok(text) if text.is_empty() => Err(ApiError::bad_request("the path ends too early")),
        Ok(text) if text.chars().any(char::is_control) => Err(ApiError::bad_request(
            "the path has control characters in it",
        )),
        Ok(text) => Ok(text),
        Err(_) => Err(ApiError::bad_request("the path is not UTF-8")),
    }
}
