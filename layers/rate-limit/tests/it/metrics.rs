use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use palisade_core::{testing::CountingAllocator, time::now};
use palisade_rate_limit::{Headers, Quota, RateLimit, Rule};

use crate::{STRATEGIES, admit, from, per_user};

#[test]
fn decisions_are_counted_by_rule_and_reason_and_allocate_nothing() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let limit = RateLimit::rules([
            Rule::new("global", Quota::per_day(3)).strategy(STRATEGIES[1]),
            per_user(Quota::per_minute(2)),
            Rule::new("tokens", Quota::per_day(9)).cost(|head| head.headers.len() as u64 * 5 - 4),
        ])
        .unwrap()
        .headers(Headers::Off)
        .named("front");
        let at = now();
        let alice = from("alice");
        admit(&limit, &alice, at).unwrap();
        let before = CountingAllocator::count();
        admit(&limit, &alice, at).unwrap();
        assert_eq!(CountingAllocator::count() - before, 0);
        admit(&limit, &alice, at).unwrap_err();
        admit(&limit, &from("bob"), at).unwrap();
        admit(&limit, &from("carol"), at).unwrap_err();
        let mut dear = from("carol");
        dear.headers_mut().append("x-more", 1.into());
        dear.headers_mut().append("x-more", 2.into());
        admit(&limit, &dear, at).unwrap_err();
    });
    let mut seen: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| label.value().to_owned())
                .collect();
            let value = match value {
                DebugValue::Counter(0) => return None,
                DebugValue::Counter(value) => value,
                DebugValue::Gauge(value) => value.into_inner() as u64,
                DebugValue::Histogram(_) => panic!("there is none"),
            };
            Some(format!("{} {} {value}", key.key().name(), labels.join(" ")))
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "palisade_rate_limit_admitted_total front global 3",
            "palisade_rate_limit_admitted_total front per_user 3",
            "palisade_rate_limit_admitted_total front tokens 3",
            "palisade_rate_limit_keys front global 0",
            "palisade_rate_limit_keys front per_user 2",
            "palisade_rate_limit_keys front tokens 0",
            "palisade_rate_limit_refused_total front global quota_exhausted 1",
            "palisade_rate_limit_refused_total front per_user rate_limited 1",
            "palisade_rate_limit_refused_total front tokens cost_exceeds_quota 1",
        ]
    );
}
