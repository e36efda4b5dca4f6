//! Summaries and compliance.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use palisade_core::{
    classify::Usage,
    gate::GateLayer,
    testing::{Answers, Steps},
    time,
};
use palisade_sla::{
    BetweenTokens, Direction, Errors, Latency, Objective, Sla, SlaLayer, Targets, Throughput,
    TokenRates, Verdicts,
};
use tokio::time::advance;
use tower::{Layer, Service};

use crate::{close, layer, objective, serve};

const SPAN: Duration = Duration::from_secs(300);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn when_nothing_came_in_everything_is_there_and_zero() {
    let summary = layer().handle().summary(SPAN);
    assert_eq!(summary.time_window_minutes, 5.0);
    assert_eq!(
        (summary.total_requests, summary.successful_requests),
        (0, 0)
    );
    assert_eq!((summary.error_count, summary.in_flight), (0, 0));
    assert_eq!(summary.verdicts, Verdicts::default());
    assert_eq!(summary.latency_metrics, Latency::default());
    assert_eq!(summary.first_data_metrics, Latency::default());
    assert_eq!(summary.between_tokens_metrics, BetweenTokens::default());
    assert_eq!((summary.queue_depth, summary.trend), (None, None));
    assert_eq!(summary.throughput_metrics, Throughput::default());
    assert_eq!(summary.error_metrics, Errors::default());
    assert_eq!(summary.token_metrics, TokenRates::default());
    let compliance = summary.sla_compliance;
    assert!(compliance.latency.compliant && compliance.error_rate.compliant);
    assert!(!compliance.throughput.compliant);
    assert_eq!(compliance.throughput.variance_percent, -100.0);
}

#[tokio::test(start_paused = true)]
async fn a_summary_has_the_numbers_of_the_requests_that_went_by() {
    let layer = layer();
    for request in 1..=100_u64 {
        let status = match request % 10 {
            0 => StatusCode::BAD_GATEWAY,
            _ => StatusCode::OK,
        };
        serve(&layer, status, millis(10 * request)).await;
    }
    // 50.5 s of work in one line, and then silence.
    advance(millis(309_000 - 50_500)).await;
    let summary = layer.handle().summary(SPAN);
    assert_eq!((summary.total_requests, summary.error_count), (100, 10));
    assert_eq!(summary.successful_requests, 90);
    let latency = summary.latency_metrics;
    assert!((latency.avg_seconds - 0.505).abs() < 1e-9);
    assert!(close(latency.p50_seconds, 0.505), "{latency:?}");
    assert!(close(latency.p95_seconds, 0.9505), "{latency:?}");
    assert!(close(latency.p99_seconds, 0.9901), "{latency:?}");
    assert_eq!(latency.max_seconds, 1.0);
    let (throughput, errors) = (summary.throughput_metrics, summary.error_metrics);
    assert!((throughput.requests_per_minute - 100.0 / 5.15).abs() < 1e-9);
    assert!((throughput.requests_per_second * 60.0 - 100.0 / 5.15).abs() < 1e-9);
    assert_eq!(errors.error_rate_percent, 10.0);
    assert!((errors.errors_per_minute - 10.0 / 5.15).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_makes_no_latency_look_good() {
    let layer = layer();
    serve(&layer, StatusCode::OK, millis(1000)).await;
    for _ in 0..99 {
        serve(&layer, StatusCode::NOT_FOUND, Duration::ZERO).await;
    }
    let summary = layer.handle().summary(SPAN);
    assert_eq!(
        (summary.total_requests, summary.verdicts.caller_fault),
        (1, 99)
    );
    assert_eq!(summary.latency_metrics.avg_seconds, 1.0);
    assert_eq!(summary.throughput_metrics.requests_per_minute, 0.2);
}

#[tokio::test(start_paused = true)]
async fn a_summary_says_where_it_goes_and_what_waits() {
    let waiting = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(7));
    let depth = waiting.clone();
    let look = move || depth.load(std::sync::atomic::Ordering::Relaxed);
    let layer = SlaLayer::new(objective()).queue_depth(look);
    let handle = layer.handle();
    let minute = Duration::from_secs(60);
    for (requests, taken) in [(100, 50), (200, 200)] {
        assert_eq!(handle.summary(minute).trend, None);
        let start = time::now();
        for _ in 0..requests {
            serve(&layer, StatusCode::OK, millis(taken)).await;
        }
        advance(start + minute - time::now()).await;
    }
    let summary = handle.summary(minute);
    assert_eq!(summary.queue_depth, Some(7));
    let trend = summary.trend.unwrap();
    assert_eq!(trend.avg_seconds.direction, Direction::Rising);
    assert_eq!(
        (trend.avg_seconds.current, trend.avg_seconds.before),
        (0.2, 0.05)
    );
    assert_eq!(trend.requests_per_second.direction, Direction::Rising);
    assert!((trend.requests_per_second.change_percent - 100.0).abs() < 1e-9);
    assert_eq!(trend.error_rate_percent.direction, Direction::Steady);
    // Of five minutes, there are none before.
    assert_eq!(handle.summary(SPAN).trend, None);
}

#[tokio::test(start_paused = true)]
async fn a_window_of_any_length_is_summarised() {
    let layer = layer();
    for _ in 0..30 {
        serve(&layer, StatusCode::OK, Duration::from_secs(10)).await;
    }
    for (window, least) in [
        (1, 1),
        (10, 1),
        (45, 5),
        (100, 10),
        (299, 30),
        (300, 30),
        (9999, 30),
    ] {
        let found = layer
            .handle()
            .summary(Duration::from_secs(window))
            .total_requests;
        assert!((least..=least + 1).contains(&found), "{window} s: {found}");
    }
}

#[tokio::test(start_paused = true)]
async fn compliance_is_held_against_any_targets() {
    let strict = Targets {
        latency_seconds: 0.1,
        requests_per_minute: 0.0,
        error_rate: 0.5,
        ..Targets::default()
    };
    let layer = SlaLayer::new(objective()).targets(strict);
    serve(&layer, StatusCode::OK, millis(200)).await;
    let handle = layer.handle();
    let own = handle.summary(SPAN).sla_compliance;
    assert_eq!(own.latency, handle.compliance(&strict).latency);
    assert!(!own.latency.compliant);
    assert!((own.latency.variance_percent - 100.0).abs() < 1e-9);
    assert!(own.throughput.compliant && own.error_rate.compliant);
    let usual = handle.compliance(&Targets::default());
    assert!(usual.latency.compliant && !usual.throughput.compliant);
    assert!(!usual.overall.compliant);
}

#[tokio::test(start_paused = true)]
async fn tokens_can_be_told_by_the_application() {
    let handle = layer().handle();
    let usage = |prompt, completion| Usage { prompt, completion };
    handle.add_usage(usage(10, 20), Duration::from_secs(3));
    handle.add_usage(usage(10, 50), Duration::from_secs(2));
    handle.add_usage(usage(1, 1), Duration::ZERO);
    let tokens = handle.summary(SPAN).token_metrics;
    assert_eq!((tokens.input_tokens, tokens.output_tokens), (21, 71));
    assert_eq!(tokens.avg_tokens_per_second, 20.0, "no time is no rate");
    assert_eq!(tokens.max_tokens_per_second, 30.0);
    assert_eq!(handle.summary(SPAN).total_requests, 0);
}

#[tokio::test(start_paused = true)]
async fn clones_handles_and_services_share_what_is_counted() {
    let layer = layer();
    let early = layer.handle();
    let layer = layer.named("chat").longest_window(millis(60_000));
    serve(&layer, StatusCode::OK, Duration::ZERO).await;
    serve(&layer.clone(), StatusCode::OK, Duration::ZERO).await;
    assert_eq!(early.snapshot().name, "chat");
    assert_eq!(early.snapshot().verdicts.success, 2);
    assert_eq!(early.summary(SPAN).time_window_minutes, 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_new_objective_judges_what_ends_from_then_on() {
    let layer = layer();
    let handle = layer.handle();
    serve(&layer, StatusCode::OK, millis(500)).await;
    let success = Objective::success(0.5).unwrap();
    handle.update(success.within(millis(100), 0.5).unwrap());
    serve(&layer, StatusCode::OK, millis(500)).await;
    let burn = handle.burn(time::now());
    let latency = burn.latency.unwrap();
    assert_eq!((latency.events, latency.bad_events), (2, 1));
    assert_eq!((burn.availability.target, latency.target), (0.5, 0.5));
    assert_eq!(latency.error_budget_left, 0.0);
    handle.update(success);
    assert_eq!(handle.burn(time::now()).latency, None);
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_all_but_what_is_in_flight() {
    let sla = Sla::new(objective());
    let handle = sla.handle();
    let answers = Answers(|| Response::new(Steps::new([])));
    let mut service = GateLayer::new(sla).layer(answers);
    let first = service.call(Request::new(())).await.unwrap();
    let second = service.call(Request::new(())).await.unwrap();
    // Not looked at before it is forgotten: looking is what gathers it.
    drop(first);
    handle.reset();
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.in_flight, snapshot.verdicts),
        (1, Verdicts::default())
    );
    assert_eq!(handle.summary(SPAN).verdicts, Verdicts::default());
    drop(second);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.verdicts.canceled), (0, 1));
}
