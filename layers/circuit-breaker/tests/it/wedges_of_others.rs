//! How the breakers of others got stuck half-open: resilience4j 903, 935 and 1389, Polly 1979, Sentinel 1638.

use std::{future::pending, time::Duration};

use http::{Request, StatusCode};
use palisade_circuit_breaker::{CircuitBreaker, CircuitBreakerLayer, CircuitState};
use palisade_core::{
    BoxError,
    classify::Verdict,
    gate::gates,
    ratio::Ratio,
    settle::{End, Settle},
    testing::exchange,
    time::now,
};
use tokio::time::{advance, timeout};
use tower::{Layer, Service, service_fn};

use crate::support::{Answer, COOLDOWN, admit, many, one, says};

const SECOND: Duration = Duration::from_secs(1);

/// A row, a window of calls and one of time, each after it was opened and its cool-down is over.
async fn due() -> [CircuitBreaker; 3] {
    let breakers = [
        CircuitBreaker::consecutive(10, COOLDOWN),
        CircuitBreaker::window(Ratio::HALF, 100, COOLDOWN),
        CircuitBreaker::time_window(Ratio::HALF, SECOND, COOLDOWN),
    ]
    .map(|breaker| breaker.jitter(None));
    for breaker in &breakers {
        many(breaker, Verdict::Failure, 10);
    }
    advance(COOLDOWN).await;
    breakers
}

fn closes(breaker: &CircuitBreaker) {
    many(breaker, Verdict::Success, 1);
    let snapshot = breaker.handle().snapshot();
    assert_eq!(snapshot.state, CircuitState::Closed);
}

/// resilience4j 903: the probes were counted in a window of one second, and never were enough for its minimum.
#[tokio::test(start_paused = true)]
async fn fewer_probes_in_a_second_than_the_minimum_of_a_window_of_a_second_close_it() {
    let breaker = CircuitBreaker::time_window(Ratio::new(0.25).unwrap(), SECOND, SECOND)
        .minimum_calls(10)
        .jitter(None)
        .probes(8);
    many(&breaker, Verdict::Failure, 10);
    for _ in 0..8 {
        advance(SECOND * 2).await;
        many(&breaker, Verdict::Success, 1);
    }
    let snapshot = breaker.handle().snapshot();
    assert_eq!(snapshot.state, CircuitState::Closed);
}

/// resilience4j 935: a request that was permitted and never sent kept its permit for ever.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_permitted_and_never_sent_makes_room_for_another() {
    for breaker in due().await {
        drop(admit(&breaker).unwrap());
        closes(&breaker);
    }
    for breaker in due().await {
        std::mem::forget(admit(&breaker).unwrap());
        assert!(!one(&breaker, Verdict::Success), "it is waited for");
        advance(SECOND * 10).await;
        closes(&breaker);
    }
}

/// resilience4j 1389: a future that was canceled half-way said nothing to the breaker.
#[tokio::test(start_paused = true)]
async fn a_probe_whose_future_is_dropped_half_way_makes_room_for_another() {
    let layer = CircuitBreakerLayer::consecutive(1, COOLDOWN).jitter(None);
    exchange(layer.layer(says(StatusCode::BAD_GATEWAY)))
        .await
        .unwrap();
    advance(COOLDOWN).await;
    let hangs = layer.layer(service_fn(|_: Request<()>| {
        pending::<Result<Answer, BoxError>>()
    }));
    for _ in 0..100 {
        let left = timeout(SECOND, hangs.clone().call(Request::new(()))).await;
        assert!(left.is_err(), "it was sent");
        assert_eq!(layer.handle().snapshot().state, CircuitState::HalfOpen);
    }
    closes(layer.gate());
}

/// Polly 1979: a probe that ended in an exception that was not handled kept the circuit half-open.
#[tokio::test(start_paused = true)]
async fn a_probe_that_ends_in_what_counts_as_nothing_makes_room_for_another() {
    for breaker in due().await {
        let breaker = breaker.ignore(|end| end.verdict == Verdict::TimedOut);
        many(&breaker, Verdict::CallerFault, 100);
        many(&breaker, Verdict::TimedOut, 100);
        closes(&breaker);
    }
}

/// Sentinel 1638: of two breakers the first was half-open for ever, as its probe was blocked by the second.
#[tokio::test(start_paused = true)]
async fn a_probe_that_a_breaker_further_in_blocks_makes_room_for_another() {
    let soon = CircuitBreaker::consecutive(1, COOLDOWN).jitter(None);
    let later = CircuitBreaker::consecutive(1, COOLDOWN * 4).jitter(None);
    for both in [(soon.clone(), later.clone()), (later, soon)] {
        let layer = gates(both.clone());
        exchange(layer.layer(says(StatusCode::BAD_GATEWAY)))
            .await
            .unwrap();
        // Whichever is asked first, no request passes before both are due.
        for _ in 0..7 {
            advance(COOLDOWN / 2).await;
            exchange(layer.layer(says(StatusCode::OK)))
                .await
                .unwrap_err();
        }
        advance(COOLDOWN / 2).await;
        exchange(layer.layer(says(StatusCode::OK))).await.unwrap();
        for breaker in [&both.0, &both.1] {
            assert_eq!(breaker.handle().snapshot().state, CircuitState::Closed);
        }
    }
}

/// resilience4j 1432: several requests that came as the cool-down ended all passed.
#[tokio::test(start_paused = true)]
async fn of_many_that_come_as_the_cool_down_ends_one_is_the_probe() {
    for breaker in due().await {
        let mut probe = admit(&breaker).unwrap();
        for _ in 0..100 {
            assert!(admit(&breaker).is_err());
        }
        probe.settle(&End::new(Verdict::Success), now());
        closes(&breaker);
    }
}
