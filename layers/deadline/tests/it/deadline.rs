use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    classify::Verdict,
    deadline::Deadline,
    testing::{Step, Steps},
    time,
};
use palisade_deadline::{AttemptTimeoutLayer, Awaited, DeadlineLayer, Elapsed};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Alive, Counted, MILLI, SECOND, answer, assert_elapsed, hanging, mock};

fn with_deadline(at: tokio::time::Instant) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(Deadline(at));
    request
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_time_passes() {
    let (mut service, mut backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND - MILLI).await;
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_response(answer([Step::Data("hello")]));
    let response = assert_ready_ok!(call.poll());
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "hello");
}

#[tokio::test(start_paused = true)]
async fn no_answer_by_the_deadline_is_an_error_that_names_it() {
    let (mut service, _backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND - MILLI).await;
    assert_pending!(call.poll());
    assert!(!call.is_woken());
    advance(MILLI).await;
    assert!(call.is_woken());
    let error = assert_ready_err!(call.poll());
    assert_elapsed(&error, SECOND, Awaited::Head);
    assert_eq!(Verdict::of(&*error), Verdict::TimedOut);
    let words = Elapsed::find(&*error).unwrap().to_string();
    assert_eq!(words, "no answer after 1s");
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_very_deadline_is_in_time() {
    let (mut service, mut backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    let (_, reply) = backend.next_request().await.unwrap();
    advance(SECOND).await;
    reply.send_response(answer([]));
    assert_ready_ok!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn of_two_timeouts_that_are_due_together_the_inner_one_speaks() {
    let layer = (
        DeadlineLayer::new(SECOND),
        AttemptTimeoutLayer::first_byte(SECOND),
    );
    let (mut service, mut backend) = mock(layer);
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_response(answer(hanging([])));
    let response = assert_ready_ok!(call.poll());
    let error = response.into_body().collect().await.unwrap_err();
    assert_elapsed(&error, SECOND, Awaited::FirstData);
}

#[tokio::test(start_paused = true)]
async fn the_body_obeys_the_same_deadline() {
    let (mut service, mut backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND - MILLI).await;
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_response(answer(hanging([Step::Data("one")])));
    let response = assert_ready_ok!(call.poll());
    let start = time::now();
    let mut body = Box::pin(response.into_body());
    assert!(body.frame().await.unwrap().is_ok());
    let error = body.frame().await.unwrap().unwrap_err();
    assert_elapsed(&error, SECOND, Awaited::End);
    assert_eq!(time::now() - start, MILLI);
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_further_out_that_is_earlier_holds() {
    let (mut service, _backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(with_deadline(time::now() + 300 * MILLI)));
    assert_pending!(call.poll());
    advance(300 * MILLI).await;
    assert_elapsed(&assert_ready_err!(call.poll()), 300 * MILLI, Awaited::Head);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_further_out_that_is_later_changes_nothing() {
    let (mut service, _backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(with_deadline(time::now() + 2 * SECOND)));
    assert_pending!(call.poll());
    advance(SECOND).await;
    assert_elapsed(&assert_ready_err!(call.poll()), SECOND, Awaited::Head);
}

#[tokio::test(start_paused = true)]
async fn a_request_past_its_deadline_never_reaches_the_service() {
    let (mut service, mut backend) = mock(DeadlineLayer::new(SECOND));
    let past = with_deadline(time::now());
    let mut call = task::spawn(service.call(past));
    let error = assert_ready_err!(call.poll());
    assert_elapsed(&error, Duration::ZERO, Awaited::Call);
    assert_pending!(backend.poll_request());

    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    let backend = assert_ready!(backend.poll_request());
    assert!(backend.is_some(), "the readiness it had is still there");
}

#[tokio::test(start_paused = true)]
async fn a_header_says_how_long() {
    let layer = DeadlineLayer::from_header("grpc-timeout")
        .or(2 * SECOND)
        .at_most(5 * SECOND);
    for (text, after) in [
        (Some("1S"), SECOND),
        (Some("nonsense"), 2 * SECOND),
        (None, 2 * SECOND),
        (Some("99999999H"), 5 * SECOND),
    ] {
        let (mut service, _backend) = mock(&layer);
        let mut request = Request::new(());
        if let Some(text) = text {
            let headers = request.headers_mut();
            headers.insert("grpc-timeout", text.parse().unwrap());
        }
        let start = time::now();
        let error = service.call(request).await.unwrap_err();
        assert_elapsed(&error, after, Awaited::Head);
        assert_eq!(time::now() - start, after, "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_limit_a_request_may_take_forever() {
    let forever = Duration::MAX;
    for layer in [
        DeadlineLayer::from_header("grpc-timeout"),
        DeadlineLayer::new(forever),
    ] {
        let (mut service, mut backend) = mock(layer);
        let mut call = task::spawn(service.call(Request::new(())));
        assert_pending!(call.poll());
        advance(1_000_000 * SECOND).await;
        assert_pending!(call.poll());
        let (_, reply) = backend.next_request().await.unwrap();
        reply.send_response(answer(hanging([])));
        let mut body = task::spawn(assert_ready_ok!(call.poll()).into_body());
        advance(1_000_000 * SECOND).await;
        assert_pending!(body.enter(|cx, body| http_body::Body::poll_frame(body, cx)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_passes_unchanged() {
    let (mut service, mut backend) = mock(DeadlineLayer::new(SECOND));
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_error("broken");
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "broken");
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_dropped_at_once_and_so_is_what_is_canceled() {
    let alive = Alive::default();
    let polls = Arc::new(AtomicUsize::new(0));
    let service = DeadlineLayer::new(SECOND).layer(service_fn({
        let (alive, polls) = (alive.clone(), polls.clone());
        move |_: Request<()>| Counted {
            inner: pending::<Result<Response<Steps>, BoxError>>(),
            polls: polls.clone(),
            _alive: alive.clone(),
        }
    }));
    // One is in the service itself.
    let idle = alive.count();
    let mut call = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(call.poll());
    assert!(alive.count() > idle);
    drop(call);
    assert_eq!(alive.count(), idle);

    let mut service = service;
    let mut call = task::spawn(tower::Service::call(&mut service, Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND).await;
    assert_ready_err!(call.poll());
    assert_eq!(alive.count(), idle, "while the future is kept");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_polled_that_was_not_woken() {
    let polls = Arc::new(AtomicUsize::new(0));
    let service = DeadlineLayer::new(SECOND).layer(service_fn({
        let polls = polls.clone();
        move |_: Request<()>| Counted {
            inner: pending::<Result<Response<Steps>, BoxError>>(),
            polls: polls.clone(),
            _alive: Alive::default(),
        }
    }));
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_elapsed(&error, SECOND, Awaited::Head);
    assert_eq!(
        polls.load(Relaxed),
        2,
        "to start, and when the time is over"
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_spins_is_cut_off_too() {
    // Uses up the task's budget in each poll, so that Tokio's own timer is not heard.
    let spins = service_fn(|_: Request<()>| {
        let mut polls = 0;
        std::future::poll_fn(move |cx| {
            polls += 1;
            assert!(polls < 10_000, "spins forever");
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
            for _ in 0..1000 {
                sender.send(()).unwrap();
            }
            while receiver.poll_recv(cx).is_ready() {}
            cx.waker().wake_by_ref();
            Poll::<Result<Response<Steps>, BoxError>>::Pending
        })
    });
    let call = tokio::spawn(
        DeadlineLayer::new(SECOND)
            .layer(spins)
            .oneshot(Request::new(())),
    );
    tokio::task::yield_now().await;
    advance(2 * SECOND).await;
    let error = call.await.unwrap().unwrap_err();
    assert_elapsed(&error, SECOND, Awaited::Head);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_service_wedges_nothing() {
    let mut service = DeadlineLayer::new(SECOND).layer(service_fn(|request: Request<bool>| {
        assert!(!request.body(), "on purpose");
        ready(Ok::<_, BoxError>(answer([])))
    }));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(tower::Service::call(&mut service, Request::new(true)));
    }));
    assert!(panicked.is_err());
    assert!(service.oneshot(Request::new(false)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_service() {
    let (mut service, mut backend) = tower_test::mock::spawn_with(|mock| {
        let _: &crate::support::Mock = &mock;
        DeadlineLayer::new(SECOND).layer(mock)
    });
    backend.allow(0);
    assert_pending!(service.poll_ready());
    advance(2 * SECOND).await;
    assert_pending!(service.poll_ready());
    backend.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    backend.send_error("gone");
    let error = assert_ready_err!(service.poll_ready());
    assert_eq!(error.to_string(), "gone");
}
