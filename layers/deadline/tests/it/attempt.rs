use std::pin::Pin;

use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use palisade_core::{
    classify::Verdict,
    testing::{Answers, Step, Steps},
    time,
};
use palisade_deadline::{AttemptTimeoutLayer, Awaited, DeadlineBody};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, ServiceExt};

use crate::support::{MILLI, SECOND, answer, assert_elapsed, hanging, mock};

fn layer() -> AttemptTimeoutLayer {
    AttemptTimeoutLayer::first_byte(SECOND)
}

/// The body of an answer whose head came half a second after the call.
async fn body_of(steps: impl IntoIterator<Item = Step>) -> Pin<Box<DeadlineBody<Steps>>> {
    let (mut service, mut backend) = mock(layer());
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND / 2).await;
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_response(answer(steps));
    Box::pin(assert_ready_ok!(call.poll()).into_body())
}

#[tokio::test(start_paused = true)]
async fn a_silent_attempt_times_out() {
    let (mut service, _backend) = mock(layer());
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND - MILLI).await;
    assert_pending!(call.poll());
    advance(MILLI).await;
    assert!(call.is_woken());
    let error = assert_ready_err!(call.poll());
    assert_elapsed(&error, SECOND, Awaited::Head);
    assert_eq!(Verdict::of(&*error), Verdict::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_head_alone_is_not_an_answer() {
    let mut body = body_of(hanging([])).await;
    let start = time::now();
    let error = body.frame().await.unwrap().err().unwrap();
    assert_elapsed(&error, SECOND, Awaited::FirstData);
    assert_eq!(time::now() - start, SECOND / 2);
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn after_its_first_data_an_answer_may_take_its_time() {
    let mut body = task::spawn(body_of(hanging([Step::Hang, Step::Data("one")])).await);
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    let frame = body.enter(|cx, body| body.poll_frame(cx));
    assert!(matches!(frame, std::task::Poll::Ready(Some(Ok(_)))));
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    advance(3600 * SECOND).await;
    assert!(!body.is_woken());
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
}

#[tokio::test(start_paused = true)]
async fn empty_data_do_not_count_as_an_answer() {
    let mut body = body_of([Step::Data(""), Step::Data(""), Step::Data("late")]).await;
    assert!(body.frame().await.unwrap().is_ok());
    advance(SECOND).await;
    let error = body.frame().await.unwrap().err().unwrap();
    assert_elapsed(&error, SECOND, Awaited::FirstData);
}

#[tokio::test(start_paused = true)]
async fn first_data_that_are_there_pass_however_late_they_are_read() {
    let mut body = body_of([Step::Data("one"), Step::Data("two")]).await;
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().is_ok());
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_is_complete_with_its_head() {
    let answers = Answers(|| Response::new(Empty::<bytes::Bytes>::new()));
    let response = layer()
        .layer(answers)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert!(response.body().is_end_stream());
    advance(2 * SECOND).await;
    assert!(response.into_body().collect().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn trailers_end_the_wait() {
    let mut body = body_of([Step::Trailers(HeaderMap::new())]).await;
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.is_none());
}
