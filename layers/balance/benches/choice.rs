//! What a choice among ten endpoints costs, beside tower's balancer in the same run. Best of many rounds.
//!
//! Readiness to the end of the body, through an endpoint that does nothing.

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Empty;
use palisade_balance::{Balance, Endpoint, EndpointState, Endpoints};
use palisade_core::{
    attempt::Attempts,
    testing::{Answers, CountingAllocator},
    time,
};
use tower::{
    Service,
    balance::p2c,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwmaDiscover},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ROUNDS: u32 = 40;
const REQUESTS: u32 = 20_000;

type Answer = fn() -> Response<Empty<bytes::Bytes>>;

fn answer() -> Response<Empty<bytes::Bytes>> {
    Response::new(Empty::new())
}

fn noop() -> Answers<Answer> {
    Answers(answer)
}

struct Cost {
    nanos: f64,
    allocations: f64,
}

fn measure<S>(name: &str, mut service: S, request: impl Fn() -> Request<()>) -> Cost
where
    S: Service<Request<()>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut best = Duration::MAX;
    let mut allocations = 0;
    for _ in 0..ROUNDS {
        let before = CountingAllocator::count();
        let start = time::now();
        for _ in 0..REQUESTS {
            assert!(service.poll_ready(&mut cx).is_ready());
            let response = pin!(service.call(black_box(request())));
            let Poll::Ready(response) = response.poll(&mut cx) else {
                panic!("answers at once");
            };
            drop(black_box(response));
        }
        best = best.min(start.elapsed());
        allocations = CountingAllocator::count() - before;
    }
    let cost = Cost {
        nanos: best.as_nanos() as f64 / f64::from(REQUESTS),
        allocations: allocations as f64 / f64::from(REQUESTS),
    };
    println!(
        "{name:40} {:8.1} ns {:6.2} allocations",
        cost.nanos, cost.allocations
    );
    cost
}

fn balance(endpoints: u32) -> Balance<Answers<Answer>> {
    let set = Endpoints::default();
    for at in 0..endpoints {
        set.insert(Endpoint::new(at.to_string(), noop()));
    }
    Balance::adaptive(set)
}

fn main() {
    let plain = || Request::new(());
    measure("nothing around it", noop(), plain);
    for endpoints in [1, 3, 64, 1000] {
        measure(&format!("balance, {endpoints}"), balance(endpoints), plain);
    }
    measure("balance, 10, attempts noted", balance(10), || {
        let mut request = Request::new(());
        request.extensions_mut().insert(Attempts::default());
        request
    });
    let ten = balance(10);
    measure("balance, 10, in slow start", ten.clone(), plain);
    while ten.endpoints().snapshot()[0].state == EndpointState::SlowStart {
        std::hint::spin_loop();
    }
    let ours = measure("balance, 10", ten, plain);
    let services = ServiceList::new::<Request<()>>(vec![noop(); 10]);
    let (rtt, decay) = (Duration::from_millis(10), Duration::from_secs(10));
    let discover =
        PeakEwmaDiscover::new::<Request<()>>(services, rtt, decay, CompleteOnResponse::default());
    let theirs = measure("tower p2c PeakEwma, 10", p2c::Balance::new(discover), plain);
    println!("ratio {:.2}", ours.nanos / theirs.nanos);
}
