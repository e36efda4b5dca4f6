use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use palisade_core::{
    BoxError,
    classify::Sse,
    testing::{Step, Steps},
};
use palisade_fallback::{FallbackLayer, ReplayBody};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, Line, SECOND, hangs, status, streams};

/// A body that is never over and says when it is dropped.
struct Held {
    _alive: Arc<()>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"more")))))
    }
}

fn held() -> (Arc<()>, Request<Held>) {
    let alive = Arc::new(());
    let body = Held {
        _alive: alive.clone(),
    };
    (alive, Request::new(body))
}

/// Drops the future once it waits, and looks what is left of it. How often each service was called.
async fn canceled(first: Line<Held>, second: Line<Held>) -> (usize, usize) {
    let (first, second) = (Backend::new([first]), Backend::new([second]));
    let third = Backend::new([status(200)]);
    let layer = FallbackLayer::new()
        .service("second", second.clone())
        .service("third", third.clone())
        .classify(Sse);
    let (alive, request) = held();
    let mut call = task::spawn(layer.layer(first.clone()).oneshot(request));
    assert_pending!(call.poll());
    assert!(!call.is_woken(), "nothing has happened");
    assert_eq!(Arc::strong_count(&alive), 2);
    let calls = (first.calls(), second.calls());
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 1, "nothing is kept");
    advance(10 * SECOND).await;
    assert_eq!((first.calls(), second.calls()), calls, "nothing is sent");
    assert_eq!(third.calls(), 0);
    let snapshot = layer.handle().snapshot();
    assert!(snapshot.alternatives.iter().all(|each| each.served == 0));
    calls
}

fn quiet() -> Line<Held> {
    streams(|| vec![Step::Hang])
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_request_whose_caller_has_left() {
    assert_eq!(canceled(hangs(), status(200)).await, (1, 0));
    assert_eq!(canceled(quiet(), status(200)).await, (1, 0));
    assert_eq!(canceled(status(503), hangs()).await, (1, 1));
    assert_eq!(canceled(status(503), quiet()).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_alternative_that_is_waited_for_is_not_called_for_nobody() {
    type Mock = tower_test::mock::Mock<Request<ReplayBody<Held>>, Response<Full<Bytes>>>;
    let (mock, mut handle): (Mock, _) = tower_test::mock::pair();
    handle.allow(0);
    let layer = FallbackLayer::new().service("mock", tower::util::BoxCloneSyncService::new(mock));
    let (alive, request) = held();
    let first = Backend::new([status(503)]);
    let mut call = task::spawn(layer.layer(first).oneshot(request));
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 1);
    handle.allow(1);
    assert_pending!(handle.poll_request());
}

/// Where a connection keeps a request's body for longer than its call lasts, as HTTP/2 does.
type Kept = Arc<Mutex<Vec<ReplayBody<Held>>>>;

fn keeps(kept: &Kept, status: Option<u16>) -> Line<Held> {
    let kept = kept.clone();
    Arc::new(move |request| {
        kept.lock().unwrap().push(request.into_body());
        Box::pin(async move {
            let Some(status) = status else {
                return std::future::pending().await;
            };
            Ok(Response::builder().status(status).body(Steps::new([]))?)
        })
    })
}

fn can_read(kept: &Kept, at: usize) -> bool {
    let mut kept = kept.lock().unwrap();
    let frame = Pin::new(&mut kept[at]).poll_frame(&mut Context::from_waker(Waker::noop()));
    matches!(frame, Poll::Ready(Some(Ok(_))))
}

#[tokio::test(start_paused = true)]
async fn only_who_is_asked_last_can_read_the_request() {
    let kept = Kept::default();
    let first = Backend::new([keeps(&kept, Some(503))]);
    let second = Backend::new([keeps(&kept, Some(503))]);
    let third = Backend::new([keeps(&kept, None)]);
    let layer = FallbackLayer::new()
        .service("second", second)
        .service("third", third);
    let mut call = task::spawn(layer.layer(first).oneshot(held().1));
    assert_pending!(call.poll());
    assert_eq!(
        [0, 1, 2].map(|at| can_read(&kept, at)),
        [false, false, true]
    );
    drop(call);
    assert!(
        !can_read(&kept, 2),
        "nothing more is sent for a caller that has left"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_once_a_value_has_served() {
    let kept = Kept::default();
    let first = Backend::new([keeps(&kept, Some(503))]);
    let layer = FallbackLayer::new()
        .rewritten("never", |_| {}, Backend::new([status(503)]))
        .value("value", Response::new("value"));
    let response = layer.layer(first).oneshot(held().1).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!can_read(&kept, 0));
}
