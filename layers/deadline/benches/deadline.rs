//! What a deadline and the timeouts of an attempt cost, beside tower's `Timeout` and tower-http's `TimeoutLayer`.
//!
//! `cargo bench -p palisade-deadline`. Prints; asserts nothing. The best of many short rounds over the bare service, all
//! contenders taking turns, so that a slow second hits each of them.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use palisade_core::{
    deadline::Deadline,
    testing::CountingAllocator,
    time::{self, now},
};
use palisade_deadline::{
    Adaptive, AttemptTimeoutLayer, DeadlineLayer, Need, Propagate, TimeoutHeader, Timeouts,
};
use tokio::runtime::Builder;
use tower::{Layer, Service, timeout::TimeoutLayer};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SECOND: Duration = Duration::from_secs(1);
const CALLS: u32 = 10_000;
const ROUNDS: usize = 60;

/// Answers when it has been polled this often.
#[derive(Clone, Copy)]
struct After(u32);

impl<R> Service<Request<R>> for After {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Self;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<R>) -> Self {
        *self
    }
}

impl Future for After {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0 == 0 {
            return Poll::Ready(Ok(Response::new(Full::from("hello"))));
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

struct Contender {
    name: &'static str,
    call: Box<dyn FnMut(Request<()>)>,
    request: fn() -> Request<()>,
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
            let mut future = pin!(service.call(request));
            let answer = loop {
                if let Poll::Ready(answer) = future.as_mut().poll(&mut cx) {
                    break answer;
                }
            };
            if let Ok(response) = answer {
                let mut body = pin!(response.into_body());
                while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
                    black_box(frame.is_ok());
                }
            }
        };
        Self {
            name,
            call: Box::new(call),
            request: || Request::new(()),
            nanos: f64::INFINITY,
            allocations: 0.0,
        }
    }

    fn sending(mut self, request: fn() -> Request<()>) -> Self {
        self.request = request;
        self
    }

    fn round(&mut self) {
        let allocations = CountingAllocator::count();
        let start = now();
        for _ in 0..CALLS {
            (self.call)(black_box((self.request)()));
        }
        let nanos = start.elapsed().as_nanos() as f64;
        self.allocations = (CountingAllocator::count() - allocations) as f64 / f64::from(CALLS);
        self.nanos = self.nanos.min(nanos / f64::from(CALLS));
    }
}

fn run(title: &str, mut contenders: Vec<Contender>) {
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.round();
        }
    }
    let (bare, bare_allocations) = (contenders[0].nanos, contenders[0].allocations);
    println!("\n{title}: {bare:.1} ns bare");
    for contender in &contenders[1..] {
        let (name, nanos) = (contender.name, contender.nanos - bare);
        let allocations = contender.allocations - bare_allocations;
        println!("{name:<52} {nanos:>8.1} ns {allocations:>6.2} allocations");
    }
}

fn peers(inner: After) -> [Contender; 4] {
    let status = http::StatusCode::GATEWAY_TIMEOUT;
    let head = tower_http::timeout::TimeoutLayer::with_status_code(status, 30 * SECOND);
    let body = tower_http::timeout::ResponseBodyTimeoutLayer::new(30 * SECOND);
    [
        Contender::new("bare", inner),
        Contender::new(
            "tower Timeout (head)",
            TimeoutLayer::new(30 * SECOND).layer(inner),
        ),
        Contender::new("tower-http TimeoutLayer (head)", head.layer(inner)),
        Contender::new(
            "tower-http TimeoutLayer + ResponseBodyTimeoutLayer",
            (body, head).layer(inner),
        ),
    ]
}

fn ours(inner: After) -> [Contender; 6] {
    let timeouts = Timeouts::none()
        .first_byte(5 * SECOND)
        .idle(5 * SECOND)
        .total(30 * SECOND);
    let adaptive = Adaptive::between(SECOND, 30 * SECOND);
    let deadline = || DeadlineLayer::new(30 * SECOND);
    let header = Propagate::Header(TimeoutHeader::grpc());
    [
        Contender::new("DeadlineLayer (head and body)", deadline().layer(inner)),
        Contender::new(
            "DeadlineLayer, refusing below the median",
            deadline().refuse_below_median(Need::Whole).layer(inner),
        ),
        Contender::new(
            "DeadlineLayer, told in an extension and a header",
            deadline().propagate(header).layer(inner),
        ),
        Contender::new(
            "AttemptTimeoutLayer, first byte",
            AttemptTimeoutLayer::first_byte(5 * SECOND).layer(inner),
        ),
        Contender::new(
            "AttemptTimeoutLayer, first byte, idle, total",
            AttemptTimeoutLayer::new(timeouts).layer(inner),
        ),
        Contender::new(
            "AttemptTimeoutLayer, adaptive first byte",
            AttemptTimeoutLayer::first_byte(adaptive).layer(inner),
        ),
    ]
}

/// Whose deadline has passed.
fn late() -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(Deadline(time::now()));
    request
}

fn main() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();

    for (title, inner) in [
        ("there at the first poll", After(0)),
        ("there at the second poll", After(1)),
    ] {
        run(title, peers(inner).into_iter().chain(ours(inner)).collect());
    }

    let inner = After(0);
    let hopeless = DeadlineLayer::new(30 * SECOND).refuse_below_median(Need::Whole);
    learn(&hopeless, &runtime);
    let contenders = vec![
        Contender::new("bare", inner).sending(late),
        Contender::new(
            "DeadlineLayer, passed",
            DeadlineLayer::new(SECOND).layer(inner),
        )
        .sending(late),
        Contender::new(
            "DeadlineLayer, below the median (nine in ten)",
            // What passes all the same fails, so that the median stays.
            hopeless.layer(tower::service_fn(|_: Request<()>| {
                let failed = Response::builder()
                    .status(503)
                    .body(Full::<Bytes>::default());
                std::future::ready(Ok::<_, Infallible>(failed.unwrap()))
            })),
        )
        .sending(|| {
            let mut request = Request::new(());
            let soon = Deadline(time::now() + Duration::from_millis(1));
            request.extensions_mut().insert(soon);
            request
        }),
    ];
    run(
        "refusing (of which the request's extension is in the bare call)",
        contenders,
    );
}

/// Answers that take some milliseconds.
fn learn(layer: &DeadlineLayer, runtime: &tokio::runtime::Runtime) {
    let slow = tower::service_fn(async |_: Request<()>| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("x")))
    });
    let mut service = layer.layer(slow);
    for _ in 0..50 {
        let answer = runtime.block_on(service.call(Request::new(()))).unwrap();
        let mut body = pin!(answer.into_body());
        let mut cx = Context::from_waker(Waker::noop());
        while body.as_mut().poll_frame(&mut cx).is_ready() && !body.is_end_stream() {}
    }
}
