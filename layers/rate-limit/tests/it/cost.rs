use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Empty;
use palisade_core::{
    key,
    testing::{Answers, CountingAllocator},
};
use palisade_rate_limit::{Headers, MissingKey, Quota, RateLimitLayer, Rule};
use tower::{Layer, Service, ServiceExt};

use crate::{from, per_user};

fn answer() -> Response<Empty<Bytes>> {
    Response::new(Empty::new())
}

/// What one more request allocates, from the call to the end of the body.
async fn allocations(layer: &RateLimitLayer, request: impl Fn() -> Request<()>) -> (u64, bool) {
    let mut service = layer.layer(Answers(answer));
    let ready = ServiceExt::<Request<()>>::ready(&mut service)
        .await
        .unwrap();
    drop(ready.call(request()).await);
    let request = request();
    let before = CountingAllocator::count();
    let answer = service.call(request).await;
    let count = CountingAllocator::count() - before;
    let passed = answer.is_ok();
    let before = CountingAllocator::count();
    drop(answer);
    (count + (CountingAllocator::count() - before), passed)
}

fn several(quota: fn(u64) -> Quota) -> RateLimitLayer {
    let global = Rule::new("global", quota(1000));
    let strategies = crate::STRATEGIES
        .into_iter()
        .enumerate()
        .map(|(name, strategy)| {
            Rule::new(format!("rule{name}"), quota(1000))
                .strategy(strategy)
                .key(key::header("x-user-id"))
                .cost(|_| 2)
        });
    let skipped = Rule::new("skipped", quota(1000))
        .key(key::bearer())
        .missing_key(MissingKey::Skip);
    RateLimitLayer::rules([global, skipped].into_iter().chain(strategies)).unwrap()
}

#[tokio::test]
async fn the_quiet_path_allocates_nothing() {
    let unkeyed = RateLimitLayer::new(Quota::per_minute(100)).headers(Headers::Off);
    assert_eq!(allocations(&unkeyed, || Request::new(())).await, (0, true));
    let keyed = RateLimitLayer::rules([per_user(Quota::per_minute(100))])
        .unwrap()
        .headers(Headers::Off);
    assert_eq!(allocations(&keyed, || from("alice")).await, (0, true));
    let several = several(Quota::per_minute).headers(Headers::Off);
    assert_eq!(allocations(&several, || from("alice")).await, (0, true));
}

#[tokio::test]
async fn a_refusal_allocates_itself_and_its_source() {
    let layer = RateLimitLayer::new(Quota::per_minute(1)).headers(Headers::Off);
    assert_eq!(allocations(&layer, || Request::new(())).await, (2, false));
    let several = several(|limit| Quota::per_day(limit / 500)).headers(Headers::Off);
    assert_eq!(allocations(&several, || from("alice")).await, (2, false));
}

#[tokio::test]
async fn headers_allocate_one_value_and_the_map_that_holds_them() {
    // An empty map allocates twice when it takes its first header.
    let mut map = HeaderMap::new();
    let before = CountingAllocator::count();
    for name in ["ratelimit", "ratelimit-policy"] {
        map.append(HeaderName::from_static(name), HeaderValue::from_static("a"));
    }
    let of_the_map = CountingAllocator::count() - before;
    assert_eq!(of_the_map, 2);

    let layer = RateLimitLayer::new(Quota::per_minute(100));
    assert_eq!(
        allocations(&layer, || Request::new(())).await,
        (1 + of_the_map, true)
    );
    let several = several(Quota::per_minute);
    assert_eq!(
        allocations(&several, || from("alice")).await,
        (1 + of_the_map, true)
    );
    // A refusal: itself, its source, and the map in a box of its own.
    let layer = RateLimitLayer::new(Quota::per_minute(1));
    assert_eq!(
        allocations(&layer, || Request::new(())).await,
        (2 + 1 + of_the_map + 1, false)
    );
}

#[allow(dead_code, reason = "asks the compiler")]
fn services_are_what_tower_wants(
    layer: &RateLimitLayer,
) -> impl Service<Request<()>> + Clone + Send + Sync + use<> {
    let inner = tower::service_fn(async |_: Request<()>| Ok::<_, Infallible>(answer()));
    layer.layer(inner)
}
