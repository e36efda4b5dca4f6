//! Bodies of requests, and what is wrong with them.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
};
use http_body::Body;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;

use crate::{app::App, errors::ApiError};

/// How much of a body that is too large is read before it is refused, and for how long.
const LINGER: usize = 64 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// The body of a request, from whatever passed it on.
pub(crate) trait Sent:
    Body<Data = Bytes, Error: fmt::Debug> + Send + Unpin + 'static
{
}

impl<B: Body<Data = Bytes, Error: fmt::Debug> + Send + Unpin + 'static> Sent for B {}

/// Reads a body that has to be JSON.
pub(crate) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: impl Sent,
) -> Result<Bytes, ApiError> {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    if !kind.is_some_and(is_json) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "the body has to be JSON, with `content-type: application/json`";
        discard(headers, body);
        return Err(ApiError::new(status, "unsupported_media_type", detail));
    }
    let limit = app.config.server.body_limit;
    let told = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let told: Option<usize> = told.and_then(|length| length.parse().ok());
    if told.is_some_and(|length| length > limit) {
        // Who asks before sending has not sent anything.
        if !headers.contains_key(EXPECT) {
            linger(body).await;
        }
        return Err(too_large(limit));
    }
    let mut collected = pin!(collect(body, limit));
    // Most bodies come with their heads, and need no timer.
    if let Some(body) = at_once(collected.as_mut()).await {
        return body;
    }
    match timeout(app.config.server.body_timeout, collected).await {
        Ok(body) => body,
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

/// What is there without a wait.
pub(crate) async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

fn too_large(limit: usize) -> ApiError {
    let detail = format!("the body is larger than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

async fn collect<B: Sent>(mut body: B, limit: usize) -> Result<Bytes, ApiError> {
    let broken = |_: B::Error| ApiError::bad_request("the body broke off before its end");
    let first = next(&mut body).await.map_err(broken)?.unwrap_or_default();
    // Most bodies come in one piece, and need no copy.
    if body.is_end_stream() && first.len() <= limit {
        return Ok(first);
    }
    let mut whole = BytesMut::from(&first[..]);
    loop {
        if whole.len() > limit {
            linger(body).await;
            return Err(too_large(limit));
        }
        match next(&mut body).await.map_err(broken)? {
            Some(data) => whole.extend_from_slice(&data),
            None => return Ok(whole.freeze()),
        }
    }
}

async fn next<B: Sent>(body: &mut B) -> Result<Option<Bytes>, B::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reads on beside the answer, which does not wait, what is refused unread.
pub(crate) fn discard(headers: &HeaderMap, body: impl Sent) {
    // Who asks before sending has not sent anything.
    if !body.is_end_stream() && !headers.contains_key(EXPECT) {
        tokio::spawn(linger(body));
    }
}

/// Reads some more of what is not wanted: closing on a caller who is still sending would reset the connection, and
/// take the answer away.
async fn linger(mut body: impl Sent) {
    let mut left = LINGER;
    let reading = async {
        while let Ok(Some(data)) = next(&mut body).await {
            left = match left.checked_sub(data.len()) {
                Some(left) => left,
                None => break,
            };
        }
    };
    // Who is slower finds out by the reset.
    let _in_time = timeout(LINGER_TIME, reading).await;
}

fn is_json(kind: &[u8]) -> bool {
    let end = kind.iter().position(|byte| *byte == b';');
    let kind = kind[..end.unwrap_or(kind.len())].trim_ascii();
    if kind.eq_ignore_ascii_case(b"application/json") {
        return true;
    }
    let kind = kind.to_ascii_lowercase();
    kind.starts_with(b"application/") && kind.ends_with(b"+json")
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
