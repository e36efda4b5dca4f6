//! Each layer beside what others have for the same: nanoseconds over the bare call, ratios to the contender that each
//! table names below it, and allocations.
//!
//! `cargo bench -p palisade-peers`. Asserts nothing. A ratio above 1 says that one takes longer than that. What the others
//! do is less: none of them hears how a body ends.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]
#![allow(clippy::disallowed_types, reason = "measures real time")]

mod breakers;
mod stacks;
mod timing;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use palisade::{
    Ratio,
    chaos::ChaosLayer,
    circuit_breaker::CircuitBreakerLayer,
    deadline::{AttemptTimeoutLayer, DeadlineLayer},
    fallback::FallbackLayer,
    rate_limit::{Headers, Quota, RateLimitLayer},
    retry::{HedgeLayer, RetryLayer},
    sla::{Objective, SlaLayer},
};
use tokio::runtime::{Builder, Runtime};
use tower::{
    ServiceBuilder,
    retry::{
        Policy,
        budget::{Budget as _, TpsBudget},
    },
};
use tower_resilience::{
    chaos::ChaosLayer as TheirChaos,
    circuitbreaker::{CircuitBreakerLayer as TheirBreaker, SlidingWindowType},
    fallback::FallbackLayer as TheirFallback,
    hedge::HedgeLayer as TheirHedge,
    ratelimiter::RateLimiterLayer,
    retry::RetryLayer as TheirRetry,
    timelimiter::TimeLimiterLayer,
};

use crate::{
    breakers::{Broken, Failsafe, Recloser},
    timing::{Contender, Noop, table},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Asked = Request<Full<Bytes>>;
type Answer = Response<Empty<Bytes>>;

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    one(&runtime);
    breakers(&runtime);
    windows(&runtime);
    timeouts(&runtime);
    retries(&runtime);
    hedges(&runtime);
    fallbacks(&runtime);
    faults(&runtime);
    limits(&runtime);
    refusals(&runtime);
    stacks::fives(&runtime);
    stacks::choice(&runtime);
}

fn plenty() -> Quota {
    Quota::per_second(1_000_000_000)
}

fn limit() -> RateLimitLayer {
    RateLimitLayer::new(plenty()).headers(Headers::Off)
}

fn objective() -> Objective {
    let objective = Objective::success(0.999).unwrap();
    objective.within(SECOND, 0.99).unwrap()
}

fn one(runtime: &Runtime) {
    let breaker_layer = || CircuitBreakerLayer::consecutive(5, SECOND);
    let retry = RetryLayer::default;
    let deadline = || DeadlineLayer::new(30 * SECOND);
    let b = ServiceBuilder::new;
    table(
        "one layer",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new(
                "tower's timeout",
                runtime,
                b().timeout(SECOND).service(Noop),
            ),
            Contender::new("deadline", runtime, b().layer(deadline()).service(Noop)),
            Contender::new(
                "circuit breaker",
                runtime,
                b().layer(breaker_layer()).service(Noop),
            ),
            Contender::new("rate limit", runtime, b().layer(limit()).service(Noop)),
            Contender::new(
                "sla",
                runtime,
                b().layer(SlaLayer::new(objective())).service(Noop),
            ),
            Contender::new(
                "retry, of what may not be retried",
                runtime,
                b().layer(retry()).service(Noop),
            ),
        ],
    );
}

fn breakers(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let ours = || CircuitBreakerLayer::consecutive(5, HOUR);
    let theirs = || TheirBreaker::builder().wait_duration_in_open(HOUR);
    let row = || theirs().consecutive_failures(5).build().unwrap();
    let recloser = || {
        let recloser = recloser::Recloser::custom().closed_len(5).open_wait(HOUR);
        recloser::AsyncRecloser::from(recloser.build())
    };
    let failsafe = || {
        let policy =
            failsafe::failure_policy::consecutive_failures(5, failsafe::backoff::constant(HOUR));
        failsafe::Config::new().failure_policy(policy).build()
    };
    table(
        "circuit breaker, five in a row",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new("palisade", runtime, b().layer(ours()).service(Noop)),
            Contender::new("tower-resilience", runtime, b().layer(row()).service(Noop)),
            Contender::new("recloser, of five", runtime, Recloser(recloser(), Noop)),
            Contender::new("failsafe", runtime, Failsafe(failsafe(), Noop)),
        ],
    );
    table(
        "circuit breaker, open",
        vec![
            Contender::failing("bare call", runtime, Broken),
            Contender::failing("palisade", runtime, b().layer(ours()).service(Broken)),
            Contender::failing(
                "tower-resilience",
                runtime,
                b().layer(row()).service(Broken),
            ),
            Contender::failing("recloser, of five", runtime, Recloser(recloser(), Broken)),
            Contender::failing("failsafe", runtime, Failsafe(failsafe(), Broken)),
        ],
    );
}

/// What a call costs with so many others in the window: in few calls, as each of them is one more.
fn windows(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let ours = || CircuitBreakerLayer::time_window(Ratio::HALF, HOUR, HOUR);
    let theirs = || {
        let theirs = TheirBreaker::builder().sliding_window_type(SlidingWindowType::TimeBased);
        theirs.sliding_window_duration(HOUR).build().unwrap()
    };
    table(
        "circuit breaker, window of an hour",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new(
                "palisade, 1 000 calls",
                runtime,
                b().layer(ours()).service(Noop),
            )
            .after(1000)
            .few(),
            Contender::new(
                "palisade, 100 000 calls",
                runtime,
                b().layer(ours()).service(Noop),
            )
            .after(100_000)
            .few(),
            Contender::new(
                "tower-resilience, 1 000 calls",
                runtime,
                b().layer(theirs()).service(Noop),
            )
            .after(1000)
            .few(),
            Contender::new(
                "tower-resilience, 20 000 calls",
                runtime,
                b().layer(theirs()).service(Noop),
            )
            .after(20_000)
            .few(),
        ],
    );
}

fn timeouts(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let limiter = TimeLimiterLayer::builder().timeout_duration(SECOND).build();
    table(
        "timeout",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new(
                "palisade's deadline",
                runtime,
                b().layer(DeadlineLayer::new(SECOND)).service(Noop),
            ),
            Contender::new(
                "palisade's attempt timeout",
                runtime,
                b().layer(AttemptTimeoutLayer::first_byte(SECOND))
                    .service(Noop),
            ),
            Contender::new("tower", runtime, b().timeout(SECOND).service(Noop)),
            Contender::new(
                "tower-resilience",
                runtime,
                b().layer(limiter).service(Noop),
            ),
        ],
    );
}

fn refusals(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let ours = RateLimitLayer::new(Quota::per_hour(1)).headers(Headers::Off);
    let theirs = RateLimiterLayer::builder()
        .limit_for_period(1)
        .refresh_period(HOUR)
        .timeout_duration(Duration::ZERO)
        .build()
        .unwrap();
    let tower = b().load_shed().rate_limit(1, HOUR).service(Noop);
    table(
        "rate limit, over it",
        vec![
            Contender::failing("bare call", runtime, Broken),
            Contender::over("palisade", runtime, b().layer(ours).service(Noop)),
            Contender::over("tower, with load shed", runtime, tower),
            Contender::over("tower-resilience", runtime, b().layer(theirs).service(Noop)),
        ],
    );
    let late = || DeadlineLayer::new(Duration::ZERO);
    table(
        "deadline, when it has passed",
        vec![
            Contender::failing("bare call", runtime, Broken),
            Contender::failing("palisade", runtime, b().layer(late()).service(Noop)),
        ],
    );
}

/// Retries nothing, as long as nothing fails, within tower's budget.
#[derive(Clone)]
struct TowerRetry(std::sync::Arc<TpsBudget>);

impl<E> Policy<Asked, Answer, E> for TowerRetry {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Asked, answer: &mut Result<Answer, E>) -> Option<Self::Future> {
        match answer {
            Ok(_) => {
                self.0.deposit();
                None
            }
            Err(_) => self.0.withdraw().then(|| std::future::ready(())),
        }
    }

    fn clone_request(&mut self, request: &Asked) -> Option<Asked> {
        Some(request.clone())
    }
}

fn retries(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let ours = RetryLayer::default;
    let theirs = || TheirRetry::<Asked, Answer, Infallible>::builder().max_attempts(3);
    let tower = || TowerRetry(TpsBudget::new(SECOND * 10, 10, 0.2).into());
    table(
        "retry, of what may be sent again",
        vec![
            Contender::get("bare call", runtime, Noop),
            Contender::get("palisade", runtime, b().layer(ours()).service(Noop)),
            Contender::get("tower", runtime, b().retry(tower()).service(Noop)),
            Contender::get(
                "tower-resilience",
                runtime,
                b().layer(theirs().build()).service(Noop),
            ),
        ],
    );
}

fn hedges(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let ours = HedgeLayer::new(SECOND);
    let theirs = TheirHedge::builder()
        .delay(SECOND)
        .max_hedged_attempts(2)
        .build();
    table(
        "hedge, of what is answered at once",
        vec![
            Contender::get("bare call", runtime, Noop),
            Contender::get("palisade", runtime, b().layer(ours).service(Noop)),
            Contender::get("tower-resilience", runtime, b().layer(theirs).service(Noop)),
        ],
    );
}

fn fallbacks(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let answer = || Response::new(Empty::<Bytes>::new());
    let ours = || FallbackLayer::new().value("sorry", Response::new(Bytes::new()));
    let theirs = || TheirFallback::<Asked, Answer, Infallible>::value(answer());
    let of_broken = || TheirFallback::<Asked, Answer, Broken>::value(answer());
    table(
        "fallback, not needed",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new("palisade", runtime, b().layer(ours()).service(Noop)),
            Contender::new(
                "tower-resilience",
                runtime,
                b().layer(theirs()).service(Noop),
            ),
        ],
    );
    table(
        "fallback, a value",
        vec![
            Contender::failing("bare call", runtime, Broken),
            Contender::new("palisade", runtime, b().layer(ours()).service(Broken)),
            Contender::new(
                "tower-resilience",
                runtime,
                b().layer(of_broken()).service(Broken),
            ),
        ],
    );
}

fn faults(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    table(
        "chaos, off",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new(
                "palisade",
                runtime,
                b().layer(ChaosLayer::off(1)).service(Noop),
            ),
            Contender::new(
                "tower-resilience",
                runtime,
                b().layer(TheirChaos::builder().latency_rate(0.0).build())
                    .service(Noop),
            ),
        ],
    );
}

fn limits(runtime: &Runtime) {
    let b = ServiceBuilder::new;
    let theirs = RateLimiterLayer::builder()
        .limit_for_period(1_000_000_000)
        .refresh_period(SECOND)
        .build()
        .unwrap();
    table(
        "rate limit",
        vec![
            Contender::new("bare call", runtime, Noop),
            Contender::new("palisade", runtime, b().layer(limit()).service(Noop)),
            Contender::new(
                "tower",
                runtime,
                b().rate_limit(1_000_000_000, SECOND).service(Noop),
            ),
            Contender::new("tower-resilience", runtime, b().layer(theirs).service(Noop)),
        ],
    );
}
