use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use http::Request;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use palisade_core::{deadline::Deadline, time};
use palisade_deadline::DeadlineLayer;
use tokio_test::{assert_pending, assert_ready_err, task};

use crate::support::{SECOND, mock};

/// Every counter that was registered, in order.
#[derive(Default)]
struct Counters(Mutex<Vec<(String, Arc<AtomicU64>)>>);

impl Counters {
    fn all(&self) -> Vec<(String, u64)> {
        let counters = self.0.lock().unwrap();
        let counters = counters.iter();
        counters
            .map(|(key, count)| (key.clone(), count.load(Relaxed)))
            .collect()
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let count = Arc::new(AtomicU64::new(0));
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().unwrap().push((name, count.clone()));
        Counter::from_arc(count)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_refusals_are_counted_under_the_name_of_the_layer() {
    let counters = Counters::default();
    let (mut service, _backend) = mock(DeadlineLayer::new(SECOND).named(String::from("edge")));
    for _ in 0..2 {
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline(time::now()));
        let mut call = task::spawn(service.call(request));
        with_local_recorder(&counters, || assert_ready_err!(call.poll()));
    }
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    tokio::time::advance(SECOND).await;
    with_local_recorder(&counters, || assert_ready_err!(call.poll()));
    let name = |reason| format!("palisade_deadline_elapsed_total{{layer=edge,reason={reason}}}");
    let all = vec![(name("deadline_exceeded"), 2), (name("timed_out"), 1)];
    assert_eq!(counters.all(), all);
}
