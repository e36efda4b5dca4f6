//! Answers that a test has written beforehand.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use crate::fault::{Fault, Kind};

/// One scripted answer to a request to `/generate` or `/v1`.
///
/// ```
/// # use std::time::Duration;
/// use demo_backend::{Fault, Reply};
///
/// let script = [
///     Reply::status(429).header("retry-after", "2"),
///     Reply::text("Hello there").after(Duration::from_millis(30)),
///     Reply::simulated().fault(Fault::reset(3)),
/// ];
/// ```
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) what: What,
    pub(crate) delay: Duration,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) fault: Option<Kind>,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Simulated,
    Tokens(u32),
    Text(String),
    Status(StatusCode),
    Response(Response<Bytes>),
}

impl Reply {
    fn new(what: What) -> Self {
        Self {
            what,
            delay: Duration::ZERO,
            headers: Vec::new(),
            fault: None,
        }
    }

    /// What the simulation says: a place in the script that changes nothing.
    pub fn simulated() -> Self {
        Self::new(What::Simulated)
    }

    /// A simulated answer of this many tokens, in the shape and at the pace that was asked for.
    pub fn tokens(count: u32) -> Self {
        Self::new(What::Tokens(count))
    }

    /// This text, in the shape and at the pace that was asked for; each word is a token.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(What::Text(text.into()))
    }

    /// An error with this status in the shape of the path; with one below 400, an empty body.
    ///
    /// # Panics
    ///
    /// When it is no status of an answer: below 200 or above 599.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::new(What::Status(checked(status)))
    }

    /// This status with this JSON.
    ///
    /// # Panics
    ///
    /// As [`Reply::status`].
    #[must_use]
    pub fn json(status: u16, json: impl Into<Bytes>) -> Self {
        let mut response = Response::new(json.into());
        *response.status_mut() = checked(status);
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Self::response(response)
    }

    /// This, as it is.
    pub fn response(response: Response<Bytes>) -> Self {
        Self::new(What::Response(response))
    }

    /// With this header.
    ///
    /// # Panics
    ///
    /// When the name is not a lower-case header name, or the value not visible ASCII.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        let name = HeaderName::from_static(name);
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Answers this much later.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Struck by this fault, whatever its share and window.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault.kind);
        self
    }
}

fn checked(status: u16) -> StatusCode {
    let read = StatusCode::from_u16(status).ok();
    let status = read.filter(|status| (200..600).contains(&status.as_u16()));
    status.expect("a status from 200 to 599")
}
