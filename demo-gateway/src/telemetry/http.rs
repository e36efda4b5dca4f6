//! Sends spans over HTTP.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::time::timeout;

/// A collector has little to say.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The client of a collector.
#[derive(Debug)]
pub(super) struct Posting {
    client: Client<HttpConnector, Full<Bytes>>,
    longest: Duration,
}

impl Posting {
    /// Waits for an answer so long.
    pub(super) fn new(longest: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(longest));
        let mut client = Client::builder(TokioExecutor::new());
        Self {
            client: client.pool_timer(TokioTimer::new()).build(connector),
            longest,
        }
    }

    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new)).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
        Ok(Response::from_parts(parts, body.to_bytes()))
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
