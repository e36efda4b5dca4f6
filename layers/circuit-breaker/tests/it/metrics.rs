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
use palisade_circuit_breaker::{CircuitBreakerLayer, CircuitState};
use palisade_core::testing::{Answers, exchange};
use tower::Layer;

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
    });
    assert_eq!(states(&book), [0.0, 1.0, 0.0]);
}
