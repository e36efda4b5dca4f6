//! What a request pays for being measured: `cargo bench -p palisade-sla`.

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
    time,
};
use palisade_sla::{InvalidObjective, Objective, Sla};
use tokio::time::Instant;

const ROUNDS: usize = 50;
const REQUESTS: u32 = 50_000;

/// One request without its service: admitted, first data, end.
fn request(gate: &impl Gate, head: &RequestHead<'_>, now: Instant) {
    let Admit::Now(Ok(mut guard)) = black_box(gate).admit(head, now) else {
        return;
    };
    guard.first_data(now);
    let end = End {
        age: Duration::from_millis(5),
        ..End::new(Verdict::Success)
    };
    black_box(&mut guard).finish(black_box(&end), now);
}

/// Nanoseconds for each request, without the clock: the median of many rounds, as others use the machine too.
fn each(gate: &impl Gate, together: &Barrier) -> f64 {
    let request_head = Request::new(());
    let head = RequestHead::from(&request_head);
    let mut rounds = [(); ROUNDS].map(|()| {
        together.wait();
        let start = time::now();
        for _ in 0..REQUESTS {
            request(gate, &head, start);
        }
        (time::now() - start).as_secs_f64() * 1e9 / f64::from(REQUESTS)
    });
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
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

fn main() -> Result<(), InvalidObjective> {
    let objective = Objective::success(0.999)?.within(Duration::from_millis(800), 0.99)?;
    let sla = Sla::new(objective);
    let bare = Bare(Arc::default());
    for count in [1, 2] {
        let (bare, sla) = (threads(&bare, count), threads(&sla, count));
        println!("request, {count} threads: {sla:5.1} ns, only shared {bare:5.1} ns");
    }
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
