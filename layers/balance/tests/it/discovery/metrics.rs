use std::collections::BTreeMap;

use metrics_util::debugging::DebuggingRecorder;
use palisade_balance::{
    Endpoints,
    discover::{Live, Target},
};
use palisade_core::time;
use tokio::{sync::watch, time::sleep};
use tokio_test::{assert_pending, task};

use super::World;
use crate::{metrics::seen, support::MS};

#[tokio::test(start_paused = true)]
async fn each_source_reports_its_lists_and_its_errors_under_its_name() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (endpoints, world) = (Endpoints::named("chat"), World::default());
    let (sender, receiver) = watch::channel(vec![Target::new("a"), Target::new("b")]);
    let follower = endpoints
        .follow(Live::new(receiver), world.make())
        .named("pods")
        .empty(palisade_balance::discover::Empty::Doubted);
    let mut follower = task::spawn(follower);
    metrics::with_local_recorder(&recorder, || assert_pending!(follower.poll()));
    // A snapshot takes the counts with it.
    let of = |what: &str, all: &BTreeMap<String, f64>| {
        all.get(&format!("discovery_{what}{{layer=chat,source=pods}}"))
            .copied()
    };
    let all = seen(&snapshotter);
    let date = time::wall_clock()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!((of("listed_timestamp_seconds", &all).unwrap() - date).abs() < 3600.0);
    assert_eq!(
        (
            of("lists_total", &all),
            of("targets", &all),
            of("errors_total", &all)
        ),
        (Some(1.0), Some(2.0), None)
    );
    sender.send(vec![]).unwrap();
    sleep(MS * 50).await;
    metrics::with_local_recorder(&recorder, || assert_pending!(follower.poll()));
    let all = seen(&snapshotter);
    assert_eq!(
        (of("lists_total", &all), of("errors_total", &all)),
        (None, Some(1.0))
    );
}
