//! What alternatives cost a request that does not need them, and one that does.
//!
//! `cargo bench -p palisade-fallback`. Prints; asserts nothing. The best of many short rounds over the bare service, all
//! contenders taking turns, so that a slow second hits each of them.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use palisade_core::{
    classify::Sse,
    testing::{Answers, CountingAllocator},
    time::now,
};
use palisade_fallback::FallbackLayer;
use tower::{Layer, Service};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CALLS: u32 = 10_000;
const ROUNDS: usize = 60;

type Sent = Full<Bytes>;

struct Contender {
    name: &'static str,
    call: Box<dyn FnMut(Request<Sent>)>,
    nanos: f64,
    allocations: f64,
}

impl Contender {
    fn new<S, B>(name: &'static str, mut service: S) -> Self
    where
        S: Service<Request<Sent>, Response = Response<B>> + 'static,
        B: Body,
    {
        let call = move |request| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
                panic!("answers at once");
            };
            let mut body = pin!(response.into_body());
            while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
                black_box(frame.is_ok());
            }
        };
        Self {
            name,
            call: Box::new(call),
            nanos: f64::INFINITY,
            allocations: 0.0,
        }
    }

    fn round(&mut self, request: fn() -> Request<Sent>) {
        let (allocations, start) = (CountingAllocator::count(), now());
        for _ in 0..CALLS {
            (self.call)(black_box(request()));
        }
        let nanos = start.elapsed().as_nanos() as f64;
        self.allocations = (CountingAllocator::count() - allocations) as f64 / f64::from(CALLS);
        self.nanos = self.nanos.min(nanos / f64::from(CALLS));
    }
}

/// The first contender is what the others are held against.
fn run(title: &str, request: fn() -> Request<Sent>, mut contenders: Vec<Contender>) {
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.round(request);
        }
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

fn answers(status: u16) -> Answers<impl Fn() -> Response<Sent> + Clone + Send + Sync> {
    Answers(move || {
        let mut answer = Response::new(Full::from("hello"));
        *answer.status_mut() = status.try_into().unwrap();
        answer
    })
}

fn get() -> Request<Sent> {
    let mut request = Request::new(Full::default());
    let any = HeaderValue::from_static("*/*");
    request.headers_mut().insert("accept", any);
    request
}

fn post() -> Request<Sent> {
    get().map(|_| Full::from("hello"))
}

/// Each kind of alternative for a service that answers so.
fn kinds(status: u16) -> Vec<Contender> {
    let layer = FallbackLayer::new;
    let value = || layer().value("value", Response::new("value"));
    let first = || answers(status);
    vec![
        Contender::new("bare call", first()),
        Contender::new("a value", value().layer(first())),
        Contender::new(
            "a value, judged by Sse",
            value().classify(Sse).layer(first()),
        ),
        Contender::new(
            "a function",
            layer()
                .function("function", |_, _| Some(Response::new("value").into()))
                .layer(first()),
        ),
        Contender::new(
            "a service",
            layer().service("service", answers(200)).layer(first()),
        ),
        Contender::new(
            "the last of three services",
            layer()
                .service("second", answers(500))
                .service("third", answers(500))
                .service("fourth", answers(200))
                .layer(first()),
        ),
    ]
}

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    run("not needed, GET", get, kinds(200));
    run("not needed, POST", post, kinds(200));
    run("instead of a failure, POST", post, kinds(503));
}
