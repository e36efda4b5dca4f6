//! Places that are held until an answer has ended.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use palisade_core::{
    BoxError,
    gate::gates,
    reject::{Reason, Rejected},
    testing::{Answers, Step, Steps, exchange},
    time::now,
};
use palisade_rate_limit::{Headers, Quota, RateLimit, RateLimitLayer, Rule, Strategy};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{admit, from, limited, per_user};

fn places(many: u64) -> RateLimitLayer {
    RateLimitLayer::rules([Rule::in_flight("places", many)]).unwrap()
}

fn taken(layer: &RateLimitLayer) -> u64 {
    let state = layer.handle().peek("places", &"".into()).unwrap();
    state.limit - state.remaining
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_has_ended() {
    let layer = places(1);
    let steps = || Steps::new([Step::Data("a"), Step::Data("b")]);
    let service = layer.layer(Answers(move || Response::new(steps())));
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    let refused = exchange(service.clone()).await.unwrap_err();
    let rejected = Rejected::find(&*refused).unwrap();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    assert_eq!(&*limited(rejected).rule, "places");
    let mut body = response.into_body();
    advance(Duration::from_secs(3600)).await;
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
        assert_eq!(taken(&layer), 1, "however long it takes");
    }
    assert!(body.frame().await.is_none());
    assert_eq!(taken(&layer), 0, "also while the body is still held");
    exchange(service).await.unwrap();
    drop(body);
    assert_eq!(taken(&layer), 0, "and once");
}

#[tokio::test(start_paused = true)]
async fn a_place_comes_back_however_a_request_ends() {
    let layer = places(1);
    // An error of the service.
    let failing = layer.layer(service_fn(async |_: Request<()>| {
        Err::<Response<Empty<Bytes>>, BoxError>("on purpose".into())
    }));
    failing.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(taken(&layer), 0);
    // Dropped before, while and after it is polled.
    let mut hanging = layer.layer(service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Empty<Bytes>>, BoxError>>()
    }));
    let mut called = Box::pin(hanging.ready().await.unwrap().call(Request::new(())));
    assert_eq!(taken(&layer), 1);
    assert!(poll(called.as_mut()).is_pending());
    assert_eq!(taken(&layer), 1);
    drop(called);
    assert_eq!(taken(&layer), 0);
    drop(hanging.ready().await.unwrap().call(Request::new(())));
    assert_eq!(taken(&layer), 0);
    // In the middle of a body.
    for step in [Step::Hang, Step::Error("on purpose"), Step::Data("more")] {
        let steps = std::sync::Mutex::new(Some(Steps::new([Step::Data("a"), step])));
        let service = layer.layer(Answers(|| {
            Response::new(steps.lock().unwrap().take().unwrap())
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(taken(&layer), 1);
        let _ = poll(Pin::new(&mut body.frame()));
        drop(body);
        assert_eq!(taken(&layer), 0);
    }
    // An answer without a body.
    let service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(taken(&layer), 0);
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_the_place_back_once() {
    let layer = places(1);
    // In the call.
    let mut service = layer.layer(service_fn(
        |_: Request<()>| -> std::future::Ready<Result<Response<Empty<Bytes>>, BoxError>> {
            panic!("on purpose")
        },
    ));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(()))))).is_err());
    assert_eq!(taken(&layer), 0);
    // In the poll of its future.
    let service = layer.layer(service_fn(
        async |_: Request<()>| -> Result<Response<Empty<Bytes>>, BoxError> { panic!("on purpose") },
    ));
    let polled = tokio::spawn(service.oneshot(Request::new(())));
    assert!(polled.await.unwrap_err().is_panic());
    assert_eq!(taken(&layer), 0);
    // In the poll of its body.
    let steps = || Steps::new([Step::Panic]);
    let service = layer.layer(Answers(move || Response::new(steps())));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(taken(&layer), 1);
    let polled = tokio::spawn(response.into_body().collect());
    assert!(polled.await.unwrap_err().is_panic());
    assert_eq!(taken(&layer), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_further_in_refuses_holds_no_place() {
    let places = RateLimit::rules([Rule::in_flight("places", 1)]).unwrap();
    let closed = RateLimit::new(Quota::per_second(0));
    let handle = places.handle();
    let service = gates((places, closed)).layer(Answers(|| Response::new(Empty::new())));
    for _ in 0..3 {
        exchange(service.clone()).await.unwrap_err();
    }
    assert_eq!(handle.peek("places", &"".into()).unwrap().remaining, 1);
    assert_eq!(handle.snapshot().rules[0].admitted, 3);
}

#[test]
fn threads_never_hold_more_places_than_there_are() {
    for keyed in [false, true] {
        let mut rule = Rule::in_flight("places", 7);
        if keyed {
            rule = rule.key(palisade_core::key::header("x-user-id"));
        }
        let limit = RateLimit::rules([rule]).unwrap().headers(Headers::Off);
        let (now_in, most, passed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let request = from("alice");
                    for turn in 0..3000 {
                        let Ok(held) = admit(&limit, &request, now()) else {
                            thread::yield_now();
                            continue;
                        };
                        let inside = now_in.fetch_add(1, SeqCst) + 1;
                        most.fetch_max(inside, SeqCst);
                        passed.fetch_add(1, SeqCst);
                        if turn % 3 == 0 {
                            thread::yield_now();
                        }
                        now_in.fetch_sub(1, SeqCst);
                        drop(held);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((2..=7).contains(&most), "{most}");
        assert!(passed.into_inner() > 100);
        let state = limit.handle().peek("places", &"alice".into()).unwrap();
        assert_eq!(state.remaining, 7);
    }
}

#[test]
fn a_place_and_a_quota_are_taken_together_or_not_at_all() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::SlidingWindow,
        Strategy::SlidingLog,
    ] {
        for reversed in [false, true] {
            let mut rules = vec![
                Rule::in_flight("places", 2),
                Rule::new("quota", Quota::per_hour(5)).strategy(strategy),
            ];
            if reversed {
                rules.reverse();
            }
            let limit = RateLimit::rules(rules).unwrap();
            let left = |rule: &str| limit.handle().peek(rule, &"".into()).unwrap().remaining;
            let at = now();
            let take = || admit(&limit, &Request::new(()), at);
            let held = [take().unwrap(), take().unwrap()];
            assert!((0..9).all(|_| take().is_err()));
            assert_eq!(
                (left("places"), left("quota")),
                (0, 3),
                "a full house takes no quota"
            );
            drop(held);
            assert!((0..3).all(|_| take().is_ok()));
            assert!((0..9).all(|_| take().is_err()));
            assert_eq!(
                (left("places"), left("quota")),
                (2, 0),
                "nor no quota a place"
            );
        }
    }
}

#[test]
fn places_that_are_held_survive_resets_of_this_key_and_of_others() {
    let limit = RateLimit::rules([
        Rule::in_flight("places", 2).key(palisade_core::key::header("x-user-id")),
        per_user(Quota::per_hour(100)),
    ])
    .unwrap();
    let handle = limit.handle();
    let left = || handle.peek("places", &"alice".into()).unwrap().remaining;
    let held = [
        admit(&limit, &from("alice"), now()).unwrap(),
        admit(&limit, &from("alice"), now()).unwrap(),
    ];
    admit(&limit, &from("bob"), now()).unwrap();
    assert_eq!(
        handle.reset(None, &"bob".into()),
        1,
        "only what was used up"
    );
    assert_eq!(handle.reset(None, &"alice".into()), 1);
    assert_eq!(left(), 0, "they are still there");
    drop(held);
    assert_eq!(left(), 2);
    drop(admit(&limit, &from("alice"), now()).unwrap());
    assert_eq!(left(), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_that_places_are_requests_at_a_time() {
    let service = places(3).layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let headers = response.headers();
    assert_eq!(
        headers["ratelimit-policy"],
        r#""places";q=3;qu="concurrent-requests""#
    );
    assert_eq!(headers["ratelimit"], r#""places";r=2"#);
}
