use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use palisade_chaos::{ChaosBody, ChaosLayer, Fault};
use palisade_core::{
    BoxError,
    testing::{Answers, Step, Steps},
};
use tower::{Layer, Service, ServiceExt};

pub(crate) const MILLI: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A service that answers, and counts how often it was called by an instance that was ready.
#[derive(Default)]
pub(crate) struct Backend {
    calls: Arc<AtomicUsize>,
    was_ready: bool,
}

impl Backend {
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

impl Clone for Backend {
    fn clone(&self) -> Self {
        let calls = self.calls.clone();
        // A clone has to ask for itself.
        let was_ready = false;
        Self { calls, was_ready }
    }
}

impl<B> Service<Request<B>> for Backend {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.was_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.was_ready), "called unready");
        self.calls.fetch_add(1, Relaxed);
        std::future::ready(Ok(Response::new(Full::from("hello"))))
    }
}

pub(crate) fn request() -> Request<()> {
    Request::new(())
}

pub(crate) fn grpc() -> Request<()> {
    let request = Request::builder().header("content-type", "application/grpc+proto");
    request.body(()).unwrap()
}

pub(crate) fn chaos(faults: impl IntoIterator<Item = Fault>) -> ChaosLayer {
    ChaosLayer::new(42, faults)
}

pub(crate) type Passed = Response<ChaosBody<Full<Bytes>>>;

/// One request through the layer.
pub(crate) async fn send(layer: &ChaosLayer, request: Request<()>) -> Result<Passed, BoxError> {
    layer.layer(Backend::default()).oneshot(request).await
}

/// Whether a request comes out otherwise than it would by itself.
pub(crate) async fn strikes(layer: &ChaosLayer, request: Request<()>) -> bool {
    match send(layer, request).await {
        Ok(response) => response.status() != 200 || response.headers().contains_key("grpc-status"),
        Err(_) => true,
    }
}

/// The body of an answer in these pieces, through the layer.
pub(crate) async fn answer(
    layer: &ChaosLayer,
    steps: impl IntoIterator<Item = Step>,
) -> ChaosBody<Steps> {
    let steps = Mutex::new(Some(Steps::new(steps)));
    let answer = || Response::new(steps.lock().unwrap().take().unwrap());
    let mut service = layer.layer(Answers(&answer));
    let response = service.call(request()).await.unwrap();
    response.into_body()
}

/// The text of a body, and the error it ended with.
pub(crate) async fn text<B>(body: ChaosBody<B>) -> (String, Option<BoxError>)
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = Box::pin(body);
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_default();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            Err(error) => return (text, Some(error)),
        }
    }
    (text, None)
}
