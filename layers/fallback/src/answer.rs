use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use palisade_core::respond;

use crate::body::{Another, Given};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// An answer that is there without asking anybody: a head, bytes, and trailers for gRPC.
///
/// ```
/// use http::{Response, StatusCode};
/// use palisade_fallback::Answer;
///
/// let _ = Answer::from(Response::new("closed for today"));
/// let _ = Answer::json(StatusCode::OK, r#"{"recommendations":[]}"#);
/// let answer = Answer::grpc_status(14, "closed for today");
/// assert_eq!(answer.head().headers()["grpc-status"], "14");
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    response: Response<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    /// A JSON document.
    pub fn json(status: StatusCode, json: impl Into<Bytes>) -> Self {
        let mut response = Response::new(json.into());
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Self::from(response)
    }

    /// The end of a gRPC call without a message: trailers-only.
    pub fn grpc_status(code: u8, message: &str) -> Self {
        Self::from(respond::grpc_status(code, message))
    }

    /// One message of gRPC, encoded but not yet framed, and the status 0.
    ///
    /// # Panics
    ///
    /// Over 4 GiB, which a frame of gRPC cannot hold.
    pub fn grpc(message: impl AsRef<[u8]>) -> Self {
        let message = message.as_ref();
        let length = u32::try_from(message.len()).expect("a message is below 4 GiB");
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(length);
        frame.put_slice(message);
        let mut response = Response::new(frame.freeze());
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        Self::from(response).trailers(trailers)
    }

    /// Ends with these trailers.
    #[must_use]
    pub fn trailers(mut self, trailers: HeaderMap) -> Self {
        self.trailers = Some(trailers);
        self
    }

    /// Asks to come back after this long: `Retry-After` in seconds or `grpc-retry-pushback-ms`, rounded up.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        let headers = self.response.headers_mut();
        let kind = headers.get(CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            let millis = delay.as_nanos().div_ceil(1_000_000);
            let millis = u64::try_from(millis).unwrap_or(u64::MAX);
            headers.insert(GRPC_PUSHBACK, millis.into());
        } else {
            let rest = u64::from(delay.subsec_nanos() > 0);
            let seconds = delay.as_secs().saturating_add(rest).max(1);
            headers.insert(RETRY_AFTER, seconds.into());
        }
        self
    }

    /// Its head.
    pub fn head(&self) -> Response<()> {
        self.response.clone().map(drop)
    }

    pub(crate) fn into_response(self) -> Response<Another> {
        let trailers = self.trailers;
        self.response
            .map(|data| Another::Given(Given::new(data, trailers)))
    }
}

impl<T: Into<Bytes>> From<Response<T>> for Answer {
    fn from(response: Response<T>) -> Self {
        Self {
            response: response.map(Into::into),
            trailers: None,
        }
    }
}

/// In the extensions of a response: the alternative that it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBy(pub(crate) Arc<str>);

impl ServedBy {
    /// The name that the alternative was given.
    pub fn name(&self) -> &str {
        &self.0
    }
}
