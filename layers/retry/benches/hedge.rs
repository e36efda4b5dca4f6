//! What hedging costs a request that is answered before its delay, beside `tower::hedge` in the same run.
//!
//! `cargo bench -p palisade-retry --bench hedge`. Prints nanoseconds over the bare call and allocations; asserts nothing.
//! The best of many short rounds is taken, and all take turns, so that a slow second hits each of them.

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
use palisade_core::{attempt::Attempts, testing::CountingAllocator};
use palisade_retry::{
    HedgeLayer,
    hedge::{Delay, Mode},
};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, hedge};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

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

/// Hedges GET as tower lets one: whoever writes the policy copies the request.
#[derive(Clone, Copy)]
struct Gets;

impl hedge::Policy<Request<Full<Bytes>>> for Gets {
    fn clone_request(&self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        (request.method() == Method::GET).then(|| request.clone())
    }

    fn can_retry(&self, _: &Request<Full<Bytes>>) -> bool {
        true
    }
}

struct Contender<'a> {
    name: &'static str,
    round: Box<dyn FnMut() -> f64 + 'a>,
    nanos: f64,
    allocations: f64,
}

impl<'a> Contender<'a> {
    fn new<S, T>(
        name: &'static str,
        runtime: &'a Runtime,
        service: S,
        request: fn() -> Request<Full<Bytes>>,
    ) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = T> + 'a,
        S::Error: std::fmt::Debug,
    {
        let mut service = service;
        let round = move || {
            runtime.block_on(async {
                let mut nanos = 0;
                for _ in 0..CALLS {
                    let request = black_box(request());
                    let start = Instant::now();
                    let service = service.ready().await.unwrap();
                    drop(black_box(service.call(request).await.unwrap()));
                    nanos += start.elapsed().as_nanos();
                }
                nanos as f64 / f64::from(CALLS)
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

/// The first is the bare call.
fn table(title: &str, mut contenders: Vec<Contender<'_>>) {
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.run();
        }
    }
    let bare = &contenders[0];
    let (nanos, allocations) = (bare.nanos, bare.allocations);
    println!("\n{title:44} {:>10}  allocations", "ns over bare");
    for contender in &contenders[1..] {
        println!(
            "{:44} {:12.1}  {:.2}",
            contender.name,
            contender.nanos - nanos,
            contender.allocations - allocations,
        );
    }
}

fn get() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

/// As it comes from a caller, with headers.
fn full() -> Request<Full<Bytes>> {
    let mut request = get();
    for name in ["accept", "user-agent", "x-request-id"] {
        let value = http::HeaderValue::from_static("value");
        request.headers_mut().insert(name, value);
    }
    request
}

/// As it comes from a retry layer.
fn tried() -> Request<Full<Bytes>> {
    let mut request = full();
    request.extensions_mut().insert(Attempts::default());
    request
}

fn post() -> Request<Full<Bytes>> {
    let mut request = get();
    *request.method_mut() = Method::POST;
    request
}

/// Its percentile is known, and longer than any answer takes: no hedge is sent by either.
fn towers() -> hedge::Hedge<Noop, Gets> {
    hedge::Hedge::new_with_mock_latencies(
        Noop,
        Gets,
        10,
        0.95,
        Duration::from_secs(3600),
        &[100; 1_000_000],
    )
}

fn main() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let second = || HedgeLayer::new(Duration::from_secs(1));
    let learns = HedgeLayer::new(Delay::default().until_then(Duration::from_secs(1)));
    for (title, request) in [
        ("GET", get as fn() -> _),
        ("GET with 3 headers", full),
        ("the same inside of a retry", tried),
        ("POST, which is not hedged", post),
    ] {
        let contenders = vec![
            Contender::new("bare", &runtime, Noop, request),
            Contender::new("tower::hedge, p95", &runtime, towers(), request),
            Contender::new("palisade, p95", &runtime, learns.layer(Noop), request),
            Contender::new(
                "palisade, fixed delay",
                &runtime,
                second().layer(Noop),
                request,
            ),
            Contender::new(
                "palisade, shadow",
                &runtime,
                second().mode(Mode::Shadow).layer(Noop),
                request,
            ),
        ];
        table(title, contenders);
    }
}
