use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::channel::{Channel, Sender};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    testing::{Step, Steps},
};
use palisade_deadline::{Awaited, Elapsed, Limit};
use tower_test::mock::{Handle, Spawn};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLI: Duration = Duration::from_millis(1);

pub(crate) type Mock = tower_test::mock::Mock<Request<()>, Response<Steps>>;
pub(crate) type Backend = Handle<Request<()>, Response<Steps>>;

/// A layer around a mock that is ready.
pub(crate) fn mock<L>(layer: L) -> (Spawn<L::Service>, Backend)
where
    L: tower::Layer<Mock>,
    L::Service: tower::Service<Request<()>, Error = BoxError>,
{
    let (mut service, backend) = tower_test::mock::spawn_with(|mock| layer.layer(mock));
    assert!(service.poll_ready().is_ready());
    (service, backend)
}

pub(crate) fn answer(steps: impl IntoIterator<Item = Step>) -> Response<Steps> {
    Response::new(Steps::new(steps))
}

/// Asserts what an error says, and how the layers above judge it.
#[track_caller]
pub(crate) fn assert_elapsed(error: &BoxError, after: Duration, awaited: Awaited) {
    let elapsed = Elapsed::find(&**error).expect("a timeout");
    assert_eq!((elapsed.after, elapsed.awaited), (after, awaited));
    let reason = match awaited {
        Awaited::Call => Reason::DeadlineExceeded,
        _ => Reason::TimedOut,
    };
    assert_eq!(Rejected::find(&**error).expect("refused").reason(), reason);
}

/// Asserts also which limit was reached.
#[track_caller]
pub(crate) fn assert_reached(error: &BoxError, limit: Limit, after: Duration, awaited: Awaited) {
    assert_elapsed(error, after, awaited);
    assert_eq!(Elapsed::find(&**error).expect("a timeout").limit, limit);
}

/// A service of one answer whose body the test writes.
pub(crate) type Written =
    tower::util::BoxCloneService<Request<()>, Response<Channel<Bytes, BoxError>>, BoxError>;

/// Answers at once with a body that the test writes.
pub(crate) fn written(kind: &'static str) -> (Sender<Bytes, BoxError>, Written) {
    let (sender, body) = Channel::new(8);
    let body = Arc::new(Mutex::new(Some(body)));
    let service = tower::service_fn(move |_: Request<()>| {
        let body = body.lock().unwrap().take().expect("called once");
        let response = Response::builder().header("content-type", kind).body(body);
        std::future::ready(Ok(response.unwrap()))
    });
    (sender, Written::new(service))
}

/// One poll of a body.
type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

/// Polls a body once, without a waker that matters.
pub(crate) fn poll_once<B: Body + Unpin>(body: &mut B) -> Polled<B> {
    let mut cx = Context::from_waker(Waker::noop());
    pin!(body).poll_frame(&mut cx)
}

/// How much of something is alive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alive(Arc<()>);

impl Alive {
    pub(crate) fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Counts the polls of a future or body, and says so when it is dropped.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    pub(crate) inner: T,
    pub(crate) polls: Arc<AtomicUsize>,
    pub(crate) _alive: Alive,
}

impl<T: Future + Unpin> Future for Counted<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        self.polls.fetch_add(1, Relaxed);
        Pin::new(&mut self.inner).poll(cx)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.polls.fetch_add(1, Relaxed);
        Pin::new(&mut self.inner).poll_frame(cx)
    }
}

/// Steps that are never over: each poll uses up a [`Step::Hang`], and no test polls this often.
pub(crate) fn hanging(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let hangs = (0..64).map(|_| Step::Hang);
    steps.into_iter().chain(hangs).collect()
}
