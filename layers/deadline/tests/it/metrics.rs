use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::Request;
use http_body_util::BodyExt;
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder, with_local_recorder,
};
use palisade_core::{deadline::Deadline, testing::Step, time};
use palisade_deadline::{Adaptive, AttemptTimeoutLayer, DeadlineLayer, Mode, Need, Timeouts};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};

use crate::support::{SECOND, answer, mock};

/// Every counter that was registered, in order.
#[derive(Default)]
struct Counters(Mutex<Vec<(String, Arc<AtomicU64>)>>);

impl Counters {
    /// Those that have counted something.
    fn all(&self) -> Vec<(String, u64)> {
        let counters = self.0.lock().unwrap();
        let counters = counters.iter();
        counters
            .map(|(key, count)| (key.clone(), count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let (name, count) = (full_name(key), Arc::new(AtomicU64::new(0)));
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

fn full_name(key: &Key) -> String {
    let labels = key.labels();
    let labels: Vec<_> = labels
        .map(|label| format!("{}={}", label.key(), label.value()))
        .collect();
    format!("{}{{{}}}", key.name(), labels.join(","))
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_refusals_are_counted_under_the_name_of_the_layer() {
    let counters = Counters::default();
    let _recorder = set_default_local_recorder(&counters);
    let (mut service, _backend) = mock(DeadlineLayer::new(SECOND).named(String::from("edge")));
    for _ in 0..2 {
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline(time::now()));
        let mut call = task::spawn(service.call(request));
        assert_ready_err!(call.poll());
    }
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    tokio::time::advance(SECOND).await;
    assert_ready_err!(call.poll());
    let name = |reason| {
        format!("palisade_deadline_elapsed_total{{layer=edge,reason={reason},limit=deadline}}")
    };
    let all = vec![(name("deadline_exceeded"), 2), (name("timed_out"), 1)];
    assert_eq!(counters.all(), all);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_is_counted_apart_and_each_limit_has_its_label() {
    let counters = Counters::default();
    let _recorder = set_default_local_recorder(&counters);
    let timeouts = Timeouts::none().first_byte(SECOND).total(2 * SECOND);
    let layer = AttemptTimeoutLayer::new(timeouts).shadow();
    let handle = layer.handle();
    let (mut service, _backend) = mock(&layer);
    let mut call = task::spawn(service.call(Request::new(())));
    for _ in 0..2 {
        assert_pending!(call.poll());
        tokio::time::advance(SECOND).await;
        assert_pending!(call.poll());
    }
    handle.set_mode(Mode::Enforce);
    let (mut service, _backend) = mock(&layer);
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    tokio::time::advance(SECOND).await;
    assert_ready_err!(call.poll());
    let name = |what, limit| {
        format!(
            "palisade_deadline_{what}_total{{layer=attempt_timeout,reason=timed_out,limit={limit}}}"
        )
    };
    let all = vec![
        (name("elapsed", "first_byte"), 1),
        (name("shadowed", "first_byte"), 1),
        (name("shadowed", "total"), 1),
    ];
    assert_eq!(counters.all(), all);
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_timeout_and_a_median_are_gauges() {
    let gauges = Gauges::default();
    let adaptive = Adaptive::between(SECOND, 5 * SECOND);
    let attempt = AttemptTimeoutLayer::first_byte(adaptive).named("inner");
    let deadline = DeadlineLayer::new(60 * SECOND).refuse_below_median(Need::Whole);
    let stack = (deadline, attempt);
    for _ in 0..120 {
        let (mut service, mut backend) = mock(&stack);
        let mut call = task::spawn(with_local_recorder(&gauges, || {
            service.call(Request::new(()))
        }));
        assert_pending!(call.poll());
        let (_, reply) = backend.next_request().await.unwrap();
        tokio::time::advance(2 * SECOND / 5).await;
        reply.send_response(answer([Step::Data("x")]));
        let response = assert_ready_ok!(call.poll());
        response.into_body().collect().await.unwrap();
    }
    let gauges = gauges.0.lock().unwrap();
    let timeout = gauges["palisade_deadline_timeout_seconds{layer=inner,limit=first_byte}"];
    assert_eq!(timeout, 1.0);
    let median = gauges["palisade_deadline_median_seconds{layer=deadline}"];
    assert!((0.4..0.43).contains(&median), "{median}");
}

/// The last value of every gauge.
#[derive(Default)]
struct Gauges(Arc<Mutex<HashMap<String, f64>>>);

struct Kept(String, Arc<Mutex<HashMap<String, f64>>>);

impl GaugeFn for Kept {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        self.1.lock().unwrap().insert(self.0.clone(), value);
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Kept(full_name(key), self.0.clone())))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
