//! What faults cost that are off, that do not strike, and that do.
//!
//! `cargo bench -p palisade-chaos`. Prints; asserts nothing. The best of many short rounds over the bare service, all
//! contenders taking turns, so that a slow second hits each of them.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use palisade_chaos::{After, ChaosLayer, Delay, Fault, Ratio, Secret};
use palisade_core::{
    testing::{Answers, CountingAllocator},
    time::now,
};
use tower::{Layer, Service};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CALLS: u32 = 10_000;
const ROUNDS: usize = 60;
const HOUR: Duration = Duration::from_secs(3600);

struct Contender {
    name: &'static str,
    call: Box<dyn FnMut(Request<()>)>,
    nanos: f64,
    allocations: f64,
}

impl Contender {
    fn new<S, B>(name: &'static str, mut service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>> + 'static,
        B: Body,
    {
        let call = move |request| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            if let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) {
                let mut body = pin!(response.into_body());
                while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
                    black_box(frame.is_ok());
                }
            }
        };
        Self {
            name,
            call: Box::new(call),
            nanos: f64::INFINITY,
            allocations: 0.0,
        }
    }

    fn struck_by(name: &'static str, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self::new(name, ChaosLayer::new(42, faults).layer(answers()))
    }

    fn round(&mut self) {
        let (allocations, start) = (CountingAllocator::count(), now());
        for _ in 0..CALLS {
            (self.call)(black_box(Request::new(())));
        }
        let nanos = start.elapsed().as_nanos() as f64;
        self.allocations = (CountingAllocator::count() - allocations) as f64 / f64::from(CALLS);
        self.nanos = self.nanos.min(nanos / f64::from(CALLS));
    }
}

/// The first contender is what the others are held against.
fn run(title: &str, mut contenders: Vec<Contender>) {
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::round);
    }
    let (bare, made) = (contenders[0].nanos, contenders[0].allocations);
    println!("\n{title:44} {:>9} {:>9}  allocations", "ns", "over bare");
    for contender in &contenders {
        let (nanos, allocations) = (contender.nanos, contender.allocations - made);
        let over = nanos - bare;
        println!(
            "{:44} {nanos:9.1} {over:9.1}  {allocations:.2}",
            contender.name
        );
    }
}

fn answers() -> Answers<impl Fn() -> Response<Full<Bytes>> + Clone> {
    Answers(|| Response::new(Full::from("hello")))
}

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let seldom = || Fault::reset().share(Ratio::new(1e-12).unwrap());
    let asked =
        ChaosLayer::new(42, [Fault::reset().on_demand()]).on_demand(Secret::new([7; 16]).unwrap());
    run(
        "nothing happens",
        vec![
            Contender::new("bare call", answers()),
            Contender::new("off", ChaosLayer::off(42).layer(answers())),
            Contender::struck_by("a share", [seldom()]),
            Contender::struck_by("four of them", [seldom(), seldom(), seldom(), seldom()]),
            Contender::struck_by("a condition", [Fault::reset().when(|_| false)]),
            Contender::struck_by("a window", [Fault::reset().during(HOUR, HOUR)]),
            Contender::new("on demand", asked.layer(answers())),
        ],
    );
    run(
        "something does",
        vec![
            Contender::new("bare call", answers()),
            Contender::struck_by("a status", [Fault::status(StatusCode::BAD_GATEWAY)]),
            Contender::struck_by("an error", [Fault::reset()]),
            Contender::struck_by("a body that breaks off", [Fault::abort(After::Bytes(2))]),
            Contender::struck_by(
                "a delay that the caller leaves",
                [Fault::latency(Delay::constant(HOUR))],
            ),
        ],
    );
}
