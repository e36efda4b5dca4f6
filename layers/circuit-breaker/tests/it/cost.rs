//! What a request costs, exactly.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_circuit_breaker::{Call, CircuitBreakerLayer};
use palisade_core::{
    ratio::Ratio,
    testing::{Answers, CountingAllocator},
};
use tower::{Layer, Service};

const HOUR: Duration = Duration::from_secs(3600);

/// Allocations of one request and its whole answer, once the layer is warm.
async fn one(layer: CircuitBreakerLayer, status: StatusCode) -> u64 {
    let inner = Answers(move || {
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
        *response.status_mut() = status;
        response
    });
    let mut service = layer.layer(inner);
    let mut before = 0;
    for _ in 0..3 {
        before = CountingAllocator::count();
        if let Ok(response) = service.call(Request::new(())).await {
            let mut body = response.into_body();
            while body.frame().await.is_some() {}
        }
    }
    CountingAllocator::count() - before
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
    });
    let refusals = recorder.read("palisade_circuit_breaker_refusals_total{circuit_breaker}");
    assert_eq!(refusals, 2.0, "they were recorded");
}

#[test]
fn a_guard_is_five_words() {
    assert_eq!(size_of::<Call>(), 40);
}
