//! What a request pays for being measured: `cargo bench -p palisade-sla`.
//!
//! Fails when a request allocates, or when 100 M of them take memory.

#![allow(missing_docs, reason = "a program")]

use std::{
    hint::black_box,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use http::Request;
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
    testing::CountingAllocator,
    time,
};
use palisade_sla::{Objective, Sla};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ROUNDS: usize = 250;
const REQUESTS: u32 = 10_000;

/// One request without its service: admitted, first data, end.
fn serve(gate: &impl Gate, head: &RequestHead<'_>, [now, first, last]: [Instant; 3]) {
    let Admit::Now(Ok(mut guard)) = black_box(gate).admit(head, now) else {
        return;
    };
    guard.first_data(first);
    let end = End {
        age: Duration::from_millis(5),
        ..End::new(Verdict::Success)
    };
    black_box(&mut guard).finish(black_box(&end), last);
}

/// Nanoseconds for each request, without the clock: the fastest fifth of many rounds, as others use the machine too.
fn each(gate: &impl Gate, together: &Barrier) -> f64 {
    let request = Request::builder()
        .uri("/v1/chat/completions")
        .header("x-model", "llama-3.3-70b-instruct")
        .body(());
    let Ok(request) = request else { return 0.0 };
    let head = RequestHead::from(&request);
    let times = [0, 2, 5].map(|millis| time::now() + Duration::from_millis(millis));
    // Labels get their place.
    serve(gate, &head, times);
    let mut rounds = [(); ROUNDS].map(|()| {
        together.wait();
        let (start, before) = (time::now(), CountingAllocator::count());
        let times = [0, 2, 5].map(|millis| start + Duration::from_millis(millis));
        for _ in 0..REQUESTS {
            serve(gate, &head, times);
        }
        let taken = (time::now() - start).as_secs_f64() * 1e9 / f64::from(REQUESTS);
        assert_eq!(CountingAllocator::count(), before, "a request allocates");
        taken
    });
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 5]
}

/// The slowest of this many threads.
fn threads(gate: &impl Gate, count: usize) -> f64 {
    let together = Barrier::new(count);
    thread::scope(|scope| {
        let workers = (0..count).map(|_| scope.spawn(|| each(gate, &together)));
        let workers: Vec<_> = workers.collect();
        let all = workers.into_iter().filter_map(|worker| worker.join().ok());
        all.fold(0.0, f64::max)
    })
}

/// What sharing anything costs: a count of references and one of requests.
#[derive(Clone)]
struct Bare(Arc<AtomicU64>);

struct Shared(Arc<AtomicU64>);

impl Gate for Bare {
    type Guard = Shared;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Shared> {
        self.0.fetch_add(1, Relaxed);
        Admit::Now(Ok(Shared(self.0.clone())))
    }
}

impl Settle for Shared {
    fn settle(&mut self, _: &End, _: Instant) {}
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Kilobytes that the process has in memory, where that is known.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse().ok()
}

/// Records so many requests, a hundred thousand of them a second.
fn record(gate: &Sla, requests: u32) {
    let request = Request::new(());
    let (head, start) = (RequestHead::from(&request), time::now());
    for at in 0..requests {
        let now = start + at * Duration::from_micros(10);
        let first = now + Duration::from_micros(u64::from(at % 5000));
        let times = [now, first, now + Duration::from_millis(5)];
        serve(gate, &head, times);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let objective = Objective::success(0.999)?.within(Duration::from_millis(800), 0.99)?;
    let sla = Sla::new(objective);
    let bare = Bare(Arc::default());
    let route = Sla::new(objective).by("route", |head| Some(head.uri.path()))?;
    let both = Sla::new(objective)
        .by("route", |head| Some(head.uri.path()))?
        .by("model", |head| head.headers.get("x-model")?.to_str().ok())?;
    for count in [1, 2] {
        let (bare, sla) = (threads(&bare, count), threads(&sla, count));
        println!("request, {count} threads: {sla:5.1} ns, only shared {bare:5.1} ns");
        let (route, both) = (threads(&route, count), threads(&both, count));
        println!("   by route {route:5.1} ns, by route and model {both:5.1} ns");
    }
    const MANY: u32 = 100_000_000;
    record(&both, MANY / 100);
    let (before, start) = (resident(), time::now());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| record(&both, MANY / 2));
        }
    });
    let (after, taken) = (resident(), time::now() - start);
    println!("memory:  {before:?} kB, {after:?} kB after {MANY} requests in {taken:.1?}");
    // A thread that has ended leaves its stack for the next.
    assert!(after <= before.map(|before| before + 256), "memory grows");
    let (handle, start) = (sla.handle(), time::now());
    const READS: u32 = 1000;
    // Windows that go back to the start have nothing in most of their buckets, which are as many.
    let later = start + Duration::from_secs(40 * 24 * 3600);
    for _ in 0..READS {
        black_box(handle.burn(later));
    }
    let burn = time::now();
    for _ in 0..READS {
        black_box(handle.summary(Duration::from_secs(300)));
    }
    let summary = time::now();
    println!("burn:    {:?}", (burn - start) / READS);
    println!("summary: {:?}", (summary - burn) / READS);
    Ok(())
}
