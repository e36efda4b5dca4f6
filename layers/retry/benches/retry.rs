//! What one request costs through a retry, beside `tower::retry` with its `TpsBudget` in the same run. Prints; asserts
//! nothing.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{Empty, Full};
use palisade_core::{BoxError, testing::CountingAllocator, time::now};
use palisade_retry::{Backoff, Budget, RetryLayer};
use tower::{
    Layer, Service,
    retry::{
        Policy,
        budget::{Budget as _, TpsBudget},
    },
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const REQUESTS: u32 = 2_000;
const ROUNDS: usize = 200;

/// Answers 503 to so many attempts of each request, and then 200.
#[derive(Clone)]
struct Server {
    fails: u32,
    count: Cell<u32>,
}

impl<B> Service<Request<B>> for Server {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Empty<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        black_box(request);
        let count = self.count.get();
        let mut response = Response::new(Empty::new());
        if count < self.fails {
            self.count.set(count + 1);
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        } else {
            self.count.set(0);
        }
        ready(Ok(response))
    }
}

fn server(fails: u32) -> Server {
    let count = Cell::new(0);
    Server { fails, count }
}

/// As a user writes it: retries what says 503, without a wait, as long as the budget lasts.
#[derive(Clone)]
struct Theirs {
    left: u32,
    repeats: bool,
    budget: Arc<TpsBudget>,
}

impl<B: Clone, R, E> Policy<Request<B>, Response<R>, E> for Theirs {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<B>,
        result: &mut Result<Response<R>, E>,
    ) -> Option<Ready<()>> {
        let failed = result
            .as_ref()
            .is_ok_and(|response| response.status().is_server_error());
        if !failed {
            self.budget.deposit();
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        self.budget.withdraw().then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        self.repeats.then(|| request.clone())
    }
}

/// Nanoseconds and allocations of one request, making it and dropping its answer included.
fn cost<B, S>(mut service: S, request: impl Fn() -> Request<B>) -> (f64, u64)
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut send = || {
        let _ = black_box(service.poll_ready(&mut cx));
        let answer = pin!(service.call(request())).poll(&mut cx);
        assert!(black_box(answer).is_ready(), "nothing is waited for");
    };
    for _ in 0..200 {
        send();
    }
    let before = CountingAllocator::count();
    send();
    let allocations = CountingAllocator::count() - before;
    let mut round = |_| {
        let start = now();
        (0..REQUESTS).for_each(|_| send());
        start.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
    };
    // The fastest of many short rounds: what else the machine did is in the others.
    let nanos = (0..ROUNDS).map(&mut round).fold(f64::INFINITY, f64::min);
    (nanos, allocations)
}

fn request<B>(method: Method, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    let headers = request.headers_mut();
    headers.insert("accept", HeaderValue::from_static("*/*"));
    headers.insert("user-agent", HeaderValue::from_static("bench"));
    request
}

fn main() {
    let get = || request(Method::GET, Empty::<Bytes>::new());
    let put = || request(Method::PUT, Full::<Bytes>::from("hello"));
    let post = || request(Method::POST, Empty::<Bytes>::new());

    let ours = |budget| RetryLayer::new(Backoff::constant(Duration::ZERO)).budget(budget);
    let spent = Budget::percent(0).reserve(0);
    let theirs = |repeats, budget| {
        tower::retry::RetryLayer::new(Theirs {
            left: 2,
            repeats,
            budget: Arc::new(budget),
        })
    };
    let tps = || TpsBudget::new(Duration::from_secs(10), 10, 0.2);
    let plenty = || TpsBudget::new(Duration::from_secs(10), 1_000_000_000, 1_000.0);
    let none = || TpsBudget::new(Duration::from_secs(10), 0, 0.0);
    let limited = ours(Budget::default())
        .attempt_timeout(Duration::from_secs(60))
        .within(Duration::from_secs(90));
    let keyed = Budget::percent(20).per(palisade_core::key::header("user-agent"));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _in_it = runtime.enter();

    let base = cost(server(0), get);
    let print = |name: &str, (nanos, allocations): (f64, u64)| {
        let (nanos, allocations) = (nanos - base.0, allocations - base.1);
        println!("{name:44} {nanos:7.1} ns {allocations:3} allocations");
    };
    println!(
        "{:44} {:7.1} ns {:3} allocations, taken off all below",
        "no retry", base.0, base.1
    );
    print(
        "ours, not to be repeated",
        cost(ours(Budget::default()).layer(server(0)), post),
    );
    print(
        "tower, not to be repeated",
        cost(theirs(false, tps()).layer(server(0)), post),
    );
    print(
        "ours, may be repeated",
        cost(ours(Budget::default()).layer(server(0)), get),
    );
    print(
        "tower, may be repeated",
        cost(theirs(true, tps()).layer(server(0)), get),
    );
    print(
        "ours, may be repeated, with a body",
        cost(ours(Budget::default()).layer(server(0)), put),
    );
    print(
        "tower, may be repeated, with a body",
        cost(theirs(true, tps()).layer(server(0)), put),
    );
    print(
        "ours, may be repeated, limits on time",
        cost(limited.layer(server(0)), get),
    );
    print(
        "ours, may be repeated, a budget per key",
        cost(ours(keyed).layer(server(0)), get),
    );
    print(
        "ours, one retry",
        cost(ours(Budget::percent(100)).layer(server(1)), get),
    );
    print(
        "tower, one retry",
        cost(theirs(true, plenty()).layer(server(1)), get),
    );
    print(
        "ours, the budget is spent",
        cost(ours(spent).layer(server(1_000_000_000)), get),
    );
    print(
        "tower, the budget is spent",
        cost(theirs(true, none()).layer(server(1_000_000_000)), get),
    );
}
