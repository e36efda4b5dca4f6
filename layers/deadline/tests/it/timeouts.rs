//! Several timeouts of one attempt, and each alone.

use std::{pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body::Body;
use http_body_util::{
    BodyExt,
    channel::{Channel, Sender},
};
use palisade_core::{BoxError, classify::Verdict};
use palisade_deadline::{AttemptTimeoutLayer, Awaited, DeadlineBody, Limit, Pings, Timeouts};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, ServiceExt};

use crate::support::{MILLI, SECOND, answer, assert_reached, hanging, mock, poll_once, written};

type Read = Pin<Box<DeadlineBody<Channel<Bytes, BoxError>>>>;

/// The body of an answer whose head is there at once.
async fn stream(timeouts: Timeouts, kind: &'static str) -> (Sender<Bytes, BoxError>, Read) {
    let (sender, service) = written(kind);
    let service = AttemptTimeoutLayer::new(timeouts).layer(service);
    let response = service.oneshot(Request::new(())).await;
    let Ok(response) = response else {
        panic!("no answer");
    };
    (sender, Box::pin(response.into_body()))
}

#[track_caller]
fn data(polled: Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>>) -> Bytes {
    let Poll::Ready(Some(Ok(frame))) = polled else {
        panic!("no data");
    };
    frame.into_data().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_is_cut_by_its_idle_timeout() {
    let (mut sender, body) = stream(Timeouts::none().idle(SECOND), "x/y").await;
    let mut body = task::spawn(body);
    for _ in 0..5 {
        assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
        advance(SECOND - MILLI).await;
        sender.send_data("x".into()).await.unwrap();
        data(body.enter(|cx, body| body.poll_frame(cx)));
    }
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    advance(SECOND - MILLI).await;
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    advance(MILLI).await;
    assert!(body.is_woken());
    let Poll::Ready(Some(Err(error))) = body.enter(|cx, body| body.poll_frame(cx)) else {
        panic!("not cut");
    };
    assert_reached(&error, Limit::Idle, SECOND, Awaited::Data);
    assert_eq!(error.source().unwrap().to_string(), "no more data for 1s");
    assert_eq!(Verdict::of(&*error), Verdict::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_comes_late_finds_what_is_there_and_has_not_waited() {
    let (mut sender, mut body) = stream(Timeouts::none().idle(SECOND), "x/y").await;
    for piece in ["one", "two"] {
        sender.send_data(piece.into()).await.unwrap();
    }
    assert_eq!(data(poll_once(&mut body)), "one");
    advance(3600 * SECOND).await;
    assert_eq!(data(poll_once(&mut body)), "two");
    advance(3600 * SECOND).await;
    assert_pending!(poll_once(&mut body), "waits from now on");
    advance(SECOND - MILLI).await;
    sender.send_data("three".into()).await.unwrap();
    assert_eq!(data(poll_once(&mut body)), "three");
}

#[tokio::test(start_paused = true)]
async fn silence_before_the_first_data_is_not_idleness() {
    let (mut sender, mut body) = stream(Timeouts::none().idle(SECOND), "x/y").await;
    assert_pending!(poll_once(&mut body));
    advance(3600 * SECOND).await;
    assert_pending!(poll_once(&mut body));
    sender.send_data(Bytes::new()).await.unwrap();
    assert_eq!(
        data(poll_once(&mut body)),
        "",
        "and nor is it after no data"
    );
    assert_pending!(poll_once(&mut body));
    advance(3600 * SECOND).await;
    assert_pending!(poll_once(&mut body));
}

#[tokio::test(start_paused = true)]
async fn trailers_end_the_silence() {
    let (mut sender, mut body) = stream(Timeouts::none().idle(SECOND), "x/y").await;
    sender.send_data("x".into()).await.unwrap();
    data(poll_once(&mut body));
    assert_pending!(poll_once(&mut body));
    sender.send_trailers(http::HeaderMap::new()).await.unwrap();
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
}

#[tokio::test(start_paused = true)]
async fn a_total_timeout_holds_for_head_and_body() {
    let layer = AttemptTimeoutLayer::new(Timeouts::none().total(SECOND));
    let (mut service, _backend) = mock(&layer);
    let error = service.call(Request::new(())).await.unwrap_err();
    assert_reached(&error, Limit::Total, SECOND, Awaited::Head);

    let (mut sender, mut body) = stream(Timeouts::none().total(SECOND), "x/y").await;
    sender.send_data("x".into()).await.unwrap();
    data(poll_once(&mut body));
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::Total, SECOND, Awaited::End);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_late_is_never_cut_by_a_timeout_meant_for_heads() {
    let timeouts = Timeouts::none().first_byte(SECOND).idle(SECOND);
    let (mut sender, body) = stream(timeouts, "text/event-stream").await;
    let writer = tokio::spawn(async move {
        for _ in 0..100 {
            sender.send_data("data: x\n\n".into()).await.unwrap();
            tokio::time::sleep(SECOND - MILLI).await;
        }
    });
    let start = palisade_core::time::now();
    let all = body.collect().await.unwrap().to_bytes();
    assert_eq!(all.len(), 900);
    assert!(start.elapsed() > 99 * (SECOND - MILLI));
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn together_the_one_that_is_due_first_speaks() {
    let timeouts = Timeouts::none()
        .first_byte(2 * SECOND)
        .idle(SECOND)
        .total(5 * SECOND);
    let layer = AttemptTimeoutLayer::new(timeouts);
    let (mut service, _backend) = mock(&layer);
    let error = service.call(Request::new(())).await.unwrap_err();
    assert_reached(&error, Limit::FirstByte, 2 * SECOND, Awaited::Head);

    let (_sender, mut body) = stream(timeouts, "x/y").await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::FirstByte, 2 * SECOND, Awaited::FirstData);

    let (mut sender, mut body) = stream(timeouts, "x/y").await;
    sender.send_data("x".into()).await.unwrap();
    data(poll_once(&mut body));
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::Idle, SECOND, Awaited::Data);

    let (mut sender, body) = stream(timeouts, "x/y").await;
    let writer = tokio::spawn(async move {
        while sender.send_data("x".into()).await.is_ok() {
            tokio::time::sleep(SECOND / 2).await;
        }
    });
    let error = body.collect().await.unwrap_err();
    assert_reached(&error, Limit::Total, 5 * SECOND, Awaited::End);
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silence_wakes_its_reader_also_when_he_has_waited_for_a_later_limit_before() {
    let timeouts = Timeouts::none().idle(SECOND).total(60 * SECOND);
    let (mut sender, body) = stream(timeouts, "x/y").await;
    let mut body = task::spawn(body);
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    sender.send_data("x".into()).await.unwrap();
    data(body.enter(|cx, body| body.poll_frame(cx)));
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    advance(SECOND).await;
    assert!(body.is_woken());
    let Poll::Ready(Some(Err(error))) = body.enter(|cx, body| body.poll_frame(cx)) else {
        panic!("not cut");
    };
    assert_reached(&error, Limit::Idle, SECOND, Awaited::Data);
}

#[tokio::test(start_paused = true)]
async fn of_several_at_the_same_instant_the_most_specific_is_named() {
    let timeouts = Timeouts::none().first_byte(SECOND).total(SECOND);
    let layer = AttemptTimeoutLayer::new(timeouts);
    let (mut service, _backend) = mock(&layer);
    let error = service.call(Request::new(())).await.unwrap_err();
    assert_reached(&error, Limit::FirstByte, SECOND, Awaited::Head);

    let timeouts = Timeouts::none().idle(SECOND).total(SECOND);
    let (mut sender, mut body) = stream(timeouts, "x/y").await;
    sender.send_data("x".into()).await.unwrap();
    data(poll_once(&mut body));
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::Idle, SECOND, Awaited::Data);
}

#[tokio::test(start_paused = true)]
async fn what_comes_at_the_very_instant_of_each_timeout_is_in_time() {
    let timeouts = Timeouts::none()
        .first_byte(SECOND)
        .idle(SECOND)
        .total(3 * SECOND);
    let (mut sender, mut body) = stream(timeouts, "x/y").await;
    for _ in 0..3 {
        assert_pending!(poll_once(&mut body));
        advance(SECOND).await;
        sender.send_data("x".into()).await.unwrap();
        data(poll_once(&mut body));
    }
    drop(sender);
    assert!(matches!(poll_once(&mut body), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn comments_of_an_event_stream_are_signs_of_life_or_not() {
    let timeouts = Timeouts::none().first_byte(2 * SECOND).idle(2 * SECOND);
    for (pings, kind, cut) in [
        (Pings::Count, "text/event-stream", None),
        (Pings::Ignore, "application/json", None),
        (
            Pings::Ignore,
            "text/event-stream",
            Some((Limit::FirstByte, Awaited::FirstData)),
        ),
    ] {
        let (mut sender, mut body) = stream(timeouts.pings(pings), kind).await;
        let mut error = None;
        for _ in 0..3 {
            sender.send_data(": ping\n\n".into()).await.unwrap();
            match poll_once(&mut body) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(cut))) => {
                    error = Some(cut);
                    break;
                }
                _ => panic!("the stream has ended"),
            }
            assert_pending!(poll_once(&mut body));
            advance(SECOND + MILLI).await;
        }
        match (error, cut) {
            (None, None) => {}
            (Some(error), Some((limit, awaited))) => {
                assert_reached(&error, limit, 2 * SECOND, awaited);
            }
            (error, _) => panic!("{pings:?} {kind}: {error:?}"),
        }
    }

    let (mut sender, mut body) = stream(timeouts.pings(Pings::Ignore), "text/event-stream").await;
    sender.send_data("data: x\n\n".into()).await.unwrap();
    data(poll_once(&mut body));
    assert_pending!(poll_once(&mut body));
    advance(SECOND).await;
    sender.send_data(": ping\n\n".into()).await.unwrap();
    data(poll_once(&mut body));
    let start = palisade_core::time::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::Idle, 2 * SECOND, Awaited::Data);
    assert_eq!(
        start.elapsed(),
        SECOND,
        "since the data, not since the ping"
    );
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_no_clock_can_reach_is_none() {
    let timeouts = Timeouts::none()
        .first_byte(Duration::MAX)
        .idle(Duration::MAX)
        .total(Duration::MAX);
    let (mut sender, mut body) = stream(timeouts, "x/y").await;
    assert_pending!(poll_once(&mut body));
    advance(1_000_000 * SECOND).await;
    sender.send_data("x".into()).await.unwrap();
    data(poll_once(&mut body));
    assert_pending!(poll_once(&mut body));
    advance(1_000_000 * SECOND).await;
    assert_pending!(poll_once(&mut body));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_counts_each_timeout_once_and_cuts_nothing() {
    let timeouts = Timeouts::none()
        .first_byte(SECOND)
        .idle(SECOND)
        .total(4 * SECOND);
    let layer = AttemptTimeoutLayer::new(timeouts).shadow();
    let handle = layer.handle();
    let (mut service, mut backend) = mock(&layer);
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(2 * SECOND).await;
    assert_pending!(call.poll());
    assert_eq!(handle.snapshot().shadowed.first_byte, 1);

    let (_, reply) = backend.next_request().await.unwrap();
    let steps = [palisade_core::testing::Step::Data("x")];
    reply.send_response(answer(hanging(steps)));
    let response = assert_ready_ok!(call.poll());
    let mut body = Box::pin(response.into_body());
    data(poll_once(&mut body));
    for _ in 0..10 {
        assert_pending!(poll_once(&mut body));
        advance(SECOND).await;
    }
    let seen = handle.snapshot();
    assert_eq!((seen.shadowed.first_byte, seen.shadowed.idle), (1, 1));
    assert_eq!(seen.shadowed.total, 1);
    assert_eq!(seen.ended, Default::default());

    handle.set_mode(palisade_deadline::Mode::Enforce);
    let (mut service, _backend) = mock(&layer);
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    advance(SECOND).await;
    assert_ready_err!(call.poll());
    assert_eq!(handle.snapshot().ended.first_byte, 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_holds_for_the_next_attempt() {
    let layer = AttemptTimeoutLayer::first_byte(SECOND);
    let handle = layer.handle();
    let (mut service, _backend) = mock(&layer);
    let first = tokio::spawn(service.call(Request::new(())));
    tokio::task::yield_now().await;
    handle.set(Timeouts::none().total(3 * SECOND));
    let second = {
        let (mut service, _backend) = mock(&layer);
        assert!(service.poll_ready().is_ready());
        let call = service.call(Request::new(()));
        let error = call.await.unwrap_err();
        drop(_backend);
        error
    };
    assert_reached(&second, Limit::Total, 3 * SECOND, Awaited::Head);
    let first = first.await.unwrap().unwrap_err();
    assert_reached(&first, Limit::FirstByte, SECOND, Awaited::Head);
    let seen = handle.snapshot();
    assert_eq!((seen.first_byte, seen.total), (None, Some(3 * SECOND)));
    assert_eq!((seen.ended.first_byte, seen.ended.total), (1, 1));
    assert_eq!(handle.name(), "attempt_timeout");
}
