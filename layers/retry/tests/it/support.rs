use std::{
    collections::VecDeque,
    future::pending,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    testing::{Step, Steps},
    time,
};
use palisade_retry::{Backoff, Budget, ReplayBody, RetryBody, RetryLayer};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

pub(crate) const MILLI: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A layer whose delays are known: 100 ms each time.
pub(crate) fn layer() -> RetryLayer {
    RetryLayer::new(Backoff::constant(100 * MILLI)).budget(Budget::percent(20))
}

pub(crate) type Answer = Result<Response<Steps>, BoxError>;
pub(crate) type Reply = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What a backend was sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) at: Duration,
    pub(crate) headers: HeaderMap,
}

/// A service that answers from a script, the last line again and again.
pub(crate) struct Backend<B = Full<Bytes>>(Arc<Inner<B>>);

struct Inner<B> {
    start: Instant,
    script: Mutex<VecDeque<Line<B>>>,
    seen: Mutex<Vec<Seen>>,
}

pub(crate) type Line<B = Full<Bytes>> = Arc<dyn Fn(Request<ReplayBody<B>>) -> Reply + Send + Sync>;

impl<B> Backend<B> {
    pub(crate) fn new(script: impl IntoIterator<Item = Line<B>>) -> Self {
        Self(Arc::new(Inner {
            start: time::now(),
            script: Mutex::new(script.into_iter().collect()),
            seen: Mutex::default(),
        }))
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.seen.lock().unwrap().clone()
    }

    /// When each attempt came, in milliseconds since the start.
    pub(crate) fn times(&self) -> Vec<u128> {
        self.seen().iter().map(|seen| seen.at.as_millis()).collect()
    }

    pub(crate) fn attempts(&self) -> usize {
        self.seen().len()
    }
}

impl<B> Clone for Backend<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> tower::Service<Request<ReplayBody<B>>> for Backend<B> {
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<B>>) -> Reply {
        let inner = &self.0;
        inner.seen.lock().unwrap().push(Seen {
            at: time::now() - inner.start,
            headers: request.headers().clone(),
        });
        let mut script = inner.script.lock().unwrap();
        let line = match script.len() {
            1 => script[0].clone(),
            _ => script.pop_front().unwrap(),
        };
        drop(script);
        line(request)
    }
}

/// Answers with a status and headers, and reads nothing.
pub(crate) fn head<B>(status: u16, headers: &[(&'static str, &str)]) -> Line<B> {
    let headers: Vec<_> = headers
        .iter()
        .map(|&(name, value)| (name, value.to_string()))
        .collect();
    Arc::new(move |_| {
        let mut response = Response::builder().status(status);
        for (name, value) in &headers {
            response = response.header(*name, value);
        }
        let response = response.body(Steps::new([])).unwrap();
        Box::pin(async { Ok(response) })
    })
}

pub(crate) fn status<B>(status: u16) -> Line<B> {
    head(status, &[])
}

/// Fails with an error made anew each time.
pub(crate) fn fails<B>(error: impl Fn() -> BoxError + Send + Sync + 'static) -> Line<B> {
    Arc::new(move |_| {
        let error = error();
        Box::pin(async { Err(error) })
    })
}

pub(crate) fn refused_connection<B>() -> Line<B> {
    fails(|| io::Error::from(io::ErrorKind::ConnectionRefused).into())
}

pub(crate) fn rejects<B>(reason: Reason) -> Line<B> {
    fails(move || Rejected::new(reason, reason.name()).into())
}

/// Never answers, but keeps the request.
pub(crate) fn hangs<B: Send + 'static>() -> Line<B> {
    Arc::new(|request| {
        Box::pin(async {
            let _request = request;
            pending().await
        })
    })
}

/// Reads all of the request and gives it back.
pub(crate) fn echoes<B>() -> Line<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    Arc::new(|request| {
        Box::pin(async {
            let body = request.into_body().collect().await?;
            let text = String::from_utf8(body.to_bytes().to_vec())?;
            // Tests may leak.
            Ok(Response::new(Steps::new([Step::Data(text.leak())])))
        })
    })
}

/// An event stream of these steps.
pub(crate) fn streams<B>(steps: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Line<B> {
    Arc::new(move |_| {
        let response =
            Response::builder().header("content-type", "text/event-stream; charset=utf-8");
        let response = response.body(Steps::new(steps())).unwrap();
        Box::pin(async { Ok(response) })
    })
}

pub(crate) fn request(method: Method) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from("hello"));
    *request.method_mut() = method;
    request
}

pub(crate) fn get() -> Request<Full<Bytes>> {
    request(Method::GET)
}

pub(crate) type Passed = Response<RetryBody<Steps>>;

/// One request through the layer.
pub(crate) async fn send<C: palisade_core::classify::Classify>(
    layer: &RetryLayer<C>,
    backend: &Backend,
    request: Request<Full<Bytes>>,
) -> Result<Passed, BoxError> {
    // A day of the paused clock: what would hang fails instead.
    let call = layer.layer(backend.clone()).oneshot(request);
    let answer = tokio::time::timeout(86_400 * SECOND, call).await;
    answer.expect("answered within a day")
}

/// The text of a body, and the error it ended with.
pub(crate) async fn text(response: Passed) -> (String, Option<String>) {
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_default();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            Err(error) => return (text, Some(error.to_string())),
        }
    }
    (text, None)
}
