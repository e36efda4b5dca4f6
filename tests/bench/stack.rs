//! What layers cost: nanoseconds over the bare call, ratios to tower's own, and allocations.
//!
//! `cargo bench -p palisade`. Asserts nothing: absolute times mean little on a machine that others use too, ratios of one run
//! more. The best of many short rounds is taken, and all stacks take turns, so that a slow second hits each of them.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]
#![allow(clippy::disallowed_types, reason = "measures real time")]

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{Empty, Full};
use palisade::{
    balance::{Balance, Endpoint, Endpoints},
    circuit_breaker::{CircuitBreaker, CircuitBreakerLayer},
    deadline::DeadlineLayer,
    gates,
    rate_limit::{Headers, Quota, RateLimit, RateLimitLayer},
    retry::{Backoff, RetryLayer},
    sla::{Objective, Sla, SlaLayer},
};
use palisade_core::testing::CountingAllocator;
use tokio::runtime::{Builder, Runtime};
use tower::{
    Service, ServiceBuilder, ServiceExt,
    balance::p2c,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwmaDiscover},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SECOND: Duration = Duration::from_secs(1);
const CALLS: u32 = 10_000;
const ROUNDS: u32 = 60;

/// Answers at once.
#[derive(Clone, Copy, Debug)]
struct Noop;

impl<B> Service<Request<B>> for Noop {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

/// A stack under measurement.
struct Contender<'a> {
    name: &'static str,
    round: Box<dyn FnMut() -> f64 + 'a>,
    nanos: f64,
    allocations: f64,
}

impl<'a> Contender<'a> {
    fn new<S, B>(name: &'static str, runtime: &'a Runtime, mut service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'a,
        S::Error: std::fmt::Debug,
    {
        // Not idempotent: a retry layer has to let it pass.
        let request = || {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.method_mut() = Method::POST;
            request
        };
        let round = move || {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..CALLS {
                    let service = service.ready().await.unwrap();
                    drop(black_box(service.call(black_box(request())).await.unwrap()));
                }
                start.elapsed().as_nanos() as f64 / f64::from(CALLS)
            })
        };
        Self {
            name,
            round: Box::new(round),
            nanos: f64::MAX,
            allocations: 0.0,
        }
    }

    fn run(&mut self) {
        let before = CountingAllocator::count();
        self.nanos = self.nanos.min((self.round)());
        let counted = CountingAllocator::count() - before;
        self.allocations = counted as f64 / f64::from(CALLS);
    }
}

/// Prints a table: the first contender is the bare call, the second what the others are held against.
fn table(title: &str, mut contenders: Vec<Contender<'_>>) {
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.run();
        }
    }
    let bare = contenders[0].nanos;
    let peer = contenders[1].nanos - bare;
    let peer_name = contenders[1].name;
    println!(
        "\n{title:44} {:>8} {:>10} {:>10}  allocations",
        "ns", "over bare", "ratio"
    );
    for (at, contender) in contenders.iter().enumerate() {
        let Contender {
            name,
            nanos,
            allocations,
            ..
        } = contender;
        let over = nanos - bare;
        let ratio = if at == 0 {
            String::new()
        } else {
            format!("{:.2}", over / peer)
        };
        println!("{name:44} {nanos:8.1} {over:10.1} {ratio:>10}  {allocations:.2}");
    }
    println!("ratio: to {peer_name}");
}

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();

    let breaker = || CircuitBreaker::consecutive(5, SECOND);
    let breaker_layer = || CircuitBreakerLayer::consecutive(5, SECOND);
    let quota = || Quota::per_second(1_000_000_000);
    let limit_layer = || RateLimitLayer::new(quota()).headers(Headers::Off);
    let objective = || {
        Objective::success(0.999)
            .unwrap()
            .within(SECOND, 0.99)
            .unwrap()
    };
    let retry = || RetryLayer::new(Backoff::exponential(SECOND / 40, SECOND).unwrap());
    let deadline = || DeadlineLayer::new(30 * SECOND);
    let tower_five = || {
        ServiceBuilder::new()
            .timeout(SECOND)
            .load_shed()
            .concurrency_limit(1000)
            .rate_limit(1_000_000_000, SECOND)
            .timeout(2 * SECOND)
            .service(Noop)
    };

    let b = ServiceBuilder::new;
    table(
        "one layer",
        vec![
            Contender::new("bare call", &runtime, Noop),
            Contender::new(
                "tower's timeout",
                &runtime,
                b().timeout(SECOND).service(Noop),
            ),
            Contender::new("deadline", &runtime, b().layer(deadline()).service(Noop)),
            Contender::new(
                "circuit breaker",
                &runtime,
                b().layer(breaker_layer()).service(Noop),
            ),
            Contender::new(
                "rate limit",
                &runtime,
                b().layer(limit_layer()).service(Noop),
            ),
            Contender::new(
                "sla",
                &runtime,
                b().layer(SlaLayer::new(objective())).service(Noop),
            ),
            Contender::new(
                "retry, of what may not be retried",
                &runtime,
                b().layer(retry()).service(Noop),
            ),
        ],
    );

    let nested = b()
        .layer(SlaLayer::new(objective()))
        .layer(deadline())
        .layer(limit_layer())
        .layer(retry())
        .layer(breaker_layer())
        .service(Noop);
    let fused = b()
        .layer(deadline())
        .layer(gates((
            Sla::new(objective()),
            RateLimit::new(quota()).headers(Headers::Off),
            breaker(),
        )))
        .layer(retry())
        .service(Noop);
    table(
        "five layers",
        vec![
            Contender::new("bare call", &runtime, Noop),
            Contender::new("tower's five", &runtime, tower_five()),
            Contender::new("palisade's five, nested", &runtime, nested),
            Contender::new("palisade's five, gates fused", &runtime, fused),
        ],
    );

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
        gated.insert(Endpoint::new(format!("e{at}"), Noop).gate(breaker()));
    }
    table(
        "a choice among 10 endpoints",
        vec![
            Contender::new("bare call", &runtime, Noop),
            Contender::new("tower's Balance with PeakEwma", &runtime, peak_ewma()),
            Contender::new("adaptive", &runtime, Balance::adaptive(plain)),
            Contender::new(
                "adaptive, a circuit breaker each",
                &runtime,
                Balance::adaptive(gated),
            ),
        ],
    );
}
