use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use palisade_core::{
    BoxError,
    classify::Sse,
    testing::{Step, Steps},
};
use palisade_retry::ReplayBody;
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, Line, SECOND, hangs, layer, status, streams};

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

/// Drops the future once it waits at this line, and looks what is left of it.
async fn canceled_at(line: Line<Held>) {
    let alive = Arc::new(());
    let backend = Backend::new([line, status(200)]);
    let mut request = Request::new(Held {
        _alive: alive.clone(),
    });
    *request.method_mut() = Method::PUT;
    let service = layer().classify(Sse).layer(backend.clone());
    let mut call = task::spawn(service.oneshot(request));
    assert_pending!(call.poll());
    assert_eq!((Arc::strong_count(&alive), backend.attempts()), (2, 1));
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 1, "nothing is kept");
    advance(10 * SECOND).await;
    assert_eq!(backend.attempts(), 1, "nothing is sent");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_request_whose_caller_has_left() {
    // In the attempt, in the wait, and before the first data of a stream.
    canceled_at(hangs()).await;
    canceled_at(status(503)).await;
    canceled_at(streams(|| vec![Step::Hang])).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_request_that_waits_for_readiness() {
    let (mut service, mut handle) = tower_test::mock::spawn_with(|mock| {
        let _: &tower_test::mock::Mock<Request<ReplayBody<Held>>, Response<Full<Bytes>>> = &mock;
        layer().layer(mock)
    });
    let alive = Arc::new(());
    let mut request = Request::new(Held {
        _alive: alive.clone(),
    });
    *request.method_mut() = Method::PUT;
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let mut call = task::spawn(service.call(request));
    assert_pending!(call.poll());
    let (_, reply) = handle.next_request().await.unwrap();
    reply.send_error("broken");
    assert_pending!(call.poll());
    advance(SECOND).await;
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 1);
    handle.allow(1);
    assert_pending!(handle.poll_request());
}

/// Where a connection keeps a request's body for longer than its attempt lasts, as HTTP/2 does.
type Kept = Arc<Mutex<Vec<ReplayBody<Held>>>>;

fn keeps(kept: &Kept, status: Option<u16>) -> Line<Held> {
    let kept = kept.clone();
    Arc::new(move |request| {
        kept.lock().unwrap().push(request.into_body());
        Box::pin(async move {
            let Some(status) = status else {
                return std::future::pending().await;
            };
            let response = Response::builder().status(status);
            Ok(response.body(Steps::new([]))?)
        })
    })
}

fn can_read(kept: &Kept, at: usize) -> bool {
    let mut kept = kept.lock().unwrap();
    let frame = Pin::new(&mut kept[at]).poll_frame(&mut Context::from_waker(Waker::noop()));
    matches!(frame, Poll::Ready(Some(Ok(_))))
}

fn put() -> Request<Held> {
    let mut request = Request::new(Held {
        _alive: Arc::new(()),
    });
    *request.method_mut() = Method::PUT;
    request
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_once_the_caller_has_left() {
    let kept = Kept::default();
    let service = layer().layer(Backend::new([keeps(&kept, None)]));
    let mut call = task::spawn(service.oneshot(put()));
    assert_pending!(call.poll());
    assert!(can_read(&kept, 0));
    drop(call);
    assert!(!can_read(&kept, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_for_an_attempt_that_has_failed() {
    let kept = Kept::default();
    let backend = Backend::new([keeps(&kept, Some(503)), keeps(&kept, Some(200))]);
    let service = layer().layer(backend);
    let mut call = task::spawn(service.oneshot(put()));
    assert_pending!(call.poll());
    assert!(!can_read(&kept, 0), "also while the next one is waited for");
    advance(SECOND).await;
    let Poll::Ready(Ok(response)) = call.poll() else {
        panic!("not answered");
    };
    assert_eq!(response.status(), 200);
    drop(call);
    assert!(!can_read(&kept, 0));
    assert!(
        can_read(&kept, 1),
        "an answer may come before all of the request is sent"
    );
}
