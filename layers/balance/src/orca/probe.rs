use std::str::FromStr;

use bytes::Buf;
use http::{
    HeaderName, HeaderValue, Request, Response,
    uri::{InvalidUri, PathAndQuery},
};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use palisade_core::{BoxError, reject::Rejected};
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
    /// answer, as [`LoadReport::parse`] reads it, 4 KiB at most. Of one that cannot be reached, that all of its
    /// answers are [errors](LoadReport::errors), unless a layer of this side has [refused](Rejected) to ask.
    ///
    /// `service` is waited for until it is ready. The URI has no authority: a service that reaches one endpoint knows
    /// it.
    pub async fn ask<S, B, R>(self, mut service: S) -> Option<LoadReport>
    where
        S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
        B: Default,
        R: Body<Data: Buf, Error: Into<BoxError>>,
    {
        let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
        if let Err(error) = ready {
            return unreachable(error);
        }
        let mut request = Request::new(B::default());
        *request.uri_mut() = self.path.into();
        let headers = request.headers_mut();
        headers.insert(FORMAT, HeaderValue::from_static("text"));
        let (head, body) = match service.call(request).await {
            Ok(response) => response.into_parts(),
            Err(error) => return unreachable(error),
        };
        // Read even if the headers have said it all: HTTP/1.1 can use a connection again when its answer was read.
        let body = Limited::new(body, LONGEST).collect().await;
        LoadReport::from_headers(&head.headers).or_else(|| {
            let body = body.ok().filter(|_| head.status.is_success())?;
            LoadReport::parse(&body.to_bytes())
        })
    }
}

fn unreachable(error: impl Into<BoxError>) -> Option<LoadReport> {
    let failed = LoadReport {
        errors: Some(1.0),
        ..LoadReport::default()
    };
    Rejected::find(&*error.into()).is_none().then_some(failed)
}
