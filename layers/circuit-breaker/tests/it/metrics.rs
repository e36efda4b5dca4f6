//! What the metrics say.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Empty;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use palisade_circuit_breaker::{
    CircuitBreaker, CircuitBreakerLayer, CircuitState, KeyedCircuitBreaker, Settings, destination,
};
use palisade_core::{
    classify::Verdict,
    gate::{Gate, Outlook},
    ratio::Ratio,
    settle::{End, Settle},
    testing::{Answers, exchange},
    time::now,
};
use proptest::prelude::*;
use tower::Layer;

use crate::support::{admit_at, many};

const COOLDOWN: Duration = Duration::from_secs(5);

/// Keeps every number in a cell of its own.
#[derive(Default)]
pub(crate) struct Book {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

impl Book {
    /// By `name{value,value}`.
    pub(crate) fn read(&self, name: &str) -> f64 {
        let load = |cell: &Arc<AtomicU64>| cell.load(std::sync::atomic::Ordering::SeqCst);
        if let Some(counter) = self.counters.lock().unwrap().get(name) {
            return load(counter) as f64;
        }
        let gauges = self.gauges.lock().unwrap();
        let gauge = gauges.get(name).unwrap_or_else(|| panic!("no {name}"));
        f64::from_bits(load(gauge))
    }
}

fn cell(cells: &Mutex<BTreeMap<String, Arc<AtomicU64>>>, key: &Key) -> Arc<AtomicU64> {
    let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
    let name = format!("{}{{{}}}", key.name(), labels.join(","));
    cells.lock().unwrap().entry(name).or_default().clone()
}

impl Recorder for Book {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(cell(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(cell(&self.gauges, key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("the breaker measures no times")
    }
}

fn states(book: &Book) -> [f64; 3] {
    CircuitState::ALL.map(|state| {
        book.read(&format!(
            "palisade_circuit_breaker_state{{llm,{}}}",
            state.name()
        ))
    })
}

fn entered(book: &Book) -> [f64; 3] {
    CircuitState::ALL.map(|state| {
        let state = state.name();
        book.read(&format!(
            "palisade_circuit_breaker_transitions_total{{llm,{state}}}"
        ))
    })
}

#[test]
fn exactly_one_state_is_1_and_it_is_the_one_enforced() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let book = Book::default();
    with_local_recorder(&book, || {
        runtime.block_on(async {
            let layer = CircuitBreakerLayer::consecutive(1, COOLDOWN)
                .jitter(None)
                .named(String::from("llm"));
            let handle = layer.handle();
            let says = |status: StatusCode| {
                layer.layer(Answers(move || {
                    let mut response = Response::new(Empty::<Bytes>::new());
                    *response.status_mut() = status;
                    response
                }))
            };
            exchange(says(StatusCode::OK)).await.unwrap();
            assert_eq!(states(&book), [1.0, 0.0, 0.0]);
            assert_eq!(entered(&book), [0.0; 3]);

            exchange(says(StatusCode::BAD_GATEWAY)).await.unwrap();
            assert_eq!(states(&book), [0.0, 1.0, 0.0]);
            for _ in 0..3 {
                exchange(says(StatusCode::OK)).await.unwrap_err();
            }
            let refusals = || book.read("palisade_circuit_breaker_refusals_total{llm}");
            assert_eq!(refusals(), 3.0);

            tokio::time::advance(COOLDOWN).await;
            let mut service = says(StatusCode::OK);
            let probe = tower::Service::call(&mut service, http::Request::new(()));
            assert_eq!(states(&book), [0.0, 0.0, 1.0]);
            exchange(says(StatusCode::OK)).await.unwrap_err();
            assert_eq!(refusals(), 4.0);
            probe.await.unwrap();
            assert_eq!(states(&book), [1.0, 0.0, 0.0]);
            assert_eq!(entered(&book), [1.0, 1.0, 1.0]);

            handle.force_open();
            assert_eq!(states(&book), [0.0, 1.0, 0.0]);
            exchange(says(StatusCode::OK)).await.unwrap_err();
            assert_eq!(refusals(), 5.0);
            handle.force_closed();
            assert_eq!(states(&book), [1.0, 0.0, 0.0]);
            handle.release();
            assert_eq!(
                entered(&book),
                [2.0, 2.0, 1.0],
                "forced and not is both closed"
            );
        });
    });
}

#[test]
fn a_circuit_that_is_forced_open_before_its_first_request_is_seen() {
    let book = Book::default();
    with_local_recorder(&book, || {
        let layer = CircuitBreakerLayer::consecutive(1, COOLDOWN).named("llm");
        layer.handle().force_open();
        assert_eq!(states(&book), [0.0, 1.0, 0.0]);
    });
}

#[test]
fn circuits_of_one_name_are_counted_together_for_as_long_as_they_live() {
    let book = Book::default();
    with_local_recorder(&book, || {
        let make = || CircuitBreaker::consecutive(1, COOLDOWN).named("llm");
        let (first, second) = (make(), make());
        many(&first, Verdict::Failure, 1);
        many(&second, Verdict::Success, 1);
        assert_eq!(states(&book), [1.0, 1.0, 0.0]);
        drop(first);
        assert_eq!(states(&book), [1.0, 0.0, 0.0]);
        // An endpoint that comes back begins anew.
        let third = make();
        many(&third, Verdict::Success, 1);
        assert_eq!(states(&book), [2.0, 0.0, 0.0]);
        let call = admit_at(&second, now());
        drop(second);
        assert_eq!(states(&book), [2.0, 0.0, 0.0], "a request is under way");
        drop((third, call));
        assert_eq!(states(&book), [0.0, 0.0, 0.0]);
    });
}

#[test]
fn gauges_of_a_keyed_breaker_count_its_circuits_by_state() {
    let book = Book::default();
    with_local_recorder(&book, || {
        let settings = Settings::consecutive(1, COOLDOWN);
        let breaker = KeyedCircuitBreaker::new(settings, destination())
            .capacity(3)
            .named("llm");
        let to = |host: &str| {
            http::Request::get(format!("http://{host}/"))
                .body(())
                .unwrap()
        };
        let send = |host: &str, verdict| {
            let request = to(host);
            let palisade_core::gate::Admit::Now(decided) = breaker.admit(&(&request).into(), now())
            else {
                panic!("it decides at once");
            };
            if let Ok(mut call) = decided {
                call.settle(&End::new(verdict), now());
            }
        };
        send("bad", Verdict::Failure);
        send("a", Verdict::Success);
        send("b", Verdict::Success);
        assert_eq!(states(&book), [2.0, 1.0, 0.0]);
        send("bad", Verdict::Success);
        assert_eq!(
            book.read("palisade_circuit_breaker_refusals_total{llm}"),
            1.0
        );
        for host in ["c", "d", "e"] {
            send(host, Verdict::Success);
        }
        assert_eq!(states(&book), [2.0, 1.0, 0.0]);
        assert_eq!(
            book.read("palisade_circuit_breaker_evictions_total{llm}"),
            3.0
        );
    });
}

#[test]
fn what_shadow_lets_pass_is_counted() {
    let book = Book::default();
    with_local_recorder(&book, || {
        let breaker = CircuitBreaker::consecutive(1, COOLDOWN)
            .named("llm")
            .shadow();
        many(&breaker, Verdict::Failure, 4);
    });
    let count = |what: &str| book.read(&format!("palisade_circuit_breaker_{what}_total{{llm}}"));
    assert_eq!((count("shadowed"), count("refusals")), (3.0, 0.0));
}

#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Send,
    Settle(usize, Verdict),
    Drop(usize),
    Order(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let verdict = prop_oneof![
        Just(Verdict::Success),
        Just(Verdict::Failure),
        Just(Verdict::CallerFault),
    ];
    let event = prop_oneof![
        4 => (0_u64..8_000).prop_map(Event::Wait),
        10 => Just(Event::Send),
        8 => (any::<usize>(), verdict).prop_map(|(at, verdict)| Event::Settle(at, verdict)),
        1 => any::<usize>().prop_map(Event::Drop),
        1 => (0_u8..4).prop_map(Event::Order),
    ];
    prop::collection::vec(event, 0..150)
}

proptest! {
    #[test]
    fn under_any_schedule_one_gauge_is_1_and_a_request_meets_that_state(
        kind in 0_u8..3,
        probes in 1_u32..4,
        events in events(),
    ) {
        let book = Book::default();
        with_local_recorder(&book, || {
            let breaker = match kind {
                0 => CircuitBreaker::consecutive(2, COOLDOWN),
                1 => CircuitBreaker::window(Ratio::HALF, 4, COOLDOWN),
                _ => CircuitBreaker::time_window(Ratio::HALF, COOLDOWN, COOLDOWN),
            };
            let breaker = breaker.minimum_calls(2).probes(probes).named("llm");
            let handle = breaker.handle();
            let mut at = now();
            // The gauges are there from the first request on.
            drop(admit_at(&breaker, at));
            let gauge = || {
                let all = states(&book);
                let ones: Vec<_> = CircuitState::ALL.into_iter().zip(all).filter(|(_, it)| *it == 1.0).collect();
                assert_eq!((ones.len(), all.iter().sum::<f64>()), (1, 1.0), "{all:?}");
                ones[0].0
            };
            let mut under_way = Vec::new();
            for event in events {
                let some = |index: usize| (!under_way.is_empty()).then(|| index % under_way.len());
                match event {
                    Event::Wait(millis) => at += Duration::from_millis(millis),
                    Event::Send => {
                        let (before, outlook) = (gauge(), breaker.outlook(at));
                        let admitted = admit_at(&breaker, at);
                        let expected = match (before, outlook) {
                            (CircuitState::Closed, Outlook::Admits) => (true, CircuitState::Closed),
                            (CircuitState::Open, Outlook::Probes) => (true, CircuitState::HalfOpen),
                            (CircuitState::Open, _) => (false, CircuitState::Open),
                            (CircuitState::HalfOpen, Outlook::Probes) => (true, CircuitState::HalfOpen),
                            (CircuitState::HalfOpen, _) => (false, CircuitState::HalfOpen),
                            other => panic!("{other:?}"),
                        };
                        assert_eq!((admitted.is_ok(), gauge()), expected, "{before:?} {outlook:?}");
                        under_way.extend(admitted);
                    }
                    Event::Settle(index, verdict) => if let Some(index) = some(index) {
                        under_way.swap_remove(index).settle(&End::new(verdict), at);
                    },
                    Event::Drop(index) => if let Some(index) = some(index) {
                        drop(under_way.swap_remove(index));
                    },
                    Event::Order(0) => handle.force_open(),
                    Event::Order(1) => handle.force_closed(),
                    Event::Order(2) => handle.restore(&handle.save()),
                    Event::Order(_) => handle.release(),
                }
                assert_eq!(gauge(), handle.snapshot().state);
            }
        });
    }
}
