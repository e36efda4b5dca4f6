//! A server that does as it is told, attempt by attempt, and knows what of it is still alive.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    classify::Classify,
    ratio::Ratio,
    testing::{Step, Steps},
    time,
};
use palisade_retry::{HedgeBody, HedgeLayer, RetryBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt};

pub(crate) const MILLI: Duration = Duration::from_millis(1);

/// Hedges after 100 ms, each request if need be.
pub(crate) fn hedge() -> HedgeLayer {
    HedgeLayer::new(100 * MILLI).at_most(all())
}

/// The same, when ten hedges have been saved up for requests of several.
pub(crate) async fn rich<C: Classify>(layer: HedgeLayer<C>) -> HedgeLayer<C> {
    let server = Server::new([answers(0, 200)]);
    for _ in 0..10 {
        send(&layer, &server, get()).await.0.unwrap();
    }
    layer
}

pub(crate) fn all() -> Ratio {
    Ratio::new(1.0).unwrap()
}

/// What a server does with an attempt.
#[derive(Clone)]
pub(crate) struct Act {
    /// After so many milliseconds; never, if `None`.
    after: Option<u64>,
    what: What,
}

#[derive(Clone)]
enum What {
    Answer(
        u16,
        Vec<(&'static str, &'static str)>,
        Arc<dyn Fn() -> Vec<Step> + Send + Sync>,
    ),
    Error(&'static str),
    Panic,
}

pub(crate) fn hangs() -> Act {
    let after = None;
    let what = What::Panic;
    Act { after, what }
}

pub(crate) fn answers(after: u64, status: u16) -> Act {
    head(after, status, &[])
}

pub(crate) fn head(after: u64, status: u16, headers: &[(&'static str, &'static str)]) -> Act {
    streams(after, status, headers, Vec::new)
}

pub(crate) fn streams(
    after: u64,
    status: u16,
    headers: &[(&'static str, &'static str)],
    steps: impl Fn() -> Vec<Step> + Send + Sync + 'static,
) -> Act {
    Act {
        after: Some(after),
        what: What::Answer(status, headers.to_vec(), Arc::new(steps)),
    }
}

pub(crate) fn fails(after: u64, error: &'static str) -> Act {
    Act {
        after: Some(after),
        what: What::Error(error),
    }
}

pub(crate) fn panics(after: u64) -> Act {
    Act {
        after: Some(after),
        what: What::Panic,
    }
}

/// What a server was sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    /// In milliseconds since the start.
    pub(crate) at: u128,
    pub(crate) headers: HeaderMap,
}

#[derive(Clone)]
pub(crate) struct Server {
    start: Instant,
    acts: Arc<Mutex<VecDeque<Act>>>,
    sent: Arc<Mutex<Vec<Sent>>>,
    /// What each attempt has read of its body, once that has ended.
    pub(crate) read: Arc<Mutex<Vec<Result<Bytes, String>>>>,
    alive: Arc<()>,
}

impl Server {
    /// The last act again and again.
    pub(crate) fn new(acts: impl IntoIterator<Item = Act>) -> Self {
        Self {
            start: time::now(),
            acts: Arc::new(Mutex::new(acts.into_iter().collect())),
            sent: Arc::default(),
            read: Arc::default(),
            alive: Arc::default(),
        }
    }

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// When each attempt came.
    pub(crate) fn times(&self) -> Vec<u128> {
        self.sent().iter().map(|sent| sent.at).collect()
    }

    /// Attempts whose future or answer somebody still holds.
    pub(crate) fn alive(&self) -> usize {
        // Of this service, its clones hold one each.
        Arc::strong_count(&self.alive) - 1 - self.clones()
    }

    fn clones(&self) -> usize {
        Arc::strong_count(&self.sent) - 1
    }
}

pub(crate) type Reply<R> = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

impl<B> tower::Service<Request<HedgeBody<B>>> for Server
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Held>;
    type Error = BoxError;
    type Future = Reply<Held>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HedgeBody<B>>) -> Reply<Held> {
        self.sent.lock().unwrap().push(Sent {
            at: (time::now() - self.start).as_millis(),
            headers: request.headers().clone(),
        });
        let mut acts = self.acts.lock().unwrap();
        let act = if acts.len() > 1 {
            acts.pop_front().unwrap()
        } else {
            acts[0].clone()
        };
        drop(acts);
        let (alive, read) = (self.alive.clone(), self.read.clone());
        Box::pin(async move {
            let body = request.into_body().collect().await;
            let body = body.map(http_body_util::Collected::to_bytes);
            read.lock()
                .unwrap()
                .push(body.map_err(|error| error.to_string()));
            match act.after {
                Some(after) => sleep(Duration::from_millis(after)).await,
                None => std::future::pending().await,
            }
            match act.what {
                What::Panic => panic!("on purpose"),
                What::Error(error) => Err(error.into()),
                What::Answer(status, headers, steps) => {
                    let mut response = Response::builder().status(status);
                    for (name, value) in headers {
                        response = response.header(name, value);
                    }
                    let steps = Steps::new(steps());
                    Ok(response.body(Held {
                        steps,
                        hangs: false,
                        _alive: alive,
                    })?)
                }
            }
        })
    }
}

/// A body that counts as alive.
pub(crate) struct Held {
    steps: Steps,
    /// Of two polls of a body that hangs, the second would go on.
    hangs: bool,
    _alive: Arc<()>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.hangs {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.steps).poll_frame(cx);
        self.hangs = polled.is_pending();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.steps.size_hint()
    }
}

pub(crate) fn get() -> Request<Full<Bytes>> {
    with(Method::GET, "")
}

pub(crate) fn with(method: Method, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = method;
    request
}

pub(crate) type Passed = Response<RetryBody<Held>>;

/// One request through the layer, and after how many milliseconds it was answered.
pub(crate) async fn send<C: Classify>(
    layer: &HedgeLayer<C>,
    server: &Server,
    request: Request<Full<Bytes>>,
) -> (Result<Passed, BoxError>, u128) {
    let start = time::now();
    let answer = layer.layer(server.clone()).oneshot(request).await;
    (answer, (time::now() - start).as_millis())
}

pub(crate) async fn text(response: Passed) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
