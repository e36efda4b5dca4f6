use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use palisade_core::{
    BoxError,
    classify::Sse,
    deadline::Deadline,
    reject::{Reason, Rejected},
    testing::Step,
    time,
};
use palisade_retry::{Budget, Elapsed, RetryLayer};
use proptest::prelude::*;
use tokio::time::sleep;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{
    Backend, Line, MILLI, SECOND, fails, get, hangs, head, layer, request, send, status, streams,
    text,
};

/// Answers after so many milliseconds.
fn slow(millis: u32, line: Line) -> Line {
    Arc::new(move |request| {
        let line = line.clone();
        Box::pin(async move {
            sleep(millis * MILLI).await;
            line(request).await
        })
    })
}

fn elapsed(error: &BoxError) -> Elapsed {
    let rejected = Rejected::find(&**error).unwrap();
    assert_eq!(rejected.reason(), Reason::TimedOut);
    let source = std::error::Error::source(rejected).unwrap();
    *source.downcast_ref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_never_answers_is_made_again() {
    let layer = layer().attempt_timeout(SECOND);
    let backend = Backend::new([hangs(), hangs(), status(200)]);
    assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 200);
    assert_eq!(backend.times(), [0, 1100, 2200]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_never_answers_costs_two() {
    let budget = Budget::percent(0).reserve(3);
    let layer = layer().attempt_timeout(SECOND / 10).budget(budget);
    let backend = Backend::new([hangs()]);
    assert!(send(&layer, &backend, get()).await.is_err());
    assert_eq!(backend.attempts(), 2, "one and a bit were left");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_answers_at_the_last_instant_is_in_time() {
    let layer = layer().attempt_timeout(SECOND);
    let backend = Backend::new([slow(1000, status(204))]);
    assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 204);
    let backend = Backend::new([slow(1001, status(204)), status(200)]);
    assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_that_never_answers_ends_as_timed_out_and_marked() {
    let layer = layer().attempt_timeout(SECOND);
    let backend = Backend::new([hangs()]);
    let error = send(&layer, &backend, get()).await.unwrap_err();
    assert_eq!(elapsed(&error), Elapsed::Attempt(SECOND));
    assert!(Rejected::find(&*error).unwrap().is_final());
    assert_eq!(backend.times(), [0, 1100, 2200]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_gone_before_the_next_begins() {
    let alive = Arc::new(());
    let line: Line = {
        let alive = alive.clone();
        Arc::new(move |_| {
            assert_eq!(Arc::strong_count(&alive), 2, "this line and the test");
            let held = alive.clone();
            Box::pin(async move {
                let _held = held;
                std::future::pending().await
            })
        })
    };
    let backend = Backend::new([line]);
    let layer = layer().attempt_timeout(SECOND);
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(get()));
    assert_pending!(call.poll());
    assert_eq!(Arc::strong_count(&alive), 3);
    tokio::time::advance(SECOND).await;
    assert_pending!(call.poll());
    assert_eq!(Arc::strong_count(&alive), 2, "in the wait already");
    let answer = tokio::time::timeout(60 * SECOND, call).await;
    assert!(answer.expect("within the limits").is_err());
    assert_eq!(backend.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_not_be_repeated_is_limited_too() {
    for (layer, limit) in [
        (layer().attempt_timeout(SECOND), Elapsed::Attempt(SECOND)),
        (layer().within(2 * SECOND), Elapsed::Overall(2 * SECOND)),
        (
            layer().attempt_timeout(3 * SECOND).within(2 * SECOND),
            Elapsed::Overall(2 * SECOND),
        ),
    ] {
        let backend = Backend::new([hangs()]);
        let post = request(http::Method::POST);
        let error = send(&layer, &backend, post).await.unwrap_err();
        assert_eq!((elapsed(&error), backend.attempts()), (limit, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_to_begin_in_time_and_may_then_take_as_long_as_it_will() {
    let layer = layer().attempt_timeout(SECOND).classify(Sse);
    let pings = || vec![Step::Data(": ping\n\n"), Step::Hang, Step::Hang, Step::Hang];
    let backend = Backend::new([streams(pings), streams(|| vec![Step::Data("data: 1\n\n")])]);
    let response = send(&layer, &backend, get()).await.unwrap();
    assert_eq!(backend.times(), [0, 1100]);
    // Long after the limit of the attempt.
    sleep(100 * SECOND).await;
    assert_eq!(text(response).await, ("data: 1\n\n".into(), None));
}

#[tokio::test(start_paused = true)]
async fn all_attempts_and_waits_end_in_time() {
    let layer = layer().attempts(100).within(SECOND);
    let backend = Backend::new([slow(200, status(503))]);
    let start = time::now();
    let error = send(&layer, &backend, get()).await.unwrap_err();
    // The next would begin as time is up.
    assert_eq!(backend.times(), [0, 300, 600, 900]);
    assert_eq!(elapsed(&error), Elapsed::Overall(SECOND));
    assert_eq!(time::now() - start, SECOND);

    let backend = Backend::new([slow(200, status(503))]);
    let answer = send(&layer.within(1100 * MILLI), &backend, get()).await;
    // Its answer is there, and for another there is no time.
    assert_eq!(answer.unwrap().status(), 503);
    assert_eq!(backend.attempts(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_running_when_time_is_up_is_cut() {
    let layer = layer().within(SECOND);
    let backend = Backend::new([status(503), hangs()]);
    let start = time::now();
    let error = send(&layer, &backend, get()).await.unwrap_err();
    assert_eq!(elapsed(&error), Elapsed::Overall(SECOND));
    assert_eq!((backend.attempts(), time::now() - start), (2, SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_ready_again_is_waited_for_until_time_is_up() {
    type Mock = tower_test::mock::Mock<
        Request<palisade_retry::ReplayBody<Full<bytes::Bytes>>>,
        http::Response<palisade_core::testing::Steps>,
    >;
    let (mut service, mut backend) =
        tower_test::mock::spawn_with(|mock: Mock| layer().within(SECOND).layer(mock));
    backend.allow(1);
    assert!(service.poll_ready().is_ready());
    let start = time::now();
    let mut call = task::spawn(service.call(get()));
    assert_pending!(call.poll());
    let (_, reply) = backend.next_request().await.unwrap();
    reply.send_error("broken");
    let answer = tokio::time::timeout(60 * SECOND, call).await;
    let error = answer.expect("within the limit").unwrap_err();
    assert_eq!(elapsed(&error), Elapsed::Overall(SECOND));
    assert_eq!(time::now() - start, SECOND);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_that_would_not_be_over_in_time() {
    let deadline = |layer: &RetryLayer, left| {
        let mut request = get();
        let deadline = Deadline(time::now() + left);
        request.extensions_mut().insert(deadline);
        let (layer, backend) = (
            layer.clone(),
            Backend::new([fails(|| "reset".into()), status(200)]),
        );
        async move {
            drop(send(&layer, &backend, request).await);
            backend.attempts()
        }
    };
    let new = layer();
    assert_eq!(deadline(&new, 300 * MILLI).await, 2, "nothing is known yet");

    let known = layer();
    let mut request = get();
    request
        .extensions_mut()
        .insert(Deadline(time::now() + 10 * SECOND));
    let backend = Backend::new([slow(400, status(200))]);
    send(&known, &backend, request).await.unwrap();
    // 100 ms of wait, and then 400 as those before.
    assert_eq!(deadline(&known, 499 * MILLI).await, 1);
    assert_eq!(deadline(&known, 500 * MILLI).await, 2);
    assert_eq!(known.handle().snapshot().exhausted, 1);
}

#[tokio::test(start_paused = true)]
async fn one_slow_answer_does_not_keep_retries_out_for_ever() {
    let layer = layer().within(SECOND);
    send(&layer, &Backend::new([slow(990, status(200))]), get())
        .await
        .unwrap();
    let blip = || Backend::new([status(503), status(200)]);
    assert_eq!(send(&layer, &blip(), get()).await.unwrap().status(), 503);
    for _ in 0..10 {
        send(&layer, &Backend::new([slow(10, status(200))]), get())
            .await
            .unwrap();
    }
    assert_eq!(send(&layer, &blip(), get()).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_is_past_the_limit_is_not_waited_for() {
    let layer = layer().within(2 * SECOND);
    for (hint, made) in [("1", 2), ("2", 1)] {
        let backend = Backend::new([head(503, &[("retry-after", hint)]), status(200)]);
        send(&layer, &backend, get()).await.unwrap();
        assert_eq!(backend.attempts(), made, "{hint}");
    }
}

proptest! {
    /// Whatever the attempts do, the request is over in time, and each attempt too.
    #[test]
    fn limits_hold(
        script in proptest::collection::vec((0_u32..3000, 0_u8..4), 1..8),
        attempt in 1_u32..2000,
        overall in 1_u32..5000,
        attempts in 1_u32..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (attempt, overall) = (attempt * MILLI, overall * MILLI);
            let layer = layer().attempts(attempts).attempt_timeout(attempt).within(overall);
            let script = script.into_iter().map(|(millis, kind)| slow(millis, match kind {
                0 => hangs(),
                1 => status(503),
                2 => fails(|| "reset".into()),
                _ => status(200),
            }));
            let backend = Backend::new(script);
            let start = time::now();
            let answer = send(&layer, &backend, get()).await;
            let took = time::now() - start;
            let seen: Vec<_> = backend.seen().iter().map(|seen| seen.at).collect();
            prop_assert!(took <= overall, "{took:?}");
            prop_assert!(seen.len() as u32 <= attempts);
            prop_assert!(seen.iter().all(|at| *at < overall));
            for pair in seen.windows(2) {
                let wait = 100 * MILLI;
                prop_assert!(pair[1] - pair[0] <= attempt + wait, "{seen:?}");
            }
            if let Err(error) = &answer && Rejected::find(&**error).is_some() {
                let full = match elapsed(error) {
                    Elapsed::Attempt(limit) => took - *seen.last().unwrap() == limit,
                    _ => took == overall,
                };
                prop_assert!(full, "{error:?} after {took:?}");
            }
            Ok(())
        })?;
    }
}
