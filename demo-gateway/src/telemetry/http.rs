//! Sends spans over HTTP.

use std::{fmt, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry_http::{HttpClient, HttpError};
use palisade::{BoxError, balance::Client};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::config::split;

/// A collector has little to say.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The client of a collector.
pub(super) struct Posting {
    client: Client<Full<Bytes>>,
    target: Uri,
    headers: HeaderMap,
    longest: Duration,
}

impl Posting {
    /// Posts there, with these headers besides, and waits for an answer so long.
    pub(super) fn new(url: &str, headers: HeaderMap, longest: Duration) -> Result<Self, BoxError> {
        let (client, target) = split(url)?;
        Ok(Self {
            client: client
                .named("collector")
                .connect_timeout(longest)
                .max_idle(1),
            target,
            headers,
            longest,
        })
    }

    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        *request.uri_mut() = self.target.clone();
        request.headers_mut().extend(self.headers.clone());
        let answer = self.client.clone().oneshot(request).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

impl fmt::Debug for Posting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Posting").finish_non_exhaustive()
    }
}

// As `async_trait` would write it.
impl HttpClient for Posting {
    fn send_bytes<'a, 'async_trait>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { timeout(self.longest, self.post(request)).await? })
    }
}
