//! A share of the requests is refused.

use std::{error::Error, time::Duration};

use http::StatusCode;
use palisade_circuit_breaker::{Mode, Throttle, ThrottleLayer, Throttled};
use palisade_core::{
    classify::Verdict,
    gate::{Gate, Outlook},
    reject::{Reason, Rejected},
    settle::{End, Settle},
    testing::exchange,
    time::now,
};
use tokio::time::advance;
use tower::Layer;

use crate::support::{admit, many, one, says};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_share_is_refused_and_comes_without_a_time_to_wait() {
    let layer = ThrottleLayer::new(Throttle::new().seed(1));
    let mut refusal = None;
    for _ in 0..100 {
        let answer = exchange(layer.layer(says(StatusCode::BAD_GATEWAY))).await;
        refusal = refusal.or(answer.err());
    }
    let error = refusal.expect("ten failures are enough");
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(
        (rejected.reason(), rejected.delay()),
        (Reason::Overloaded, None)
    );
    let source = rejected.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&Throttled { chance: 0.9 }));
    assert_eq!(
        source.map(Throttled::to_string).as_deref(),
        Some("throttled with 90 % of the requests")
    );
    let snapshot = layer.handle().snapshot();
    assert_eq!(snapshot.requests, 100);
    assert!((60..=90).contains(&snapshot.refused_total), "{snapshot:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_with_many_requests_under_way_refuses_none() {
    let throttle = Throttle::new();
    let calls: Vec<_> = (0..1000).map(|_| admit(&throttle).unwrap()).collect();
    advance(SECOND).await;
    drop(calls);
    assert_eq!(throttle.handle().snapshot().requests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_works_again_is_found_step_by_step_and_within_two_windows() {
    let throttle = Throttle::new().seed(1);
    for _ in 0..60 {
        for _ in 0..50 {
            one(&throttle, Verdict::Failure);
        }
        advance(SECOND).await;
    }
    let chance = || throttle.handle().snapshot().chance;
    assert_eq!(chance(), 0.9);
    let mut passed = Vec::new();
    for _ in 0..300 {
        let let_through = (0..50).filter(|_| one(&throttle, Verdict::Success));
        passed.push(let_through.count());
        advance(SECOND).await;
    }
    let half_minutes: Vec<usize> = passed
        .chunks(30)
        .map(|seconds| seconds.iter().sum())
        .collect();
    assert!(half_minutes[0] < 10 * 30, "{half_minutes:?}");
    assert!(half_minutes[5] > 2 * half_minutes[0], "{half_minutes:?}");
    assert!(passed[240..].iter().all(|passed| *passed == 50));
    assert_eq!(chance(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_is_found_by_the_age_of_those_who_leave() {
    let throttle = Throttle::new().slow_after(SECOND);
    for (age, chance) in [(SECOND / 2, 0.0), (SECOND, 0.9)] {
        let mut calls: Vec<_> = (0..10).map(|_| admit(&throttle).unwrap()).collect();
        advance(age).await;
        for call in &mut calls {
            let end = End {
                age,
                ..End::new(Verdict::Canceled)
            };
            call.settle(&end, now());
        }
        assert_eq!(throttle.handle().snapshot().chance, chance);
    }
}

#[tokio::test(start_paused = true)]
async fn time_in_a_queue_further_out_is_not_the_age_of_who_leaves() {
    let throttle = Throttle::new().slow_after(SECOND);
    for _ in 0..10 {
        let mut call = admit(&throttle).unwrap();
        advance(SECOND / 2).await;
        let age = SECOND * 60;
        let end = End {
            age,
            ..End::new(Verdict::Canceled)
        };
        call.settle(&end, now());
    }
    assert_eq!(throttle.handle().snapshot().requests, 0);
}

#[tokio::test(start_paused = true)]
async fn in_shadow_it_counts_and_refuses_nothing_and_a_reset_forgets() {
    let throttle = Throttle::new().seed(1).shadow();
    many(&throttle, Verdict::Failure, 100);
    let handle = throttle.handle();
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.refused_total, snapshot.mode), (0, Mode::Shadow));
    assert!(snapshot.shadowed_total > 50);
    assert_eq!(throttle.outlook(now()), Outlook::Admits);
    handle.set_mode(Mode::Enforce);
    handle.reset();
    many(&throttle, Verdict::Success, 100);
}

#[tokio::test(start_paused = true)]
async fn other_settings_keep_what_was_counted() {
    let throttle = Throttle::new();
    many(&throttle, Verdict::Success, 60);
    many(&throttle, Verdict::Failure, 40);
    let handle = throttle.handle();
    assert_eq!(handle.snapshot().chance, 0.0);
    let mut settings = handle.settings();
    settings.multiplier = 1.0;
    handle.update(settings);
    assert_eq!(handle.snapshot().chance, 40.0 / 101.0);
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_tell_the_share_and_the_refusals() {
    let book = crate::metrics::Book::default();
    metrics::with_local_recorder(&book, || {
        let throttle = Throttle::new().seed(1).named("llm");
        for _ in 0..100 {
            one(&throttle, Verdict::Failure);
        }
        let snapshot = throttle.handle().snapshot();
        let refusals = book.read("palisade_throttle_refusals_total{llm}");
        assert_eq!(refusals, snapshot.refused_total as f64);
        throttle.handle().set_mode(Mode::Shadow);
        many(&throttle, Verdict::Failure, 100);
    });
    assert_eq!(book.read("palisade_throttle_refused_ratio{llm}"), 0.9);
    assert!(book.read("palisade_throttle_shadowed_total{llm}") > 50.0);
}
