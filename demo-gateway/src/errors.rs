//! What the gateway itself has to say against a request, in the words of its path.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use axum::response::IntoResponse;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body::Body;
use http_body_util::Full;
use palisade::{BoxError, head::RequestHead, respond};
use serde::Serialize;

pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

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
    gave_up: bool,
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
            gave_up: false,
        }))
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

    pub(crate) fn overloaded(retry_after: HeaderValue) -> Self {
        let detail = "every backend that was asked is overloaded";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(retry_after)
    }

    /// Says when trying again makes sense.
    pub(crate) fn retry_after(self, delay: HeaderValue) -> Self {
        self.header(RETRY_AFTER, delay)
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
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some((name, value)) = &self.0.header {
            headers.insert(name, value.clone());
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

/// Answers what a layer refused, or what a backend broke, as `palisade` does it.
pub(crate) fn refuse(path: &str, error: BoxError) -> Response<Full<Bytes>> {
    let mut request = Request::new(());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    respond::answer(&RequestHead::from(&request), &*error)
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

    fn body(response: Response<Full<Bytes>>) -> Value {
        serde_json::from_slice(&whole(response.into_body())).unwrap()
    }

    #[test]
    fn our_errors_and_those_of_the_layers_have_the_same_members() {
        for (path, pointer) in [("/generate", ""), ("/v1/models", "/error")] {
            let ours = ApiError::bad_request("no").answer(Language::of(path));
            let theirs = Rejected::new(Reason::NoEndpoint, "no endpoint");
            let theirs = refuse(path, theirs.into());
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
    fn only_paths_below_v1_speak_openai() {
        assert_eq!(Language::of("/v1/chat/completions"), Language::OpenAi);
        assert_eq!(Language::of("/v1"), Language::OpenAi);
        assert_eq!(Language::of("/v10"), Language::Problem);
    }
}
