//! Whole stacks, and the choice of a balancer.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use palisade::{
    balance::{Balance, Endpoint, Endpoints},
    circuit_breaker::{CircuitBreaker, CircuitBreakerLayer},
    deadline::DeadlineLayer,
    gates,
    rate_limit::{Headers, RateLimit},
    retry::RetryLayer,
    sla::{Sla, SlaLayer},
};
use tokio::runtime::Runtime;
use tower::{
    ServiceBuilder,
    balance::p2c,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwmaDiscover},
};
use tower_resilience::{
    bulkhead::BulkheadLayer, circuitbreaker::CircuitBreakerLayer as TheirBreaker,
    ratelimiter::RateLimiterLayer, retry::RetryLayer as TheirRetry, timelimiter::TimeLimiterLayer,
};

use crate::{
    Answer, Asked, SECOND, limit, objective, plenty,
    timing::{Contender, Noop, table},
};

pub(crate) fn fives(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let fused = b()
        .layer(DeadlineLayer::new(30 * SECOND))
        .layer(gates((
            Sla::new(objective()),
            RateLimit::new(plenty()).headers(Headers::Off),
            CircuitBreaker::consecutive(5, SECOND),
        )))
        .layer(RetryLayer::default())
        .service(Noop);
    let nested = b()
        .layer(SlaLayer::new(objective()))
        .layer(DeadlineLayer::new(30 * SECOND))
        .layer(limit())
        .layer(RetryLayer::default())
        .layer(CircuitBreakerLayer::consecutive(5, SECOND))
        .service(Noop);
    let tower = b()
        .timeout(SECOND)
        .load_shed()
        .concurrency_limit(1000)
        .rate_limit(1_000_000_000, SECOND)
        .timeout(2 * SECOND)
        .service(Noop);
    let theirs = b()
        .layer(
            TimeLimiterLayer::builder()
                .timeout_duration(30 * SECOND)
                .build(),
        )
        .layer(
            BulkheadLayer::builder()
                .max_concurrent_calls(1000)
                .build()
                .unwrap(),
        )
        .layer(
            RateLimiterLayer::builder()
                .limit_for_period(1_000_000_000)
                .refresh_period(SECOND)
                .build()
                .unwrap(),
        )
        .layer(
            TheirBreaker::builder()
                .consecutive_failures(5)
                .build()
                .unwrap(),
        )
        .layer(
            TheirRetry::<Asked, Answer, Infallible>::builder()
                .max_attempts(3)
                .build(),
        )
        .service(Noop);
    table(
        "five layers",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new("tower", runtime, tower),
            Contender::new("palisade, gates fused", runtime, fused),
            Contender::new("palisade, nested", runtime, nested),
            Contender::new("tower-resilience", runtime, theirs),
        ],
    );
}

pub(crate) fn choice(runtime: &Runtime) {
    let peak_ewma = || {
        let services = ServiceList::new::<Request<Full<Bytes>>>(vec![Noop; 10]);
        let rtt = Duration::from_millis(10);
        p2c::Balance::<_, Request<Full<Bytes>>>::new(PeakEwmaDiscover::new::<Request<Full<Bytes>>>(
            services,
            rtt,
            10 * SECOND,
            CompleteOnResponse::default(),
        ))
    };
    let plain = Endpoints::default();
    let gated = Endpoints::default();
    for at in 0..10 {
        plain.insert(Endpoint::new(format!("e{at}"), Noop));
        gated.insert(
            Endpoint::new(format!("e{at}"), Noop).gate(CircuitBreaker::consecutive(5, SECOND)),
        );
    }
    table(
        "a choice among 10 endpoints",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new("tower's Balance with PeakEwma", runtime, peak_ewma()),
            Contender::new("adaptive", runtime, Balance::adaptive(plain)),
            Contender::new(
                "adaptive, a circuit breaker each",
                runtime,
                Balance::adaptive(gated),
            ),
        ],
    );
}
