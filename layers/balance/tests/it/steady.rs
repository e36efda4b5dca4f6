//! Probes in a rhythm, for the default strategy.

use std::{
    future::ready,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use palisade_balance::{Endpoints, Probes, Strategy};
use tokio::time::sleep;

use crate::{
    probes::{Seen, report},
    support::{Fake, MS, balance, fakes, send},
};

const SECOND: Duration = Duration::from_secs(1);

/// An adaptive set of five that is probed each second, of which those with these names say nothing.
async fn steady(silent: &'static [&'static str]) -> (Endpoints<Fake>, Seen) {
    let set = Endpoints::default();
    fakes(&set, &[0; 5]);
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(
        set.probes(Probes::default().steady(SECOND), move |name, _| {
            noted.note(&name);
            ready((!silent.contains(&&*name)).then(|| report(7)))
        }),
    );
    sleep(MS).await;
    assert_eq!(seen.counts().len(), 5, "all at once at first");
    (set, seen)
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_set_that_asks_steadily_does_so_whatever_the_requests_do() {
    let (set, seen) = steady(&[]).await;
    for requests in [0, 1, 100] {
        for _ in 0..100 {
            for _ in 0..requests {
                send(&balance(&set)).await.unwrap();
            }
            sleep(SECOND).await;
        }
        let counts = seen.counts();
        let alike = |count| (85..=115).contains(count);
        assert!(
            counts.len() == 5 && counts.values().all(alike),
            "{counts:?}"
        );
    }
    assert_eq!(set.snapshot()[0].reported.unwrap().in_flight, Some(7));
    set.set_strategy(Strategy::LeastConnections);
    sleep(SECOND * 100).await;
    assert_eq!(seen.names().len(), 0, "no other strategy wants to know");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_asked_thirty_times_less_often() {
    let (_set, seen) = steady(&["0", "1"]).await;
    sleep(SECOND * 200).await;
    let counts = seen.counts();
    for (name, count) in &counts {
        let bounds = if &**name < "2" { 5..=10 } else { 170..=400 };
        assert!(bounds.contains(count), "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_lost_now_and_then_leaves_nobody_unasked() {
    let (set, seen) = (Endpoints::default(), Seen::default());
    fakes(&set, &[0; 5]);
    let (noted, answers) = (seen.clone(), AtomicU64::new(0));
    tokio::spawn(
        set.probes(Probes::default().steady(SECOND), move |name, _| {
            noted.note(&name);
            // The first endpoint is too busy for every second answer.
            let lost = &*name == "0" && answers.fetch_add(1, Relaxed) % 2 == 0;
            ready((!lost).then(|| report(7)))
        }),
    );
    sleep(SECOND * 100).await;
    let counts = seen.counts();
    let alike = |count| (85..=115).contains(count);
    assert!(counts.values().all(alike), "{counts:?}");
}
