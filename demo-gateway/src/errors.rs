//! What the gateway itself has to say against a request, in the words of its path.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::response::IntoResponse;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body::Body;
use http_body_util::Full;
use palisade::{BoxError, head::RequestHead, respond};
use serde::Serialize;

pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// A request that the gateway answers with an error.
#[derive(Clone, Debug)]
pub(crate) struct ApiError(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    param: Option<String>,
    header: Option<(HeaderName, HeaderValue)>,
    delay: Option<Delay>,
    /// How the caller stands, where one is known.
    limits: HeaderMap,
    gave_up: bool,
}

/// When trying again makes sense.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay(pub(crate) Duration);

/// What whoever does not know says.
pub(crate) const SOON: Delay = Delay(Duration::from_secs(1));

impl Delay {
    /// Says it in seconds, rounded up, and exactly.
    pub(crate) fn insert_into(self, headers: &mut HeaderMap) {
        let millis = self.0.as_nanos().div_ceil(1_000_000);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER, millis.div_ceil(1000).max(1).into());
        headers.insert(RETRY_AFTER_MS, millis.into());
    }
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            status,
            code,
            detail: detail.into(),
            param: None,
            header: None,
            delay: None,
            limits: HeaderMap::new(),
            gave_up: false,
        }))
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// What it is, from a closed set.
    pub(crate) fn code(&self) -> &'static str {
        self.0.code
    }

    /// What is wrong, in a sentence.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    pub(crate) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    pub(crate) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    pub(crate) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }

    pub(crate) fn method_not_allowed(allow: HeaderValue) -> Self {
        let methods = allow.to_str().unwrap_or_default().replace(',', ", ");
        let detail = format!("only {methods} is answered here");
        let code = "method_not_allowed";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, code, detail).header(ALLOW, allow)
    }

    /// A bug of the gateway.
    pub(crate) fn internal() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "internal_error", "the gateway made a mistake")
    }

    pub(crate) fn unauthorized(code: &'static str, detail: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// All attempts are spent.
    pub(crate) fn bad_gateway(detail: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(StatusCode::BAD_GATEWAY, "bad_gateway", detail);
        Arc::make_mut(&mut error.0).gave_up = true;
        error
    }

    pub(crate) fn overloaded(delay: Delay) -> Self {
        let detail = "every backend that was asked is overloaded";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(delay)
    }

    /// Says when trying again makes sense.
    pub(crate) fn retry_after(mut self, delay: Delay) -> Self {
        Arc::make_mut(&mut self.0).delay = Some(delay);
        self
    }

    /// Says how the caller stands.
    pub(crate) fn limits(mut self, headers: HeaderMap) -> Self {
        Arc::make_mut(&mut self.0).limits = headers;
        self
    }

    /// Names the field that is wrong.
    pub(crate) fn param(mut self, param: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.0).param = Some(param.into());
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        Arc::make_mut(&mut self.0).header = Some((name, value));
        self
    }

    pub(crate) fn answer(&self, language: Language) -> Response<Full<Bytes>> {
        let (kind, body) = match language {
            Language::OpenAi => ("application/json", self.openai()),
            Language::Problem => ("application/problem+json", self.problem()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.clone_from(&self.0.limits);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some((name, value)) = &self.0.header {
            headers.insert(name, value.clone());
        }
        if let Some(delay) = self.0.delay {
            delay.insert_into(headers);
        }
        if self.0.gave_up {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }

    /// The error object of OpenAI, as answers and streams carry it.
    pub(crate) fn openai(&self) -> String {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Told<'a>,
        }

        #[derive(Serialize)]
        struct Told<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: &'a str,
        }

        let kind = match self.0.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json(&Outer {
            error: Told {
                message: &self.0.detail,
                r#type: kind,
                param: self.0.param.as_deref(),
                code: self.0.code,
            },
        })
    }

    /// Problem details after RFC 9457.
    pub(crate) fn problem(&self) -> String {
        #[derive(Serialize)]
        struct Problem<'a> {
            title: &'a str,
            status: u16,
            detail: &'a str,
            reason: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            param: Option<&'a str>,
        }

        json(&Problem {
            title: self.0.status.canonical_reason().unwrap_or_default(),
            status: self.0.status.as_u16(),
            detail: &self.0.detail,
            reason: self.0.code,
            param: self.0.param.as_deref(),
        })
    }
}

/// Told in the words of the path where the path is known: see [`api::answer`](crate::api::answer).
impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        let mut response = axum::response::Response::default();
        *response.status_mut() = self.0.status;
        response.extensions_mut().insert(self);
        response
    }
}

/// JSON of something that has no map with odd keys and so cannot fail.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// How errors are told on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    OpenAi,
    Problem,
}

impl Language {
    pub(crate) fn of(path: &str) -> Self {
        if path == "/v1" || path.starts_with("/v1/") {
            Self::OpenAi
        } else {
            Self::Problem
        }
    }
}

/// Answers what a layer refused, or what a backend broke, as `palisade` does it, and says more about a refusal.
pub(crate) fn refuse(
    path: &str,
    error: &BoxError,
    more: Option<&impl Serialize>,
) -> Response<Full<Bytes>> {
    let mut request = Request::new(());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    let answer = respond::answer(&RequestHead::from(&request), &**error);
    match more {
        Some(more) => answer.map(|body| with_members(Language::of(path), body, &json(more)).into()),
        None => answer,
    }
}

/// Adds members to the innermost object that tells an error.
fn with_members(language: Language, body: Full<Bytes>, members: &str) -> Bytes {
    let body = whole(body);
    let ends = match language {
        Language::OpenAi => "}}",
        Language::Problem => "}",
    };
    let (Some(told), Some(members)) = (
        body.strip_suffix(ends.as_bytes()),
        members
            .strip_prefix('{')
            .and_then(|members| members.strip_suffix('}')),
    ) else {
        return body;
    };
    [told, b",", members.as_bytes(), ends.as_bytes()]
        .concat()
        .into()
}

/// The bytes of a body that is here as a whole.
pub(crate) fn whole(mut body: Full<Bytes>) -> Bytes {
    let frame = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use palisade::reject::{Reason, Rejected};
    use serde_json::Value;

    use super::*;

    const NONE: Option<&()> = None;

    fn body(response: Response<Full<Bytes>>) -> Value {
        serde_json::from_slice(&whole(response.into_body())).unwrap()
    }

    #[test]
    fn our_errors_and_those_of_the_layers_have_the_same_members() {
        for (path, pointer) in [("/generate", ""), ("/v1/models", "/error")] {
            let ours = ApiError::bad_request("no").answer(Language::of(path));
            let theirs = Rejected::new(Reason::NoEndpoint, "no endpoint");
            let theirs = refuse(path, &theirs.into(), NONE);
            assert_eq!(theirs.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(
                ours.headers()[CONTENT_TYPE],
                theirs.headers()[CONTENT_TYPE],
                "{path}"
            );
            let members = |value: Value| {
                let object = value.pointer(pointer).and_then(Value::as_object).unwrap();
                object.keys().cloned().collect::<Vec<_>>()
            };
            assert_eq!(members(body(ours)), members(body(theirs)));
        }
    }

    #[test]
    fn what_a_refusal_says_besides_stands_with_the_rest() {
        for (path, pointer) in [("/generate", ""), ("/v1/models", "/error")] {
            let limited = Rejected::new(Reason::RateLimited, "too many").violates("r".into());
            let more = serde_json::json!({"rule": "r", "limit": 2});
            let answer = body(refuse(path, &limited.into(), Some(&more)));
            let object = answer.pointer(pointer).unwrap();
            assert_eq!(
                (&object["rule"], &object["limit"]),
                (&"r".into(), &2.into())
            );
            let says = object.get("detail").or(object.get("message"));
            assert_eq!(says, Some(&"too many".into()));
        }
    }

    #[test]
    fn a_delay_is_told_in_seconds_and_exactly() {
        for (micros, seconds, millis) in [
            (0, "1", "0"),
            (1_200_500, "2", "1201"),
            (3_000_000, "3", "3000"),
        ] {
            let error = ApiError::overloaded(Delay(Duration::from_micros(micros)));
            let answer = error.answer(Language::Problem);
            assert_eq!(answer.headers()[RETRY_AFTER], seconds);
            assert_eq!(answer.headers()[RETRY_AFTER_MS], millis);
        }
    }

    #[test]
    fn only_paths_below_v1_speak_openai() {
        assert_eq!(Language::of("/v1/chat/completions"), Language::OpenAi);
        assert_eq!(Language::of("/v1"), Language::OpenAi);
        assert_eq!(Language::of("/v10"), Language::Problem);
    }
}
