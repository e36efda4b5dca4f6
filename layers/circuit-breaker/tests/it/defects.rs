//! Defects that were found, each by the behaviour that was missing.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_circuit_breaker::{CircuitBreaker, CircuitBreakerLayer, CircuitState};
use palisade_core::{
    BoxError,
    gate::GateLayer,
    ratio::Ratio,
    testing::{Answers, Slow},
};
use std::time::Duration;
use tower::{Layer, Service, service_fn};

#[tokio::test(start_paused = true)]
async fn the_time_in_a_queue_before_it_is_not_held_against_the_service() {
    let breaker = CircuitBreaker::consecutive(1, Duration::from_secs(10));
    let mut service = GateLayer::new(Slow((), Duration::from_secs(6)))
        .and(breaker.clone())
        .layer(service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Full<Bytes>>, BoxError>>()
        }));
    let mut call = tokio_test::task::spawn(service.call(Request::new(())));
    assert!(call.poll().is_pending());
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(call.poll().is_pending());
    // It was sent just now.
    drop(call);
    assert_eq!(breaker.handle().snapshot().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_zero_does_not_switch_the_cool_down_off() {
    let layer = CircuitBreakerLayer::window(Ratio::HALF, 10, Duration::from_secs(10));
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = calls.clone();
    let mut service = layer.layer(Answers(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .header("retry-after", "0")
            .body(Full::<Bytes>::default())
            .unwrap()
    }));
    for _ in 0..1000 {
        let _ = service.call(Request::new(())).await;
    }
    let calls = calls.load(std::sync::atomic::Ordering::SeqCst);
    assert!(calls < 20, "{calls} calls while open");
}

#[tokio::test(start_paused = true)]
async fn a_window_opens_at_exactly_its_share() {
    let layer =
        CircuitBreakerLayer::window(Ratio::new(0.55).unwrap(), 100, Duration::from_secs(10))
            .minimum_calls(100);
    let n = std::sync::atomic::AtomicUsize::new(0);
    let n = std::sync::Arc::new(n);
    let mut service = layer.layer(Answers(move || {
        let i = n.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let mut r = Response::new(Full::<Bytes>::default());
        if i < 55 {
            *r.status_mut() = StatusCode::BAD_GATEWAY;
        }
        r
    }));
    for _ in 0..100 {
        let _ = service.call(Request::new(())).await;
    }
    let s = layer.handle().snapshot();
    assert_eq!(s.state, CircuitState::Open, "{s:?}");
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_gate_behind_it_takes_is_not_held_against_the_service() {
    let breaker = CircuitBreaker::consecutive(1, Duration::from_secs(10));
    let mut service = GateLayer::new(breaker.clone())
        .and(Slow((), Duration::from_secs(60)))
        .layer(Answers(|| Response::new(Full::<Bytes>::default())));
    let mut call = tokio_test::task::spawn(service.call(Request::new(())));
    assert!(call.poll().is_pending());
    tokio::time::advance(Duration::from_secs(6)).await;
    drop(call);
    assert_eq!(breaker.handle().snapshot().state, CircuitState::Closed);
}
