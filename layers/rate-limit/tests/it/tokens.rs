//! Tokens and money: reserved when a request comes, settled when its answer has ended.

use std::{convert::Infallible, sync::Mutex, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    classify::{Sse, Usage, Verdict},
    key,
    reject::{Reason, Rejected},
    respond::LayerExt,
    settle::{End, Settle},
    testing::{Answers, CountingAllocator, Step, Steps},
    time::now,
};
use palisade_rate_limit::{
    CostExceedsQuota, Estimate, Headers, Price, Prices, Quota, RateLimit, RateLimitLayer,
    RateLimited, Rule, RuleError, Strategy, Tokens,
};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{admit, limited};

pub(crate) const PROMPT: u64 = 100;
pub(crate) const PIECE: &str =
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":30}}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";
const JSON: &str =
    r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":100,"completion_tokens":30}}"#;

pub(crate) fn asking(tokens: Tokens) -> Request<()> {
    let mut request = Request::builder()
        .header("x-user-id", "alice")
        .body(())
        .unwrap();
    request.extensions_mut().insert(tokens);
    request
}

/// At most 500 tokens of completion.
fn request() -> Request<()> {
    asking(Tokens::new("m", PROMPT).max_completion(500))
}

/// So many an hour, in a window that does not turn in any of the tests that do not say so.
pub(crate) fn tokens(limit: u64) -> Rule {
    Rule::tokens("tokens", Quota::per_hour(limit))
}

pub(crate) fn layer(rules: impl IntoIterator<Item = Rule>) -> RateLimitLayer<Sse> {
    let layer = RateLimitLayer::rules(rules).unwrap();
    layer.headers(Headers::Off).classify(Sse)
}

fn used(layer: &RateLimitLayer<Sse>, rule: &str) -> u64 {
    let state = layer.handle().peek(rule, &"alice".into()).unwrap();
    state.limit - state.remaining
}

fn events(steps: impl IntoIterator<Item = Step>) -> Response<Steps> {
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(Steps::new(steps)).unwrap()
}

fn prices() -> Prices {
    let price = Price::per_million(2.5, 10.0).unwrap();
    Prices::of([("m", price)]).unwrap()
}

/// What two rules count, of tokens and of money in millionths.
fn both(layer: &RateLimitLayer<Sse>) -> (u64, u64) {
    (used(layer, "tokens"), used(layer, "money"))
}

fn counting_both() -> RateLimitLayer<Sse> {
    let money = Rule::money("money", Quota::per_day(1_000_000), prices());
    layer([tokens(10_000), money])
}

fn worth(prompt: u64, completion: u64) -> (u64, u64) {
    let micros = (prompt * 25 + completion * 100).div_ceil(10);
    (prompt + completion, micros)
}

/// What is counted after the head, after each frame, at the end, and when all is dropped.
async fn course(
    layer: &RateLimitLayer<Sse>,
    response: impl Fn() -> Response<Steps> + Clone,
) -> Vec<(u64, u64)> {
    let mut counted = Vec::new();
    let response = layer
        .layer(Answers(response))
        .oneshot(request())
        .await
        .unwrap();
    counted.push(both(layer));
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.frame().await {
        advance(Duration::from_millis(10)).await;
        counted.push(both(layer));
    }
    counted.push(both(layer));
    drop(body);
    counted.push(both(layer));
    counted
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_settled_by_its_usage_when_it_has_ended() {
    let layer = counting_both();
    let steps = || events([PIECE, PIECE, USAGE, DONE].map(Step::Data));
    let reserved = worth(PROMPT, 500);
    let mut expected = vec![reserved; 5];
    expected.extend([worth(100, 30); 2]);
    assert_eq!(course(&layer, steps).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_usage_is_settled_by_what_came() {
    let layer = counting_both();
    let steps = || events([PIECE, PIECE, PIECE, DONE].map(Step::Data));
    let counted = course(&layer, steps).await;
    assert_eq!(counted[4], worth(PROMPT, 500));
    assert_eq!(counted[5..], [worth(PROMPT, 3); 2]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_one_piece_is_settled_by_its_usage() {
    let layer = counting_both();
    let service = layer.layer(Answers(|| {
        let response = Response::builder().header("content-type", "application/json");
        response
            .body(Full::new(Bytes::from_static(JSON.as_bytes())))
            .unwrap()
    }));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(both(&layer), worth(PROMPT, 500));
    response.into_body().collect().await.unwrap();
    assert_eq!(both(&layer), worth(100, 30));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_costs_what_came_of_it() {
    let broken = || Step::Error("on purpose");
    for (steps, cost) in [
        (vec![], worth(PROMPT, 500)),
        (vec![broken()], (0, 0)),
        (
            vec![Step::Data(PIECE), Step::Data(PIECE), broken()],
            worth(PROMPT, 2),
        ),
        (
            vec![Step::Data(PIECE), Step::Data(USAGE), broken()],
            worth(PROMPT, 30),
        ),
    ] {
        let layer = counting_both();
        let steps = Mutex::new(Some(steps));
        let counted = course(&layer, || events(steps.lock().unwrap().take().unwrap())).await;
        assert_eq!(*counted.last().unwrap(), cost);
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_pays_for_what_came_and_the_prompt_was_read_all_the_same() {
    for (frames, cost) in [
        (0, worth(PROMPT, 0)),
        (1, worth(PROMPT, 1)),
        (3, worth(PROMPT, 30)),
    ] {
        let layer = counting_both();
        let steps = || {
            let mut steps: Vec<_> = [PIECE, PIECE, USAGE].map(Step::Data).into();
            steps.push(Step::Hang);
            events(steps)
        };
        let response = layer
            .layer(Answers(steps))
            .oneshot(request())
            .await
            .unwrap();
        let mut body = response.into_body();
        for _ in 0..frames {
            body.frame().await.unwrap().unwrap();
        }
        advance(Duration::from_millis(1)).await;
        assert_eq!(both(&layer), worth(PROMPT, 500));
        drop(body);
        assert_eq!(both(&layer), cost, "after {frames}");
    }
    // Before there was an answer.
    let layer = counting_both();
    let mut hanging = layer.layer(service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Steps>, Infallible>>()
    }));
    let called = hanging.ready().await.unwrap().call(request());
    advance(Duration::from_millis(1)).await;
    drop(called);
    assert_eq!(both(&layer), worth(PROMPT, 0));
}

#[tokio::test(start_paused = true)]
async fn what_failed_before_it_began_costs_nothing() {
    let unreachable =
        || BoxError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    type Fails = fn(u16) -> Result<Response<Steps>, BoxError>;
    let status: Fails = |status| {
        let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        Ok(response.body(Steps::new([Step::Data("busy")])).unwrap())
    };
    for code in [500, 503, 429, 400] {
        let layer = counting_both();
        let service = layer.layer(service_fn(async |_: Request<()>| status(code)));
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(both(&layer), (0, 0), "known with the head of {code}");
        let _ = response.into_body().collect().await;
        assert_eq!(both(&layer), (0, 0), "and once");
    }
    let layer = counting_both();
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Err::<Response<Steps>, BoxError>(unreachable())
    }));
    service.oneshot(request()).await.unwrap_err();
    assert_eq!(both(&layer), (0, 0));
    let rejected = layer.layer(service_fn(async |_: Request<()>| {
        let rejected = Rejected::new(Reason::CircuitOpen, "further in");
        Err::<Response<Steps>, BoxError>(rejected.into())
    }));
    rejected.oneshot(request()).await.unwrap_err();
    assert_eq!(both(&layer), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_error_event_settles_by_what_came_before_it_though_the_stream_goes_on() {
    let layer = counting_both();
    let error = "data: {\"error\":{\"message\":\"on purpose\"}}\n\n";
    let steps = move || events([PIECE, PIECE, error, PIECE, USAGE].map(Step::Data));
    let counted = course(&layer, steps).await;
    assert_eq!(counted[..3], [worth(PROMPT, 500); 3]);
    assert_eq!(counted[3..], [worth(PROMPT, 2); 5]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_say_takes_one_and_pays_at_its_end() {
    let layer = counting_both();
    let steps = || events([PIECE, USAGE].map(Step::Data));
    let service = layer.layer(Answers(steps));
    let unsaid = || {
        Request::builder()
            .header("x-user-id", "alice")
            .body(())
            .unwrap()
    };
    let response = service.clone().oneshot(unsaid()).await.unwrap();
    assert_eq!(both(&layer), (1, 1));
    response.into_body().collect().await.unwrap();
    assert_eq!(both(&layer), worth(100, 30));

    // Too late to refuse it: the next one waits until what is over has been made up for.
    let small = self::layer([tokens(50)]);
    let service = small.layer(Answers(steps));
    let response = service.clone().oneshot(unsaid()).await.unwrap();
    response.into_body().collect().await.unwrap();
    let refused = service.clone().oneshot(unsaid()).await.unwrap_err();
    // Of 130 in the window before, 49 are left after 81 / 130 of an hour.
    let wait = limited(Rejected::find(&*refused).unwrap()).retry_after;
    let into = 3600 * 81 / 130;
    assert_eq!(wait.as_secs(), 3600 + into);
    advance(wait).await;
    assert!(service.oneshot(unsaid()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_never_fit_is_a_fault_of_the_caller() {
    let layer = RateLimitLayer::rules([tokens(599)]).unwrap().classify(Sse);
    let refused = admit(layer.gate(), &request(), now()).unwrap_err();
    assert_eq!(refused.reason(), Reason::CostExceedsQuota);
    let source = std::error::Error::source(&refused).unwrap();
    let error: &CostExceedsQuota = source.downcast_ref().unwrap();
    assert_eq!((error.cost, error.holds), (600, 599));
    let service = layer.clone().responding().layer(Answers(|| events([])));
    let Ok(response) = service.oneshot(request()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(!response.headers().contains_key("retry-after"));
    assert_eq!(used(&layer, "tokens"), 0);
    // By what was learned it fits: at first 256 are expected of anybody.
    let learning = self::layer([tokens(599).estimate(Estimate::Learned)]);
    assert!(admit(learning.gate(), &request(), now()).is_ok());
    assert_eq!(used(&learning, "tokens"), PROMPT + 256);
}

#[test]
fn only_windows_can_correct_what_was_reserved() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::SlidingLog,
        Strategy::InFlight,
    ] {
        let error = RateLimit::rules([tokens(9).strategy(strategy)])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error, RuleError::CannotSettle("tokens".into(), strategy));
    }
    assert!(RateLimit::rules([tokens(9).strategy(Strategy::FixedWindow)]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn requests_tokens_and_places_are_taken_together_or_not_at_all() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let rules = [
            Rule::new("requests", Quota::per_day(5)),
            tokens(1300),
            Rule::in_flight("places", 2),
        ];
        let layer = layer(order.map(|index| rules[index].clone()));
        let left = || {
            ["requests", "tokens", "places"].map(|rule| {
                layer
                    .handle()
                    .peek(rule, &"alice".into())
                    .unwrap()
                    .remaining
            })
        };
        let take = |completion| {
            let tokens = Tokens::new("m", PROMPT).max_completion(completion);
            admit(layer.gate(), &asking(tokens), now())
        };
        let mut first = take(500).unwrap();
        assert_eq!(left(), [4, 700, 1]);
        assert!((0..9).all(|_| take(601).is_err()), "no tokens");
        assert_eq!(left(), [4, 700, 1]);
        let second = take(200).unwrap();
        assert_eq!(left(), [3, 400, 0]);
        assert!((0..9).all(|_| take(1).is_err()), "no place");
        assert_eq!(left(), [3, 400, 0]);
        let usage = Some(Usage {
            prompt: 100,
            completion: 7,
        });
        let end = End {
            usage,
            ..End::new(Verdict::Success)
        };
        first.settle(&end, now());
        assert_eq!(left(), [3, 893, 0], "the body goes on");
        drop(first);
        assert_eq!(left(), [3, 893, 1]);
        drop(second);
        assert_eq!(left(), [3, 893, 2], "nobody has told how it ended");
        for _ in 0..3 {
            take(1).unwrap();
        }
        assert!((0..9).all(|_| take(1).is_err()), "no request");
        assert_eq!(left(), [0, 893 - 303, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_while_another_key_is_reset_is_settled_all_the_same() {
    let limit = RateLimit::rules([tokens(10_000).key(key::header("x-user-id"))]).unwrap();
    let at = now();
    let mut reservation = admit(&limit, &request(), at).unwrap();
    let mut bob = request();
    bob.headers_mut()
        .insert("x-user-id", http::HeaderValue::from_static("bob"));
    admit(&limit, &bob, at).unwrap();
    assert_eq!(limit.handle().reset(None, &"bob".into()), 1);
    let usage = Some(Usage {
        prompt: 100,
        completion: 30,
    });
    reservation.settle(
        &End {
            usage,
            ..End::new(Verdict::Success)
        },
        at,
    );
    let state = limit.handle().peek("tokens", &"alice".into()).unwrap();
    assert_eq!(state.limit - state.remaining, 130);
}

#[tokio::test(start_paused = true)]
async fn a_window_gets_back_no_more_than_a_stream_has_taken_from_it() {
    for strategy in [Strategy::FixedWindow, Strategy::SlidingWindow] {
        let quota = Quota::per_minute(1000);
        let rule = Rule::tokens("tokens", quota).strategy(strategy).growing();
        let limit = RateLimit::rules([rule.estimate(Estimate::Learned)]).unwrap();
        let unsaid = asking(Tokens::new("m", PROMPT));
        advance(Duration::from_secs(59)).await;
        let mut stream = admit(&limit, &unsaid, now()).unwrap();
        // Two seconds later in the next window: it grows by 64, and somebody else takes 400.
        advance(Duration::from_secs(2)).await;
        stream.progress(250, now()).unwrap();
        let other = asking(Tokens::new("m", 0).max_completion(400));
        let mut other = admit(&limit, &other, now()).unwrap();
        let told = |completion| End {
            usage: Some(Usage {
                prompt: 0,
                completion,
            }),
            ..End::new(Verdict::Success)
        };
        other.settle(&told(400), now());
        // It ends with much less than the first window was charged.
        stream.settle(&told(10), now());
        advance(Duration::from_secs(59)).await;
        // The window of the 400 is the one before.
        let remaining = limit
            .handle()
            .peek("tokens", &"alice".into())
            .unwrap()
            .remaining;
        let counted = if strategy == Strategy::SlidingWindow {
            400
        } else {
            0
        };
        assert_eq!(1000 - remaining, counted, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_growing_stream_is_ended_where_there_are_no_more_and_its_reader_is_told() {
    let layer = layer([tokens(500).growing().estimate(Estimate::Learned)]);
    let steps = || events((0..1000).map(|_| Step::Data(PIECE)));
    let service = layer.layer(Answers(steps));
    let response = service
        .oneshot(asking(Tokens::new("m", PROMPT)))
        .await
        .unwrap();
    let mut body = response.into_body();
    let mut pieces = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(_) => pieces += 1,
            Err(error) => break error,
        }
    };
    // 256 at first and two steps of 64 fit into 400; a step is asked for when less than one is left.
    assert_eq!(pieces, 256 + 128 - 63);
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    let source = std::error::Error::source(rejected).unwrap();
    assert!(source.is::<RateLimited>());
    assert!(rejected.delay().unwrap() > Duration::ZERO);
    assert!(body.frame().await.is_none());
    assert_eq!(used(&layer, "tokens"), PROMPT + pieces);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_grows_within_what_there_is_is_not_ended() {
    for steps in [PIECE, USAGE].map(|last| {
        let mut steps: Vec<_> = (0..350).map(|_| PIECE).collect();
        steps.push(last);
        steps
    }) {
        let layer = layer([tokens(600).growing().estimate(Estimate::Learned)]);
        let many = steps.iter().filter(|&&step| step == PIECE).count() as u64;
        let is_told = steps.last() == Some(&USAGE);
        let answer = move || events(steps.iter().copied().map(Step::Data).collect::<Vec<_>>());
        let service = layer.layer(Answers(answer));
        let response = service
            .oneshot(asking(Tokens::new("m", PROMPT)))
            .await
            .unwrap();
        response.into_body().collect().await.unwrap();
        let cost = if is_told { 130 } else { PROMPT + many };
        assert_eq!(used(&layer, "tokens"), cost);
    }
}

#[tokio::test]
async fn a_stream_within_its_reservation_allocates_nothing_while_it_runs() {
    for rule in [tokens(100_000), tokens(100_000).growing()] {
        let layer = layer([rule, Rule::in_flight("places", 5)]);
        let asked = request();
        // Metrics are registered with the first one, and a key gets its seat.
        drop(admit(layer.gate(), &asked, now()).unwrap());
        let before = CountingAllocator::count();
        let mut reservation = admit(layer.gate(), &asked, now()).unwrap();
        let admitting = CountingAllocator::count() - before;
        let before = CountingAllocator::count();
        let at = now();
        for streamed in 0..500 {
            reservation.progress(streamed, at).unwrap();
        }
        reservation.finish(&End::new(Verdict::Success), at);
        drop(reservation);
        assert_eq!(CountingAllocator::count() - before, 0);
        assert_eq!(admitting, 1, "its account");

        // The same through the layer, with a judge that reads all events. The first of a key and a model is learned
        // from, and kept in mind.
        let steps = || events((0..400).map(|_| Step::Data(PIECE)));
        let mut allocated = [0; 2];
        for allocated in &mut allocated {
            let service = layer.layer(Answers(steps));
            let response = service.oneshot(request()).await.unwrap();
            let mut body = Box::pin(response.into_body());
            let before = CountingAllocator::count();
            let mut frames = 0;
            while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                assert!(frame.is_ok());
                frames += 1;
            }
            drop(body);
            assert_eq!(frames, 400);
            *allocated = CountingAllocator::count() - before;
        }
        assert_eq!(allocated, [2, 0]);
    }
}
