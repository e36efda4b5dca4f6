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
    fn add(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let count = Arc::new(AtomicU64::new(0));
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().unwrap().push((name, count.clone()));
        count
    }

    /// What this gauge was set to last.
    fn gauge(&self, name: &str) -> Option<f64> {
        let all = self.all();
        let found = all.iter().find(|(key, _)| key == name)?;
        Some(f64::from_bits(found.1))
    }

    /// Those that have counted something.
    fn all(&self) -> Vec<(String, u64)> {
        let counters = self.0.lock().unwrap();
        let counters = counters.iter();
        let mut all: Vec<_> = counters
            .map(|(key, count)| (key.clone(), count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
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
        Counter::from_arc(self.add(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.add(key))
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
    let mut all = counters.all();
    all.retain(|(name, _)| !name.starts_with("palisade_retry_budget_left"));
    assert_eq!(
        all,
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

#[tokio::test(start_paused = true)]
async fn the_gauge_shows_what_the_budget_has_left_also_when_nothing_fails_any_more() {
    const LEFT: &str = "palisade_retry_budget_left{layer=retry}";

    let counters = Counters::default();
    let _recorder = set_default_local_recorder(&counters);
    let layer = layer().budget(Budget::percent(50).reserve(4));
    send(&layer, &Backend::new([status(502), status(200)]), get())
        .await
        .unwrap();
    // The reserve and its own half, and one taken out.
    assert_eq!(counters.gauge(LEFT), Some(3.5));
    for _ in 0..3 {
        let backend = Backend::new([status(502)]);
        send(&layer, &backend, get()).await.unwrap();
    }
    let left = counters.gauge(LEFT).unwrap();
    assert!((0.0..1.0).contains(&left), "{left}");
    for _ in 0..64 {
        send(&layer, &Backend::new([status(200)]), get())
            .await
            .unwrap();
    }
    let left = counters.gauge(LEFT).unwrap();
    assert!(left > 10.0, "{left}");
    let really = layer.handle().snapshot().budget_left.unwrap();
    assert!(f64::from(really) >= left.floor(), "{really}");
}

#[tokio::test(start_paused = true)]
async fn what_shadow_would_have_made_is_counted_by_verdict() {
    let counters = Counters::default();
    let _recorder = set_default_local_recorder(&counters);
    let layer = layer()
        .budget(Budget::unlimited())
        .mode(palisade_retry::Mode::Shadow);
    send(&layer, &Backend::new([status(503)]), get())
        .await
        .unwrap();
    drop(send(&layer, &Backend::new([refused_connection()]), get()).await);
    let shadowed =
        |verdict| format!("palisade_retry_shadowed_total{{layer=retry,verdict={verdict}}}");
    assert_eq!(
        counters.all(),
        [(shadowed("overload"), 1), (shadowed("unsent"), 1)]
    );
}
