use std::{sync::Arc, task::Poll};

use http::{HeaderMap, Response};
use palisade_core::{
    classify::{Grpc, Sse},
    testing::{Step, Steps},
};
use palisade_fallback::FallbackLayer;
use tokio_test::task;

use crate::support::{Backend, Line, Sent, by, get, ok, outcome, secondary, status, streams, text};

fn value() -> FallbackLayer<Sent> {
    FallbackLayer::new().value("value", Response::new("value"))
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_is_replaced_until_its_first_data() {
    let other = Backend::new([streams(|| vec![Step::Data("data: other\n\n")])]);
    let layer = secondary(&other).classify(Sse);
    for steps in [
        || vec![Step::Data("event: error\ndata: {}\n\n")],
        || vec![Step::Data("data: {\"error\": {}}\n\n")],
        || vec![Step::Error("broken")],
        || vec![Step::Data(": comment\n\n"), Step::Error("broken")],
    ] {
        let served = outcome(&layer, &Backend::new([streams(steps)])).await;
        let wanted = (200, Some("secondary".into()), "data: other\n\n".into());
        assert_eq!(served, wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_begun_is_never_replaced() {
    let other = Backend::new([ok("other")]);
    let layer = secondary(&other).classify(Sse);
    let begun = || vec![Step::Data("data: a\n\n"), Step::Error("broken")];
    let response = get(&layer, &Backend::new([streams(begun)])).await.unwrap();
    assert_eq!(by(&response), None);
    assert_eq!(
        text(response).await,
        ("data: a\n\n".into(), Some("broken".into()))
    );

    // An answer in one piece has begun with its head.
    let whole: Line = Arc::new(|_| {
        let body = Steps::new([Step::Error("broken")]);
        Box::pin(async { Ok(Response::new(body)) })
    });
    let response = get(&layer, &Backend::new([whole])).await.unwrap();
    assert_eq!(text(response).await, (String::new(), Some("broken".into())));
    assert_eq!(other.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_streams_of_alternatives_are_held_back_too() {
    let broken = Backend::new([streams(|| vec![Step::Error("broken")])]);
    let layer = secondary(&broken).value("value", Response::new("value"));
    let served = outcome(&layer.classify(Sse), &Backend::new([status(500)])).await;
    assert_eq!((served.1.as_deref(), &*served.2), (Some("value"), "value"));
}

#[tokio::test(start_paused = true)]
async fn what_was_held_back_is_passed_on_as_it_came() {
    let steps = || {
        vec![
            Step::Data(": comment\n\n"),
            Step::Data("data: a\n\n"),
            Step::Data("data: b\n\n"),
        ]
    };
    let layer = value().classify(Sse);
    let served = outcome(&layer, &Backend::new([streams(steps)])).await;
    assert_eq!(
        served,
        (200, None, ": comment\n\ndata: a\n\ndata: b\n\n".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_held_back_is_passed_on_before_its_data() {
    // Judged by status only, so that its data say nothing.
    let hangs = || vec![Step::Hang];
    let (layer, first) = (value(), Backend::new([streams(hangs)]));
    let mut call = task::spawn(get(&layer, &first));
    assert!(matches!(call.poll(), Poll::Ready(Ok(_))));
}

/// A call whose head says nothing of how it ends.
fn call(data: Option<&'static str>, status: &'static str) -> Line {
    Arc::new(move |_| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let data = data.map(Step::Data);
        let steps = data.into_iter().chain([Step::Trailers(trailers)]);
        let response = Response::new(Steps::new(steps));
        Box::pin(async { Ok(response) })
    })
}

#[tokio::test(start_paused = true)]
async fn a_call_of_grpc_that_ends_before_its_first_message_is_replaced_if_held_back() {
    let by = async |layer: &FallbackLayer<Sent, Grpc>, line| {
        outcome(layer, &Backend::new([line])).await.1
    };
    let passes = value().classify(Grpc);
    let holds = value().hold_back(|_| true).classify(Grpc);
    assert_eq!(by(&passes, call(None, "14")).await, None);
    assert_eq!(by(&holds, call(None, "14")).await.as_deref(), Some("value"));
    assert_eq!(by(&holds, call(None, "0")).await, None);
    assert_eq!(by(&holds, call(Some("message"), "14")).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_grpc_that_is_over_with_a_head_that_has_no_status_is_replaced() {
    let cut: Line = Arc::new(|_| {
        let over = Steps::new([]).saying_its_end();
        Box::pin(async { Ok(Response::new(over)) })
    });
    let first = Backend::new([cut]);
    let (_, by, _) = outcome(&value().classify(Grpc), &first).await;
    assert_eq!(by.as_deref(), Some("value"));
    // What is not of gRPC may well be empty.
    assert_eq!(outcome(&value(), &first).await.1, None);
    assert_eq!(outcome(&value().classify(Sse), &first).await.1, None);
}
