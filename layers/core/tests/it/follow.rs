//! Guards that follow an answer, and may end it in the middle.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    classify::{Classify, Http, Judge, Sse, Usage, Verdict},
    gate::{Admit, Gate, GateLayer},
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected},
    settle::{End, ResponseBody, Settle, Watch},
    testing::{Answers, CountingAllocator, Log, Step, Steps, exchange},
};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

const PIECE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const ROLE: &str =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const USAGE: &str = "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";

/// A gate that follows up to a number of pieces.
#[derive(Clone)]
struct UpTo {
    pieces: u64,
    reason: Reason,
    panics: bool,
    heard: Arc<Mutex<Vec<String>>>,
}

struct Follower(UpTo);

impl UpTo {
    fn new(pieces: u64) -> Self {
        Self {
            pieces,
            reason: Reason::RateLimited,
            panics: false,
            heard: Arc::default(),
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn hear(&self, event: String) {
        self.heard.lock().unwrap().push(event);
    }
}

impl Gate for UpTo {
    type Guard = Follower;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Follower> {
        Admit::Now(Ok(Follower(self.clone())))
    }
}

impl Settle for Follower {
    const FOLLOWS: bool = true;

    fn progress(&mut self, streamed: u64, _: Instant) -> Result<(), Rejected> {
        self.0.hear(format!("{streamed}"));
        if streamed <= self.0.pieces {
            return Ok(());
        }
        assert!(!self.0.panics, "on purpose");
        Err(Rejected::new(self.0.reason, "no more"))
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let usage = end.usage.map(|usage| (usage.prompt, usage.completion));
        let (verdict, streamed) = (end.verdict, end.streamed);
        self.0.hear(format!("{verdict:?} {streamed} {usage:?}"));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.hear("released".into());
    }
}

/// A body that says when it is dropped.
struct Held(Steps, Arc<Mutex<u32>>);

impl Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(1000)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.1.lock().unwrap() += 1;
    }
}

fn events<B>(body: B) -> Response<B> {
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(body).unwrap()
}

async fn body<G: Gate>(
    gate: &G,
    steps: impl Fn() -> Steps,
) -> impl Body<Data = Bytes, Error = BoxError> + Unpin {
    let layer = GateLayer::new(gate.clone()).classify(Sse);
    let service = layer.layer(Answers(|| events(steps())));
    service.oneshot(Request::new(())).await.unwrap().into_body()
}

#[tokio::test(start_paused = true)]
async fn a_follower_hears_data_with_new_pieces_and_only_these() {
    let gate = UpTo::new(u64::MAX);
    let steps = || {
        Steps::new([
            Step::Data(ROLE),
            Step::Data(": ping\n\n"),
            Step::Data(PIECE),
            Step::Data(
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n",
            ),
            Step::Data(USAGE),
            Step::Data("data: [DONE]\n\n"),
        ])
    };
    body(&gate, steps).await.collect().await.unwrap();
    assert_eq!(
        gate.take(),
        ["1", "3", "Success 3 Some((3, 4))", "released"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_follows_the_data_that_brought_it_on_and_frees_the_service() {
    let dropped = Arc::default();
    let gate = UpTo::new(1);
    let inner = Answers(|| {
        let steps = [
            Step::Data(PIECE),
            Step::Data(USAGE),
            Step::Data(PIECE),
            // Polled again, it would show.
            Step::Panic,
        ];
        events(Held(Steps::new(steps), Arc::clone(&dropped)))
    });
    let service = GateLayer::new(gate.clone()).classify(Sse).layer(inner);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.size_hint().exact(), Some(1000));
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    assert_eq!(gate.take(), ["1"]);
    assert_eq!(*dropped.lock().unwrap(), 0);

    let last = body.frame().await.unwrap().unwrap();
    assert_eq!(last.into_data().unwrap(), PIECE);
    assert_eq!(
        gate.take(),
        ["2", "Refused(RateLimited) 2 Some((3, 4))", "released"]
    );
    assert_eq!(*dropped.lock().unwrap(), 1);
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), None);

    let error = body.frame().await.unwrap().unwrap_err();
    let rejected = error.downcast_ref::<Rejected>().unwrap();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    for _ in 0..2 {
        assert!(body.frame().await.is_none());
    }
    drop(body);
    assert_eq!(gate.take(), [""; 0]);
    assert_eq!(*dropped.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_leaves_before_it_hears_of_the_refusal_changes_nothing() {
    let gate = UpTo::new(0);
    let mut body = body(&gate, || Steps::new([Step::Data(PIECE), Step::Hang])).await;
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(
        gate.take(),
        ["1", "Refused(RateLimited) 1 None", "released"]
    );
}

#[tokio::test(start_paused = true)]
async fn trailers_and_errors_after_a_refusal_are_not_read() {
    for late in [
        || Step::Trailers(HeaderMap::new()),
        || Step::Error("late"),
        || Step::Panic,
    ] {
        let gate = UpTo::new(0);
        let body = body(&gate, || Steps::new([Step::Data(PIECE), late()])).await;
        let error = body.collect().await.unwrap_err();
        assert!(error.is::<Rejected>(), "{error}");
        assert_eq!(
            gate.take(),
            ["1", "Refused(RateLimited) 1 None", "released"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_complete_has_no_more_to_be_followed() {
    let gate = UpTo::new(0);
    let steps = || Steps::new([Step::Data(PIECE)]).saying_its_end();
    let body = body(&gate, steps).await;
    assert_eq!(body.collect().await.unwrap().to_bytes(), PIECE);
    assert_eq!(gate.take(), ["Success 1 None", "released"]);
}

#[tokio::test(start_paused = true)]
async fn data_that_bring_the_verdict_are_not_followed() {
    let gate = UpTo::new(0);
    let both = || {
        let both = "data: {\"choices\":[{\"text\":\"b\"}]}\n\ndata: {\"error\":{\"message\":\"busy\"}}\n\n";
        Steps::new([Step::Data(both), Step::Data(PIECE)])
    };
    body(&gate, both).await.collect().await.unwrap();
    assert_eq!(gate.take(), ["Failure 1 None", "released"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_or_a_reader_that_leaves_tells_how_far_the_answer_came() {
    let gate = UpTo::new(9);
    let steps = || Steps::new([Step::Data(PIECE), Step::Error("cut")]);
    body(&gate, steps).await.collect().await.unwrap_err();
    assert_eq!(gate.take(), ["1", "Failure 1 None", "released"]);

    let steps = || Steps::new([Step::Data(PIECE), Step::Data(PIECE), Step::Hang]);
    let mut body = body(&gate, steps).await;
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    drop(body);
    assert_eq!(gate.take(), ["1", "2", "Canceled 2 None", "released"]);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_panics_is_told_once() {
    let gate = UpTo {
        panics: true,
        ..UpTo::new(1)
    };
    let steps = || Steps::new([Step::Data(PIECE), Step::Data(PIECE), Step::Data(PIECE)]);
    let layer = GateLayer::new(gate.clone()).classify(Sse);
    let exchange = exchange(layer.layer(Answers(move || events(steps()))));
    assert!(tokio::spawn(exchange).await.unwrap_err().is_panic());
    assert_eq!(gate.take(), ["1", "2", "Canceled 0 None", "released"]);
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_panics_as_it_counts_settles_once() {
    #[derive(Clone)]
    struct Miscounts;

    impl Classify for Miscounts {
        type Judge = Self;

        fn start(&self, _: &RequestHead<'_>) -> Self {
            Self
        }
    }

    impl Judge for Miscounts {
        fn head(&mut self, _: &ResponseHead<'_>) -> Option<Verdict> {
            None
        }

        fn end(&mut self, _: Option<&HeaderMap>) -> Verdict {
            Verdict::Success
        }

        fn streamed(&self) -> u64 {
            panic!("on purpose")
        }
    }

    let gate = UpTo::new(1);
    let layer = GateLayer::new(gate.clone()).classify(Miscounts);
    let exchange = exchange(layer.layer(Answers(|| Response::new(Steps::new([Step::Data("a")])))));
    assert!(tokio::spawn(exchange).await.unwrap_err().is_panic());
    assert_eq!(gate.take(), ["Canceled 0 None", "released"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_gates_each_that_follows_hears_all_and_the_first_refusal_counts() {
    let log = Log::default();
    let last = UpTo {
        reason: Reason::Overloaded,
        ..UpTo::new(1)
    };
    for (first, reason) in [
        (UpTo::new(1), Reason::RateLimited),
        (UpTo::new(9), Reason::Overloaded),
    ] {
        let gates = ((first.clone(), log.gate("a")), last.clone());
        let steps = || Steps::new([Step::Data(PIECE), Step::Data(PIECE), Step::Hang]);
        let error = body(&gates, steps).await.collect().await.unwrap_err();
        assert_eq!(Rejected::find(&*error).unwrap().reason(), reason);
        let heard = ["1", "2", &format!("Refused({reason:?}) 2 None"), "released"];
        assert_eq!(first.take(), heard);
        assert_eq!(last.take(), heard);
        let refused = format!("a Refused({reason:?}) after 0s");
        assert_eq!(log.take()[1..], ["a data", &refused, "a released"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_around_hears_of_a_refusal_and_one_inside_that_the_caller_left() {
    let log = Log::default();
    let (outer, inner) = (log.gate("outer"), log.gate("inner"));
    let steps = || Steps::new([Step::Data(PIECE), Step::Hang]);
    let stack = GateLayer::new(inner)
        .classify(Sse)
        .layer(Answers(|| events(steps())));
    let stack = GateLayer::new(UpTo::new(0)).classify(Sse).layer(stack);
    let stack = GateLayer::new(outer).classify(Sse).layer(stack);
    exchange(stack).await.unwrap_err();
    assert_eq!(
        log.take()[3..],
        [
            "inner Canceled after 0s",
            "inner released",
            "outer data",
            "outer Refused(RateLimited) after 0s",
            "outer released"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_does_not_follow_is_never_asked() {
    #[derive(Clone)]
    struct Deaf;

    impl Gate for Deaf {
        type Guard = Self;

        fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
            Admit::Now(Ok(Self))
        }
    }

    impl Settle for Deaf {
        fn progress(&mut self, _: u64, _: Instant) -> Result<(), Rejected> {
            panic!("asked")
        }

        fn settle(&mut self, _: &End, _: Instant) {}
    }

    let steps = || Steps::new([Step::Data(PIECE)]);
    body(&Deaf, steps).await.collect().await.unwrap();
    // Nor beside one that does.
    let gate = UpTo::new(9);
    let heard = ["1", "Success 1 None", "released"];
    let pair = (Deaf, gate.clone());
    body(&pair, steps).await.collect().await.unwrap();
    assert_eq!(gate.take(), heard);
    let pair = (gate.clone(), Deaf);
    body(&pair, steps).await.collect().await.unwrap();
    assert_eq!(gate.take(), heard);
}

#[tokio::test(start_paused = true)]
async fn counting_and_following_allocate_nothing() {
    struct Silent;

    impl Settle for Silent {
        const FOLLOWS: bool = true;

        fn progress(&mut self, streamed: u64, _: Instant) -> Result<(), Rejected> {
            assert!(streamed > 0);
            Ok(())
        }

        fn settle(&mut self, end: &End, _: Instant) {
            assert_eq!(
                (end.streamed, end.usage),
                (
                    64,
                    Some(Usage {
                        prompt: 3,
                        completion: 4
                    })
                )
            );
        }
    }

    let now = palisade_core::time::now();
    let mut steps: Vec<_> = (0..64).map(|_| Step::Data(PIECE)).collect();
    steps.insert(1, Step::Data(ROLE));
    steps.push(Step::Data(USAGE));
    let request = Request::new(());
    let judge = Sse.start(&RequestHead::from(&request));
    let response = events(Steps::new(steps));
    let before = CountingAllocator::count();
    let mut body = Watch::new(Silent, judge, now).answer(response).into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
    drop(body);
    assert_eq!(CountingAllocator::count() - before, 0);
}

#[test]
fn a_body_is_hardly_larger_for_being_one_that_can_be_ended() {
    type Plain = ResponseBody<http_body_util::Full<Bytes>, (), Http>;

    let inner = size_of::<http_body_util::Full<Bytes>>() + size_of::<Watch<(), Http>>();
    assert!(size_of::<Plain>() <= inner + 8, "{}", size_of::<Plain>());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_progress_is_that_of_the_data() {
    #[derive(Clone, Default)]
    struct Clock(Arc<Mutex<Vec<Instant>>>);

    impl Gate for Clock {
        type Guard = Self;

        fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
            Admit::Now(Ok(self.clone()))
        }
    }

    impl Settle for Clock {
        const FOLLOWS: bool = true;

        fn progress(&mut self, _: u64, now: Instant) -> Result<(), Rejected> {
            self.0.lock().unwrap().push(now);
            Ok(())
        }

        fn settle(&mut self, _: &End, _: Instant) {}
    }

    let (clock, start) = (Clock::default(), palisade_core::time::now());
    let mut body = body(&clock, || {
        Steps::new([Step::Data(PIECE), Step::Data(PIECE)])
    })
    .await;
    for second in 1..=2 {
        tokio::time::advance(Duration::from_secs(1)).await;
        body.frame().await.unwrap().unwrap();
        let times = clock.0.lock().unwrap().clone();
        assert_eq!(times.last(), Some(&(start + Duration::from_secs(second))));
    }
}
