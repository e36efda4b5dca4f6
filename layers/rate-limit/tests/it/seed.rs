//! What was wrong in the program that this one follows, by its number there.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use palisade_core::{
    BoxError, key,
    reject::Rejected,
    respond::LayerExt,
    testing::{Answers, Step, Steps},
    time::now,
};
use palisade_rate_limit::{Adaptive, MissingKey, Quota, RateLimit, RateLimitLayer, Rule, Strategy};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use crate::{STRATEGIES, admit, from, limited, per_user};

const SECOND: Duration = Duration::from_secs(1);

fn passes(limit: &RateLimit, user: &str) -> usize {
    (0..2000)
        .filter(|_| admit(limit, &from(user), now()).is_ok())
        .count()
}

#[tokio::test(start_paused = true)]
async fn seed_03_a_refused_request_occupies_no_place() {
    for strategy in [Strategy::SlidingLog].into_iter().chain(STRATEGIES) {
        let rule = per_user(Quota::per_second(100)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        let mut passed = 0;
        // Asked for ten times as much, for four seconds.
        for _ in 0..4000 {
            passed += usize::from(admit(&limit, &from("alice"), now()).is_ok());
            advance(Duration::from_millis(1)).await;
        }
        // Nobody gets less for having asked in vain; a bucket and windows that turn begin with what was saved up.
        assert!((390..=500).contains(&passed), "{passed} {strategy:?}");
        assert!(passes(&limit, "alice") <= 100);
    }
}

#[tokio::test(start_paused = true)]
async fn seed_04_requests_of_one_instant_are_counted_apart_and_a_refused_twin_frees_none() {
    for strategy in [Strategy::SlidingLog].into_iter().chain(STRATEGIES) {
        let rule = per_user(Quota::per_hour(10)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        assert_eq!(passes(&limit, "alice"), 10, "all at once, {strategy:?}");
        assert_eq!(passes(&limit, "alice"), 0);
        let state = limit.handle().peek("per_user", &"alice".into()).unwrap();
        assert_eq!(state.remaining, 0);
    }
}

#[test]
fn seed_08_rules_of_one_key_count_apart_and_global_is_for_all() {
    let user = || key::header("x-user-id");
    let limit = RateLimit::rules([
        Rule::global(),
        Rule::per_user(user()),
        Rule::per_ip(user()),
        Rule::premium_user(user()),
    ])
    .unwrap();
    assert_eq!(passes(&limit, "alice"), 100);
    let states = limit.handle().peek_all(&(&from("alice")).into());
    let left: Vec<_> = states.iter().map(|state| state.remaining).collect();
    assert_eq!(left, [900, 0, 100, 400]);
    let all: usize = (0..30).map(|user| passes(&limit, &user.to_string())).sum();
    assert_eq!(all, 900, "a thousand for all together");
}

#[test]
fn seed_10_a_burst_is_used_and_a_premium_user_has_a_premium_quota() {
    let rule = per_user(Quota::per_minute(60).burst(5));
    let limit = RateLimit::rules([rule]).unwrap();
    assert_eq!(passes(&limit, "alice"), 5);

    let premium = Rule::per_user(key::header("x-user-id"));
    let premium = premium.tier("premium", Quota::per_minute(500), |key| {
        *key == "gold".into()
    });
    let limit = RateLimit::rules([premium]).unwrap();
    assert_eq!(
        (passes(&limit, "gold"), passes(&limit, "alice")),
        (500, 100)
    );
}

fn adaptive(limit: u64, adaptive: Adaptive) -> RateLimitLayer {
    let rule = Rule::new("adaptive", Quota::per_minute(limit)).adaptive(adaptive);
    RateLimitLayer::rules([rule]).unwrap()
}

fn limit_of(layer: &RateLimitLayer) -> u64 {
    layer.handle().peek("adaptive", &"".into()).unwrap().limit
}

async fn answers(layer: &RateLimitLayer, status: u16) {
    let service = layer.layer(Answers(move || {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }));
    service.oneshot(Request::new(())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn seed_11_an_adaptive_limit_moves_after_the_first_interval_and_below_its_start() {
    let layer = adaptive(100, Adaptive::new());
    let mut limits = Vec::new();
    for _ in 0..15 {
        for _ in 0..30 {
            advance(10 * SECOND).await;
            answers(&layer, 500).await;
        }
        limits.push(limit_of(&layer));
    }
    assert_eq!(limits[..3], [80, 64, 51]);
    assert_eq!(limits.last(), Some(&10), "a tenth of the start is the end");
}

#[tokio::test(start_paused = true)]
async fn seed_12_a_limit_below_five_is_not_stuck() {
    for start in 1..5 {
        let layer = adaptive(start * 10, Adaptive::new().base(start).unwrap());
        for _ in 0..30 {
            advance(120 * SECOND).await;
            answers(&layer, 200).await;
        }
        assert!(limit_of(&layer) > start, "{start}");
    }
}

#[tokio::test(start_paused = true)]
async fn seed_15_rules_add_up_and_nobody_is_told_a_key() {
    let secret = "sk-very-secret";
    let api_key = || Rule::new("per_key", Quota::per_minute(3)).key(key::api_key());
    let limit = RateLimitLayer::rules([
        Rule::per_ip(key::peer()).missing_key(MissingKey::Shared),
        api_key().missing_key(MissingKey::Skip),
    ])
    .unwrap();
    let with = |key: &str| {
        Request::builder()
            .header("x-api-key", key)
            .body(())
            .unwrap()
    };
    let passed =
        (0..1000).filter(|key| admit(limit.gate(), &with(&key.to_string()), now()).is_ok());
    assert_eq!(passed.count(), 200, "a new key each time, one address");

    let layer = RateLimitLayer::rules([api_key()]).unwrap();
    let service = layer.clone().responding();
    let service = service.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    for _ in 0..3 {
        service.clone().oneshot(with(secret)).await.unwrap();
    }
    let Ok(response) = service.oneshot(with(secret)).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    // Whole seconds, rounded up.
    assert_eq!(response.headers()["retry-after"], "20");
    let head = format!("{:?}", response.headers());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let refused = admit(layer.gate(), &with(secret), now()).unwrap_err();
    let (error, limited) = (
        format!("{refused:?} {refused}"),
        limited(&refused).to_string(),
    );
    let handle = format!(
        "{:?} {:?} {layer:?}",
        layer.handle(),
        layer.handle().snapshot()
    );
    for text in [head, body, error, limited, handle] {
        assert!(!text.contains("very-secret"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn seed_16_every_failure_is_heard_of_however_it_comes() {
    let after = async |layer: &RateLimitLayer| {
        advance(300 * SECOND).await;
        // One more end shows the new limit.
        answers(layer, 500).await;
        limit_of(layer)
    };
    // An error of the service.
    let layer = adaptive(100, Adaptive::new());
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Err::<Response<Empty<Bytes>>, BoxError>("on purpose".into())
    }));
    for _ in 0..20 {
        service.clone().oneshot(Request::new(())).await.unwrap_err();
    }
    assert_eq!(after(&layer).await, 80);
    // A body that breaks off.
    let layer = adaptive(100, Adaptive::new());
    let service = layer.layer(Answers(|| {
        Response::new(Steps::new([Step::Data("a"), Step::Error("on purpose")]))
    }));
    for _ in 0..20 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        response.into_body().collect().await.unwrap_err();
    }
    assert_eq!(after(&layer).await, 80);
    // An overload.
    let layer = adaptive(100, Adaptive::new());
    for _ in 0..20 {
        answers(&layer, 503).await;
    }
    assert_eq!(after(&layer).await, 80);
    // What it refuses itself is none.
    let layer = adaptive(20, Adaptive::new());
    for _ in 0..20 {
        answers(&layer, 200).await;
    }
    let service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    for _ in 0..100 {
        let refused = service.clone().oneshot(Request::new(())).await.unwrap_err();
        assert!(Rejected::find(&*refused).is_some());
    }
    advance(300 * SECOND).await;
    answers(&layer, 200).await;
    assert_eq!(limit_of(&layer), 24);
}
