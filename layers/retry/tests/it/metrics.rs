use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use http::Request;
use http_body_util::BodyExt;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use palisade_retry::Budget;

use crate::support::{
    Backend, Line, SECOND, fails, get, head, layer, refused_connection, send, status,
};

/// Every counter that was registered, in order.
#[derive(Default)]
struct Counters(Mutex<Vec<(String, Arc<AtomicU64>)>>);

impl Counters {
    fn all(&self) -> Vec<(String, u64)> {
        let counters = self.0.lock().unwrap();
        let counters = counters.iter();
        let mut all: Vec<_> = counters
            .map(|(key, count)| (key.clone(), count.load(Relaxed)))
            .collect();
        all.sort();
        all
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

/// Reads the request first.
fn reads_then(line: Line) -> Line {
    Arc::new(move |request| {
        let (parts, mut body) = request.into_parts();
        let line = line.clone();
        Box::pin(async move {
            drop(body.frame().await);
            line(Request::from_parts(parts, body)).await
        })
    })
}

#[tokio::test(start_paused = true)]
async fn retries_are_counted_by_verdict_and_ends_by_reason() {
    let counters = Counters::default();
    let _recorder = set_default_local_recorder(&counters);
    let layer = layer().named(String::from("models"));
    let timeout = || fails(|| std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    for script in [
        vec![status(502), status(503), status(200)],
        vec![refused_connection(), timeout(), status(200)],
        vec![status(502), status(502), status(502)],
        vec![head(503, &[("retry-after", "100")])],
    ] {
        drop(send(&layer, &Backend::new(script), get()).await);
    }
    let spent = layer.clone().budget(Budget::percent(0).reserve(0));
    drop(send(&spent, &Backend::new([status(502)]), get()).await);
    let broken = fails(|| "broken".into());
    let reads = reads_then(broken);
    drop(
        send(
            &layer.clone().replay_up_to(0),
            &Backend::new([reads]),
            get(),
        )
        .await,
    );
    let mut late = get();
    let now = palisade_core::deadline::Deadline(palisade_core::time::now() + SECOND / 20);
    late.extensions_mut().insert(now);
    drop(send(&layer, &Backend::new([status(502)]), late).await);

    let retries =
        |verdict| format!("palisade_retry_retries_total{{layer=models,verdict={verdict}}}");
    let exhausted =
        |reason| format!("palisade_retry_exhausted_total{{layer=models,reason={reason}}}");
    assert_eq!(
        counters.all(),
        [
            (exhausted("attempts"), 1),
            (exhausted("body"), 1),
            (exhausted("budget"), 1),
            (exhausted("deadline"), 1),
            (exhausted("delay"), 1),
            (retries("failure"), 3),
            (retries("overload"), 1),
            (retries("timed_out"), 1),
            (retries("unsent"), 1),
        ]
    );
}
