//! The laws of Tower and of palisade, the same for every layer.
//!
//! A crate of `layers/` without a row in the table below fails `every_crate_has_a_row`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod inner;
mod laws;

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use palisade::{
    BoxError, Ratio,
    balance::{AffinityLayer, Balance, Endpoint, Endpoints},
    chaos::{ChaosLayer, Fault},
    circuit_breaker::{
        CircuitBreaker, CircuitBreakerLayer, KeyedCircuitBreaker, KeyedCircuitBreakerLayer,
        Settings, Throttle, ThrottleLayer,
    },
    classify::{Sse, Verdict},
    deadline::{AttemptTimeoutLayer, DeadlineLayer},
    fallback::FallbackLayer,
    gate::GateLayer,
    gates,
    key::{header, path},
    rate_limit::{Headers, Quota, QuotaMirrorLayer, RateLimit, RateLimitLayer, Rule},
    retry::{Backoff, Repeatable, RetryLayer},
    sla::{Objective, Sla, SlaLayer},
    trace::TraceLayer,
};
use palisade_core::testing::CountingAllocator;
use tower::{Layer, service_fn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn objective() -> Objective {
    let objective = Objective::success(0.999).unwrap();
    objective.within(SECOND, 0.99).unwrap()
}

fn retry() -> RetryLayer {
    RetryLayer::new(Backoff::exponential(SECOND / 40, SECOND).unwrap())
}

fn limit() -> RateLimitLayer {
    RateLimitLayer::new(Quota::per_second(1000)).headers(Headers::Off)
}

fn balance<S>(inner: S) -> Balance<S, CircuitBreaker> {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("a", inner).gate(CircuitBreaker::consecutive(5, HOUR)));
    Balance::adaptive(endpoints)
}

/// Whether a layer is ready when the service inside it is, or for reasons of its own.
#[derive(Clone, Copy, PartialEq)]
enum Readiness {
    OfInner,
    Own,
}

macro_rules! table {
    ($($row:ident $crate_name:literal {
        layer: $layer:expr,
        readiness: $readiness:expr,
        allocations: $allocations:expr,
    })*) => {
        const ROWS: &[&str] = &[$($crate_name),*];
        $(mod $row {
            use super::*;

            laws::all!($layer, $readiness, $allocations);
        })*
    };
}

table! {
    no_gate "core" {
        layer: |inner| GateLayer::new(()).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    circuit_breaker "circuit-breaker" {
        layer: |inner| CircuitBreakerLayer::consecutive(5, HOUR).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    circuit_breaker_window "circuit-breaker" {
        layer: |inner| CircuitBreakerLayer::window(Ratio::HALF, 100, HOUR).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    circuit_breaker_time_window "circuit-breaker" {
        layer: |inner| CircuitBreakerLayer::time_window(Ratio::HALF, HOUR, HOUR).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    keyed_circuit_breaker "circuit-breaker" {
        layer: |inner| {
            let breaker = KeyedCircuitBreaker::new(Settings::five_in_a_row(), path());
            KeyedCircuitBreakerLayer::new(breaker).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    throttle "circuit-breaker" {
        layer: |inner| ThrottleLayer::new(Throttle::new()).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    deadline "deadline" {
        layer: |inner| DeadlineLayer::new(HOUR).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    attempt_timeout "deadline" {
        layer: |inner| AttemptTimeoutLayer::first_byte(HOUR).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    affinity "balance" {
        layer: |inner| AffinityLayer::new(header("x-session-id")).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    rate_limit "rate-limit" {
        layer: |inner| limit().layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    rate_limit_with_headers "rate-limit" {
        layer: |inner| RateLimitLayer::new(Quota::per_second(1000)).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 3,
    }
    rate_limit_of_what_is_in_flight "rate-limit" {
        layer: |inner| {
            let places = Rule::in_flight("places", 1000);
            let limit = RateLimitLayer::rules([places]).expect("a rule");
            limit.headers(Headers::Off).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    rate_limit_of_tokens "rate-limit" {
        layer: |inner| {
            let tokens = Rule::tokens("tokens", Quota::per_hour(1_000_000)).growing();
            let limit = RateLimitLayer::rules([tokens]).expect("a rule");
            limit.headers(Headers::Off).classify(Sse).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 1,
    }
    rate_limit_that_lets_requests_wait "rate-limit" {
        layer: |inner| limit().wait_up_to(SECOND, 100).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    quota_mirror "rate-limit" {
        layer: |inner| QuotaMirrorLayer::new().layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    retry_of_what_may_be_retried "retry" {
        layer: |inner| retry().layer(inner),
        readiness: Readiness::OfInner,
        allocations: 3,
    }
    retry_of_what_may_not_be_retried "retry" {
        layer: |inner| retry().repeat(Repeatable::when(|_| false)).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    fallback_to_a_service "fallback" {
        layer: |inner| {
            let down = service_fn(async |_| Err::<Response<Full<Bytes>>, BoxError>("down".into()));
            FallbackLayer::new().service("secondary", down).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    fallback_to_a_value "fallback" {
        layer: |inner| {
            let closed = FallbackLayer::new().value("closed", Response::new("closed"));
            // What the laws do to a service is to be seen.
            closed.condition(|failure| failure.verdict() == Verdict::Unsent).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    chaos_that_is_off "chaos" {
        layer: |inner| ChaosLayer::off(42).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    chaos_that_does_not_strike "chaos" {
        layer: |inner| {
            let never = Fault::hang().when(|_| false);
            let rare = Fault::reset().share(Ratio::new(1e-12).expect("a share"));
            ChaosLayer::new(42, [never, rare]).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    sla "sla" {
        layer: |inner| SlaLayer::new(objective()).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    trace_of_requests "trace" {
        layer: |inner| TraceLayer::request().classify(Sse).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    trace_of_attempts "trace" {
        layer: |inner| TraceLayer::attempt().layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
    balance "balance" {
        layer: balance,
        readiness: Readiness::Own,
        allocations: 0,
    }
    four_gates "core" {
        layer: |inner| {
            let breaker = CircuitBreaker::consecutive(5, HOUR);
            let limit = RateLimit::new(Quota::per_second(1000)).headers(Headers::Off);
            gates((Sla::new(objective()), limit, breaker, ())).layer(inner)
        },
        readiness: Readiness::OfInner,
        allocations: 0,
    }
}

#[test]
fn every_crate_has_a_row() {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("layers");
    for entry in fs::read_dir(layers).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        assert!(
            ROWS.contains(&name),
            "layers/{name} obeys no law yet: add a row"
        );
    }
}
