//! Buckets that a service empties by saying that it is overloaded.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    testing::Answers,
    time::now,
};
use palisade_rate_limit::{Quota, RateLimitLayer, Rule, Strategy};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use crate::{STRATEGIES, admit, from, limited, per_user};

fn answer(status: u16, retry_after: Option<&str>) -> Response<Empty<Bytes>> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    if let Some(delay) = retry_after {
        response = response.header("retry-after", delay);
    }
    response.body(Empty::new()).unwrap()
}

async fn answered(layer: &RateLimitLayer, status: u16, retry_after: Option<&'static str>) {
    let service = layer.layer(Answers(move || answer(status, retry_after)));
    service.oneshot(from("alice")).await.unwrap();
}

fn draining(rule: Rule) -> RateLimitLayer {
    RateLimitLayer::rules([rule.drain_on_overload()]).unwrap()
}

fn left(layer: &RateLimitLayer, user: &str) -> u64 {
    let state = layer.handle().peek("per_user", &user.into()).unwrap();
    state.remaining
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_asks_to_be_left_alone_is_left_alone_for_so_long() {
    for status in [429, 503] {
        let layer = draining(per_user(Quota::per_second(10)));
        answered(&layer, status, Some("7")).await;
        let refused = admit(layer.gate(), &from("alice"), now()).unwrap_err();
        // Then it begins to refill: one in 100 ms.
        let wait = Duration::from_millis(7100);
        assert_eq!(limited(&refused).retry_after, wait);
        assert_eq!(left(&layer, "alice"), 0);
        assert_eq!(left(&layer, "bob"), 10, "another key");
        advance(wait - Duration::from_nanos(1)).await;
        assert!(admit(layer.gate(), &from("alice"), now()).is_err());
        advance(Duration::from_nanos(1)).await;
        assert!(admit(layer.gate(), &from("alice"), now()).is_ok());
        assert!(admit(layer.gate(), &from("alice"), now()).is_err());
        advance(Duration::from_secs(1)).await;
        assert_eq!(left(&layer, "alice"), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_time_what_remains_is_gone_and_a_long_time_is_cut() {
    let layer = draining(per_user(Quota::per_second(10)));
    answered(&layer, 429, None).await;
    assert_eq!(left(&layer, "alice"), 0);
    advance(Duration::from_millis(100)).await;
    assert_eq!(left(&layer, "alice"), 1);

    let layer = draining(per_user(Quota::per_second(10)));
    answered(&layer, 429, Some("86400")).await;
    let state = layer.handle().peek("per_user", &"alice".into()).unwrap();
    assert_eq!(state.retry_after, Duration::from_millis(300_100));
}

#[tokio::test(start_paused = true)]
async fn two_who_are_told_so_wait_for_the_longer_of_both() {
    let layer = draining(per_user(Quota::per_second(10)));
    let service = layer.layer(service_fn(async |request: Request<()>| {
        // Both are admitted before either is answered.
        tokio::task::yield_now().await;
        let delay = request.headers()["x-delay"].to_str().unwrap().to_owned();
        Ok::<_, BoxError>(answer(429, Some(&delay)))
    }));
    let with_delay = |delay: &str| {
        let mut request = from("alice");
        request
            .headers_mut()
            .insert("x-delay", delay.parse().unwrap());
        service.clone().oneshot(request)
    };
    let (long, short) = (with_delay("9"), with_delay("2"));
    let (long, short) = tokio::join!(long, short);
    assert!(long.is_ok() && short.is_ok());
    let state = layer.handle().peek("per_user", &"alice".into()).unwrap();
    assert_eq!(state.retry_after, Duration::from_millis(9100));
}

#[tokio::test(start_paused = true)]
async fn windows_have_nothing_left_until_they_turn() {
    for strategy in [
        Strategy::FixedWindow,
        Strategy::SlidingWindow,
        Strategy::SlidingLog,
    ] {
        let layer = draining(per_user(Quota::per_minute(10)).strategy(strategy));
        answered(&layer, 429, Some("1")).await;
        assert_eq!(left(&layer, "alice"), 0, "{strategy:?}");
        advance(Duration::from_secs(59)).await;
        assert_eq!(left(&layer, "alice"), 0, "{strategy:?}");
        advance(Duration::from_secs(61)).await;
        assert_eq!(left(&layer, "alice"), 10, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_or_for_another_reason_nothing_is_drained() {
    for strategy in STRATEGIES {
        let plain = RateLimitLayer::rules([per_user(Quota::per_minute(10)).strategy(strategy)]);
        let plain = plain.unwrap();
        answered(&plain, 429, Some("7")).await;
        assert_eq!(left(&plain, "alice"), 9, "{strategy:?}");

        let layer = draining(per_user(Quota::per_minute(10)).strategy(strategy));
        for status in [200, 400, 404, 500, 502] {
            answered(&layer, status, Some("7")).await;
        }
        assert_eq!(left(&layer, "alice"), 5, "{strategy:?}");
        // A refusal of a layer further in says nothing of the service.
        let refusing = layer.layer(service_fn(async |_: Request<()>| {
            let rejected = Rejected::new(Reason::RateLimited, "further in");
            let rejected = rejected.retry_after(Duration::from_secs(7));
            Err::<Response<Empty<Bytes>>, BoxError>(rejected.into())
        }));
        refusing.oneshot(from("alice")).await.unwrap_err();
        assert!(left(&layer, "alice") >= 4, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn places_in_flight_come_back_after_an_overload() {
    let layer = draining(Rule::in_flight("per_user", 3));
    for _ in 0..9 {
        answered(&layer, 429, Some("7")).await;
    }
    assert_eq!(left(&layer, "alice"), 3);
}
