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
use http::{HeaderValue, StatusCode, header::ALLOW, request::Parts};
use http_body::Body;
use http_body_util::Either;
use hyper::body::Incoming;
use palisade::BoxError;
use percent_encoding::percent_decode_str;
use tower::{Layer, ServiceExt};
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer, ResponseForPanic};

pub(crate) use self::input::{json, read};
use crate::{
    admin,
    app::App,
    body::Answer,
    errors::{ApiError, Language},
    exchange::{Exchange, Operation},
    headers::{self, REQUEST_ID},
};

/// What answers requests, shared by all connections.
pub(crate) type Routes = CatchPanic<Router, Panicked>;

/// Every path, and who answers it.
pub(crate) fn routes(app: Arc<App>) -> Routes {
    let router = Router::new()
        .route("/", get(async || status::index()))
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
    pub(crate) peer: SocketAddr,
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
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
    id: HeaderValue,
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
            peer,
            id,
            request,
        } = self;
        let (mut parts, body) = request.into_parts();
        let caller = match app.identities.find(peer, &parts.headers) {
            Ok(caller) => Arc::new(caller),
            Err(error) => {
                input::discard(&parts.headers, body);
                let caller = app.identities.unknown(peer, &parts.headers);
                let exchange = Arc::new(Exchange::new(Arc::new(caller), operation));
                return Err(forward::wrong(&app, &exchange, path, error));
            }
        };
        let exchange = Arc::new(Exchange::new(caller, operation));
        parts.extensions.insert(exchange.clone());
        if let Err(refused) = forward::peek(&app, &exchange, &parts, path) {
            input::discard(&parts.headers, body);
            return Ok(Err(refused));
        }
        let body = read(&app, &parts.headers, body).await;
        let body = body.map_err(|error| forward::wrong(&app, &exchange, path, error))?;
        Ok(Ok(Asked {
            app,
            id,
            exchange,
            parts,
            body,
        }))
    }
}

/// What is known of a request before it is routed.
#[derive(Clone)]
struct Arrival {
    peer: SocketAddr,
    id: HeaderValue,
}

impl FromRequest<Arc<App>> for Inbound {
    type Rejection = Infallible;

    async fn from_request(mut request: Request, app: &Arc<App>) -> Result<Self, Infallible> {
        let arrival = request.extensions_mut().remove();
        let Arrival { peer, id } = arrival.expect("put there by `answer`");
        let app = app.clone();
        Ok(Self {
            app,
            peer,
            id,
            request,
        })
    }
}

/// Answers a request, errors in the words of its path.
pub(crate) async fn answer(
    routes: Routes,
    peer: SocketAddr,
    mut request: http::Request<Incoming>,
) -> http::Response<impl Body<Data = Bytes, Error: Into<BoxError>> + Send> {
    let id = headers::request_id(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let arrival = Arrival {
        peer,
        id: id.clone(),
    };
    request.extensions_mut().insert(arrival);
    let Ok(response) = routes.oneshot(request).await;
    let mut response = match error(&response) {
        None => response.map(Either::Left),
        Some(error) => {
            let mut response = error.answer(Language::of(uri.path()));
            if asks_backends(uri.path()) {
                forward::sign_unsent(response.headers_mut());
            }
            response.map(Either::Right)
        }
    };
    tracing::debug!(%peer, %method, path = shown(uri.path()), ?id, status = response.status().as_u16(), "answered");
    response.headers_mut().insert(REQUEST_ID, id);
    response
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

/// A path as it may stand in a log: without an identifier, for which somebody may have put a raw key.
fn shown(path: &str) -> &str {
    for prefix in ["/rate-limits/", "/admin/reset-rate-limit/"] {
        if path.starts_with(prefix) {
            return prefix;
        }
    }
    path
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
