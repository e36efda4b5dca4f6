//! Checks over HTTP.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri,
    header::USER_AGENT,
    uri::{InvalidUri, PathAndQuery},
};
use http_body::Body;
use palisade_core::BoxError;
use tower_service::Service;

use super::{
    Checkup, Finding,
    ask::{AGENT, Keep, ask, read},
};

/// Asks for a path, and expects a status: `GET`, and 200 to 299, unless said otherwise.
///
/// The answer is read to its end, or for 64 KiB; one that breaks off has failed. Checks call themselves
/// `palisade-health` in `user-agent`.
///
/// ```
/// use http::{HeaderValue, Method, header::HOST};
/// use palisade_balance::HttpCheck;
///
/// let check = HttpCheck::new("/health?deep=1")?
///     .header(HOST, HeaderValue::from_static("llm.example.com"))
///     .statuses(200..=200)
///     .contains("\"ready\":true");
/// # let _ = check;
/// # Ok::<(), http::uri::InvalidUri>(())
/// ```
#[derive(Clone, Debug)]
pub struct HttpCheck {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    statuses: RangeInclusive<u16>,
    contains: Bytes,
}

impl HttpCheck {
    /// Asks for this path, which may have a query.
    ///
    /// # Errors
    ///
    /// It is no path.
    pub fn new(path: &str) -> Result<Self, InvalidUri> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, AGENT);
        Ok(Self {
            method: Method::GET,
            path: format!("{slash}{path}").parse()?,
            headers,
            statuses: 200..=299,
            contains: Bytes::new(),
        })
    }

    /// Asks with another method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sends a header, instead of any of that name.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Passes with these statuses, and no others.
    #[must_use]
    pub fn statuses(mut self, statuses: RangeInclusive<u16>) -> Self {
        self.statuses = statuses;
        self
    }

    /// Passes only if the first 64 KiB of the answer contain this, too.
    #[must_use]
    pub fn contains(mut self, text: impl Into<Bytes>) -> Self {
        self.contains = text.into();
        self
    }

    /// Checks endpoints through their own services, as requests reach them.
    pub fn through_endpoint<S, B, R>(self) -> impl FnMut(Arc<str>, S) -> Checkup
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Default + Send + 'static,
        R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        move |_, service| Box::pin(self.clone().check(service))
    }

    /// Checks endpoints through others: on another port, or over connections that requests do not use. `service_of`
    /// makes one of the name of an endpoint, for each check.
    pub fn through<S, T, B, R>(
        self,
        mut service_of: impl FnMut(&str) -> T,
    ) -> impl FnMut(Arc<str>, S) -> Checkup
    where
        T: Service<Request<B>, Response = Response<R>> + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send,
        B: Default + Send + 'static,
        R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        move |name, _| Box::pin(self.clone().check(service_of(&name)))
    }

    async fn check<S, B, R>(self, mut service: S) -> Finding
    where
        S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
        B: Default,
        R: Body<Error: Into<BoxError>>,
    {
        let found = async {
            let mut request = Request::new(B::default());
            *request.method_mut() = self.method;
            *request.uri_mut() = Uri::from(self.path);
            *request.headers_mut() = self.headers;
            let response = ask(&mut service, request).await?;
            let (parts, body) = response.into_parts();
            let keep = if self.contains.is_empty() {
                Keep::Nothing
            } else {
                Keep::Data
            };
            let (data, _) = read(body, keep).await?;
            if !self.statuses.contains(&parts.status.as_u16()) {
                return Err(format!("the status is {}", parts.status.as_u16()).into());
            }
            let contains = |text: &[u8]| data.windows(text.len()).any(|some| some == text);
            if keep == Keep::Data && !contains(&self.contains) {
                return Err("the answer lacks what it should contain".into());
            }
            Ok::<(), BoxError>(())
        };
        found.await.into()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::Ready, task::Context, task::Poll};

    use http_body_util::Full;

    use super::*;

    /// Says what it was asked, with a status of its own.
    #[derive(Clone)]
    struct Echo(u16);

    impl Service<Request<()>> for Echo {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let (method, uri) = (request.method(), request.uri());
            let mut said = format!("{method} {uri}");
            for (name, value) in request.headers() {
                said += &format!(" {name}={}", value.to_str().unwrap());
            }
            let mut response = Response::new(Full::from(said));
            *response.status_mut() = self.0.try_into().unwrap();
            std::future::ready(Ok(response))
        }
    }

    async fn found(check: &HttpCheck, status: u16) -> String {
        let mut check = check.clone().through_endpoint();
        check("a".into(), Echo(status)).await.to_string()
    }

    fn check() -> HttpCheck {
        HttpCheck::new("/health").unwrap()
    }

    #[tokio::test]
    async fn only_the_statuses_that_are_expected_pass() {
        let passed = "passed";
        for status in [200, 204, 299] {
            assert_eq!(found(&check(), status).await, passed);
        }
        for status in [199, 300, 404, 503] {
            let why = format!("the status is {status}");
            assert_eq!(found(&check(), status).await, why);
        }
        let unauthorized = check().statuses(401..=401);
        assert_eq!(found(&unauthorized, 401).await, passed);
        assert_eq!(found(&unauthorized, 200).await, "the status is 200");
    }

    #[tokio::test]
    async fn the_request_is_what_was_asked_for() {
        for said in [
            "GET /health?x=1 user-agent=palisade-health x-a=b",
            "health?x",
        ] {
            let check = HttpCheck::new("health?x=1").unwrap();
            let name = HeaderName::from_static("x-a");
            let check = check.header(name, HeaderValue::from_static("b"));
            assert_eq!(found(&check.contains(said), 200).await, "passed");
        }
        let head = check().method(Method::OPTIONS).contains("OPTIONS /health");
        assert_eq!(found(&head, 200).await, "passed");
        let other = check().header(USER_AGENT, HeaderValue::from_static("me"));
        assert_eq!(found(&other.contains("user-agent=me"), 200).await, "passed");
    }

    #[tokio::test]
    async fn what_the_answer_should_contain_is_looked_for() {
        let lacks = "the answer lacks what it should contain";
        assert_eq!(found(&check().contains("ready"), 200).await, lacks);
        assert_eq!(found(&check().contains("x".repeat(1000)), 200).await, lacks);
        assert_eq!(found(&check().contains(""), 200).await, "passed");
    }

    #[tokio::test]
    async fn another_service_is_asked_by_the_name_of_the_endpoint() {
        let status = |name: &str| Echo(name.parse().unwrap());
        let mut check = check().through(status);
        let unused = "the endpoint itself";
        assert_eq!(check("200".into(), unused).await, Finding::Passed);
        assert_ne!(check("500".into(), unused).await, Finding::Passed);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        assert!(HttpCheck::new("/a b").is_err());
        assert!(HttpCheck::new("").is_ok());
    }
}
