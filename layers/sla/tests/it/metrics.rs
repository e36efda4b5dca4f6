//! What a recorder hears.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use palisade_core::classify::Usage;

use crate::{layer, serve};

/// `name{label=value,...}` and what it stands at.
fn values(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    all.map(|(key, _, _, value)| {
        let labels = key.key().labels();
        let labels: Vec<_> = labels
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = format!("{}{{{}}}", key.key().name(), labels.join(","));
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(samples) => {
                samples.iter().map(|sample| sample.into_inner()).sum()
            }
        };
        (name, value)
    })
    .collect()
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn requests_tokens_and_burn_rates_are_reported_by_name_and_verdict() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = paused();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let layer = layer().named("chat");
            let handle = layer.handle();
            serve(&layer, StatusCode::OK, Duration::from_millis(250)).await;
            serve(&layer, StatusCode::BAD_GATEWAY, Duration::from_millis(500)).await;
            serve(&layer, StatusCode::NOT_FOUND, Duration::from_secs(9)).await;
            let usage = Usage {
                prompt: 3,
                completion: 4,
            };
            handle.add_usage(usage, Duration::from_secs(1));
            handle.publish();
        });
    });
    let values = values(&snapshotter);
    for (name, expected) in [
        (
            "palisade_sla_requests_total{layer=chat,verdict=success}",
            1.0,
        ),
        (
            "palisade_sla_requests_total{layer=chat,verdict=failure}",
            1.0,
        ),
        (
            "palisade_sla_requests_total{layer=chat,verdict=caller_fault}",
            1.0,
        ),
        (
            "palisade_sla_requests_total{layer=chat,verdict=canceled}",
            0.0,
        ),
        ("palisade_sla_duration_seconds{layer=chat}", 0.75),
        ("palisade_sla_first_data_seconds{layer=chat}", 0.25),
        ("palisade_sla_in_flight{layer=chat}", 0.0),
        ("palisade_sla_tokens_total{layer=chat,kind=input}", 3.0),
        ("palisade_sla_tokens_total{layer=chat,kind=output}", 4.0),
        (
            "palisade_sla_error_budget_left_ratio{layer=chat,rule=availability}",
            -499.0,
        ),
        (
            "palisade_sla_error_budget_left_ratio{layer=chat,rule=latency}",
            1.0,
        ),
        (
            "palisade_sla_burn_rate_ratio{layer=chat,rule=availability,window=5m}",
            500.0,
        ),
        (
            "palisade_sla_burn_rate_ratio{layer=chat,rule=latency,window=3d}",
            0.0,
        ),
        (
            "palisade_sla_alert_firing{layer=chat,rule=availability,kind=page}",
            0.0,
        ),
    ] {
        let found = values
            .get(name)
            .unwrap_or_else(|| panic!("{name} in {values:#?}"));
        assert!((found - expected).abs() < 1e-6, "{name}: {found}");
    }
    let gauges = values
        .keys()
        .filter(|name| name.contains("burn_rate"))
        .count();
    assert_eq!(gauges, 14, "seven windows of two objectives");
}

#[test]
fn an_alert_of_a_promise_that_is_no_longer_made_does_not_fire_for_ever() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = paused();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let layer = layer().named("chat");
            let handle = layer.handle();
            for _ in 0..100 {
                serve(&layer, StatusCode::OK, Duration::from_millis(1001)).await;
            }
            handle.publish();
            let key = "palisade_sla_alert_firing{layer=chat,rule=latency,kind=page}";
            assert_eq!(
                handle.burn(palisade_core::time::now()).firing(),
                Some(palisade_sla::AlertKind::Page)
            );
            // Looking at this recorder sets its gauges back, so it is done once.
            handle.update(palisade_sla::Objective::success(0.999).unwrap());
            handle.publish();
            let values = values(&snapshotter);
            assert_eq!(values[key], 0.0);
            let rates = values
                .iter()
                .filter(|(name, _)| name.contains("rule=latency,window"));
            assert!(rates.clone().all(|(_, rate)| rate.is_nan()), "{values:#?}");
            assert_eq!(rates.count(), 7);
            let left = "palisade_sla_error_budget_left_ratio{layer=chat,rule=";
            assert!(values[&format!("{left}latency}}")].is_nan());
            assert_eq!(values[&format!("{left}availability}}")], 1.0);
        });
    });
}

#[test]
fn what_was_never_promised_has_no_series() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let objective = palisade_sla::Objective::success(0.999).unwrap();
        palisade_sla::Sla::new(objective).handle().publish();
    });
    let values = values(&snapshotter);
    assert!(
        !values.keys().any(|name| name.contains("latency")),
        "{values:#?}"
    );
    assert!(!values.is_empty());
}

#[test]
fn labels_are_reported_when_asked_for_and_as_many_as_have_a_place() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = paused();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let layer = layer()
                .named("chat")
                .by("route", |head| Some(head.uri.path()))
                .unwrap();
            serve(&layer, StatusCode::OK, Duration::ZERO).await;
            layer.handle().publish();
            let quiet = values(&snapshotter);
            assert!(
                !quiet.keys().any(|name| name.contains("sla_label")),
                "{quiet:?}"
            );
            let layer = layer.publish_labels();
            serve(&layer, StatusCode::BAD_GATEWAY, Duration::ZERO).await;
            let _held = layer.gate().labelled("endpoint", "gpu-1").unwrap();
            layer.handle().publish();
            let values = values(&snapshotter);
            let of = |name: &str| {
                let key = format!("palisade_sla_label_{name}");
                *values
                    .get(&key)
                    .unwrap_or_else(|| panic!("{key} in {values:#?}"))
            };
            let route = "layer=chat,dimension=route,label=/";
            assert_eq!(of(&format!("requests_total{{{route},standing=good}}")), 1.0);
            assert_eq!(of(&format!("requests_total{{{route},standing=bad}}")), 1.0);
            assert_eq!(
                of(&format!("requests_total{{{route},standing=left_out}}")),
                0.0
            );
            assert_eq!(of(&format!("in_flight{{{route}}}")), 0.0);
            assert_eq!(
                of("in_flight{layer=chat,dimension=endpoint,label=gpu-1}"),
                0.0
            );
        });
    });
}

#[test]
fn counts_of_a_label_that_was_let_go_of_never_go_back() {
    const WINDOW: Duration = Duration::from_secs(300);
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = paused();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let layer = layer().named("chat").publish_labels();
            let handle = layer.handle();
            for lives in 0..3 {
                let endpoint = layer.gate().labelled("endpoint", "gpu-1").unwrap();
                for _ in 0..10 - lives {
                    crate::serve_by(&endpoint).await;
                }
                // What it counted since it was told of last is not lost with it.
                drop(endpoint);
                tokio::time::advance(2 * WINDOW).await;
                handle.publish();
                assert!(handle.label("endpoint", "gpu-1", WINDOW).is_none());
            }
        });
    });
    let key = "palisade_sla_label_requests_total{layer=chat,dimension=endpoint,label=gpu-1,standing=good}";
    assert_eq!(values(&snapshotter)[key], 10.0 + 9.0 + 8.0);
}
