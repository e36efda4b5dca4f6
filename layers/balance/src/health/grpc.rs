//! Checks over gRPC: `grpc.health.v1.Health/Check`.
//!
//! By hand, as its two messages have one field each: the client that tonic generates takes no body but tonic's own,
//! where endpoints take any.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use http_body::Body;
use palisade_core::BoxError;
use tower_service::Service;

use super::{
    Checkup,
    ask::{AGENT, Keep, ask, read},
};

const METHOD: &str = "/grpc.health.v1.Health/Check";

/// Asks the health service of gRPC, and passes when it says `SERVING`.
///
/// A server that does not implement the service fails its checks, as with Envoy and Kubernetes.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use palisade_balance::{GrpcCheck, HealthChecks};
/// # use http::{Request, Response};
/// # fn spawned<S>(endpoints: &palisade_balance::Endpoints<S>)
/// # where
/// #     S: tower::Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = std::io::Error>,
/// #     S: Clone + Send + Sync + 'static,
/// #     S::Future: Send,
/// # {
///
/// // Of endpoints that take `tonic::body::Body`: `|message| tonic::body::Body::new(Full::new(message))`.
/// let check = GrpcCheck::new("llm.v1.Generator").through_endpoint(Full::<Bytes>::new);
/// tokio::spawn(endpoints.health_checks(HealthChecks::default(), check));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GrpcCheck {
    service: Arc<str>,
    headers: HeaderMap,
}

impl GrpcCheck {
    /// Asks for the health of this service, or with `""` of the server as a whole.
    pub fn new(service: impl Into<Arc<str>>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, AGENT);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Self {
            service: service.into(),
            headers,
        }
    }

    /// Checks endpoints through their own services, which have to speak HTTP/2. `body` makes the body of the request.
    pub fn through_endpoint<S, B, R>(
        self,
        body: impl Fn(Bytes) -> B,
    ) -> impl FnMut(Arc<str>, S) -> Checkup
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        move |_, service| {
            let request = self.request(&body);
            Box::pin(async { check(service, request).await.into() })
        }
    }

    /// Checks endpoints through others, which `service_of` makes of the name of an endpoint for each check.
    pub fn through<S, T, B, R>(
        self,
        mut service_of: impl FnMut(&str) -> T,
        body: impl Fn(Bytes) -> B,
    ) -> impl FnMut(Arc<str>, S) -> Checkup
    where
        T: Service<Request<B>, Response = Response<R>> + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send,
        B: Send + 'static,
        R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        move |name, _| {
            let request = self.request(&body);
            let service = service_of(&name);
            Box::pin(async { check(service, request).await.into() })
        }
    }

    fn request<B>(&self, body: impl Fn(Bytes) -> B) -> Request<B> {
        let mut request = Request::new(body(question(&self.service)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(METHOD);
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

async fn check<S, B, R>(mut service: S, request: Request<B>) -> Result<(), BoxError>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
    R: Body<Error: Into<BoxError>>,
{
    let response = ask(&mut service, request).await?;
    let (head, body) = response.into_parts();
    let (data, trailers) = read(body, Keep::Data).await?;
    if head.status != 200 {
        return Err(format!("the status is {}", head.status.as_u16()).into());
    }
    // An answer without a message has its status in the head.
    let ends = [trailers.as_ref(), Some(&head.headers)];
    let status = |name| ends.into_iter().flatten().find_map(|end| end.get(name));
    match status("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(b"12") => return Err("the server has no health service of gRPC".into()),
        Some(code) => {
            let code = String::from_utf8_lossy(code);
            let message = status("grpc-message").and_then(|message| message.to_str().ok());
            return Err(format!("grpc status {code} {}", message.unwrap_or_default()).into());
        }
        None => return Err("the answer is not gRPC".into()),
    }
    match answer(&data) {
        Some(1) => Ok(()),
        Some(0) => Err("the service is UNKNOWN".into()),
        Some(2) => Err("the service is NOT_SERVING".into()),
        Some(3) => Err("the service is SERVICE_UNKNOWN".into()),
        _ => Err("the answer is no health check's".into()),
    }
}

/// A `HealthCheckRequest`, framed: its one field is the name of the service.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut len = service.len();
        while len > 0x7f {
            message.put_u8(len as u8 | 0x80);
            len >>= 7;
        }
        message.put_u8(len as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put(message);
    framed.freeze()
}

/// The status in a framed `HealthCheckResponse`: its field 1, 0 if that is missing. `None` if it is something else.
fn answer(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let (&flag, len) = head.split_first()?;
    let len = u32::from_be_bytes(len.try_into().ok()?);
    // Compressed: that was not asked for.
    if flag != 0 {
        return None;
    }
    let mut rest = message.get(..len as usize)?;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut rest)?,
            (_, 0) => _ = varint(&mut rest)?,
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let len = varint(&mut rest)?;
                rest = rest.get(usize::try_from(len).ok()?..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_question_is_one_field_or_none() {
        assert_eq!(&question("")[..], b"\0\0\0\0\0");
        assert_eq!(&question("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "x".repeat(300);
        assert_eq!(&question(&long)[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn the_answer_is_the_first_field_whatever_comes_beside_it() {
        assert_eq!(answer(b"\0\0\0\0\0"), Some(0));
        assert_eq!(answer(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(answer(b"\0\0\0\0\x08\x12\x02hi\x08\x02\x18\x05"), Some(2));
        assert_eq!(answer(b"\0\0\0\0\x10\x11abcdefgh\x25abcd\x08\x03"), Some(3));
        assert_eq!(answer(b"\0\0\0\0\x03\x11ab"), None);
        assert_eq!(answer(b"\x01\0\0\0\x02\x08\x01"), None);
        assert_eq!(answer(b"\0\0\0\0\x03\x08\x01"), None);
        assert_eq!(answer(b"\0\0"), None);
        assert_eq!(answer(b"\0\0\0\0\x02\x0c\x01"), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), framed: bool) {
            let mut answered = bytes;
            if framed {
                let len = answered.len() as u8;
                answered.splice(0..0, [0, 0, 0, 0, len]);
            }
            let _ = answer(&answered);
        }
    }
}
