//! What a choice costs, beside tower's balancer in the same run.
//!
//! Readiness to the end of the body, through an endpoint that does nothing. All take turns, and the best of many turns
//! counts: `cargo bench -p palisade-balance`, with a part of a name to run only those.

mod two_threads;

use std::{
    cell::Cell,
    env,
    hint::{black_box, spin_loop},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Empty;
use palisade_balance::{
    Affinity, Balance, BalanceLayer, Endpoint, EndpointState, Endpoints, LoadReport, Strategy,
};
use palisade_core::{
    attempt::Attempts,
    cost::Cost,
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
    testing::{Answers, CountingAllocator},
    time,
};
use tokio::time::Instant;
use tower::{
    Layer, Service,
    balance::p2c,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwmaDiscover, PendingRequestsDiscover},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const TURNS: u32 = 300;
const REQUESTS: u32 = 5_000;

type Answer = fn() -> Response<Empty<bytes::Bytes>>;
type Noop = Answers<Answer>;

fn answer() -> Response<Empty<bytes::Bytes>> {
    Response::new(Empty::new())
}

fn noop() -> Noop {
    Answers(answer)
}

/// A breaker that is closed: an atomic to look at, and a guard to tell.
#[derive(Clone)]
struct Closed(Arc<AtomicU32>);

impl Gate for Closed {
    type Guard = ();

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Ok(()))
    }

    fn outlook(&self, _: Instant) -> Outlook {
        match self.0.load(Relaxed) {
            0 => Outlook::Admits,
            _ => Outlook::Held,
        }
    }
}

/// One that takes its turns, and its best so far.
struct Runner {
    name: String,
    turn: Box<dyn FnMut() -> u64>,
    best: Duration,
    allocations: u64,
}

impl Runner {
    fn new<S>(
        name: impl Into<String>,
        mut service: S,
        request: impl Fn() -> Request<()> + 'static,
    ) -> Self
    where
        S: Service<Request<()>> + 'static,
    {
        let turn = move || {
            let mut cx = Context::from_waker(Waker::noop());
            let before = CountingAllocator::count();
            for _ in 0..REQUESTS {
                assert!(service.poll_ready(&mut cx).is_ready());
                let response = pin!(service.call(black_box(request())));
                let Poll::Ready(response) = response.poll(&mut cx) else {
                    panic!("answers at once");
                };
                drop(black_box(response));
            }
            CountingAllocator::count() - before
        };
        Self {
            name: name.into(),
            turn: Box::new(turn),
            best: Duration::MAX,
            allocations: 0,
        }
    }

    fn take_turn(&mut self) {
        let start = time::now();
        self.allocations = (self.turn)();
        self.best = self.best.min(start.elapsed());
    }

    fn nanos(&self) -> f64 {
        self.best.as_nanos() as f64 / f64::from(REQUESTS)
    }
}

fn endpoints(number: u32) -> Endpoints<Noop> {
    let set = Endpoints::default();
    for at in 0..number {
        set.insert(Endpoint::new(at.to_string(), noop()));
    }
    set
}

fn gated(number: u32) -> Endpoints<Noop, Closed> {
    let set = Endpoints::default();
    for at in 0..number {
        set.insert(Endpoint::new(at.to_string(), noop()).gate(Closed(Arc::default())));
    }
    set
}

type Ewma = p2c::Balance<PeakEwmaDiscover<ServiceList<Vec<Noop>>>, Request<()>>;
type Pending = p2c::Balance<PendingRequestsDiscover<ServiceList<Vec<Noop>>>, Request<()>>;

/// With the figures of tower's own example.
fn peak_ewma() -> Ewma {
    let services = ServiceList::new::<Request<()>>(vec![noop(); 10]);
    let (rtt, decay) = (Duration::from_millis(10), Duration::from_secs(10));
    let complete = CompleteOnResponse::default();
    let discover = PeakEwmaDiscover::new::<Request<()>>(services, rtt, decay, complete);
    p2c::Balance::new(discover)
}

fn pending_requests() -> Pending {
    let services = ServiceList::new::<Request<()>>(vec![noop(); 10]);
    let complete = CompleteOnResponse::default();
    p2c::Balance::new(PendingRequestsDiscover::new::<Request<()>>(
        services, complete,
    ))
}

fn plain() -> Request<()> {
    Request::new(())
}

fn with<T: Clone + Send + Sync + 'static>(extension: T) -> impl Fn() -> Request<()> {
    move || {
        let mut request = Request::new(());
        request.extensions_mut().insert(extension.clone());
        request
    }
}

/// Requests to endpoints that say with each turn how they do.
fn asked(set: &Endpoints<Noop>) -> impl Fn() -> Request<()> + 'static {
    let (set, sent) = (set.clone(), Cell::new(0u32));
    let report = LoadReport::parse(b"TEXT rps_fractional=10, eps=0, named_metrics.in_flight=3");
    let report = report.expect("it says something");
    move || {
        if sent.get() % REQUESTS == 0 {
            for endpoint in set.snapshot() {
                set.report(&endpoint.name, &report);
            }
        }
        sent.set(sent.get().wrapping_add(1));
        plain()
    }
}

const NOTHING: &str = "nothing around it";
const TEN: &str = "adaptive, 10";
const EWMA: &str = "tower p2c PeakEwma, 10";
const PENDING: &str = "tower p2c PendingRequests, 10";

fn runners(sets: &[(u32, Endpoints<Noop>)]) -> Vec<Runner> {
    let mut all = vec![
        Runner::new(NOTHING, noop(), plain),
        Runner::new(EWMA, peak_ewma(), plain),
        Runner::new(PENDING, pending_requests(), plain),
    ];
    for (number, set) in sets {
        let balance = Balance::adaptive(set.clone());
        all.push(Runner::new(format!("adaptive, {number}"), balance, plain));
    }
    for strategy in Strategy::ALL.into_iter().skip(1) {
        let balance = BalanceLayer::new(strategy).layer(endpoints(10));
        all.push(Runner::new(format!("{strategy}, 10"), balance, plain));
    }
    let ten = |name: &str, request: Box<dyn Fn() -> Request<()>>| {
        Runner::new(name, Balance::adaptive(endpoints(10)), request)
    };
    let told = endpoints(10);
    let hash = BalanceLayer::consistent_hash().layer(endpoints(10));
    let affinity = with(Affinity::of("a session"));
    all.extend([
        Runner::new("consistent_hash, 10, affinity", hash, affinity),
        Runner::new(
            "adaptive, 10, asked",
            Balance::adaptive(told.clone()),
            asked(&told),
        ),
        ten(
            "adaptive, 10, attempts noted",
            Box::new(|| with(Attempts::default())()),
        ),
        ten(
            "adaptive, 10, costs",
            Box::new(with(Cost::new(7.0).expect("a cost"))),
        ),
        Runner::new(
            "adaptive, 10, a gate each",
            Balance::adaptive(gated(10)),
            plain,
        ),
    ]);
    all
}

fn main() {
    let chosen: Vec<_> = env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let sets: Vec<_> = [1, 3, 10, 64, 1000]
        .map(|number| (number, endpoints(number)))
        .into();
    let mut runners = runners(&sets);
    if !chosen.is_empty() {
        runners.retain(|runner| chosen.iter().any(|part| runner.name.contains(part)));
    }
    let last = &sets[sets.len() - 1].1;
    // A new endpoint gets less for ten seconds, which costs a root each.
    while last.snapshot().last().expect("not empty").state == EndpointState::SlowStart {
        for runner in &mut *runners {
            (runner.turn)();
        }
        spin_loop();
    }
    for _ in 0..TURNS {
        runners.iter_mut().for_each(Runner::take_turn);
    }
    for runner in &runners {
        let (name, nanos) = (&runner.name, runner.nanos());
        let allocations = runner.allocations as f64 / f64::from(REQUESTS);
        println!("{name:32} {nanos:8.1} ns {allocations:6.2} allocations");
    }
    let find = |name| runners.iter().find(|runner| runner.name == name);
    for other in [EWMA, PENDING] {
        if let (Some(ours), Some(theirs)) = (find(TEN), find(other)) {
            let ratio = ours.nanos() / theirs.nanos();
            println!("{TEN} / {other}: {ratio:.2}");
        }
    }
    if chosen.is_empty() || chosen.iter().any(|part| part == "threads") {
        two_threads::compare(Balance::adaptive(endpoints(10)), peak_ewma);
    }
}
