//! From the gateway's paths into the layers, and back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header, request::Parts,
};
use http_body_util::Full;
use palisade::{
    BoxError,
    balance::Affinity,
    deadline::{Deadline, TimeoutHeader},
    head::RequestHead,
    rate_limit::{RateLimited, Tokens},
    reject::Rejected,
    retry_after::retry_after,
    time,
};
use tower::{Service, ServiceExt};

use crate::{
    app::App,
    body::{self, Answer},
    config::Unit,
    elsewhere::put_back,
    errors::{self, ApiError, Delay, Language},
    exchange::Exchange,
    headers::{ATTEMPTS, BACKEND_ID, to_caller},
    identity::Caller,
    metrics::{UNKNOWN, is_limit},
    record::Cause,
    stack::PipelineBody,
    work::Lengths,
};

/// What OpenAI's clients read: the limit, what remains of it, and when all of it will.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// A request that is to go through the layers.
pub(crate) struct Outbound {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// As [`to_backend`](crate::headers::to_backend) leaves them.
    pub(crate) headers: HeaderMap,
    /// Those that there are already, which spares making new ones: for the layers only.
    pub(crate) extensions: Extensions,
    pub(crate) body: Bytes,
    /// What is asked of a model.
    pub(crate) tokens: Option<Tokens>,
    /// What it belongs to.
    pub(crate) affinity: Option<Affinity>,
    pub(crate) limit: Duration,
}

impl Outbound {
    /// Sends it through the layers.
    pub(crate) async fn send(self, app: &App) -> Result<Response<PipelineBody>, BoxError> {
        let exchange = self.exchange.clone();
        let request = self.into_request(&app.told, &app.meters.lengths);
        let mut pipeline = app.stack.pipeline.clone();
        let answer = match pipeline.ready().await {
            // Boxed, and so is the body: all of both would otherwise be moved with each step to the connection and
            // back, which is more work than an allocation.
            Ok(pipeline) => Box::pin(pipeline.call(request)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => Ok(response.map(Box::pin)),
            Err(error) => {
                count_refusal(app, &exchange.caller, &error);
                Err(error)
            }
        }
    }

    fn into_request(self, told: &TimeoutHeader, lengths: &Lengths) -> Request<Full<Bytes>> {
        let asked = told.read(&self.headers).unwrap_or(Duration::MAX);
        let limit = asked.min(self.limit);
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        *request.extensions_mut() = self.extensions;
        let extensions = request.extensions_mut();
        if let Some(tokens) = self.tokens {
            if let Some(cost) = lengths.cost(self.exchange.operation, &tokens) {
                extensions.insert(cost);
            }
            extensions.insert(tokens);
        }
        if let Some(affinity) = self.affinity {
            extensions.insert(affinity);
        }
        extensions.insert(self.exchange.attempts.clone());
        // The look at the limits has needed it too.
        if extensions.get::<Arc<Exchange>>().is_none() {
            extensions.insert(self.exchange);
        }
        extensions.insert(Deadline(time::now() + limit));
        request
    }
}

/// Counts a request over a rate.
pub(crate) fn count_refusal(app: &App, caller: &Caller, error: &BoxError) {
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
    exchange: &Exchange,
    parts: &Parts,
    path: &str,
) -> Result<(), Box<Answer>> {
    let head = RequestHead {
        method: &parts.method,
        uri: &parts.uri,
        version: parts.version,
        headers: &parts.headers,
        extensions: &parts.extensions,
    };
    let Some(refused) = app.stack.peek(&head) else {
        return Ok(());
    };
    let error = refused.into();
    count_refusal(app, &exchange.caller, &error);
    let mut answer = body::full(refuse(app, exchange, path, &error));
    sign(answer.headers_mut(), exchange, app, Language::of(path));
    Err(Box::new(answer))
}

/// What is answered when a layer has refused, or a backend broken off.
pub(crate) fn refuse(
    app: &App,
    exchange: &Exchange,
    path: &str,
    error: &BoxError,
) -> Response<Full<Bytes>> {
    exchange.because(Cause::of_error(error));
    let rejected = Rejected::find(&**error);
    let refusal = rejected.and_then(|rejected| app.stack.limits.explain(rejected));
    let mut answer = errors::refuse(path, error, refusal.as_ref());
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE
        && !answer.headers().contains_key(header::RETRY_AFTER)
    {
        errors::SOON.insert_into(answer.headers_mut());
    }
    answer
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
                exchange.because(Cause::of_answer(&error));
                let mut answer = body::full(error.answer(language));
                keep_limits(response.headers(), answer.headers_mut());
                answer
            }
        },
        Err(error) => body::full(refuse(app, exchange, path, &error)),
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
        let delay = retry_after(response.headers(), time::wall_clock());
        return Some(ApiError::overloaded(delay.map_or(errors::SOON, Delay)));
    }
    // Neither a redirect to a backend nor one that does not know the gateway means anything to a caller.
    let is_ours = matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED
    );
    let makes_sense = status.is_success() || status.is_client_error() && !is_ours;
    (!makes_sense).then(|| {
        let attempts = exchange.attempts();
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
    headers.insert(ATTEMPTS, exchange.attempts().into());
    if !headers.contains_key(BACKEND_ID) {
        let backend = exchange.backend().map(|backend| backend.name.clone());
        headers.insert(
            BACKEND_ID,
            backend.unwrap_or(HeaderValue::from_static(UNKNOWN)),
        );
    }
    if language == Language::OpenAi {
        sign_limits(headers, app);
    }
}

/// Says how the caller stands also as OpenAI says it.
fn sign_limits(headers: &mut HeaderMap, app: &App) {
    for (unit, [limit, remaining, reset]) in [(Unit::Requests, REQUESTS), (Unit::Tokens, TOKENS)] {
        let Some(standing) = app.stack.limits.first(headers, unit) else {
            continue;
        };
        headers.insert(limit, standing.limit.into());
        headers.insert(remaining, standing.remaining.into());
        let after = format!("{}s", standing.reset);
        if let Ok(after) = HeaderValue::try_from(after) {
            headers.insert(reset, after);
        }
    }
}

/// What is wrong with a request, and how its caller stands, who has not been charged for it.
pub(crate) fn wrong(app: &App, exchange: &Arc<Exchange>, path: &str, error: ApiError) -> ApiError {
    let mut headers = HeaderMap::new();
    app.stack.limits.describe(exchange, &mut headers);
    if Language::of(path) == Language::OpenAi {
        sign_limits(&mut headers, app);
    }
    error.limits(headers)
}

/// Says that no backend was asked.
pub(crate) fn sign_unsent(headers: &mut HeaderMap) {
    headers.insert(ATTEMPTS, HeaderValue::from_static("0"));
    headers.insert(BACKEND_ID, HeaderValue::from_static(UNKNOWN));
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
