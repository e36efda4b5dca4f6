//! A service with a slow tail, in virtual time, beside the same without hedges. The figures go to the output.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{
    BoxError,
    attempt::{Attempts, EndpointId},
    time,
};
use palisade_retry::{HedgeBody, HedgeLayer, hedge::Snapshot};
use tokio::time::sleep;
use tower::{Layer, ServiceExt};

const REQUESTS: u64 = 20_000;
/// From one request to the next.
const EVERY: Duration = Duration::from_millis(2);

/// Ten endpoints behind a balancer that goes round and avoids what was tried.
#[derive(Clone)]
struct Fleet(Arc<Endpoints>);

struct Endpoints {
    ids: [EndpointId; 10],
    /// How many times longer an answer takes, by the number of its attempt and of its request.
    slow: fn(u64, u64) -> u32,
    attempts: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    /// Where each attempt went.
    went: Mutex<Vec<Vec<usize>>>,
}

/// An attempt in flight.
struct InFlight(Arc<Endpoints>);

impl InFlight {
    fn new(endpoints: &Arc<Endpoints>) -> Self {
        let now = endpoints.in_flight.fetch_add(1, Relaxed) + 1;
        endpoints.most_in_flight.fetch_max(now, Relaxed);
        Self(endpoints.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A number without any pattern, always the same for the same seed.
fn draw(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Clone, Copy)]
struct Number(u64);

impl<B: Send + 'static> tower::Service<Request<HedgeBody<B>>> for Fleet {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HedgeBody<B>>) -> Self::Future {
        let endpoints = &self.0;
        let Number(number) = *request.extensions().get().unwrap();
        let attempts = request.extensions().get::<Attempts>();
        let count = attempts.map_or(0, Attempts::count);
        let seed = 4 * number + u64::from(count);
        let start = draw(seed) as usize % 10;
        let mut round = (start..start + 10).map(|at| at % 10);
        let at = round
            .find(|&at| attempts.is_none_or(|tried| !tried.went_to(endpoints.ids[at])))
            .unwrap();
        if let Some(attempts) = attempts {
            attempts.note(endpoints.ids[at]);
        }
        endpoints.attempts.fetch_add(1, Relaxed);
        endpoints.went.lock().unwrap()[number as usize].push(at);
        let millis = 10 + draw(!seed) % 10;
        let takes = Duration::from_millis(millis) * (endpoints.slow)(seed, number);
        let in_flight = InFlight::new(endpoints);
        Box::pin(async move {
            let _in_flight = in_flight;
            sleep(takes).await;
            Ok(Response::new(Full::from("hello")))
        })
    }
}

#[derive(Debug)]
struct Run {
    attempts: usize,
    p50: Duration,
    p99: Duration,
    most_in_flight: usize,
    left_in_flight: usize,
    went: Vec<Vec<usize>>,
    hedge: Snapshot,
}

impl Run {
    /// Attempts beyond the first, as a share of requests.
    fn extra(&self) -> f64 {
        self.attempts as f64 / REQUESTS as f64 - 1.0
    }
}

async fn run(layer: HedgeLayer, slow: fn(u64, u64) -> u32) -> Run {
    let fleet = Fleet(Arc::new(Endpoints {
        ids: std::array::from_fn(|_| EndpointId::new()),
        slow,
        attempts: AtomicUsize::new(0),
        in_flight: AtomicUsize::new(0),
        most_in_flight: AtomicUsize::new(0),
        went: Mutex::new(vec![Vec::new(); REQUESTS as usize]),
    }));
    let service = layer.layer(fleet.clone());
    let mut requests = Vec::new();
    for number in 0..REQUESTS {
        let mut request = Request::new(Empty::<Bytes>::new());
        request.extensions_mut().insert(Number(number));
        let call = service.clone().oneshot(request);
        requests.push(tokio::spawn(async move {
            let start = time::now();
            let answer = call.await.unwrap();
            let took = time::now() - start;
            assert_eq!(
                answer.into_body().collect().await.unwrap().to_bytes(),
                "hello"
            );
            took
        }));
        sleep(EVERY).await;
    }
    let mut took = Vec::new();
    for request in requests {
        took.push(request.await.unwrap());
    }
    took.sort();
    Run {
        attempts: fleet.0.attempts.load(Relaxed),
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
        most_in_flight: fleet.0.most_in_flight.load(Relaxed),
        left_in_flight: fleet.0.in_flight.load(Relaxed),
        went: std::mem::take(&mut fleet.0.went.lock().unwrap()),
        hedge: layer.handle().snapshot(),
    }
}

/// The same without a hedge.
fn off() -> HedgeLayer {
    HedgeLayer::default().mode(palisade_retry::hedge::Mode::Off)
}

fn three_in_a_hundred(seed: u64, _: u64) -> u32 {
    if draw(seed ^ 0x7a11) % 100 < 3 { 20 } else { 1 }
}

#[tokio::test(start_paused = true)]
async fn with_a_slow_tail_of_3_percent_p99_is_halved_for_5_percent_more_load() {
    let without = run(off(), three_in_a_hundred).await;
    let with = run(HedgeLayer::default(), three_in_a_hundred).await;
    println!(
        "3 % of answers take 20x: p50 {:?} -> {:?}, p99 {:?} -> {:?}, extra load {:.2} %, {} won of {} sent, in flight at most {} -> {}",
        without.p50,
        with.p50,
        without.p99,
        with.p99,
        100.0 * with.extra(),
        with.hedge.won,
        with.hedge.sent,
        without.most_in_flight,
        with.most_in_flight,
    );
    assert_eq!(without.attempts as u64, REQUESTS);
    assert!(with.p99 * 2 <= without.p99);
    assert_eq!(with.p50, without.p50);
    assert!((0.01..=0.05).contains(&with.extra()), "{}", with.extra());
    // Losers leave nothing behind.
    assert_eq!((with.left_in_flight, without.left_in_flight), (0, 0));
    assert_eq!(with.hedge.won + with.hedge.lost, with.hedge.sent);
    assert!(with.most_in_flight <= without.most_in_flight);
    // And no hedge goes where the first attempt went.
    let hedged = with.went.iter().filter(|went| went.len() > 1);
    assert_eq!(hedged.clone().count() as u64, with.hedge.sent);
    assert!(
        hedged
            .clone()
            .all(|went| went.len() == 2 && went[0] != went[1])
    );
}

#[tokio::test(start_paused = true)]
async fn when_everything_becomes_slow_at_once_the_load_grows_by_5_percent_at_most() {
    fn all_from_the_middle_on(_: u64, number: u64) -> u32 {
        if number >= REQUESTS / 2 { 20 } else { 1 }
    }
    let without = run(off(), all_from_the_middle_on).await;
    let with = run(HedgeLayer::default(), all_from_the_middle_on).await;
    println!(
        "all take 20x from the middle on: extra load {:.2} %, in flight at most {} -> {}, {} hedges held back",
        100.0 * with.extra(),
        without.most_in_flight,
        with.most_in_flight,
        with.hedge.no_budget,
    );
    assert!((0.01..=0.05).contains(&with.extra()), "{}", with.extra());
    assert!(with.most_in_flight * 100 <= without.most_in_flight * 110);
    assert_eq!(with.left_in_flight, 0);
    assert!(
        with.hedge.no_budget > 100,
        "the share is what holds them back"
    );
}
