use http::{Request, Response};
use http_body_util::Full;
use palisade_core::testing::Steps;
use palisade_retry::HedgeBody;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::Layer;
use tower_test::mock::{Mock, spawn_with};

use crate::hedge_support::{MILLI, get, hedge};

type Backend = Mock<Request<HedgeBody<Full<bytes::Bytes>>>, Response<Steps>>;

fn answer(status: u16) -> Response<Steps> {
    let response = Response::builder().status(status);
    response.body(Steps::new([])).unwrap()
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_service() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| hedge().layer(mock));
    backend.allow(0);
    assert_pending!(service.poll_ready());
    backend.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    assert!(assert_ready!(backend.poll_request()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_hedge_waits_for_readiness_and_the_first_attempt_does_not() {
    let layer = hedge();
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer.layer(mock));
    backend.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, first) = assert_ready!(backend.poll_request()).unwrap();
    advance(100 * MILLI).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    assert_pending!(backend.poll_request());
    assert_eq!(layer.handle().snapshot().not_ready, 1);
    // Not woken by time, and woken by the first.
    advance(1000 * MILLI).await;
    assert!(!call.is_woken());
    first.send_response(answer(200));
    assert!(call.is_woken());
    assert_eq!(assert_ready_ok!(call.poll()).status(), 200);
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.not_ready), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_sent_as_soon_as_the_service_is_ready() {
    let layer = hedge();
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer.layer(mock));
    backend.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, _first) = assert_ready!(backend.poll_request()).unwrap();
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    backend.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (request, second) = assert_ready!(backend.poll_request()).unwrap();
    assert_eq!(request.headers()["x-attempt"], "2");
    second.send_response(answer(200));
    assert_ready_ok!(call.poll());
    assert_eq!(layer.handle().snapshot().won, 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_breaks_before_the_hedge_leaves_the_first_attempt_alone() {
    let layer = hedge();
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer.layer(mock));
    backend.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, first) = assert_ready!(backend.poll_request()).unwrap();
    backend.send_error("gone");
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    first.send_response(answer(200));
    assert_ready_ok!(call.poll());
    assert_eq!(layer.handle().snapshot().not_ready, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_polled_that_was_not_woken() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| hedge().layer(mock));
    backend.allow(3);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, _first) = assert_ready!(backend.poll_request()).unwrap();
    advance(99 * MILLI).await;
    assert!(!call.is_woken());
    advance(MILLI).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (_, _second) = assert_ready!(backend.poll_request()).unwrap();
    for _ in 0..10 {
        advance(100 * MILLI).await;
        assert!(!call.is_woken());
    }
}
