use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use palisade_core::{classify::Verdict, settle::Settle, testing::CountingAllocator, time::now};
use palisade_rate_limit::QuotaMirror;

use crate::{admit, answer, ended, judged, to, wait};

#[test]
fn waits_and_refusals_are_counted_without_a_key_and_room_allocates_nothing() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let mirror = QuotaMirror::new().named("llm");
            let told = [
                ("ratelimit-policy", r#""a";q=8;w=8"#),
                ("ratelimit", r#""a";r=6;t=1"#),
            ];
            answer(admit(&mirror, &to("secret.example.com")).unwrap(), &told);
            let request = to("secret.example.com");
            let mut headers = http::HeaderMap::new();
            headers.insert("ratelimit", r#""a";r=5;t=1"#.parse().unwrap());
            let before = CountingAllocator::count();
            let mut sent = admit(&mirror, &request).unwrap();
            sent.decorate(&mut headers);
            sent.finish(&ended(Verdict::Success), now());
            assert_eq!(CountingAllocator::count() - before, 0);

            answer(
                admit(&mirror, &request).unwrap(),
                &[("ratelimit", r#""a";r=0;t=1"#)],
            );
            let sent = wait(&mirror, &request).await.unwrap();
            let asks = Verdict::Overload {
                retry_after: Some(Duration::from_secs(9)),
            };
            judged(sent, Some(asks), &[("ratelimit", r#""a";r=2;t=8"#)]);
            admit(&mirror, &request).unwrap_err();
        });
    });
    let mut seen: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let value = match value {
                DebugValue::Counter(value) => value.to_string(),
                DebugValue::Gauge(value) => value.to_string(),
                DebugValue::Histogram(values) => {
                    let seconds: Vec<_> = values.iter().map(|value| value.round()).collect();
                    format!("{seconds:?}")
                }
            };
            format!("{} {} {value}", key.key().name(), labels.join(" "))
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "palisade_quota_mirror_held_total layer=llm 1",
            "palisade_quota_mirror_keys layer=llm 1",
            "palisade_quota_mirror_refused_total layer=llm 1",
            "palisade_quota_mirror_remaining_ratio layer=llm 0.25",
            "palisade_quota_mirror_wait_seconds layer=llm [1.0]",
        ]
    );
}
