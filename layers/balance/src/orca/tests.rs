use base64::{Engine, engine::general_purpose};
use proptest::prelude::*;

use super::*;

fn parse(value: &str) -> Option<LoadReport> {
    LoadReport::parse(value.as_bytes())
}

fn said(utilization: impl Into<Option<f64>>, in_flight: impl Into<Option<u32>>) -> LoadReport {
    LoadReport {
        in_flight: in_flight.into(),
        utilization: utilization.into(),
        ..LoadReport::default()
    }
}

/// A message of the fields that matter, and of some that do not.
fn message(metrics: &[(&str, f64)]) -> Vec<u8> {
    let mut bytes = vec![3 << 3, 0xAC, 0x02];
    for (name, value) in metrics {
        let fixed = |tag: u8| [&[tag << 3 | 1][..], &value.to_le_bytes()].concat();
        match *name {
            "cpu_utilization" => bytes.extend(fixed(1)),
            "mem_utilization" => bytes.extend(fixed(2)),
            "rps_fractional" => bytes.extend(fixed(6)),
            "eps" => bytes.extend(fixed(7)),
            "application_utilization" => bytes.extend(fixed(9)),
            name => {
                let name = name.strip_prefix("named_metrics.").unwrap();
                let key = [&[1 << 3 | 2, name.len() as u8], name.as_bytes()].concat();
                let entry = [key, fixed(2)].concat();
                bytes.extend([8 << 3 | 2, entry.len() as u8]);
                bytes.extend(entry);
            }
        }
    }
    bytes.extend([15 << 3 | 5, 1, 2, 3, 4]);
    bytes
}

fn text_of(metrics: &[(&str, f64)]) -> String {
    let pairs: Vec<_> = metrics
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("TEXT {}", pairs.join(", "))
}

fn json_of(metrics: &[(&str, f64)]) -> String {
    let (mut outer, mut named) = (Vec::new(), Vec::new());
    for (name, value) in metrics {
        match name.strip_prefix("named_metrics.") {
            Some(name) => named.push(format!("\"{name}\": {value:?}")),
            None => outer.push(format!("\"{name}\": {value:?}")),
        }
    }
    outer.push(format!("\"named_metrics\": {{{}}}", named.join(", ")));
    format!("JSON {{{}}}", outer.join(", "))
}

fn binary_of(metrics: &[(&str, f64)]) -> String {
    format!("BIN {}", general_purpose::STANDARD.encode(message(metrics)))
}

#[test]
fn what_servers_send_is_understood() {
    for (sent, wanted) in [
        // demo-backend, before and after it said how many there are.
        (
            "TEXT cpu_utilization=1.000, rps_fractional=9.5, application_utilization=1.500, \
             named_metrics.queue_depth=2",
            said(1.5, 2),
        ),
        (
            "TEXT cpu_utilization=1.000, rps_fractional=9.5, application_utilization=1.500, \
             named_metrics.queue_depth=2, named_metrics.in_flight=6",
            said(1.5, 6),
        ),
        // vLLM, in Python and in Rust.
        (
            "TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3.0",
            said(0.25, 3),
        ),
        (
            "named_metrics.kv_cache_usage_perc=0,named_metrics.num_requests_waiting=0",
            said(0.0, 0),
        ),
        (
            r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.25, "num_requests_waiting": 3.0}}"#,
            said(0.25, 3),
        ),
        // Its `/load`, and that of demo-backend.
        (r#"{"server_load":12}"#, said(None, 12)),
        (
            r#"{"instance_id":"a, \"b\"","active":4,"queued":1,"slots":4,"simulated_load_seconds":0.5}"#,
            said(None, 5),
        ),
        // Triton.
        (
            "TEXT cpu_utilization=0.3, mem_utilization=0.8, rps_fractional=10.0, eps=1, \
             named_metrics.kv_cache_utilization=0.4",
            LoadReport {
                errors: Some(1.0 / 10.5),
                ..said(0.3, None)
            },
        ),
        // Envoy's tests, of old and of now.
        ("cpu_utilization:0.7,named_metrics.foo:0.1", said(0.7, None)),
        ("text cpu_utilization=0.7", said(0.7, None)),
        (
            r#"JSON {"cpuUtilization":"0.7","namedMetrics":{"in_flight":1}}"#,
            said(0.7, 1),
        ),
        // Names as Prometheus has them.
        (
            "TEXT named_metrics.vllm:num_requests_running=2, named_metrics.vllm:num_requests_waiting=3",
            said(None, 5),
        ),
        (
            "TEXT named_metrics.sglang:num_running_reqs=2, named_metrics.sglang:token_usage=0.5",
            said(0.5, 2),
        ),
    ] {
        assert_eq!(parse(sent), Some(wanted), "{sent}");
    }
}

#[test]
fn the_application_knows_better_than_the_processor_unless_it_says_nothing() {
    let both = |application| {
        parse(&format!(
            "TEXT cpu_utilization=0.3, application_utilization={application}"
        ))
    };
    assert_eq!(both("0.9"), Some(said(0.9, None)));
    assert_eq!(both("0"), Some(said(0.3, None)));
    assert_eq!(both("-1"), Some(said(0.3, None)));
    assert_eq!(
        parse("TEXT application_utilization=0"),
        Some(said(0.0, None))
    );
}

#[test]
fn latencies_have_a_unit() {
    let latency = |value| parse(value).and_then(|report| report.latency);
    let wanted = Some(Duration::from_millis(250));
    assert_eq!(latency("TEXT named_metrics.latency_seconds=0.25"), wanted);
    assert_eq!(latency("TEXT named_metrics.latency_ms=250"), wanted);
    assert_eq!(latency("TEXT named_metrics.latency_seconds=1e300"), None);
}

#[test]
fn errors_are_a_part_of_requests_of_which_nobody_counts_a_few() {
    let errors = |value| parse(value).and_then(|report| report.errors);
    assert_eq!(errors("TEXT eps=2, rps_fractional=7.5"), Some(0.25));
    assert_eq!(
        errors("JSON {\"eps\": 4.5, \"rpsFractional\": 4.5}"),
        Some(0.9)
    );
    assert_eq!(errors("TEXT eps=0, rps_fractional=0"), Some(0.0));
    assert_eq!(errors("TEXT eps=2"), None, "of how many?");
    assert_eq!(errors("TEXT rps_fractional=2"), None);
}

#[test]
fn errors_that_end_when_no_request_comes_are_errors_all_the_same() {
    let errors = |value| parse(value).and_then(|report| report.errors);
    assert_eq!(errors("TEXT eps=4.5, rps_fractional=0"), Some(0.9));
    assert_eq!(errors("TEXT eps=4.5, rps_fractional=0.5"), Some(0.9));
    let most = format!("TEXT eps={0}, rps_fractional={0}", f64::MAX);
    assert_eq!(errors(&most), Some(1.0));
}

#[test]
fn nonsense_does_not_count_and_the_rest_does() {
    for odd in [
        "-0.5", "NaN", "inf", "-inf", "infinity", "", "1,5", "0x1", "full", "1e999",
    ] {
        let report = parse(&format!(
            "TEXT cpu_utilization={odd}, named_metrics.in_flight=2"
        ));
        let utilization = if odd == "1,5" { Some(1.0) } else { None };
        assert_eq!(report, Some(said(utilization, 2)), "{odd}");
    }
    for odd in [
        "\"NaN\"",
        "-1",
        "true",
        "null",
        "[1, {\"a\": \"]\"}]",
        "{}",
        "\"\\\"\"",
    ] {
        let report = parse(&format!(
            "JSON {{\"cpu_utilization\": {odd}, \"active\": 2}}"
        ));
        assert_eq!(report, Some(said(None, 2)), "{odd}");
    }
    assert_eq!(
        parse("TEXT named_metrics.in_flight=1e30"),
        Some(said(None, u32::MAX))
    );
}

#[test]
fn what_is_broken_says_nothing() {
    for broken in [
        "",
        "TEXT",
        "TEXT ",
        "JSON",
        "JSON {",
        "JSON []",
        "JSON {\"active\": 1",
        "JSON {\"active\": 1}}",
        "JSON {\"active\": 1} x",
        "JSON {\"active\" 1}",
        "JSON {active: 1}",
        "JSON {\"active\": 1,}",
        "JSON {\"active\": one}",
        "JSON {\"a\": [, \"active\": 1}",
        "BIN",
        "BIN !",
        "YAML cpu_utilization",
        "=1",
        "cpu_utilization",
    ] {
        assert_eq!(parse(broken), None, "{broken}");
    }
    let long = format!("TEXT cpu_utilization=0.5, {}", "x".repeat(LONGEST));
    assert_eq!(parse(&long), None);
    assert_eq!(parse(&long[..LONGEST]), Some(said(0.5, None)));
}

#[test]
fn a_message_that_breaks_off_says_nothing() {
    let whole = message(&[("cpu_utilization", 0.5), ("named_metrics.in_flight", 7.0)]);
    let encoded = |bytes: &[u8]| general_purpose::STANDARD_NO_PAD.encode(bytes);
    let parse = |bytes: &[u8]| parse(&format!("BIN {}", encoded(bytes)));
    assert_eq!(parse(&whole), Some(said(0.5, 7)));
    // At the ends of its five fields it is a whole message; a report from the second on.
    let heard: Vec<_> = (0..whole.len())
        .filter(|&end| parse(&whole[..end]).is_some())
        .collect();
    assert_eq!(heard, [12, whole.len() - 5]);
    assert_eq!(parse(&[0xFF; 20]), None);
    assert_eq!(parse(&[1 << 3 | 3]), None, "groups are long gone");
}

#[test]
fn the_header_of_grpc_is_base64_with_or_without_padding() {
    let message = message(&[("application_utilization", 0.75)]);
    for encoded in [
        general_purpose::STANDARD.encode(&message),
        general_purpose::STANDARD_NO_PAD.encode(&message),
        general_purpose::STANDARD_NO_PAD.encode(&message) + ",AAAA",
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/grpc".parse().unwrap());
        headers.insert(BINARY, encoded.parse().unwrap());
        assert_eq!(
            LoadReport::from_headers(&headers),
            Some(said(0.75, None)),
            "{encoded}"
        );
    }
}

#[test]
fn a_request_for_a_report_is_none() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "endpoint-load-metrics-format",
        "cpu_utilization=1".parse().unwrap(),
    );
    assert_eq!(LoadReport::from_headers(&headers), None);
}

const NAMES: [&str; 10] = [
    "cpu_utilization",
    "rps_fractional",
    "eps",
    "application_utilization",
    "mem_utilization",
    "named_metrics.in_flight",
    "named_metrics.queue_depth",
    "named_metrics.num_requests_running",
    "named_metrics.latency_ms",
    "named_metrics.anything",
];

fn metrics() -> impl Strategy<Value = Vec<(&'static str, f64)>> {
    let value = prop_oneof![
        4 => 0.0..100.0,
        1 => any::<f64>(),
        1 => Just(0.0),
    ];
    let names = proptest::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len());
    names.prop_flat_map(move |names| {
        let values = proptest::collection::vec(value.clone(), names.len());
        values.prop_map(move |values| names.iter().copied().zip(values).collect())
    })
}

/// The same by looking the names up.
fn model(metrics: &[(&str, f64)]) -> Option<LoadReport> {
    let get = |wanted: &str| {
        let mut all = metrics.iter().filter(|(name, _)| name.ends_with(wanted));
        let value = all.next()?.1;
        (value.is_finite() && value >= 0.0).then_some(value)
    };
    let parts = [get("running"), get("queue_depth")];
    let sum = parts.iter().flatten().sum::<f64>();
    let in_flight = get("in_flight").or((parts != [None; 2]).then_some(sum));
    let application = get("application_utilization");
    let report = LoadReport {
        in_flight: in_flight.map(|many| many.round() as u32),
        utilization: application
            .filter(|&value| value != 0.0)
            .or(get("cpu_utilization"))
            .or(application)
            .map(f64::abs),
        latency: get("latency_ms").and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok()),
        errors: get("eps")
            .zip(get("rps_fractional"))
            .map(|(errors, all)| errors.abs() / (all.max(errors) + 0.5)),
    };
    (report != LoadReport::default()).then_some(report)
}

proptest! {
    #[test]
    fn all_forms_say_the_same(metrics in metrics()) {
        let wanted = model(&metrics);
        prop_assert_eq!(parse(&text_of(&metrics)), wanted);
        prop_assert_eq!(parse(&binary_of(&metrics)), wanted);
        if metrics.iter().all(|(_, value)| value.is_finite()) {
            prop_assert_eq!(parse(&json_of(&metrics)), wanted);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_what_they_say_is_sane(
        form in prop_oneof![Just(""), Just("TEXT "), Just("JSON "), Just("JSON {\"active\": "), Just("BIN ")],
        bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(br#"{}[]":,\=. 019eActivedin_flght"#.to_vec())],
            0..200,
        ),
    ) {
        let value = [form.as_bytes(), &bytes].concat();
        if let Some(report) = LoadReport::parse(&value)
            && let Some(utilization) = report.utilization
        {
            prop_assert!(utilization.is_finite() && utilization >= 0.0);
        }
        binary::parse(&bytes);
    }
}
