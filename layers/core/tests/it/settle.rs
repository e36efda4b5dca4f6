//! When a guard hears the verdict, and when it is let go.

use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    classify::{Classify, Grpc, Http, Judge, Sse, Usage, Verdict},
    gate::{Admit, Gate, GateLayer},
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected},
    settle::{End, Settle},
    testing::{Answers, Log, Step, Steps, exchange},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

/// Asks once, behind a spy, for an answer of this status and these steps.
async fn answer<C: Classify>(
    log: &Log,
    classify: C,
    status: StatusCode,
    steps: impl Fn() -> Steps + Clone,
) -> Response<impl Body<Data = bytes::Bytes, Error = BoxError> + Unpin> {
    let inner = Answers(move || {
        let response = Response::builder().status(status);
        let response = response.header("content-type", "text/event-stream");
        response.body(steps()).unwrap()
    });
    let layer = GateLayer::new(log.gate("a")).classify(classify);
    let response = layer.layer(inner).oneshot(Request::new(())).await;
    response.unwrap()
}

fn hello() -> Steps {
    Steps::new([Step::Data("hello")])
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    trailers
}

#[tokio::test(start_paused = true)]
async fn a_good_head_waits_for_the_end_of_the_body() {
    let log = Log::default();
    let response = answer(&log, Http, StatusCode::OK, hello).await;
    assert_eq!(log.take(), ["a admitted"]);

    tokio::time::advance(Duration::from_secs(3)).await;
    response.into_body().collect().await.unwrap();
    assert_eq!(log.take(), ["a data", "a Success after 3s", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_head_is_told_at_once_but_held_to_the_end_of_the_body() {
    let log = Log::default();
    let response = answer(&log, Http, StatusCode::BAD_GATEWAY, hello).await;
    assert_eq!(log.take(), ["a admitted", "a Failure after 0s"]);

    response.into_body().collect().await.unwrap();
    assert_eq!(log.take(), ["a released"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_before_its_first_frame_is_canceled() {
    let log = Log::default();
    drop(answer(&log, Http, StatusCode::OK, hello).await);
    assert_eq!(
        log.take(),
        ["a admitted", "a Canceled after 0s", "a released"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_in_the_middle_is_canceled_and_its_data_were_heard() {
    let log = Log::default();
    let steps = || Steps::new([Step::Data("one"), Step::Hang, Step::Data("two")]);
    let mut body = answer(&log, Http, StatusCode::OK, steps).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(
        log.take(),
        ["a admitted", "a data", "a Canceled after 0s", "a released"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_its_end_is_settled_without_another_poll() {
    let log = Log::default();
    let steps = || hello().saying_its_end();
    let mut body = answer(&log, Http, StatusCode::OK, steps).await.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(body.is_end_stream());
    assert_eq!(
        log.take(),
        ["a admitted", "a data", "a Success after 0s", "a released"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_is_settled_with_its_head() {
    let log = Log::default();
    let steps = || Steps::new([]).saying_its_end();
    let _kept = answer(&log, Http, StatusCode::OK, steps).await;
    assert_eq!(
        log.take(),
        ["a admitted", "a Success after 0s", "a released"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_body_is_a_failure_and_passes_on() {
    let log = Log::default();
    let steps = || Steps::new([Step::Data("one"), Step::Error("cut")]);
    let response = answer(&log, Http, StatusCode::OK, steps).await;
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.to_string(), "cut");
    assert_eq!(log.take()[2..], ["a Failure after 0s", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn trailers_decide_and_what_comes_after_them_is_not_heard() {
    for (status, verdict) in [("0", "Success"), ("3", "CallerFault"), ("13", "Failure")] {
        let log = Log::default();
        let steps = move || {
            Steps::new([
                Step::Data("one"),
                Step::Trailers(trailers(status)),
                Step::Error("late"),
            ])
        };
        let mut body = answer(&log, Grpc, StatusCode::OK, steps).await.into_body();
        body.frame().await.unwrap().unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap(), trailers(status));
        body.frame().await.unwrap().unwrap_err();
        let verdict = format!("a {verdict} after 0s");
        assert_eq!(log.take()[2..], [&*verdict, "a released"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_answer_that_ends_without_a_status_is_a_failure() {
    let log = Log::default();
    let response = answer(&log, Grpc, StatusCode::OK, hello).await;
    response.into_body().collect().await.unwrap();
    assert_eq!(log.take()[2..], ["a Failure after 0s", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_event_is_told_in_the_middle_of_a_stream_and_a_ping_is_no_data() {
    let log = Log::default();
    let steps = || {
        Steps::new([
            Step::Data(": ping\n\n"),
            Step::Data("data: {}\n\nevent: er"),
            Step::Data("ror\ndata: {}\n\n"),
            Step::Hang,
        ])
    };
    let mut body = answer(&log, Sse, StatusCode::OK, steps).await.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(log.take(), ["a admitted"]);
    body.frame().await.unwrap().unwrap();
    assert_eq!(log.take(), ["a data"]);
    body.frame().await.unwrap().unwrap();
    assert_eq!(log.take(), ["a Failure after 0s"]);
}

#[tokio::test(start_paused = true)]
async fn a_future_dropped_before_and_after_its_first_poll_is_canceled() {
    for polls in [0, 1] {
        let log = Log::default();
        let inner = service_fn(|_: Request<()>| pending::<Result<Response<Steps>, BoxError>>());
        let mut service = GateLayer::new(log.gate("a")).layer(inner);
        let mut call = tokio_test::task::spawn(service.call(Request::new(())));
        for _ in 0..polls {
            assert!(call.poll().is_pending());
        }
        drop(call);
        assert_eq!(log.take()[1..], ["a Canceled after 0s", "a released"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_judges_without_naming_a_body() {
    let teapot = |head: &ResponseHead<'_>| (head.status == 418).then_some(Verdict::Failure);
    let log = Log::default();
    drop(answer(&log, teapot, StatusCode::IM_A_TEAPOT, hello).await);
    assert_eq!(log.take()[1..], ["a Failure after 0s", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_its_length() {
    let log = Log::default();
    let inner = Answers(|| Response::new(http_body_util::Full::new(bytes::Bytes::from("hello"))));
    let service = GateLayer::new(log.gate("a")).layer(inner);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    body.frame().await.unwrap().unwrap();
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn tokens_are_counted_as_far_as_a_stream_got() {
    #[derive(Clone, Default)]
    struct Meter(Arc<Mutex<Option<Usage>>>);

    impl Gate for Meter {
        type Guard = Self;

        fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
            Admit::Now(Ok(self.clone()))
        }
    }

    impl Settle for Meter {
        fn settle(&mut self, end: &End, _: Instant) {
            *self.0.lock().unwrap() = end.usage;
        }
    }

    let meter = Meter::default();
    let inner = Answers(|| {
        let usage = "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";
        let response = Response::builder().header("content-type", "text/event-stream");
        response
            .body(Steps::new([Step::Data(usage), Step::Hang]))
            .unwrap()
    });
    let layer = GateLayer::new(meter.clone()).classify(Sse);
    let response = layer.layer(inner).oneshot(Request::new(())).await;
    let mut body = response.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let (prompt, completion) = (3, 4);
    let usage = Usage { prompt, completion };
    assert_eq!(*meter.0.lock().unwrap(), Some(usage));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_body_settles_once() {
    let log = Log::default();
    let steps = || Response::new(Steps::new([Step::Data("one"), Step::Panic]));
    let service = GateLayer::new(log.gate("a")).layer(Answers(steps));
    let reader = tokio::spawn(exchange(service));
    assert!(reader.await.unwrap_err().is_panic());
    assert_eq!(log.take()[2..], ["a Canceled after 0s", "a released"]);
}

/// A guard that signs the answers it sees.
#[derive(Clone)]
struct Signs(&'static str);

impl Gate for Signs {
    type Guard = Self;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
        Admit::Now(Ok(self.clone()))
    }
}

impl Settle for Signs {
    const DECORATES: bool = true;

    fn decorate(&mut self, headers: &mut HeaderMap) {
        headers.append("signed-by", self.0.parse().unwrap());
    }

    fn settle(&mut self, _: &End, _: Instant) {}
}

/// A guard that notes the headers that it hears, and when the verdict comes between.
#[derive(Clone, Default)]
struct Hears(&'static str, Arc<Mutex<Vec<String>>>);

impl Gate for Hears {
    type Guard = Self;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
        Admit::Now(Ok(self.clone()))
    }
}

impl Settle for Hears {
    fn hear(&mut self, headers: &HeaderMap) {
        let names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        let heard = format!("{} {}", self.0, names.join(" "));
        self.1.lock().unwrap().push(heard);
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let told = format!("{} {:?}", self.0, end.verdict);
        self.1.lock().unwrap().push(told);
    }
}

#[tokio::test(start_paused = true)]
async fn guards_hear_headers_and_trailers_before_the_verdicts_that_they_bring() {
    let heard = Arc::default();
    let hears = |name| Hears(name, Arc::clone(&heard));
    let layer = GateLayer::new(hears("a")).and(hears("b")).classify(Grpc);
    let service = layer.layer(Answers(|| {
        let steps = Steps::new([Step::Data("hello"), Step::Trailers(trailers("0"))]);
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(steps).unwrap()
    }));
    exchange(service).await.unwrap();
    let expected = [
        "b content-type",
        "a content-type",
        "b grpc-status",
        "a grpc-status",
        "b Success",
        "a Success",
    ];
    assert_eq!(*heard.lock().unwrap(), expected);

    heard.lock().unwrap().clear();
    let bad = GateLayer::new(hears("a")).layer(Answers(|| {
        let response = Response::builder().status(500).header("x-load", "9");
        response.body(hello()).unwrap()
    }));
    exchange(bad).await.unwrap();
    assert!(matches!(&heard.lock().unwrap()[..], [head, verdict]
        if head == "a x-load" && verdict == "a Failure"));

    heard.lock().unwrap().clear();
    let refused = GateLayer::new(hears("a")).and(Refuses);
    let refused = refused.layer(Answers(|| Response::new(hello())));
    exchange(refused).await.unwrap_err();
    let verdicts = heard.lock().unwrap().len();
    assert_eq!(verdicts, 1, "a refusal is no answer");
}

/// A gate that refuses all.
#[derive(Clone)]
struct Refuses;

impl Gate for Refuses {
    type Guard = ();

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Err(Rejected::new(Reason::Overloaded, "full")))
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_signs_answers_and_the_refusals_of_layers_further_in() {
    let signed = |headers: &HeaderMap| headers.get_all("signed-by").iter().count();

    let layer = GateLayer::new(Signs("a")).and(Signs("b"));
    let response = layer.layer(Answers(|| Response::new(hello())));
    let response = response.oneshot(Request::new(())).await.unwrap();
    assert_eq!(signed(response.headers()), 2);

    let nested = GateLayer::new(Refuses).layer(Answers(|| Response::new(hello())));
    let nested = GateLayer::new(Signs("a")).layer(nested);
    let fused = GateLayer::new(Signs("a")).and(Refuses);
    let fused = fused.layer(Answers(|| Response::new(hello())));
    for error in [
        nested.oneshot(Request::new(())).await.unwrap_err(),
        fused.oneshot(Request::new(())).await.unwrap_err(),
    ] {
        let rejected = Rejected::find(&*error).unwrap();
        assert_eq!(signed(rejected.headers().unwrap()), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_is_one_call_and_an_early_verdict_another() {
    #[derive(Clone, Default)]
    struct Ends(Arc<Mutex<Vec<&'static str>>>);

    impl Gate for Ends {
        type Guard = Self;

        fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
            Admit::Now(Ok(self.clone()))
        }
    }

    impl Settle for Ends {
        fn settle(&mut self, _: &End, _: Instant) {
            self.0.lock().unwrap().push("settle");
        }

        fn finish(&mut self, _: &End, _: Instant) {
            self.0.lock().unwrap().push("finish");
        }
    }

    for (status, expected) in [(200, "finish"), (500, "settle")] {
        let ends = Ends::default();
        let inner = Answers(move || {
            let response = Response::builder().status(status);
            response.body(hello()).unwrap()
        });
        exchange(GateLayer::new(ends.clone()).layer(inner))
            .await
            .unwrap();
        assert_eq!(*ends.0.lock().unwrap(), [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_panics_when_asked_for_tokens_still_settles_the_guard() {
    #[derive(Clone)]
    struct Uncounted;

    impl Classify for Uncounted {
        type Judge = Self;

        fn start(&self, _: &RequestHead<'_>) -> Self {
            Self
        }
    }

    impl Judge for Uncounted {
        fn head(&mut self, _: &ResponseHead<'_>) -> Option<Verdict> {
            None
        }

        fn end(&mut self, _: Option<&HeaderMap>) -> Verdict {
            Verdict::Success
        }

        fn usage(&self) -> Option<Usage> {
            panic!("on purpose")
        }
    }

    let log = Log::default();
    let layer = GateLayer::new(log.gate("a")).classify(Uncounted);
    let exchange = exchange(layer.layer(Answers(|| Response::new(hello()))));
    assert!(tokio::spawn(exchange).await.unwrap_err().is_panic());
    assert_eq!(log.take()[2..], ["a Canceled after 0s", "a released"]);

    // And when that is because the caller leaves.
    let service = layer.layer(Answers(|| Response::new(hello())));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let leaves = AssertUnwindSafe(|| drop(response));
    catch_unwind(leaves).unwrap_err();
    assert_eq!(log.take()[1..], ["a Canceled after 0s", "a released"]);
}
