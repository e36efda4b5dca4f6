//! What it costs to count, beside the recorder of metrics-exporter-prometheus in the same run. Prints; asserts nothing.

use std::{hint::black_box, thread, time::Duration};

use demo_gateway::metrics::Recorder;
use metrics::{Counter, Histogram, counter, histogram, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use palisade::time;
use palisade_core::testing::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const RECORDS: u32 = 100_000;
const ROUNDS: usize = 50;

/// Nanoseconds and allocations of one record: the median of all rounds.
fn cost(threads: usize, record: impl Fn(u32) + Sync, between: impl Fn()) -> (f64, f64) {
    let mut rounds: Vec<(Duration, u64)> = (0..ROUNDS)
        .map(|_| {
            let round = || {
                let (before, since) = (CountingAllocator::count(), time::now());
                (0..RECORDS).for_each(&record);
                (since.elapsed(), CountingAllocator::count() - before)
            };
            let taken = thread::scope(|scope| {
                let all: Vec<_> = (0..threads).map(|_| scope.spawn(round)).collect();
                let all = all.into_iter().map(|one| one.join().expect("it ends"));
                all.max().expect("one at least")
            });
            between();
            taken
        })
        .collect();
    rounds.sort();
    let (time, allocations) = rounds[ROUNDS / 2];
    let records = f64::from(RECORDS);
    (
        time.as_nanos() as f64 / records,
        allocations as f64 / records,
    )
}

fn value(number: u32) -> f64 {
    f64::from(number % 1000) / 1e3
}

fn line(what: &str, threads: usize, (nanos, allocations): (f64, f64)) {
    println!("{what:<22} {threads} threads {nanos:8.1} ns {allocations:8.4} allocations");
}

fn main() {
    let ours = Recorder::new();
    let theirs = PrometheusBuilder::new()
        .set_buckets(&[
            0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ])
        .expect("there are some")
        .build_recorder();
    let upkeep = theirs.handle();
    let handles = || -> (Counter, Histogram) { (counter!("c_total"), histogram!("h_seconds")) };
    let (count, record) = with_local_recorder(&ours, handles);
    let (their_count, their_record) = with_local_recorder(&theirs, handles);
    for threads in [1, 2] {
        let cost = |record: &(dyn Fn(u32) + Sync)| {
            // What its users have to run now and then is not counted for it.
            cost(threads, record, || upkeep.run_upkeep())
        };
        let ours = cost(&|number| record.record(black_box(value(number))));
        let theirs = cost(&|number| their_record.record(black_box(value(number))));
        line("histogram", threads, ours);
        line("  of the exporter", threads, theirs);
        println!("  ratio {:.2}", ours.0 / theirs.0);
        line("counter", threads, cost(&|_| count.increment(1)));
        line(
            "  of the exporter",
            threads,
            cost(&|_| their_count.increment(1)),
        );
    }
    let page = |recorder: &dyn Fn() -> String| {
        let since = time::now();
        black_box(recorder()).len() as f64 / since.elapsed().as_micros() as f64
    };
    let many = || {
        for number in 0..900 {
            histogram!("many_seconds", "number" => number.to_string()).record(0.1);
        }
    };
    with_local_recorder(&ours, many);
    with_local_recorder(&theirs, many);
    let (ours, theirs) = (page(&|| ours.render()), page(&|| upkeep.render()));
    println!("page                   {ours:.0} bytes/us, of the exporter {theirs:.0}");
}
