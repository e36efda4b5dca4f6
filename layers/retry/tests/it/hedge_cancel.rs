use std::panic::{AssertUnwindSafe, catch_unwind};

use palisade_core::{
    classify::Sse,
    gate::GateLayer,
    testing::{Log, Step},
};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::hedge_support::{
    MILLI, Server, answers, fails, get, hangs, hedge, panics, rich, send, streams,
};

#[tokio::test(start_paused = true)]
async fn the_loser_is_dropped_with_the_answer_and_canceled_for_gates_further_in() {
    let log = Log::default();
    let server = Server::new([hangs(), streams(10, 200, &[], || vec![Step::Data("hello")])]);
    let service = GateLayer::new(log.gate("gate")).layer(server.clone());
    let answer = hedge().layer(service).oneshot(get()).await.unwrap();
    assert_eq!(
        log.take(),
        [
            "gate admitted",
            "gate admitted",
            "gate Canceled after 0s",
            "gate released"
        ]
    );
    assert_eq!(server.alive(), 1, "the answer");
    drop(answer);
    assert_eq!(server.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_request_whose_caller_has_left() {
    for millis in [0, 50, 100, 150, 200, 250] {
        let layer = rich(hedge().attempts(3)).await;
        let server = Server::new([hangs()]);
        let mut call = task::spawn(layer.layer(server.clone()).oneshot(get()));
        for _ in 0..=millis / 50 {
            assert_pending!(call.poll());
            advance(50 * MILLI).await;
        }
        let attempts = server.times().len();
        assert_eq!(server.alive(), attempts);
        drop(call);
        assert_eq!(server.alive(), 0);
        advance(1000 * MILLI).await;
        assert_eq!(server.times().len(), attempts, "nothing is sent");
        let seen = layer.handle().snapshot();
        assert_eq!((seen.sent, seen.lost), (attempts as u64 - 1, seen.sent));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_put_aside_is_let_go_at_once() {
    let server = Server::new([
        streams(150, 500, &[], || vec![Step::Data("long"), Step::Hang]),
        hangs(),
    ]);
    let mut call = task::spawn(hedge().layer(server.clone()).oneshot(get()));
    for alive in [1, 1, 2, 1, 1] {
        assert_pending!(call.poll());
        assert_eq!(server.alive(), alive);
        advance(50 * MILLI).await;
    }
    let server = Server::new([hangs(), fails(10, "broken")]);
    let mut call = task::spawn(hedge().layer(server.clone()).oneshot(get()));
    for alive in [1, 2, 1] {
        assert_pending!(call.poll());
        assert_eq!(server.alive(), alive);
        advance(100 * MILLI).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_attempt_settles_both() {
    for acts in [[panics(150), hangs()], [hangs(), panics(50)]] {
        let log = Log::default();
        let (layer, server) = (hedge(), Server::new(acts));
        let service = GateLayer::new(log.gate("gate")).layer(server.clone());
        let mut call = task::spawn(layer.layer(service).oneshot(get()));
        for _ in 0..3 {
            assert_pending!(call.poll());
            advance(50 * MILLI).await;
        }
        let polled = catch_unwind(AssertUnwindSafe(|| call.poll()));
        assert!(polled.is_err());
        drop(call);
        assert_eq!(server.alive(), 0);
        let heard = log.take();
        let released = heard.iter().filter(|event| event.ends_with("released"));
        assert_eq!(released.count(), 2, "{heard:?}");
        assert_eq!(layer.handle().snapshot().lost, 1);
        // Nothing is wedged.
        let (answer, _) = send(&layer, &Server::new([hangs(), answers(1, 200)]), get()).await;
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_looked_at_is_dropped_when_another_has_data() {
    const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
    let server = Server::new([
        streams(0, 200, EVENTS, || {
            vec![Step::Data(": wait\n\n"), Step::Hang]
        }),
        streams(50, 200, EVENTS, || vec![Step::Data("data: hello\n\n")]),
    ]);
    let (answer, took) = send(&hedge().classify(Sse), &server, get()).await;
    assert_eq!((took, server.alive()), (150, 1));
    drop(answer);
    assert_eq!(server.alive(), 0);
}
