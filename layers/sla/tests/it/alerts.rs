//! Burn rates of a layer, in a period that is 60 times shorter than 30 days.

use std::time::Duration;

use http::StatusCode;
use palisade_core::time;
use palisade_sla::{AlertKind, Handle, SlaLayer};
use tokio::time::advance;

use crate::{objective, serve};

/// An hour of a month is a minute of this.
const PERIOD: Duration = Duration::from_secs(12 * 3600);
const PACE: Duration = Duration::from_millis(10);

fn layer() -> SlaLayer {
    SlaLayer::new(objective()).period(PERIOD)
}

async fn serve_for(layer: &SlaLayer, time: Duration, status: StatusCode) {
    for _ in 0..time.as_micros() / PACE.as_micros() {
        serve(layer, status, Duration::ZERO).await;
        advance(PACE).await;
    }
}

/// How long it takes until an alert fires, or until none does.
async fn serve_until(layer: &SlaLayer, fires: bool, status: StatusCode) -> Duration {
    let (handle, start) = (layer.handle(), time::now());
    while handle.burn(time::now()).firing().is_some() != fires {
        serve_for(layer, PACE, status).await;
        assert!(
            time::now() - start < Duration::from_secs(60),
            "nothing happens"
        );
    }
    time::now() - start
}

fn alert(handle: &Handle) -> Option<AlertKind> {
    handle.burn(time::now()).firing()
}

#[tokio::test(start_paused = true)]
async fn an_outage_after_steady_traffic_pages_and_the_page_ends_after_it() {
    let layer = layer();
    let handle = layer.handle();
    serve_for(&layer, Duration::from_secs(60), StatusCode::OK).await;
    assert_eq!(alert(&handle), None);
    let taken = serve_until(&layer, true, StatusCode::BAD_GATEWAY).await;
    // The ticket of 1 x comes first: 0.36 % of what there was in the last minute.
    assert!(taken < Duration::from_millis(864), "{taken:?}");
    assert_eq!(alert(&handle), Some(AlertKind::Ticket));
    serve_for(
        &layer,
        Duration::from_millis(864) - taken,
        StatusCode::BAD_GATEWAY,
    )
    .await;
    serve_for(&layer, Duration::from_millis(20), StatusCode::BAD_GATEWAY).await;
    let budget = handle.burn(time::now()).availability;
    assert_eq!(budget.firing(), Some(AlertKind::Page));
    assert!(budget.alerts[0].firing, "{:?}", budget.alerts[0]);
    assert!(budget.error_budget_left < 0.0);
    serve_for(&layer, Duration::from_millis(6170), StatusCode::OK).await;
    assert!(!handle.burn(time::now()).availability.alerts[0].firing);
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_did_wrong_burns_nothing() {
    let layer = layer();
    serve_for(&layer, Duration::from_secs(5), StatusCode::NOT_FOUND).await;
    let burn = layer.handle().burn(time::now());
    assert_eq!((burn.firing(), burn.availability.events), (None, 0));
    assert_eq!(burn.availability.error_budget_left, 1.0);
}

#[tokio::test(start_paused = true)]
async fn slow_answers_burn_the_error_budget_of_latency_only() {
    let layer = layer();
    for _ in 0..60 {
        serve(&layer, StatusCode::OK, Duration::from_millis(1001)).await;
        serve(&layer, StatusCode::BAD_GATEWAY, Duration::from_secs(2)).await;
    }
    let burn = layer.handle().burn(time::now());
    let latency = burn.latency.unwrap();
    assert_eq!(
        (latency.events, latency.bad_events),
        (60, 60),
        "of those that succeeded"
    );
    assert_eq!(latency.firing(), Some(AlertKind::Page));
    assert_eq!(burn.availability.bad_events, 60);
}

#[tokio::test(start_paused = true)]
async fn a_reset_ends_all_alerts() {
    let layer = layer();
    serve_until(&layer, true, StatusCode::BAD_GATEWAY).await;
    layer.handle().reset();
    assert_eq!(alert(&layer.handle()), None);
}

#[tokio::test(start_paused = true)]
async fn the_first_minute_begins_with_the_first_request() {
    let layer = SlaLayer::new(objective());
    advance(Duration::from_secs(3)).await;
    for _ in 0..119 {
        serve(&layer, StatusCode::BAD_GATEWAY, Duration::ZERO).await;
        advance(Duration::from_millis(500)).await;
    }
    assert_eq!(alert(&layer.handle()), None, "after 59.5 s");
    advance(Duration::from_millis(500)).await;
    assert_eq!(alert(&layer.handle()), Some(AlertKind::Page), "after 60 s");
}
