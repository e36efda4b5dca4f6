//! What a request costs that is admitted and ends well, and what a refusal costs. Prints; asserts nothing.
//!
//! `cargo bench -p palisade-circuit-breaker`: the fastest of many short rounds counts, as what else the machine did is in
//! the others. Gates are handed the time; the layer reads the clock twice.

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use palisade_circuit_breaker::{
    CircuitBreaker, CircuitBreakerLayer, KeyedCircuitBreaker, Settings, Throttle, destination,
};
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    ratio::Ratio,
    settle::{End, Settle},
    testing::{Answers, CountingAllocator},
    time::now,
};
use tokio::time::Instant;
use tower::{Layer, Service};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CALLS: u32 = 10_000;
const ROUNDS: usize = 300;
const SPAN: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// Nanoseconds and allocations of one turn.
fn measure(name: &str, mut turn: impl FnMut()) {
    let mut best = f64::INFINITY;
    let mut allocations = 0;
    for _ in 0..ROUNDS {
        let (before, start) = (CountingAllocator::count(), now());
        (0..CALLS).for_each(|_| turn());
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
        allocations = CountingAllocator::count() - before;
    }
    let allocations = allocations as f64 / f64::from(CALLS);
    println!("{name:44} {best:7.1} ns {allocations:5.2} allocations");
}

/// One admission, and the end of it if there is one.
fn pass<G: Gate>(gate: &G, request: &Request<()>, verdict: Verdict, at: Instant) -> bool {
    match gate.admit(black_box(&RequestHead::from(request)), at) {
        Admit::Now(Ok(mut guard)) => {
            guard.settle(black_box(&End::new(verdict)), at);
            true
        }
        Admit::Now(Err(rejected)) => {
            drop(black_box(rejected));
            false
        }
        Admit::Later(_) => unreachable!("decides at once"),
    }
}

/// Good calls, with so many of them in each span.
fn quiet(name: &str, gate: &impl Gate, in_span: u32) {
    let request = Request::get("http://a.example/v1")
        .body(())
        .expect("a request");
    let (step, mut at) = (SPAN / in_span, now());
    for _ in 0..in_span {
        pass(gate, &request, Verdict::Success, at);
        at += step;
    }
    measure(name, || {
        assert!(pass(gate, &request, Verdict::Success, at));
        at += step;
    });
}

fn refusing(name: &str, gate: &impl Gate) {
    let request = Request::get("http://a.example/v1")
        .body(())
        .expect("a request");
    let at = now();
    while pass(gate, &request, Verdict::Failure, at) {}
    measure(name, || {
        assert!(!pass(gate, &request, Verdict::Failure, at));
    });
}

/// A request through a service that answers at once, to the end of the body.
fn through<S, B>(name: &str, mut service: S)
where
    S: Service<Request<()>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    let mut cx = Context::from_waker(Waker::noop());
    measure(name, || {
        assert!(service.poll_ready(&mut cx).is_ready());
        let response = pin!(service.call(black_box(Request::new(()))));
        let Poll::Ready(answered) = response.poll(&mut cx) else {
            unreachable!("answers at once");
        };
        if let Ok(response) = answered {
            let mut body = pin!(response.into_body());
            while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
                drop(black_box(frame));
            }
        }
    });
}

fn answer() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"hello")))
}

fn main() {
    measure("one reading of the clock", || {
        black_box(now());
    });

    let row = || CircuitBreaker::consecutive(5, HOUR);
    let calls = |size| CircuitBreaker::window(Ratio::HALF, size, HOUR);
    let time = || CircuitBreaker::time_window(Ratio::HALF, SPAN, HOUR);
    println!("\nan admission and a good end");
    quiet("5 in a row", &row(), 1_000);
    quiet("window of 100 calls", &calls(100), 1_000);
    quiet("window of 1 000 000 calls", &calls(1_000_000), 1_000);
    quiet("window of time, 1 000 calls in it", &time(), 1_000);
    quiet("window of time, 100 000 calls in it", &time(), 100_000);
    let all = time().or_consecutive(5).or_failures(9);
    let all = all.slow_calls(Ratio::HALF, HOUR).ignore(|_| false);
    quiet("window of time, every condition", &all, 100_000);
    let keyed = || KeyedCircuitBreaker::new(Settings::consecutive(5, HOUR), destination());
    quiet("keyed by destination, 5 in a row", &keyed(), 1_000);
    quiet("throttle", &Throttle::new(), 1_000);

    println!("\na refusal");
    refusing("5 in a row", &row());
    refusing("window of 100 calls", &calls(100));
    refusing("window of time", &time());
    refusing("keyed by destination, 5 in a row", &keyed());

    println!("\nthrough a service, to the end of the body");
    through("no layer", Answers(answer));
    let layer = |breaker: CircuitBreaker| CircuitBreakerLayer::new(breaker).layer(Answers(answer));
    through("5 in a row", layer(row()));
    through("window of 100 calls", layer(calls(100)));
    through("window of time", layer(time()));
    let open = row();
    open.handle().force_open();
    through("forced open", layer(open));
}
