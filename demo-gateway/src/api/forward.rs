//! From the gateway's paths into the layers, and back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::Full;
use palisade::{BoxError, deadline::Deadline, rate_limit::RateLimited, reject::Rejected, time};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    app::App,
    body::{self, Answer},
    elsewhere::put_back,
    errors::{self, ApiError, Language},
    exchange::{Exchange, Operation},
    headers::{ATTEMPTS, BACKEND_ID, to_caller},
    identity::Caller,
    metrics::{UNKNOWN, is_limit},
    stack::PipelineBody,
};

const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Whoever does not know how long to wait says a second.
const SOON: HeaderValue = HeaderValue::from_static("1");

/// A request that is to go through the layers.
pub(crate) struct Outbound {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// As [`to_backend`](crate::headers::to_backend) leaves them.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) limit: Duration,
}

impl Outbound {
    /// Sends it through the layers.
    pub(crate) async fn send(self, app: &App) -> Result<Response<PipelineBody>, BoxError> {
        let exchange = self.exchange.clone();
        let answer = app
            .stack
            .pipeline
            .clone()
            .oneshot(self.into_request())
            .await;
        if let Err(error) = &answer {
            count_refusal(app, &exchange.caller, error);
        }
        answer
    }

    fn into_request(self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        let extensions = request.extensions_mut();
        extensions.insert(self.exchange.attempts.clone());
        extensions.insert(self.exchange);
        extensions.insert(Deadline(time::now() + self.limit));
        request
    }
}

fn count_refusal(app: &App, caller: &Caller, error: &BoxError) {
    let Some(rejected) = Rejected::find(&**error) else {
        return;
    };
    if !is_limit(rejected.reason()) {
        return;
    }
    let limited = std::error::Error::source(rejected);
    let limited = limited.and_then(|source| source.downcast_ref::<RateLimited>());
    if let Some(limited) = limited {
        app.meters.hit(app.stack.limits.kind(&limited.rule, caller));
    }
}

/// Refuses a caller whose limits leave no room for any request, before the body is read. Charges nothing.
pub(crate) fn peek(
    app: &App,
    caller: &Arc<Caller>,
    operation: Operation,
    path: &str,
) -> Result<(), Box<Answer>> {
    let Some(refused) = app.stack.limits.peek(caller, operation) else {
        return Ok(());
    };
    let error = refused.into();
    count_refusal(app, caller, &error);
    let mut answer = body::full(errors::refuse(path, error));
    let exchange = Exchange::new(caller.clone(), operation, false);
    sign(answer.headers_mut(), &exchange, app, Language::of(path));
    Err(Box::new(answer))
}

/// What the caller gets of an answer: of one that failed only that it has.
pub(crate) fn passed(
    app: &App,
    exchange: &Exchange,
    path: &str,
    answer: Result<Response<PipelineBody>, BoxError>,
) -> Result<Response<PipelineBody>, Box<Answer>> {
    let language = Language::of(path);
    let mut answer = match answer {
        Ok(mut response) => match failed(&mut response, exchange) {
            None => {
                to_caller(response.headers_mut());
                sign(response.headers_mut(), exchange, app, language);
                no_more(&mut response, exchange);
                return Ok(response);
            }
            Some(error) => {
                let mut answer = body::full(error.answer(language));
                keep_limits(response.headers(), answer.headers_mut());
                answer
            }
        },
        Err(error) => {
            let mut answer = body::full(errors::refuse(path, error));
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                let headers = answer.headers_mut().entry(header::RETRY_AFTER);
                headers.or_insert(SOON);
            }
            answer
        }
    };
    sign(answer.headers_mut(), exchange, app, language);
    no_more(&mut answer, exchange);
    Err(Box::new(answer))
}

/// Asks not to try again what has been tried as often as it may.
fn no_more<B>(answer: &mut Response<B>, exchange: &Exchange) {
    if !answer.status().is_success() && exchange.attempts.gave_up() {
        let headers = answer.headers_mut();
        headers.insert(errors::SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

/// What a backend's answer is told as, if it is none that the caller should see.
fn failed<B>(response: &mut Response<B>, exchange: &Exchange) -> Option<ApiError> {
    put_back(response.headers_mut());
    let status = response.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let delay = response.headers().get(header::RETRY_AFTER).cloned();
        let delay = delay.unwrap_or(SOON);
        return Some(ApiError::overloaded(delay));
    }
    // Neither a redirect to a backend nor one that does not know the gateway means anything to a caller.
    let is_ours = matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED
    );
    let makes_sense = status.is_success() || status.is_client_error() && !is_ours;
    (!makes_sense).then(|| {
        let attempts = exchange.attempts.count();
        let status = status.as_u16();
        let detail = match attempts {
            1 => format!("the backend answered with status {status}"),
            _ => {
                format!("after {attempts} attempts, the last backend answered with status {status}")
            }
        };
        ApiError::bad_gateway(detail)
    })
}

/// What a layer has said about limits holds for the answer that takes the place of another.
fn keep_limits(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if name.as_str().starts_with("ratelimit") {
            to.append(name, value.clone());
        }
    }
}

/// Says who answered, after how many attempts, and how the caller stands.
pub(crate) fn sign(headers: &mut HeaderMap, exchange: &Exchange, app: &App, language: Language) {
    headers.insert(ATTEMPTS, exchange.attempts.count().into());
    if !headers.contains_key(BACKEND_ID) {
        let backend = exchange.backend().map(|backend| backend.name.clone());
        headers.insert(
            BACKEND_ID,
            backend.unwrap_or(HeaderValue::from_static(UNKNOWN)),
        );
    }
    if language == Language::OpenAi
        && let Some(standing) = headers.get(&RATE_LIMIT)
        && let Some(standing) = app.stack.limits.first(standing)
    {
        headers.insert(LIMIT_REQUESTS, standing.limit.into());
        headers.insert(REMAINING_REQUESTS, standing.remaining.into());
        let reset = format!("{}s", standing.reset);
        if let Ok(reset) = HeaderValue::try_from(reset) {
            headers.insert(RESET_REQUESTS, reset);
        }
    }
}

/// Says that no backend was asked.
pub(crate) fn sign_unsent(headers: &mut HeaderMap) {
    headers.insert(ATTEMPTS, HeaderValue::from_static("0"));
    headers.insert(BACKEND_ID, HeaderValue::from_static(UNKNOWN));
}

/// Measures what the gateway itself takes.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(time::now())
    }

    /// Records the time since the start, less the time that backends were waited for.
    pub(crate) fn stop(self, app: &App, exchange: &Exchange) {
        let taken = time::now().saturating_duration_since(self.0);
        let own = taken.saturating_sub(exchange.waited());
        app.meters.overhead.record(own);
    }
}

/// Puts what [`sign`] and the limits have said on an answer that takes the place of another.
pub(crate) fn copy_signature(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let text = name.as_str();
        if text == "x-attempts" || text == "x-backend-id" || text.starts_with("ratelimit") {
            to.append(name, value.clone());
        }
    }
}
