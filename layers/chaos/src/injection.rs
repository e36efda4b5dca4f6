//! What happens to one request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use palisade_core::{BoxError, respond};

use crate::{
    cut::Cut,
    fault::{Cuts, Ends},
    shared::Armed,
};

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What happens to one request.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    pub(crate) delay: Duration,
    delays: Vec<Arc<Armed>>,
    end: Option<End>,
    pub(crate) cut: Option<Box<Cut>>,
    /// The names of all of them, for the header.
    names: String,
}

/// How a request ends without its service.
#[derive(Debug)]
pub(crate) struct End {
    armed: Arc<Armed>,
    ends: Ends,
}

impl Injection {
    pub(crate) fn delay(&mut self, armed: &Arc<Armed>, delay: Duration) {
        self.delay = self.delay.saturating_add(delay);
        self.delays.push(armed.clone());
        self.name(armed);
    }

    /// The first one counts.
    pub(crate) fn end(&mut self, armed: &Arc<Armed>, ends: &Ends) {
        if self.end.is_none() {
            let (armed, ends) = (armed.clone(), ends.clone());
            self.name(&armed);
            self.end = Some(End { armed, ends });
        }
    }

    pub(crate) fn cut(&mut self, armed: &Arc<Armed>, cuts: Cuts) {
        let cut = self.cut.get_or_insert_default();
        if cut.add(armed, cuts) {
            self.name(armed);
        }
    }

    fn name(&mut self, armed: &Armed) {
        if !self.names.is_empty() {
            self.names.push_str(", ");
        }
        self.names.push_str(&armed.name);
    }

    /// Counts what happens before the service would be called. How the request ends, if it does then.
    pub(crate) fn begin(&mut self) -> Option<End> {
        for armed in self.delays.drain(..) {
            armed.strike();
        }
        self.end.take()
    }

    /// Says what was done to an answer.
    pub(crate) fn mark<T>(&self, response: &mut Response<T>, header: Option<&HeaderName>) {
        let Some(header) = header else {
            return;
        };
        // A name that is no header is left out rather than the request.
        if let Ok(names) = HeaderValue::from_str(&self.names) {
            response.headers_mut().insert(header, names);
        }
    }
}

impl End {
    /// The answer or the error; `None` for none, ever.
    pub(crate) fn strike(self, is_grpc: bool) -> Option<Result<Response<Bytes>, BoxError>> {
        let Self { armed, ends } = self;
        armed.strike();
        let answer = match ends {
            Ends::Status {
                status,
                retry_after,
            } if is_grpc => grpc_answer(code_of(status), retry_after, &armed),
            Ends::Status {
                status,
                retry_after,
            } => answer(status, retry_after, &armed),
            Ends::Grpc { code, retry_after } => grpc_answer(code, retry_after, &armed),
            Ends::Error(error) => return Some(Err(error(armed.injected()))),
            Ends::Hang => return None,
        };
        Some(Ok(answer))
    }
}

fn answer(status: StatusCode, retry_after: Option<Duration>, armed: &Armed) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(armed.injected().to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Some(delay) = retry_after {
        let seconds = delay
            .as_secs()
            .saturating_add(u64::from(delay.subsec_nanos() > 0));
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn grpc_answer(code: u8, retry_after: Option<Duration>, armed: &Armed) -> Response<Bytes> {
    let mut response = respond::grpc_status(code, &armed.injected().to_string());
    if let Some(delay) = retry_after {
        // Rounded up: a client that comes back early is refused again.
        let millis = delay.as_nanos().div_ceil(1_000_000);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let headers = response.headers_mut();
        headers.insert(GRPC_PUSHBACK, millis.into());
    }
    response
}

/// What a client of gRPC makes of an answer in plain HTTP, by gRPC's "HTTP to gRPC Status Code Mapping".
fn code_of(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
