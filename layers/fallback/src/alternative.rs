//! What there is beside the service itself.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, request};
use http_body::Body;
use palisade_core::{
    BoxError, deadline::Deadline, head::RequestHead, peek::PeekedBody, replay::ReplayBody, time,
};
use tower_service::Service;

use crate::{Answer, Failure, body::BoxBody, error::OutOfTime};

pub(crate) type Function = dyn Fn(&RequestHead<'_>, &Failure<'_>) -> Option<Answer> + Send + Sync;
pub(crate) type Rewrite = dyn Fn(&mut request::Parts) + Send + Sync;
pub(crate) type Applies = dyn Fn(&RequestHead<'_>) -> bool + Send + Sync;

pub(crate) struct Alternative<B> {
    pub(crate) entry: Arc<Entry>,
    pub(crate) kind: Kind<B>,
    /// `None` if it is there for all requests.
    pub(crate) applies: Option<Arc<Applies>>,
}

pub(crate) enum Kind<B> {
    Value(Arc<Answer>),
    Function(Arc<Function>),
    Service {
        service: Arc<dyn Ask<B>>,
        rewrite: Option<Arc<Rewrite>>,
    },
}

/// What an alternative is called.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    /// The name as it stands in a header.
    pub(crate) mark: HeaderValue,
}

impl<B> Alternative<B> {
    pub(crate) fn new(name: &str, kind: Kind<B>) -> Self {
        let visible = |byte: u8| if byte.is_ascii_graphic() { byte } else { b'?' };
        let mark: Vec<u8> = name.bytes().map(visible).collect();
        let entry = Entry {
            name: name.into(),
            mark: HeaderValue::from_bytes(&mark).expect("visible ASCII"),
        };
        Self {
            entry: Arc::new(entry),
            kind,
            applies: None,
        }
    }

    pub(crate) fn applies(&self, head: &RequestHead<'_>) -> bool {
        self.applies.as_ref().is_none_or(|applies| applies(head))
    }
}

// By hand: derived, it would ask for `B: Clone`.
impl<B> Clone for Alternative<B> {
    fn clone(&self) -> Self {
        let kind = match &self.kind {
            Kind::Value(answer) => Kind::Value(answer.clone()),
            Kind::Function(function) => Kind::Function(function.clone()),
            Kind::Service { service, rewrite } => Kind::Service {
                service: service.clone(),
                rewrite: rewrite.clone(),
            },
        };
        Self {
            entry: self.entry.clone(),
            kind,
            applies: self.applies.clone(),
        }
    }
}

pub(crate) type Asked = Pin<Box<dyn Future<Output = Result<Response<BoxBody>, BoxError>> + Send>>;

/// A service of whatever type.
pub(crate) trait Ask<B>: Send + Sync {
    /// Waits until an instance of it is ready, and calls that one.
    fn ask(&self, request: Request<ReplayBody<B>>, deadline: Option<Deadline>) -> Asked;
}

impl<S, B, R> Ask<B> for S
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    fn ask(&self, request: Request<ReplayBody<B>>, deadline: Option<Deadline>) -> Asked {
        let mut service = self.clone();
        Box::pin(async move {
            let ready = poll_fn(|cx| service.poll_ready(cx)).await;
            ready.map_err(Into::into)?;
            if has_passed(deadline) {
                return Err(OutOfTime.boxed());
            }
            let answer = service.call(request).await.map_err(Into::into)?;
            Ok(answer.map(|body| Box::pin(PeekedBody::plain(body)) as BoxBody))
        })
    }
}

/// Reads the clock only if there is a deadline.
pub(crate) fn has_passed(deadline: Option<Deadline>) -> bool {
    deadline.is_some_and(|deadline| deadline.remaining(time::now()).is_zero())
}
