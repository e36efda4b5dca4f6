use metrics::set_default_local_recorder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use palisade_chaos::{After, Delay, Fault};

use crate::support::{MILLI, chaos, request, send, text};

#[tokio::test(start_paused = true)]
async fn faults_are_counted_by_name_when_they_strike() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = set_default_local_recorder(&recorder);
    let slow = Fault::latency(Delay::constant(MILLI)).named("slow");
    let layer = chaos([
        slow,
        Fault::abort(After::Bytes(2)),
        Fault::stall(After::Bytes(9)),
    ]);
    let layer = layer.named("payments");
    for _ in 0..2 {
        let response = send(&layer, request()).await.unwrap();
        assert!(text(response.into_body()).await.1.is_some());
    }
    layer.handle().shadow();
    send(&layer, request()).await.unwrap();
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
            "palisade_chaos_faults_total layer=payments,fault=abort 2",
            "palisade_chaos_faults_total layer=payments,fault=slow 2",
            "palisade_chaos_shadowed_total layer=payments,fault=abort 1",
            "palisade_chaos_shadowed_total layer=payments,fault=slow 1",
            "palisade_chaos_shadowed_total layer=payments,fault=stall 1",
        ]
    );
}
