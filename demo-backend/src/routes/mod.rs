//! Which path is answered by what.

mod completions;
mod embeddings;
mod manage;
mod models;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    routing::{get, post},
};
use http::{HeaderValue, Method, Response, StatusCode, Uri, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;

use crate::{
    errors::{self, Failure},
    instance::Instance,
    ticket::Call,
};

/// What `Extension` hands to a handler.
type ThisCall = Extension<Arc<Call>>;

pub(crate) fn router(instance: Arc<Instance>) -> Router {
    Router::new()
        .route("/generate", post(completions::generate))
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::completion))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/health", get(manage::health))
        .route("/load", get(manage::load))
        .route("/metrics", get(manage::metrics))
        .route(
            "/chaos",
            get(manage::chaos)
                .post(manage::set_chaos)
                .delete(manage::clear_chaos),
        )
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(instance)
}

async fn unknown(method: Method, uri: Uri) -> Response<Body> {
    let path = uri.path();
    let detail = format!(
        "there is no {method} {path}; there are POST /generate, /v1/chat/completions, /v1/completions and /v1/embeddings, \
         GET /v1/models, /health, /load and /metrics, and /chaos"
    );
    Failure::new(StatusCode::NOT_FOUND, "not_found", detail).answer(path)
}

async fn wrong_method(method: Method, uri: Uri) -> Response<Body> {
    let path = uri.path();
    let detail = format!("{path} does not take {method}; the header `allow` says what it takes");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Failure::new(status, "method_not_allowed", detail).answer(path)
}

/// The JSON of a request, if that is what it says it is.
pub(crate) fn read<T: DeserializeOwned>(call: &Call) -> Result<T, Failure> {
    let kind = call.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if let Some(kind) = kind
        && !is_json(kind)
    {
        let kind = String::from_utf8_lossy(kind);
        let detail = format!("content-type: {kind:?} is not application/json");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Failure::new(status, "unsupported_media_type", detail));
    }
    errors::read(&call.body)
}

fn is_json(kind: &[u8]) -> bool {
    let end = kind.iter().position(|byte| *byte == b';');
    let kind = kind[..end.unwrap_or(kind.len())].trim_ascii();
    kind.eq_ignore_ascii_case(b"application/json")
        || kind.len() > 5 && kind[kind.len() - 5..].eq_ignore_ascii_case(b"+json")
}

/// To the microsecond.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn answer(result: Result<Response<Body>, Failure>, path: &str) -> Response<Body> {
    result.unwrap_or_else(|failure| failure.answer(path))
}
