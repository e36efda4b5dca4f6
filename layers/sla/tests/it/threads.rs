//! Nothing is lost between threads.

use std::{
    sync::atomic::{AtomicBool, Ordering},
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
use palisade_sla::{Sla, Targets};

use crate::objective;

const THREADS: u64 = 8;
const REQUESTS: u64 = 20_000;

#[test]
fn threads_that_cross_the_edges_of_buckets_at_their_own_pace_lose_no_count() {
    let sla = Sla::new(objective()).targets(Targets::default());
    let handle = sla.handle();
    let start = time::now();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|worker| {
                let sla = sla.clone();
                scope.spawn(move || {
                    for request in 0..REQUESTS {
                        // 20 buckets in all, each thread up to a bucket behind the others.
                        let at = start + Duration::from_millis(request * 10 + worker * 1000);
                        let request = Request::new(());
                        let head = RequestHead::from(&request);
                        let Admit::Now(Ok(mut guard)) = sla.admit(&head, at) else {
                            panic!("lets all through");
                        };
                        guard.first_data(at);
                        let end = End::new(Verdict::Success);
                        guard.finish(&end, at + Duration::from_millis(worker));
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let success = handle.snapshot().verdicts.success;
                assert!(success >= last, "no count is taken back");
                last = success;
                handle.burn(start + Duration::from_secs(200));
                thread::yield_now();
            }
        });
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    let all = THREADS * REQUESTS;
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.verdicts.success), (0, all));
    let burn = handle.burn(start + Duration::from_secs(208));
    assert_eq!(burn.availability.events, all);
    for alert in burn.availability.alerts {
        assert_eq!((alert.long.events, alert.short.events), (all, all));
    }
    assert_eq!(burn.latency.map(|latency| latency.events), Some(all));
}
