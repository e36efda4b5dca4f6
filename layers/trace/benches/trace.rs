//! What spans cost where nobody listens, and where somebody does.
//!
//! `cargo bench -p palisade-trace --all-features`. Prints; asserts nothing. The best of many short rounds over the bare
//! service, all contenders taking turns, so that a slow second hits each of them.

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
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use palisade_core::{
    classify::Sse,
    testing::{Answers, CountingAllocator},
    time::now,
};
use palisade_trace::{Propagate, TraceLayer};
use tower::{Layer, Service};
use tracing::{Dispatch, Level, dispatcher};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CALLS: u32 = 5_000;
const ROUNDS: usize = 40;
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

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

    fn round(&mut self) {
        let (allocations, start) = (CountingAllocator::count(), now());
        for _ in 0..CALLS {
            (self.call)(black_box(request()));
        }
        let nanos = start.elapsed().as_nanos() as f64;
        self.allocations = (CountingAllocator::count() - allocations) as f64 / f64::from(CALLS);
        self.nanos = self.nanos.min(nanos / f64::from(CALLS));
    }
}

fn run(title: &str, mut contenders: Vec<Contender>) {
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::round);
    }
    // The first contender is what the others are held against.
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

fn answers() -> Answers<impl Fn() -> Response<Sent> + Clone> {
    Answers(|| Response::new(Full::from("hello")))
}

fn request() -> Request<Sent> {
    let mut request = Request::new(Full::default());
    let parent = HeaderValue::from_static(PARENT);
    request.headers_mut().insert("traceparent", parent);
    request
}

fn contenders<P: Propagate>(propagate: &P) -> Vec<Contender> {
    let requests = || {
        TraceLayer::request()
            .classify(Sse)
            .propagate(propagate.clone())
    };
    let attempts = || {
        TraceLayer::attempt()
            .classify(Sse)
            .propagate(propagate.clone())
    };
    vec![
        Contender::new("bare call", answers()),
        Contender::new("the span of a request", requests().layer(answers())),
        Contender::new("the span of an attempt", attempts().layer(answers())),
        Contender::new("both", requests().layer(attempts().layer(answers()))),
    ]
}

fn exported(sampler: Sampler) -> Dispatch {
    let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("bench"))
        .with_context_activation(false);
    let filter = Targets::new().with_target("palisade_trace", Level::DEBUG);
    Dispatch::new(Registry::default().with(spans.with_filter(filter)))
}

fn main() {
    #[cfg(feature = "opentelemetry")]
    let propagate = palisade_trace::OpenTelemetry;
    #[cfg(not(feature = "opentelemetry"))]
    let propagate = palisade_trace::Forward;

    let all = || contenders(&propagate);
    run("nobody listens", all());
    let log = fmt::layer().with_writer(std::io::sink);
    let log = Dispatch::new(Registry::default().with(log).with(LevelFilter::INFO));
    dispatcher::with_default(&log, || run("a log of `info`", all()));
    drop(log);
    let off = exported(Sampler::AlwaysOff);
    dispatcher::with_default(&off, || run("OpenTelemetry, not sampled", all()));
    drop(off);
    let on = exported(Sampler::AlwaysOn);
    dispatcher::with_default(&on, || run("OpenTelemetry, sampled", all()));
}
