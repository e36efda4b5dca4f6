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

use std::{
    any::Any, borrow::Cow, convert::Infallible, net::SocketAddr, panic::AssertUnwindSafe, pin::pin,
    sync::Arc,
};

use axum::{
    Extension, Router,
    extract::{FromRequest, State},
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header::ALLOW, request::Parts};
use http_body::Body;
use http_body_util::Either;
use hyper::body::Incoming;
use palisade::BoxError;
use percent_encoding::percent_decode_str;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer, ResponseForPanic};

use self::input::Sent;
pub(crate) use self::{
    input::{json, read},
    status::index,
};
use crate::{
    admin,
    app::App,
    body::{self, Answer},
    dashboard,
    errors::{ApiError, Language},
    exchange::{Exchange, Operation, Waiting},
    headers::{self, REQUEST_ID},
    metrics::{Measured, Overhead},
    record::{Entry, Recorded, Recording},
    telemetry::spans,
};

/// What is asked of a model, by the path that it is sent to.
const ASKS: [(&str, Operation); 4] = [
    ("/v1/chat/completions", Operation::Chat),
    ("/v1/completions", Operation::Completion),
    ("/v1/embeddings", Operation::Embeddings),
    ("/generate", Operation::Generate),
];

/// What answers requests, shared by all connections.
pub(crate) type Routes = CatchPanic<Router, Panicked>;

/// Every path, and who answers it.
pub(crate) fn routes(app: Arc<App>) -> Routes {
    let router = ASKS.into_iter().fold(Router::new(), |router, (path, ask)| {
        router.route(path, post(move |inbound: Inbound| model(inbound, ask)))
    });
    let router = router
        .route("/generate/batch", post(batch::answer))
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

/// What is asked of a model, by itself.
fn ask<B>(request: &Request<B>) -> Option<Operation> {
    let path = request.uri().path();
    let (_, ask) = ASKS.iter().find(|(of, _)| *of == path)?;
    (*request.method() == Method::POST).then_some(*ask)
}

async fn model(inbound: Inbound<impl Sent>, operation: Operation) -> Result<Answer, ApiError> {
    match operation {
        Operation::Generate => generate::answer(inbound).await,
        operation => openai::answer(inbound, operation).await,
    }
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

impl Panicked {
    fn error() -> ApiError {
        tracing::error!("a request panicked");
        ApiError::internal()
    }
}

impl ResponseForPanic for Panicked {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send>) -> Response<axum::body::Body> {
        Self::error().into_response()
    }
}

/// A request as the handlers get it.
pub(crate) struct Inbound<B = axum::body::Body> {
    pub(crate) app: Arc<App>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) request: Request<B>,
}

impl<B> Inbound<B> {
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

impl<B: Sent> Inbound<B> {
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
        let body = {
            let mut reading = pin!(read(&app, &parts.headers, body));
            match input::at_once(reading.as_mut()).await {
                Some(body) => body,
                None => {
                    let _waiting = Waiting::new(exchange.clone());
                    reading.await
                }
            }
        };
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
    let exchange = Arc::new(Exchange::new(Arc::new(caller), operation, entry.since()));
    entry.asks(&exchange);
    match wrong {
        None => Ok(exchange),
        Some(error) => Err((exchange, error)),
    }
}

impl FromRequest<Arc<App>> for Inbound {
    type Rejection = Infallible;

    async fn from_request(
        mut request: axum::extract::Request,
        app: &Arc<App>,
    ) -> Result<Self, Infallible> {
        let entry = request.extensions_mut().remove();
        Ok(Self {
            app: app.clone(),
            entry: entry.expect("put there by `recorded`"),
            request,
        })
    }
}

/// What the requests of a connection share.
pub(crate) struct Seat {
    pub(crate) app: Arc<App>,
    pub(crate) routes: Routes,
    pub(crate) peer: SocketAddr,
}

/// Answers a request, errors in the words of its path, inside of its span.
pub(crate) async fn answer(
    seat: Arc<Seat>,
    mut request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error: Into<BoxError>> + Send>, BoxError> {
    let id = headers::request_id(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let entry = Arc::new(Entry::new(id, seat.peer, method, uri));
    if spans::are_kept() {
        request.extensions_mut().insert(entry.clone());
    }
    let serve = service_fn(move |request| recorded(seat.clone(), entry.clone(), request));
    spans::requests().layer(serve).oneshot(request).await
}

async fn recorded<B: Sent<Error: Into<BoxError>>>(
    seat: Arc<Seat>,
    entry: Arc<Entry>,
    mut request: Request<B>,
) -> Result<Response<impl Body<Data = Bytes, Error: Into<BoxError>> + Send>, Infallible> {
    let app = &seat.app;
    let mut recording = Recording::new(entry.clone(), app.observers.clone());
    // Dropped first, so that the recording has what it measured.
    let mut overhead = Overhead::new(app.meters.clone(), entry.clone());
    let answer = match ask(&request) {
        // Nearly all requests: boxes, a search for the route and a body that is one of many cost them nothing.
        Some(operation) => {
            let inbound = Inbound {
                app: app.clone(),
                entry: entry.clone(),
                request,
            };
            let answer = AssertUnwindSafe(model(inbound, operation));
            let answer = answer.catch_unwind().await;
            let answer = answer.unwrap_or_else(|_| Err(Panicked::error()));
            answer.map(|answer| answer.map(Either::Left))
        }
        None => {
            request.extensions_mut().insert(entry.clone());
            let response = seat.routes.clone().oneshot(request).await?;
            match error(&response) {
                None => Ok(response.map(Either::Right)),
                Some(error) => Err(error),
            }
        }
    };
    let mut response = answer.unwrap_or_else(|error| {
        recording.failed(&error);
        let path = entry.uri().path();
        let mut response = error.answer(Language::of(path));
        if asks_backends(path) {
            forward::sign_unsent(response.headers_mut());
        }
        body::full(response).map(Either::Left)
    });
    response
        .headers_mut()
        .insert(REQUEST_ID, entry.id().clone());
    recording.answered(response.status());
    overhead.answered(response.status());
    Ok(response.map(|body| Measured::new(Recorded::new(body, recording), overhead)))
}

/// What is to be told, if that is more than the response says.
fn error<B>(response: &Response<B>) -> Option<ApiError> {
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

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        pin::Pin,
        sync::Mutex,
        task::{Context, Poll},
    };

    use http::{HeaderValue, header::CONTENT_TYPE};
    use http_body::Frame;
    use palisade::classify::Verdict;

    use super::*;
    use crate::{
        config::Config,
        record::{Observe, Record},
    };

    /// A body with a bug.
    struct Bug;

    impl Body for Bug {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("a bug");
        }
    }

    #[derive(Default)]
    struct Kept(Mutex<Vec<Verdict>>);

    impl Observe for Kept {
        fn ended(&self, record: &Record) {
            self.0.lock().unwrap().push(record.verdict);
        }
    }

    #[test]
    fn all_times_of_a_request_begin_at_one_moment() {
        let app = App::new(Config::default(), "token".into(), None).unwrap();
        let peer = (Ipv4Addr::LOCALHOST, 4711).into();
        let id = HeaderValue::from_static("r-1");
        let entry = Entry::new(id.clone(), peer, Method::POST, "/generate".parse().unwrap());
        let exchange = identify(&app, &entry, &HeaderMap::new(), Operation::Chat);
        assert_eq!(exchange.unwrap().since, entry.since());
        let one = Exchange::new(
            Arc::new(app.identities.unknown(peer, &HeaderMap::new())),
            Operation::Generate,
            palisade::time::now(),
        );
        let one = Arc::new(one);
        assert_eq!(entry.item(id, one.clone()).since(), one.since);
    }

    #[tokio::test]
    async fn a_request_that_panics_is_one_answer_of_500_and_told_once_as_a_failure() {
        let mut app = App::new(Config::default(), "token".into(), None).unwrap();
        let kept = Arc::new(Kept::default());
        app.observers.add(kept.clone());
        let app = Arc::new(app);
        let peer = (Ipv4Addr::LOCALHOST, 4711).into();
        let routes = routes(app.clone());
        let seat = Arc::new(Seat { app, routes, peer });
        let asks = ASKS.map(|(path, _)| path);
        for path in asks.into_iter().chain(["/generate/batch"]) {
            let request = Request::post(path).header(CONTENT_TYPE, "application/json");
            let request = request.body(Bug).unwrap();
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let id = HeaderValue::from_static("r-1");
            let entry = Arc::new(Entry::new(id, peer, method, uri));
            let response = recorded(seat.clone(), entry, request).await.unwrap();
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{path}"
            );
            assert_eq!(response.headers()[REQUEST_ID], "r-1", "{path}");
            assert_eq!(response.headers()["x-attempts"], "0", "{path}");
            drop(response);
            let told = std::mem::take(&mut *kept.0.lock().unwrap());
            assert_eq!(told, [Verdict::Failure], "{path}");
        }
    }
}
