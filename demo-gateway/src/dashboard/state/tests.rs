use std::sync::Arc;

use palisade::{Reason, classify::Verdict};

use super::*;
use crate::{
    dashboard::{
        second::LISTED,
        testing::{Told, record, tell},
    },
    record::Observe,
};

const SECOND: Duration = Duration::from_secs(1);

/// Second after second, each with what it is given.
struct Run {
    state: State,
    collector: Arc<Collector>,
    unix: Duration,
}

impl Run {
    fn new() -> Self {
        Self {
            state: State::default(),
            collector: Arc::new(Collector::new(true)),
            unix: Duration::from_secs(1000),
        }
    }

    fn roll(&mut self) {
        self.unix += SECOND;
        self.state.roll(&self.collector, &[], SECOND, self.unix);
    }

    fn took(&self, ms: u64) {
        let mut record = record(Told::default());
        record.took = Duration::from_millis(ms);
        record.attempts = 1;
        record.backend = Some("gpu-1".into());
        self.collector.ended(&record);
    }
}

#[test]
fn percentiles_are_of_ten_seconds_and_no_longer() {
    let mut run = Run::new();
    for _ in 0..99 {
        run.took(100);
    }
    run.took(5000);
    run.roll();
    let near = |num: Option<Num>, ms: f64| (num.unwrap().get() - ms).abs() <= ms * 0.032 + 1.0;
    for _ in 0..WINDOW - 1 {
        assert!(near(run.state.latency().p50, 100.0));
        assert!(near(run.state.latency().p99, 100.0));
        let times = run.state.times_of("gpu-1");
        assert!(near(times.quantile(1.0).map(shown_ms), 5000.0));
        run.roll();
    }
    assert!(run.state.latency().p50.is_some());
    run.roll();
    assert_eq!(run.state.latency().p50, None);
    assert_eq!(run.state.times_of("gpu-1").quantile(0.5), None);
    assert_eq!(run.state.total(), 100);
}

#[test]
fn what_went_wrong_is_shown_before_what_went_well() {
    let mut run = Run::new();
    let told = |verdict, status| Told {
        verdict,
        status,
        ..Told::default()
    };
    for _ in 0..50 {
        tell(&run.collector, Told::default());
    }
    tell(
        &run.collector,
        told(Verdict::Failure, http::StatusCode::BAD_GATEWAY),
    );
    let limited = Verdict::Refused(Reason::RateLimited);
    tell(
        &run.collector,
        told(limited, http::StatusCode::TOO_MANY_REQUESTS),
    );
    for _ in 0..50 {
        tell(&run.collector, Told::default());
    }
    // What asks nothing of a model is not counted.
    tell(
        &run.collector,
        Told {
            asks: false,
            ..Told::default()
        },
    );
    run.roll();
    let listed = run.state.listed(LISTED);
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().any(|it| it.verdict == Verdict::Failure));
    assert!(listed.iter().any(|it| it.verdict == limited));
    assert_eq!(run.state.skipped(LISTED), 99);
    // What is left out first went well.
    let worst = run.state.listed(1);
    assert_eq!(worst[0].verdict, Verdict::Failure);
    let rate = run.state.rate();
    let rates = [rate.requests, rate.rejected, rate.failed].map(Num::get);
    assert_eq!(rates, [102.0, 1.0, 1.0]);
    // The next second begins with nothing.
    run.roll();
    assert_eq!(
        (run.state.listed(LISTED).len(), run.state.skipped(0)),
        (0, 0)
    );
    assert_eq!(run.state.total(), 102);
}

#[test]
fn threads_that_count_at_once_lose_nothing_and_all_are_shown() {
    let mut run = Run::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let collector = run.collector.clone();
            scope.spawn(move || {
                let mut record = record(Told::default());
                record.backend = Some(format!("gpu-{thread}").into());
                record.attempts = 1;
                for _ in 0..5000 {
                    collector.ended(&record);
                }
            });
        }
    });
    run.roll();
    assert_eq!(run.state.total(), 40_000);
    for thread in 0..8 {
        let times = run.state.times_of(&format!("gpu-{thread}"));
        assert!(times.quantile(0.5).is_some(), "{thread}");
    }
    // Not always those of the first thread.
    let mut shown = std::collections::HashSet::new();
    for _ in 0..200 {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let collector = run.collector.clone();
                scope.spawn(move || {
                    let mut record = record(Told::default());
                    record.backend = Some(format!("gpu-{thread}").into());
                    for _ in 0..5 {
                        collector.ended(&record);
                    }
                });
            }
        });
        run.roll();
        shown.extend(
            run.state
                .listed(LISTED)
                .iter()
                .filter_map(|it| it.backend.clone()),
        );
    }
    assert_eq!(shown.len(), 8, "{shown:?}");
}

#[test]
fn seconds_follow_each_other_though_looks_come_a_little_early_or_late() {
    let ms = Duration::from_millis;
    let mut at = next_second(0, ms(1_000_400));
    assert_eq!(at, 1000);
    for (number, late) in (1..).zip([0, 300, -200, 99, 0]) {
        let unix = ms((1_000_400_i64 + number * 1000 + late) as u64);
        let next = next_second(at, unix);
        assert_eq!(next, at + 1);
        at = next;
    }
    // A clock that was set.
    assert_eq!(next_second(at, ms(2_000_000)), 2000);
    assert_eq!(next_second(at, ms(5_000)), 5);
}

#[test]
fn who_is_watched_is_who_asks_most_or_is_refused() {
    let mut run = Run::new();
    tell(&run.collector, Told::default());
    run.roll();
    assert_eq!(run.state.watched().count(), 1);
    for _ in 0..100 {
        run.roll();
    }
    assert_eq!(run.state.watched().count(), 0);
}

#[test]
fn what_a_backend_claims_cannot_make_the_figures_run_over() {
    let mut run = Run::new();
    let usage = palisade::classify::Usage {
        prompt: u64::MAX,
        completion: u64::MAX,
    };
    for _ in 0..2 {
        tell(
            &run.collector,
            Told {
                usage: Some(usage),
                ..Told::default()
            },
        );
    }
    run.roll();
    assert_eq!(run.state.total(), 2);
    assert_eq!(run.state.second().tokens_out, u64::MAX);
}

#[test]
fn what_the_gateway_itself_took_is_told_in_microseconds() {
    let mut run = Run::new();
    assert_eq!(run.state.overhead().p50, None);
    for own in [5, 5, 2000] {
        let mut record = record(Told::default());
        record.own = Some(Duration::from_micros(own));
        run.collector.ended(&record);
    }
    // A request whose time is not known.
    tell(&run.collector, Told::default());
    run.roll();
    let overhead = run.state.overhead();
    assert_eq!(overhead.p50.unwrap().get(), 5.0);
    let p99 = overhead.p99.unwrap().get();
    assert!((p99 - 2000.0).abs() <= 2000.0 * 0.032, "{p99}");
}
