//! What threads do at the same time, and that the short cuts change nothing.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32},
        mpsc,
    },
    thread,
};

use super::*;
use crate::{CircuitBreaker, gate::Call};
use palisade_core::{
    classify::{Http, Verdict},
    gate::{Admit, Gate},
    head::RequestHead,
    ratio::Ratio,
    settle::{Settle, Watch},
    time,
};

const COOLDOWN: Duration = Duration::from_secs(5);

fn end(verdict: Verdict) -> End {
    End::new(verdict)
}

fn admit(breaker: &CircuitBreaker, now: Instant) -> Result<Call, String> {
    let request = http::Request::new(());
    match breaker.admit(&RequestHead::from(&request), now) {
        Admit::Now(decided) => decided.map_err(|rejected| format!("{rejected:?}")),
        Admit::Later(_) => Err("a breaker decides at once".into()),
    }
}

/// A breaker whose next request is a probe, and the time from which on it is.
fn due() -> (CircuitBreaker, Instant) {
    let breaker = CircuitBreaker::consecutive(1, COOLDOWN).jitter(None);
    let now = time::now();
    admit(&breaker, now)
        .unwrap()
        .settle(&end(Verdict::Failure), now);
    (breaker, now + COOLDOWN)
}

fn one_probe_passes_and_closes(breaker: &CircuitBreaker, now: Instant) {
    let mut probe = admit(breaker, now).expect("room for a probe");
    admit(breaker, now).expect_err("there is room for one");
    probe.settle(&end(Verdict::Success), now);
    assert_eq!(breaker.outlook(now), Outlook::Admits);
}

#[test]
fn a_panic_under_the_lock_poisons_nothing() {
    let (breaker, now) = due();
    let shared = breaker.shared().clone();
    let thread = thread::spawn(move || shared.change(|_| panic!("on purpose")));
    assert!(thread.join().is_err());
    one_probe_passes_and_closes(&breaker, now);
}

#[test]
fn a_panic_while_another_thread_holds_the_lock_gives_its_place_back() {
    let (breaker, now) = due();
    let probe = admit(&breaker, now).unwrap();
    let (inside, unwinding) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            breaker.shared().change(|_| {
                inside.wait();
                while !unwinding.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            });
        });
        let panics = scope.spawn(|| {
            let _watch = Watch::new(probe, Http, now);
            // Dropped before the watch, so the lock is held until this thread unwinds.
            let _signal = Signal(&unwinding);
            inside.wait();
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.join().is_err());
        holder.join().unwrap();
    });
    one_probe_passes_and_closes(&breaker, now);
}

struct Signal<'a>(&'a AtomicBool);

impl Drop for Signal<'_> {
    fn drop(&mut self) {
        assert!(thread::panicking());
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_lock_is_not_taken_by_what_has_nothing_to_say() {
    let breaker = CircuitBreaker::consecutive(2, COOLDOWN);
    let now = time::now();
    drop(admit(&breaker, now));
    with_the_lock_taken(&breaker, || {
        for verdict in [Verdict::Success, Verdict::CallerFault, Verdict::Canceled] {
            let mut call = admit(&breaker, now).unwrap();
            call.first_data(now);
            call.settle(&end(verdict), now);
        }
    });
    breaker.handle().force_open();
    with_the_lock_taken(&breaker, || assert!(admit(&breaker, now).is_err()));

    let (breaker, due) = due();
    with_the_lock_taken(&breaker, || {
        assert!(admit(&breaker, due - Duration::from_nanos(1)).is_err());
    });
    let _probe = admit(&breaker, due);
    with_the_lock_taken(&breaker, || assert!(admit(&breaker, due).is_err()));
}

/// Fails when `act` needs the lock, which is let go then.
fn with_the_lock_taken(breaker: &CircuitBreaker, act: impl FnOnce() + Send) {
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        breaker.shared().look(|_| {
            scope.spawn(move || {
                act();
                done.send(()).unwrap();
            });
            let waited = is_done.recv_timeout(Duration::from_secs(10));
            assert_eq!(waited, Ok(()), "it waits for the lock");
        });
    });
}

#[test]
fn a_success_is_heard_while_a_row_has_begun() {
    let breaker = CircuitBreaker::consecutive(2, COOLDOWN);
    let now = time::now();
    for verdict in [Verdict::Failure, Verdict::Success, Verdict::Failure] {
        admit(&breaker, now).unwrap().settle(&end(verdict), now);
    }
    assert_eq!(breaker.outlook(now), Outlook::Admits);
}

#[test]
fn in_flight_probes_are_never_more_than_the_permits_among_64_threads() {
    // Of so many, this many have passed, so there are so many permits.
    for (probes, passed, permits) in [(1, 0, 1), (8, 0, 1), (8, 3, 4), (8, 6, 2)] {
        let breaker = CircuitBreaker::consecutive(1, COOLDOWN)
            .jitter(None)
            .probes(probes);
        let now = time::now();
        admit(&breaker, now)
            .unwrap()
            .settle(&end(Verdict::Failure), now);
        let now = now + COOLDOWN;
        for _ in 0..passed {
            admit(&breaker, now)
                .unwrap()
                .settle(&end(Verdict::Success), now);
        }

        let (in_flight, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let start = Barrier::new(64);
        thread::scope(|scope| {
            for number in 0..64 {
                let (breaker, start) = (&breaker, &start);
                let (in_flight, most) = (&in_flight, &most);
                scope.spawn(move || {
                    start.wait();
                    for turn in 0..200 {
                        let Ok(mut probe) = admit(breaker, now) else {
                            thread::yield_now();
                            continue;
                        };
                        let out = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(out, Ordering::SeqCst);
                        thread::yield_now();
                        in_flight.fetch_sub(1, Ordering::SeqCst);
                        // Every way to give a place back without a word on the service.
                        match (number + turn) % 3 {
                            0 => probe.settle(&end(Verdict::Canceled), now),
                            1 => probe.settle(&end(Verdict::CallerFault), now),
                            _ => drop(probe),
                        }
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((1..=permits).contains(&most), "{most} of {permits}");

        // Nothing was lost on the way: as many as are still needed pass and close it.
        for _ in passed..probes {
            assert_eq!(breaker.outlook(now), Outlook::Probes);
            admit(&breaker, now)
                .unwrap()
                .settle(&end(Verdict::Success), now);
        }
        assert_eq!(breaker.outlook(now), Outlook::Admits);
    }
}

#[test]
fn in_flight_probes_are_never_more_than_the_permits_while_64_threads_ramp_them_up() {
    const PROBES: u32 = 5_000;
    let breaker = CircuitBreaker::consecutive(1, COOLDOWN)
        .jitter(None)
        .probes(PROBES);
    let now = time::now();
    admit(&breaker, now)
        .unwrap()
        .settle(&end(Verdict::Failure), now);
    let now = now + COOLDOWN;
    // Each is counted before it passes, and out of flight before that too: neither hides one too many.
    let (in_flight, passing, most) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let start = Barrier::new(64);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                start.wait();
                while breaker.outlook(now) != Outlook::Admits {
                    let Ok(mut probe) = admit(&breaker, now) else {
                        thread::yield_now();
                        continue;
                    };
                    let out = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                    let permits = passing.load(Ordering::SeqCst) + 1;
                    if passing.load(Ordering::SeqCst) < PROBES - 64 {
                        assert!(out <= permits, "{out} of {permits}");
                        most.fetch_max(out, Ordering::SeqCst);
                    }
                    thread::yield_now();
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                    passing.fetch_add(1, Ordering::SeqCst);
                    probe.settle(&end(Verdict::Success), now);
                }
            });
        }
    });
    assert!(most.into_inner() > 1, "they were not out together");
    assert_eq!(breaker.handle().snapshot().opened_total, 1);
}

#[test]
fn no_race_of_verdicts_among_threads_wedges_any_kind() {
    let seconds = Duration::from_secs;
    for kind in [
        CircuitBreaker::window(Ratio::HALF, 4, COOLDOWN),
        CircuitBreaker::time_window(Ratio::HALF, seconds(20), COOLDOWN),
        CircuitBreaker::consecutive(2, COOLDOWN).slow_calls(Ratio::HALF, seconds(60)),
        CircuitBreaker::consecutive(2, COOLDOWN).longest_half_open(seconds(1)),
    ] {
        races(&kind);
    }
}

fn races(kind: &CircuitBreaker) {
    let breaker = kind
        .clone()
        .jitter(None)
        .minimum_calls(1)
        .probes(2)
        .probe_timeout(COOLDOWN);
    let start = time::now();
    thread::scope(|scope| {
        for number in 0_u64..16 {
            let breaker = &breaker;
            scope.spawn(move || {
                let mut random = crate::cooldown::Random::new(number + 1);
                for turn in 0_u64..500 {
                    let now = start + Duration::from_secs(turn / 2);
                    let Ok(mut call) = admit(breaker, now) else {
                        continue;
                    };
                    let draw = random.draw() >> 32;
                    if draw & 8 == 0 {
                        call.first_data(now);
                    }
                    match draw % 8 {
                        0 | 1 => call.settle(&end(Verdict::Failure), now),
                        2..=4 => call.settle(&end(Verdict::Success), now),
                        5 => call.settle(&end(Verdict::Canceled), now),
                        6 => std::mem::forget(call),
                        _ => drop(call),
                    }
                }
            });
        }
    });
    let opened = breaker.handle().snapshot().opened_total;
    assert!(opened > 3, "it was hardly tested: opened {opened} times");
    let mut now = start + Duration::from_secs(3600);
    for _ in 0..4 {
        match admit(&breaker, now) {
            Ok(mut call) => call.settle(&end(Verdict::Success), now),
            // Half-open for too long, it has opened once more.
            Err(_) => now += COOLDOWN * 20,
        }
    }
    assert_eq!(breaker.outlook(now), Outlook::Admits);
}
