use http::Response;
use metrics::set_default_local_recorder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use crate::support::{Backend, get, ok, secondary, status};

#[tokio::test(start_paused = true)]
async fn answers_are_counted_by_who_gave_them() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = set_default_local_recorder(&recorder);
    let other = Backend::new([ok("other"), ok("other"), status(500)]);
    let layer = secondary(&other).value("value", Response::new("value"));
    let layer = layer.named(String::from("models"));
    let first = Backend::new([status(503)]);
    for _ in 0..3 {
        get(&layer, &first).await.unwrap();
    }
    layer.handle().shadow();
    get(&layer, &first).await.unwrap();
    let alone = secondary(&Backend::new([status(500)])).named("alone");
    get(&alone, &first).await.unwrap();
    get(&alone, &Backend::new([ok("first")])).await.unwrap();

    let mut counted: Vec<String> = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let labels = key.key().labels();
        let labels: Vec<_> = labels
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let DebugValue::Counter(count) = value else {
            panic!("only counters");
        };
        // What has not happened is there too, as a zero.
        if count == 0 {
            continue;
        }
        counted.push(format!("{} {} {count}", key.key().name(), labels.join(",")));
    }
    counted.sort();
    assert_eq!(
        counted,
        [
            "palisade_fallback_exhausted_total layer=alone 1",
            "palisade_fallback_served_total layer=models,by=secondary 2",
            "palisade_fallback_served_total layer=models,by=value 1",
            "palisade_fallback_shadowed_total layer=models,by=secondary 1",
        ]
    );
}
