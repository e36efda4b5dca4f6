use std::str::FromStr;

use bytes::Buf;
use http::{
    HeaderName, HeaderValue, Request, Response,
    uri::{InvalidUri, PathAndQuery},
};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use palisade_core::BoxError;
use tower_service::Service;

use super::LONGEST;
use crate::LoadReport;

/// vLLM and Triton speak of their load when they are asked to.
const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// Asks an endpoint for its load over HTTP: `GET` of a path, and a report in the header of the answer or in its body.
///
/// ```
/// use palisade_balance::{Endpoint, Endpoints, OrcaProbe, Probes};
/// # use palisade_core::testing::Answers;
/// # type Body = http_body_util::Empty<bytes::Bytes>;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), http::uri::InvalidUri> {
/// # let client = Answers(|| http::Response::new(Body::new()));
/// let endpoints = Endpoints::default();
/// endpoints.insert(Endpoint::new("a", client));
/// let load = OrcaProbe::new("/load")?;
/// let ask = move |_, client| load.clone().ask::<_, Body, _>(client);
/// tokio::spawn(endpoints.probes(Probes::default(), ask));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OrcaProbe {
    path: PathAndQuery,
}

impl OrcaProbe {
    /// Asks at this path, which may have a query.
    ///
    /// # Errors
    ///
    /// If it is no path.
    pub fn new(path: &str) -> Result<Self, InvalidUri> {
        let path = PathAndQuery::from_str(path)?;
        Ok(Self { path })
    }

    /// The report of this endpoint: that of the headers, whatever the status; or else that of the body of a good
    /// answer, as [`LoadReport::parse`] reads it, 4 KiB at most.
    ///
    /// `service` is waited for until it is ready. The URI has no authority: a service that reaches one endpoint knows
    /// it.
    pub async fn ask<S, B, R>(self, mut service: S) -> Option<LoadReport>
    where
        S: Service<Request<B>, Response = Response<R>>,
        B: Default,
        R: Body<Data: Buf, Error: Into<BoxError>>,
    {
        let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
        ready.ok()?;
        let mut request = Request::new(B::default());
        *request.uri_mut() = self.path.into();
        let headers = request.headers_mut();
        headers.insert(FORMAT, HeaderValue::from_static("text"));
        let (head, body) = service.call(request).await.ok()?.into_parts();
        // Read even if the headers have said it all: HTTP/1.1 can use a connection again when its answer was read.
        let body = Limited::new(body, LONGEST).collect().await;
        LoadReport::from_headers(&head.headers).or_else(|| {
            let body = body.ok().filter(|_| head.status.is_success())?;
            LoadReport::parse(&body.to_bytes())
        })
    }
}
