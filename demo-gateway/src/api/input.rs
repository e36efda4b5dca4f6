//! Bodies of requests, and what is wrong with them.

use bytes::Bytes;
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use crate::{app::App, errors::ApiError};

/// Reads a body that has to be JSON.
pub(crate) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Bytes, ApiError> {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    if !kind.is_some_and(is_json) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "the body has to be JSON, with `content-type: application/json`";
        return Err(ApiError::new(status, "unsupported_media_type", detail));
    }
    let limit = app.config.server.body_limit;
    let too_large = || {
        let detail = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    let told = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let told: Option<usize> = told.and_then(|length| length.parse().ok());
    if told.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let collecting = Limited::new(body, limit).collect();
    match tokio::time::timeout(app.config.server.body_timeout, collecting).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::bad_request("the body broke off before its end")),
        Err(_) => {
            let detail = "the body did not come in time";
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                detail,
            ))
        }
    }
}

fn is_json(kind: &[u8]) -> bool {
    let end = kind.iter().position(|byte| *byte == b';');
    let kind = kind[..end.unwrap_or(kind.len())]
        .trim_ascii()
        .to_ascii_lowercase();
    kind == b"application/json" || kind.starts_with(b"application/") && kind.ends_with(b"+json")
}

/// Reads an object, or tells what is wrong and where.
pub(crate) fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    // An array of its values would do as well for serde.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::bad_request(
            "the body is a JSON array instead of an object",
        ));
    }
    serde_json::from_slice(body).map_err(|error| wrong::<T>(body, &error))
}

/// What is wrong with a text that is no `T`: reads it again to find the field.
fn wrong<'a, T: Deserialize<'a>>(body: &'a [u8], error: &serde_json::Error) -> ApiError {
    if !error.is_data() {
        return ApiError::bad_request(format!("the body is not JSON: {error}"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    let path = match serde_path_to_error::deserialize::<_, T>(deserializer) {
        Ok(_) => String::new(),
        Err(error) => error.path().to_string(),
    };
    // What is missing is named in the message: the path ends at its parent.
    let missing = error.to_string();
    let missing = missing.strip_prefix("missing field `");
    let missing = missing.and_then(|rest| rest.split('`').next());
    let param = match (&*path, missing) {
        ("" | ".", Some(field)) => field.to_owned(),
        (path, Some(field)) => format!("{path}.{field}"),
        (path, None) => path.to_owned(),
    };
    let answer = ApiError::bad_request(match &*param {
        "" | "." => error.to_string(),
        param => format!("`{param}`: {error}"),
    });
    match &*param {
        "" | "." => answer,
        _ => answer.param(param),
    }
}
