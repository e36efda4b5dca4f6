use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use http::{Request, StatusCode};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use palisade_balance::{Ejection, Endpoint, Endpoints, Health};
use palisade_core::{
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
};
use tokio::time::Instant;
use tokio_test::{assert_pending, task};
use tower::ServiceExt;

use crate::support::{Fake, MS, balance, load, send, send_to};

/// What is not zero, as `name{label=value,...}`.
pub(crate) fn seen(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    all.filter_map(|(key, _, _, value)| {
        let (_, key) = key.into_parts();
        let mut labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.0,
            DebugValue::Histogram(_) => return None,
        };
        let name = key
            .name()
            .trim_start_matches("palisade_balance_")
            .to_owned();
        (value != 0.0).then(|| (format!("{name}{{{}}}", labels.join(",")), value))
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_reports_attempts_and_state_under_the_name_of_the_set() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let endpoints = Endpoints::named("chat");
    let fakes: Vec<_> = (0..3).map(|_| Fake::new(10)).collect();
    metrics::with_local_recorder(&recorder, || {
        for (at, fake) in fakes.iter().enumerate() {
            endpoints.insert(Endpoint::new(at.to_string(), fake.clone()));
        }
    });
    let service = balance(&endpoints);
    let label = |at: usize| format!("endpoint={at},layer=chat");
    assert_eq!(
        seen(&snapshotter)[&format!("endpoint_state{{{},state=slow_start}}", label(0))],
        1.0
    );

    fakes[0].kill();
    load(&service, 20, MS * 5).await;
    let lost = fakes[0].calls();
    for _ in lost..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    let after = seen(&snapshotter);
    assert_eq!(
        after[&format!("ejections_total{{{},reason=consecutive}}", label(0))],
        1.0
    );
    assert_eq!(
        after[&format!("attempts_total{{{},verdict=unsent}}", label(0))],
        5.0
    );
    assert_eq!(
        after[&format!("endpoint_state{{{},state=ejected}}", label(0))],
        1.0
    );
    assert!(!after.contains_key(&format!("endpoint_state{{{},state=slow_start}}", label(0))));
    assert!(after[&format!("attempts_total{{{},verdict=success}}", label(1))] > 5.0);
    assert!(
        !after.keys().any(|key| key.starts_with("in_flight")),
        "{after:?}"
    );

    let mut sent = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(sent.poll());
    let now = seen(&snapshotter);
    let in_flight: f64 = now
        .iter()
        .filter(|(key, _)| key.starts_with("in_flight"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(in_flight, 1.0);
    drop(sent);

    endpoints.set_health("1", Health::Unhealthy);
    assert_eq!(
        seen(&snapshotter)[&format!("endpoint_state{{{},state=unhealthy}}", label(1))],
        1.0
    );
    endpoints.remove("1");
    let left = seen(&snapshotter);
    assert!(
        !left
            .keys()
            .any(|key| key.starts_with("endpoint_state{endpoint=1")),
        "{left:?}"
    );
    fakes[2].now(1, StatusCode::OK);
    send(&service).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shadow_and_a_panic_are_reported_apart() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let endpoints = Endpoints::named("chat");
    endpoints.set_ejection(Ejection::default().shadow());
    let fakes: Vec<_> = (0..4).map(|_| Fake::new(10)).collect();
    metrics::with_local_recorder(&recorder, || {
        for (at, fake) in fakes.iter().enumerate() {
            endpoints.insert(Endpoint::new(at.to_string(), fake.clone()));
        }
    });
    let service = balance(&endpoints);
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    let now = seen(&snapshotter);
    let shadowed = "shadowed_ejections_total{endpoint=0,layer=chat,reason=consecutive}";
    assert_eq!(now[shadowed], 1.0);
    assert!(!now.keys().any(|key| key.starts_with("ejections_total")));

    let panic = "panic{layer=chat}";
    for name in ["1", "2"] {
        endpoints.set_health(name, Health::Unhealthy);
        assert!(!seen(&snapshotter).contains_key(panic), "{name}");
    }
    endpoints.set_health("3", Health::Unhealthy);
    assert_eq!(seen(&snapshotter)[panic], 1.0);
    endpoints.set_health("3", Health::Healthy);
    assert!(!seen(&snapshotter).contains_key(panic));
}

/// Says that all may pass, and counts how often it is asked.
#[derive(Clone)]
struct Counted(Arc<AtomicUsize>);

impl Gate for Counted {
    type Guard = ();

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Ok(()))
    }

    fn outlook(&self, _: Instant) -> Outlook {
        self.0.fetch_add(1, Relaxed);
        Outlook::Admits
    }
}

#[tokio::test(start_paused = true)]
async fn to_change_ejection_looks_at_each_endpoint_and_not_at_each_for_each() {
    let (asked, endpoints) = (Arc::new(AtomicUsize::new(0)), Endpoints::named("chat"));
    for at in 0..100 {
        let gate = Counted(asked.clone());
        endpoints.insert(Endpoint::new(at.to_string(), Fake::new(10)).gate(gate));
    }
    asked.store(0, Relaxed);
    endpoints.set_ejection(Ejection::off());
    let asked = asked.load(Relaxed);
    assert!((1..=300).contains(&asked), "{asked}");
}
