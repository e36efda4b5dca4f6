use http::{Request, Response};
use http_body_util::Full;
use palisade_core::testing::Steps;
use palisade_retry::ReplayBody;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::Layer;
use tower_test::mock::{Mock, spawn_with};

use crate::support::{MILLI, get, layer};

type Backend = Mock<Request<ReplayBody<Full<bytes::Bytes>>>, Response<Steps>>;

fn answer(status: u16) -> Response<Steps> {
    let response = Response::builder().status(status);
    response.body(Steps::new([])).unwrap()
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_service() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer().layer(mock));
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
async fn each_attempt_waits_until_the_service_is_ready() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer().layer(mock));
    backend.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, reply) = assert_ready!(backend.poll_request()).unwrap();
    reply.send_response(answer(502));
    assert!(call.is_woken());
    assert_pending!(call.poll());
    advance(100 * MILLI).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    assert_pending!(backend.poll_request());
    assert_pending!(call.poll());

    backend.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (request, reply) = assert_ready!(backend.poll_request()).unwrap();
    assert_eq!(request.headers()["x-attempt"], "2");
    reply.send_response(answer(200));
    assert_eq!(assert_ready_ok!(call.poll()).status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_not_be_repeated_takes_the_readiness_that_was_there() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer().layer(mock));
    for method in [http::Method::POST, http::Method::GET] {
        backend.allow(1);
        assert_ready_ok!(service.poll_ready());
        let mut call = task::spawn(service.call(crate::support::request(method)));
        assert_pending!(call.poll());
        let (_, reply) = assert_ready!(backend.poll_request()).unwrap();
        reply.send_response(answer(200));
        assert_ready_ok!(call.poll());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_breaks_between_attempts_ends_the_request() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer().layer(mock));
    backend.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, reply) = assert_ready!(backend.poll_request()).unwrap();
    reply.send_response(answer(502));
    assert_pending!(call.poll());
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    backend.send_error("gone");
    assert!(call.is_woken());
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "gone");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_polled_that_was_not_woken() {
    let (mut service, mut backend) = spawn_with(|mock: Backend| layer().layer(mock));
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, reply) = assert_ready!(backend.poll_request()).unwrap();
    for _ in 0..10 {
        advance(100 * MILLI).await;
        assert!(!call.is_woken());
    }
    reply.send_response(answer(502));
    assert_pending!(call.poll());
    advance(99 * MILLI).await;
    assert!(!call.is_woken());
    advance(MILLI).await;
    assert!(call.is_woken());
}
