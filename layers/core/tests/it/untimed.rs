//! Guards that need less than the whole end: neither its time nor the first data.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    classify::{Classify, Verdict},
    gate::{Admit, Gate, GateLayer, gates},
    head::{RequestHead, ResponseHead},
    settle::{End, Settle},
    testing::{Answers, Log, Step, Steps},
};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

/// Is content with a success, and wants to know the time of all else.
#[derive(Clone, Debug, Default)]
struct Content {
    heard: Arc<Mutex<Vec<String>>>,
    panics: Arc<AtomicBool>,
}

impl Content {
    fn note(&self, event: impl Into<String>) {
        self.heard.lock().unwrap().push(event.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Gate for Content {
    type Guard = ContentGuard;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<ContentGuard> {
        Admit::Now(Ok(ContentGuard(self.clone())))
    }
}

#[derive(Debug)]
struct ContentGuard(Content);

impl Settle for ContentGuard {
    const AWAITS_DATA: bool = false;

    fn first_data(&mut self, _: Instant) {
        self.0.note("data");
    }

    fn settle_untimed(&mut self, verdict: Verdict) -> bool {
        assert!(!self.0.panics.load(Relaxed), "on purpose");
        self.0.note(format!("{verdict:?}"));
        verdict == Verdict::Success
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let age = end.age.as_secs();
        self.0.note(format!("{:?} after {age}s", end.verdict));
    }
}

impl Drop for ContentGuard {
    fn drop(&mut self) {
        self.0.note("released");
    }
}

async fn answer<G: Gate, C: Classify>(
    gate: GateLayer<G, C>,
    status: StatusCode,
) -> Response<impl Body<Data = bytes::Bytes, Error = BoxError> + Unpin> {
    let inner = Answers(move || {
        let response = Response::builder().status(status);
        response.body(Full::from("hello")).unwrap()
    });
    let response = gate.layer(inner).oneshot(Request::new(())).await;
    response.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_content_with_the_verdict_hears_no_more() {
    let gate = Content::default();
    let response = answer(GateLayer::new(gate.clone()), StatusCode::OK).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    response.into_body().collect().await.unwrap();
    assert_eq!(gate.take(), ["Success", "released"]);
}

#[tokio::test(start_paused = true)]
async fn it_hears_a_verdict_that_is_known_early_once_and_is_held_until_the_end() {
    let gate = Content::default();
    let good = |_: &ResponseHead<'_>| Some(Verdict::Success);
    let layer = GateLayer::new(gate.clone()).classify(good);
    let response = answer(layer, StatusCode::OK).await;
    assert_eq!(gate.take(), ["Success"]);
    response.into_body().collect().await.unwrap();
    assert_eq!(gate.take(), ["released"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_not_hears_when() {
    let gate = Content::default();
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let response = answer(GateLayer::new(gate.clone()), status).await;
    // While the body goes on, and once.
    assert_eq!(gate.take(), ["Failure", "Failure after 0s"]);
    response.into_body().collect().await.unwrap();
    assert_eq!(gate.take(), ["released"]);

    let response = answer(GateLayer::new(gate.clone()), StatusCode::OK).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    drop(response);
    assert_eq!(gate.take(), ["Canceled", "Canceled after 2s", "released"]);
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_gets_the_time_and_the_data_that_it_wants() {
    let (gate, log) = (Content::default(), Log::default());
    let both = [
        answer(gates((log.gate("a"), gate.clone())), StatusCode::OK)
            .await
            .into_body()
            .boxed(),
        answer(gates((gate.clone(), log.gate("a"))), StatusCode::OK)
            .await
            .into_body()
            .boxed(),
    ];
    for body in both {
        tokio::time::advance(Duration::from_secs(1)).await;
        body.collect().await.unwrap();
    }
    assert_eq!(
        log.take(),
        [
            "a admitted",
            "a admitted",
            "a data",
            "a Success after 1s",
            "a released",
            "a data",
            "a Success after 2s",
            "a released"
        ]
    );
    // Asked first, where its neighbour is behind it: nobody asks when that one wants the time anyway.
    let (first, second) = (
        ["Success", "Success after 1s", "released"],
        ["Success after 2s", "released"],
    );
    assert_eq!(gate.take(), [&first[..], &second[..]].concat());
}

#[tokio::test]
async fn one_that_panics_as_it_is_asked_is_told_that_nobody_knows() {
    let gate = Content::default();
    let response = answer(GateLayer::new(gate.clone()), StatusCode::OK).await;
    gate.panics.store(true, Relaxed);
    let body = response.into_body();
    let read = catch_unwind(AssertUnwindSafe(|| {
        let mut read = std::pin::pin!(body.collect());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = read.as_mut().poll(&mut cx);
    }));
    assert!(read.is_err());
    let heard = gate.take();
    assert_eq!(heard, ["Canceled after 0s", "released"]);
}

#[tokio::test]
async fn it_is_asked_once_also_when_the_answer_outlives_the_panic() {
    let gate = Content::default();
    let response = answer(GateLayer::new(gate.clone()), StatusCode::OK).await;
    gate.panics.store(true, Relaxed);
    let mut body = response.into_body();
    let read = catch_unwind(AssertUnwindSafe(|| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        while std::pin::pin!(&mut body).poll_frame(&mut cx).is_ready() {}
    }));
    assert!(read.is_err());
    assert!(gate.take().is_empty());
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(body)));
    assert!(dropped.is_ok(), "it has panicked already");
    assert_eq!(gate.take(), ["Canceled after 0s", "released"]);
}

#[tokio::test]
async fn it_is_not_asked_while_a_panic_unwinds() {
    let gate = Content::default();
    let inner = Answers(|| Response::new(Steps::new([Step::Panic])));
    let layer = GateLayer::new(gate.clone());
    let response = layer.layer(inner).oneshot(Request::new(())).await.unwrap();
    let read = catch_unwind(AssertUnwindSafe(|| {
        let mut read = std::pin::pin!(response.into_body().collect());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = read.as_mut().poll(&mut cx);
    }));
    assert!(read.is_err());
    assert_eq!(gate.take(), ["Canceled after 0s", "released"]);
}

#[tokio::test]
async fn a_judge_that_panics_settles_the_guard_before_the_future_is_dropped() {
    let gate = Content::default();
    let judge = |_: &ResponseHead<'_>| -> Option<Verdict> { panic!("on purpose") };
    let inner = Answers(|| Response::new(Full::<bytes::Bytes>::from("hello")));
    let layer = GateLayer::new(gate.clone()).classify(judge);
    let mut call = Box::pin(layer.layer(inner).oneshot(Request::new(())));
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = call.as_mut().poll(&mut cx);
    }));
    assert!(polled.is_err());
    assert_eq!(gate.take(), ["Canceled after 0s", "released"]);
    drop(call);
    assert!(gate.take().is_empty());
}
