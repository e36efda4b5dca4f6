//! What is answered on which path.

mod batch;
pub(crate) mod forward;
mod generate;
mod health;
mod input;
pub(crate) mod openai;
mod rate_limits;
mod status;
mod tokens;

use std::{any::Any, borrow::Cow, convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    extract::{FromRequest, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::ALLOW, request::Parts};
use http_body::Body;
use http_body_util::Either;
use hyper::body::Incoming;
use palisade::BoxError;
use percent_encoding::percent_decode_str;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer, ResponseForPanic};

pub(crate) use self::{
    input::{json, read},
    status::index,
};
use crate::{
    admin,
    app::App,
    body::Answer,
    dashboard,
    errors::{ApiError, Language},
    exchange::{Exchange, Operation, Waiting},
    headers::{self, REQUEST_ID},
    metrics::{Measured, Overhead},
    record::{Entry, Recorded, Recording},
    telemetry::spans,
};

/// What answers requests, shared by all connections.
pub(crate) type Routes = CatchPanic<Router, Panicked>;

/// Every path, and who answers it.
pub(crate) fn routes(app: Arc<App>) -> Routes {
    let router = Router::new()
        .route("/generate", post(generate::answer))
        .route("/generate/batch", post(batch::answer))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*model}", get(openai::models))
        .route(
            "/health",
            get(async |State(app): AppState| health::health(&app)),
        )
        .route("/livez", get(async || health::livez()))
        .route(
            "/readyz",
            get(async |State(app): AppState| health::readyz(&app)),
        )
        .route(
            "/metrics",
            get(async |State(app): AppState| status::metrics(&app)),
        )
        .route(
            "/status",
            get(async |State(app): AppState| status::status(&app)),
        )
        .route("/rate-limits/", get(rate_limits))
        .route("/rate-limits/{*identifier}", get(rate_limits))
        .merge(dashboard::routes())
        .merge(admin::routes(&app))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app);
    CatchPanicLayer::custom(Panicked).layer(router)
}

type AppState = State<Arc<App>>;

async fn chat(inbound: Inbound) -> Result<Answer, ApiError> {
    openai::answer(inbound, Operation::Chat).await
}

async fn completion(inbound: Inbound) -> Result<Answer, ApiError> {
    openai::answer(inbound, Operation::Completion).await
}

async fn embeddings(inbound: Inbound) -> Result<Answer, ApiError> {
    openai::answer(inbound, Operation::Embeddings).await
}

async fn rate_limits(inbound: Inbound) -> Result<Answer, ApiError> {
    rate_limits::answer(&inbound.app, &inbound.after("/rate-limits/")?).await
}

async fn not_found(inbound: Inbound) -> ApiError {
    let path = inbound.request.uri().path();
    // Nobody without the token learns what there is and what not.
    if path == "/admin" || path.starts_with("/admin/") {
        let authorized = admin::authorize(&inbound.app, inbound.request.headers());
        if let Err(unauthorized) = authorized {
            return unauthorized;
        }
    }
    ApiError::not_found(format!("there is no `{path}` here"))
}

/// Says that the method is wrong; whoever routes adds which are right, and [`answer`] tells it.
pub(crate) async fn wrong_method() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, Extension(WrongMethod))
}

/// Tells our own 405 from that of a backend.
#[derive(Clone, Copy)]
struct WrongMethod;

/// One request that panics is one answer of 500, and no connection that breaks.
#[derive(Clone, Copy)]
pub(crate) struct Panicked;

impl ResponseForPanic for Panicked {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send>) -> Response {
        tracing::error!("a request panicked");
        ApiError::internal().into_response()
    }
}

/// A request as the handlers get it.
pub(crate) struct Inbound {
    pub(crate) app: Arc<App>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) request: Request,
}

impl Inbound {
    /// The one segment after this prefix of the path, decoded.
    pub(crate) fn after(&self, prefix: &str) -> Result<Cow<'_, str>, ApiError> {
        let path = self.request.uri().path();
        segment(path.strip_prefix(prefix).unwrap_or_default())
    }
}

/// A request of somebody who may ask, with its body.
struct Asked {
    app: Arc<App>,
    entry: Arc<Entry>,
    exchange: Arc<Exchange>,
    parts: Parts,
    body: Bytes,
}

impl Inbound {
    /// Finds out who asks, refuses who has nothing left, and only then reads the body.
    ///
    /// `Ok(Err(_))` is the refusal of a limit, signed as all answers are.
    async fn enter(
        self,
        operation: Operation,
        path: &str,
    ) -> Result<Result<Asked, Box<Answer>>, ApiError> {
        let Self {
            app,
            entry,
            request,
        } = self;
        let (mut parts, body) = request.into_parts();
        let exchange = match identify(&app, &entry, &parts.headers, operation) {
            Ok(exchange) => exchange,
            Err((exchange, error)) => {
                input::discard(&parts.headers, body);
                return Err(forward::wrong(&app, &exchange, path, error));
            }
        };
        parts.extensions.insert(exchange.clone());
        if let Err(refused) = forward::peek(&app, &exchange, &parts, path) {
            input::discard(&parts.headers, body);
            return Ok(Err(refused));
        }
        let reading = Waiting::new(exchange.clone());
        let body = read(&app, &parts.headers, body).await;
        drop(reading);
        let body = body.map_err(|error| forward::wrong(&app, &exchange, path, error))?;
        Ok(Ok(Asked {
            app,
            entry,
            exchange,
            parts,
            body,
        }))
    }
}

/// Finds out who asks; whoever says who they are, and is not, is known by the address alone.
fn identify(
    app: &App,
    entry: &Entry,
    headers: &HeaderMap,
    operation: Operation,
) -> Result<Arc<Exchange>, (Arc<Exchange>, ApiError)> {
    let (caller, wrong) = match app.identities.find(entry.peer(), headers) {
        Ok(caller) => (caller, None),
        Err(error) => (app.identities.unknown(entry.peer(), headers), Some(error)),
    };
    let exchange = Arc::new(Exchange::new(Arc::new(caller), operation));
    entry.asks(&exchange);
    match wrong {
        None => Ok(exchange),
        Some(error) => Err((exchange, error)),
    }
}

impl FromRequest<Arc<App>> for Inbound {
    type Rejection = Infallible;

    async fn from_request(mut request: Request, app: &Arc<App>) -> Result<Self, Infallible> {
        let entry = request.extensions_mut().remove();
        Ok(Self {
            app: app.clone(),
            entry: entry.expect("put there by `answer`"),
            request,
        })
    }
}

/// Answers a request, errors in the words of its path, inside of its span.
pub(crate) async fn answer(
    app: Arc<App>,
    routes: Routes,
    peer: SocketAddr,
    mut request: http::Request<Incoming>,
) -> Result<http::Response<impl Body<Data = Bytes, Error: Into<BoxError>> + Send>, BoxError> {
    let id = headers::request_id(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let entry = Arc::new(Entry::new(id, peer, method, uri));
    request.extensions_mut().insert(entry.clone());
    let serve =
        service_fn(move |request| recorded(app.clone(), routes.clone(), entry.clone(), request));
    spans::requests().layer(serve).oneshot(request).await
}

async fn recorded(
    app: Arc<App>,
    routes: Routes,
    entry: Arc<Entry>,
    request: http::Request<Incoming>,
) -> Result<http::Response<impl Body<Data = Bytes, Error: Into<BoxError>> + Send>, Infallible> {
    let mut recording = Recording::new(entry.clone(), app.observers.clone());
    // Dropped first, so that the recording has what it measured.
    let mut overhead = Overhead::new(app.meters.clone(), entry.clone());
    let response = routes.oneshot(request).await?;
    let mut response = match error(&response) {
        None => response.map(Either::Left),
        Some(error) => {
            recording.failed(&error);
            let path = entry.uri().path();
            let mut response = error.answer(Language::of(path));
            if asks_backends(path) {
                forward::sign_unsent(response.headers_mut());
            }
            response.map(Either::Right)
        }
    };
    response
        .headers_mut()
        .insert(REQUEST_ID, entry.id().clone());
    recording.answered(response.status());
    overhead.answered(response.status());
    Ok(response.map(|body| Measured::new(Recorded::new(body, recording), overhead)))
}

/// What is to be told, if that is more than the response says.
fn error<B>(response: &http::Response<B>) -> Option<ApiError> {
    let said = response.extensions().get::<ApiError>().cloned();
    said.or_else(|| {
        response.extensions().get::<WrongMethod>()?;
        let allow = response.headers().get(ALLOW)?;
        Some(ApiError::method_not_allowed(allow.clone()))
    })
}

fn asks_backends(path: &str) -> bool {
    matches!(path, "/generate" | "/generate/batch") || Language::of(path) == Language::OpenAi
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
