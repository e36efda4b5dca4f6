//! Answers that say what is wrong and where.

use std::{borrow::Cow, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::api::{
    Problem,
    openai::{ErrorBody, ErrorObject},
};

/// Why a request gets no answer of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    /// For programs.
    code: &'static str,
    detail: Cow<'static, str>,
    /// The field of the request that is wrong.
    param: Option<String>,
    retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            param: None,
            retry_after: None,
        }
    }

    /// A field whose value will not do.
    pub(crate) fn field(param: &str, what: impl std::fmt::Display) -> Self {
        let detail = format!("{param}: {what}");
        Self {
            param: Some(param.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", detail)
        }
    }

    pub(crate) fn retry_after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }

    /// In the language of the path.
    pub(crate) fn answer(self, path: &str) -> Response<Body> {
        let openai = path == "/v1" || path.starts_with("/v1/");
        let (kind, body) = if openai {
            ("application/json", bytes_of(&self.openai()))
        } else {
            ("application/problem+json", bytes_of(&self.problem()))
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(delay) = self.retry_after {
            // Rounded up: who comes back early is refused again.
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        response
    }

    fn openai(&self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        ErrorBody {
            error: ErrorObject {
                message: self.detail.clone().into_owned(),
                kind: kind.to_owned(),
                param: self.param.clone(),
                code: Some(self.code.to_owned()),
            },
        }
    }

    fn problem(&self) -> Problem {
        Problem {
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone().into_owned(),
            reason: self.code.to_owned(),
        }
    }
}

/// The JSON of a request, or what is wrong with it and where.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    if let Ok(read) = serde_json::from_slice(body) {
        return Ok(read);
    }
    // Read again for the path, which the quick way does not keep.
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json);
    let error = match read {
        Ok(read) => match json.end() {
            Ok(()) => return Ok(read),
            Err(error) => return Err(malformed(&error)),
        },
        Err(error) => error,
    };
    if !error.inner().is_data() {
        return Err(malformed(error.inner()));
    }
    let path = error.path().to_string();
    let what = error.inner();
    let code = "invalid_type";
    Err(if path == "." {
        Failure::new(StatusCode::BAD_REQUEST, code, what.to_string())
    } else {
        Failure {
            param: Some(path.clone()),
            ..Failure::new(StatusCode::BAD_REQUEST, code, format!("{path}: {what}"))
        }
    })
}

fn malformed(error: &serde_json::Error) -> Failure {
    let detail = format!("the body is not JSON: {error}");
    Failure::new(StatusCode::BAD_REQUEST, "malformed_json", detail)
}

/// An answer in JSON.
pub(crate) fn json(body: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes_of(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn bytes_of(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body)
        .expect("shapes of our own have string keys and finite numbers")
        .into()
}
