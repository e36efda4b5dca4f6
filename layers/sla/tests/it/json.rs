//! Field names, which other programs read.

use std::time::Duration;

use palisade_core::time;
use palisade_sla::Targets;
use serde_json::{Value, to_value};

use crate::layer;

fn fields(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

fn has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name} in {:?}", fields(value));
    }
}

#[tokio::test(start_paused = true)]
async fn a_summary_has_the_fields_that_others_read() {
    let handle = layer().handle();
    let summary = to_value(handle.summary(Duration::from_secs(300))).unwrap();
    has(
        &summary,
        &[
            "time_window_minutes",
            "total_requests",
            "successful_requests",
            "error_count",
        ],
    );
    let latency = [
        "avg_seconds",
        "p50_seconds",
        "p95_seconds",
        "p99_seconds",
        "max_seconds",
    ];
    has(&summary["latency_metrics"], &latency);
    has(&summary["first_data_metrics"], &latency);
    has(&summary["between_tokens_metrics"], &latency);
    has(&summary["between_tokens_metrics"], &["longest_gap_seconds"]);
    has(&summary, &["queue_depth", "trend"]);
    let throughput = ["requests_per_minute", "requests_per_second"];
    has(&summary["throughput_metrics"], &throughput);
    has(
        &summary["error_metrics"],
        &["error_rate_percent", "errors_per_minute"],
    );
    let tokens = ["avg_tokens_per_second", "max_tokens_per_second"];
    has(&summary["token_metrics"], &tokens);
    let compliance = &summary["sla_compliance"];
    for target in ["latency", "throughput", "error_rate"] {
        has(
            &compliance[target],
            &["compliant", "current", "target", "variance_percent"],
        );
    }
    has(compliance, &["cpu_usage", "memory_usage"]);
    has(&compliance["overall"], &["compliant", "compliance_score"]);
    assert_eq!(summary["total_requests"], 0);
    assert_eq!(summary["latency_metrics"]["p99_seconds"], 0.0);
    assert_eq!(summary["sla_compliance"]["latency"]["target"], 2.0);
}

#[tokio::test(start_paused = true)]
async fn burn_rates_say_what_fires_and_why() {
    let handle = layer().handle();
    let burn = to_value(handle.burn(time::now())).unwrap();
    assert_eq!(fields(&burn), ["availability", "latency", "period_seconds"]);
    assert_eq!(burn["period_seconds"], 2_592_000.0);
    assert_eq!(burn["latency"]["limit_seconds"], 1.0);
    assert_eq!(burn["availability"]["error_budget_left"], 1.0);
    let alerts = burn["availability"]["alerts"].as_array().unwrap();
    let expected = [
        ("page", 14.4, 3600.0, 300.0),
        ("page", 6.0, 21_600.0, 1800.0),
        ("ticket", 3.0, 86_400.0, 7200.0),
        ("ticket", 1.0, 259_200.0, 21_600.0),
    ];
    assert_eq!(alerts.len(), expected.len());
    for (alert, (kind, above, long, short)) in alerts.iter().zip(expected) {
        assert_eq!(
            (&alert["kind"], &alert["above"]),
            (&kind.into(), &above.into())
        );
        assert_eq!(alert["long"]["window_seconds"], long);
        assert_eq!(alert["short"]["window_seconds"], short);
        assert_eq!(alert["long"]["burn_rate"], 0.0);
        assert_eq!(alert["firing"], false);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_counts_by_verdict() {
    let snapshot = to_value(layer().handle().snapshot()).unwrap();
    assert_eq!(
        (&snapshot["name"], &snapshot["in_flight"]),
        (&"sla".into(), &0.into())
    );
    assert_eq!(snapshot["verdicts"]["rate_limited"], 0);
}

#[test]
fn targets_are_read_by_name_and_strangers_refused() {
    let targets: Targets = serde_json::from_str(r#"{"latency_seconds": 0.5}"#).unwrap();
    assert_eq!((targets.latency_seconds, targets.error_rate), (0.5, 0.01));
    assert!(serde_json::from_str::<Targets>(r#"{"latency": 0.5}"#).is_err());
}

#[tokio::test(start_paused = true)]
async fn labels_have_the_fields_of_a_summary() {
    let layer = layer().by("route", |head| Some(head.uri.path())).unwrap();
    crate::serve(&layer, http::StatusCode::OK, Duration::from_secs(1)).await;
    let summary = to_value(layer.handle().summary(Duration::from_secs(60))).unwrap();
    let all = to_value(layer.handle().labels(Duration::from_secs(60))).unwrap();
    assert_eq!(all[0]["dimension"], "route");
    let mut label = all[0]["labels"][0].as_object().unwrap().clone();
    assert_eq!(label.remove("label"), Some("/".into()));
    assert_eq!(label["total_requests"], 1);
    for (name, value) in label {
        let of_all = summary.get(&name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(value.is_object(), of_all.is_object(), "{name}");
    }
}
