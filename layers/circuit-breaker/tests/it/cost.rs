//! What a request costs, exactly.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_circuit_breaker::{
    Call, CircuitBreakerLayer, KeyedCircuitBreaker, KeyedCircuitBreakerLayer, Settings, Throttle,
    ThrottleLayer, destination,
};
use palisade_core::{
    BoxError,
    ratio::Ratio,
    testing::{Answers, CountingAllocator},
};
use tower::{Layer, Service};

use crate::support::{Answer, says};

const HOUR: Duration = Duration::from_secs(3600);

type Says = Answers<fn() -> Answer>;

fn ok() -> Answer {
    Response::new(Full::new(Bytes::from_static(b"hello")))
}

/// Allocations of one request and its whole answer, once the layer is warm.
async fn one(layer: CircuitBreakerLayer, status: StatusCode) -> u64 {
    last_of(layer.layer(says(status)), 3, "/").await
}

/// Allocations of the last of so many.
async fn last_of<S, B>(mut service: S, count: usize, uri: &'static str) -> u64
where
    S: Service<Request<()>, Response = Response<B>, Error = BoxError>,
    B: http_body::Body + Unpin,
{
    let mut allocated = 0;
    for _ in 0..count {
        let request = Request::get(uri).body(()).unwrap();
        let before = CountingAllocator::count();
        if let Ok(response) = service.call(request).await {
            let mut body = response.into_body();
            while body.frame().await.is_some() {}
        }
        allocated = CountingAllocator::count() - before;
    }
    allocated
}

async fn allocations() {
    let row = |failures| CircuitBreakerLayer::consecutive(failures, HOUR);
    let window = || CircuitBreakerLayer::window(Ratio::HALF, 100, HOUR);
    assert_eq!(one(row(5), StatusCode::OK).await, 0);
    assert_eq!(one(row(5), StatusCode::NOT_FOUND).await, 0);
    assert_eq!(one(row(5), StatusCode::BAD_GATEWAY).await, 0);
    assert_eq!(one(row(3), StatusCode::BAD_GATEWAY).await, 0, "the trip");
    assert_eq!(one(window(), StatusCode::OK).await, 0);
    assert_eq!(one(window(), StatusCode::BAD_GATEWAY).await, 0);
    let time = || CircuitBreakerLayer::time_window(Ratio::HALF, HOUR, HOUR);
    assert_eq!(one(time(), StatusCode::OK).await, 0);
    assert_eq!(one(time(), StatusCode::BAD_GATEWAY).await, 0);
    let all = || {
        let slow = time().slow_calls(Ratio::HALF, HOUR);
        slow.or_consecutive(5).or_failures(9).ignore(|_| false)
    };
    assert_eq!(one(all(), StatusCode::OK).await, 0);
    assert_eq!(one(all(), StatusCode::BAD_GATEWAY).await, 0);
    assert_eq!(one(row(1).shadow(), StatusCode::BAD_GATEWAY).await, 0);
    // The envelope and its source.
    assert_eq!(one(row(1), StatusCode::BAD_GATEWAY).await, 2);
}

#[tokio::test]
async fn a_request_allocates_nothing_and_a_refusal_itself_and_its_source() {
    let before = CountingAllocator::count();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(CountingAllocator::count() - before, 1, "the count counts");
    allocations().await;
}

async fn allocations_of_others() {
    let keyed = |failures| {
        let settings = Settings::consecutive(failures, HOUR);
        let breaker = KeyedCircuitBreaker::new(settings, destination());
        KeyedCircuitBreakerLayer::new(breaker)
    };
    let good: Says = Answers(ok);
    let uri = "http://a.example/";
    let quiet = last_of(keyed(5).layer(good.clone()), 3, uri).await;
    assert_eq!(quiet, 0);
    assert_eq!(last_of(keyed(5).layer(good.clone()), 3, "/").await, 0);
    let capitals = last_of(keyed(5).layer(good.clone()), 3, "http://A.example/").await;
    assert_eq!(capitals, 1, "its key");
    let bad = || says(StatusCode::BAD_GATEWAY);
    assert_eq!(last_of(keyed(1).layer(bad()), 3, uri).await, 2);

    let throttle = || ThrottleLayer::new(Throttle::new().seed(1));
    assert_eq!(last_of(throttle().layer(good), 100, uri).await, 0);
    // The tenth is the last that surely passes.
    assert_eq!(last_of(throttle().layer(bad()), 10, uri).await, 0);
    let layer = throttle();
    let mut refused = 0;
    for _ in 0..10 {
        let before = layer.handle().snapshot().refused_total;
        let allocated = last_of(layer.layer(bad()), 10, uri).await;
        let is_refused = layer.handle().snapshot().refused_total - before == 10;
        refused += u32::from(is_refused);
        assert!(!is_refused || allocated == 2);
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn keys_and_throttles_allocate_nothing_for_a_request_and_two_for_a_refusal() {
    allocations_of_others().await;
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_that_are_recorded_add_no_allocation() {
    let recorder = crate::metrics::Book::default();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(allocations());
        runtime.block_on(allocations_of_others());
    });
    let read = |name: &str| recorder.read(&format!("palisade_{name}"));
    assert_eq!(read("circuit_breaker_refusals_total{circuit_breaker}"), 4.0);
    assert_eq!(read("circuit_breaker_shadowed_total{circuit_breaker}"), 2.0);
    assert!(read("throttle_refusals_total{throttle}") > 0.0);
}

#[test]
fn a_guard_is_five_words() {
    assert_eq!(size_of::<Call>(), 40);
}
