//! Alerts that begin and end by themselves, and what they do to other layers.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{BoxError, ratio::Ratio, time};
use palisade_retry::{Backoff, HedgeBody, HedgeLayer, ReplayBody, RetryLayer};
use palisade_sla::{AlertKind, Condition, Objective, SlaLayer};
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

use crate::{layer, objective, serve};

/// An hour of a month is a minute of this, and a fine bucket a sixth of a second.
const PERIOD: Duration = Duration::from_secs(12 * 3600);
const PACE: Duration = Duration::from_millis(20);

async fn serve_for(layer: &SlaLayer, time: Duration, status: StatusCode) {
    for _ in 0..time.as_micros() / PACE.as_micros() {
        serve(layer, status, Duration::ZERO).await;
        sleep(PACE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn alerts_begin_and_end_without_anybody_asking() {
    let layer = SlaLayer::new(objective()).period(PERIOD);
    let handle = layer.handle();
    let mut burns = handle.watch();
    assert_eq!(burns.borrow().firing(), None);
    let monitor = tokio::spawn(handle.monitor());
    serve_for(&layer, Duration::from_secs(60), StatusCode::OK).await;
    assert_eq!(burns.borrow().firing(), None);
    let outage = time::now();
    // Of the other page, most of the six hours are still to come.
    let pages = burns.wait_for(|burn| burn.availability.alerts[0].firing);
    let failing = serve_for(&layer, Duration::from_secs(2), StatusCode::BAD_GATEWAY);
    let (burn, ()) = tokio::join!(
        async { (pages.await.unwrap().availability, time::now() - outage) },
        failing
    );
    // 51.84 s in a month, and up to a bucket until the monitor looks.
    let (least, bucket) = (Duration::from_millis(864), PERIOD / (30 * 24 * 360));
    assert!(
        burn.1 >= least && burn.1 <= least + 2 * bucket + PACE,
        "{:?}",
        burn.1
    );
    assert_eq!(burn.0.firing(), Some(AlertKind::Page));
    let over = burns.wait_for(|burn| !burn.availability.alerts[0].firing);
    let (taken, ()) = tokio::join!(
        async {
            let since = time::now();
            over.await.unwrap();
            time::now() - since
        },
        serve_for(&layer, Duration::from_secs(8), StatusCode::OK)
    );
    // 5 min and a fifth of them.
    assert!(
        taken > Duration::from_millis(5800) && taken < Duration::from_millis(6400),
        "{taken:?}"
    );
    assert!(!monitor.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_monitor_ends_at_once_when_nobody_holds_the_layer() {
    let layer = layer();
    let monitor = tokio::spawn(layer.handle().monitor());
    advance(Duration::from_secs(3600)).await;
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    let answer = service.oneshot(Request::new(())).await.unwrap();
    drop(layer);
    drop(answer);
    // No clock moves: it is woken.
    monitor.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_monitor_looks_once_in_a_bucket_and_no_more() {
    let layer = layer();
    let mut burns = layer.handle().watch();
    let monitor = tokio::spawn(layer.handle().monitor());
    burns.changed().await.unwrap();
    for _ in 0..5 {
        assert!(!burns.has_changed().unwrap());
        let before = time::now();
        burns.changed().await.unwrap();
        // Timers are a millisecond late at most.
        let taken = (time::now() - before).as_millis();
        assert!((9_998..=10_002).contains(&taken), "{taken} ms");
    }
    monitor.abort();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_is_dropped_lets_its_signals_go_and_another_goes_on() {
    let layer = SlaLayer::new(objective()).period(PERIOD);
    let handle = layer.handle();
    let paging = handle.signal(Condition::Fires(AlertKind::Page));
    let monitor = tokio::spawn(handle.monitor());
    serve_for(&layer, Duration::from_secs(5), StatusCode::BAD_GATEWAY).await;
    assert!(paging.is_set());
    monitor.abort();
    assert!(monitor.await.unwrap_err().is_cancelled());
    assert!(!paging.is_set());
    let other = tokio::spawn(handle.monitor());
    tokio::task::yield_now().await;
    assert!(paging.is_set(), "the alert still fires");
    let same = handle.signal(Condition::Fires(AlertKind::Page));
    assert!(same.is_set());
    drop((layer, handle));
    other.await.unwrap();
    assert!(!paging.is_set());
}

#[tokio::test(start_paused = true)]
async fn a_signal_of_the_error_budget_is_held_until_there_is_more_of_it() {
    let layer = SlaLayer::new(Objective::success(0.5).unwrap()).period(PERIOD);
    let handle = layer.handle();
    let low = handle.signal(Condition::BudgetLeft {
        below: 0.2,
        until: 0.4,
    });
    let ticket = handle.signal(Condition::Fires(AlertKind::Ticket));
    let _monitor = tokio::spawn(handle.monitor());
    let left = |bad, good| {
        let layer = layer.clone();
        async move {
            for at in 0..bad + good {
                let status = if at < bad {
                    StatusCode::BAD_GATEWAY
                } else {
                    StatusCode::OK
                };
                serve(&layer, status, Duration::ZERO).await;
            }
            sleep(Duration::from_secs(1)).await;
            layer
                .handle()
                .burn(time::now())
                .availability
                .error_budget_left
        }
    };
    // 30 of 100 bad ones of the 50 that may be.
    assert!(left(30, 70).await > 0.39);
    assert!(!low.is_set());
    assert!(left(14, 0).await < 0.23 && !low.is_set());
    assert!(left(20, 0).await < 0.2 && low.is_set());
    assert!(left(0, 40).await < 0.4 && low.is_set());
    assert!(left(0, 100).await > 0.4 && !low.is_set());
    assert!(!ticket.is_set(), "that is another condition");
}

#[tokio::test(start_paused = true)]
async fn an_outage_pages_and_no_hedges_are_sent_until_the_page_is_over() {
    let layer = SlaLayer::new(objective()).period(PERIOD);
    let handle = layer.handle();
    let _monitor = tokio::spawn(handle.monitor());
    let hedge = HedgeLayer::new(Duration::from_millis(30))
        .at_most(Ratio::new(1.0).unwrap())
        .paused_by(handle.signal(Condition::Fires(AlertKind::Page)));
    let hedges = hedge.handle();
    // The status comes with the request: an outage of all endpoints, each of which takes 50 ms to say so.
    let inner = hedge.layer(service_fn(
        async |request: Request<HedgeBody<Empty<Bytes>>>| {
            let ok = request.uri().path() == "/200";
            sleep(Duration::from_millis(50)).await;
            let mut response = Response::new(Full::<Bytes>::from("hello"));
            if !ok {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            Ok::<_, Infallible>(response)
        },
    ));
    let judge = |head: &palisade_core::head::ResponseHead<'_>| {
        (head.status == StatusCode::NOT_FOUND).then_some(palisade_core::classify::Verdict::Failure)
    };
    let service = layer.classify(judge).layer(inner);
    let ask = async |seconds: u64, path: &str| {
        for _ in 0..seconds * 20 {
            let request = Request::builder().uri(path).body(Empty::new()).unwrap();
            let answer = service.clone().oneshot(request).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
        hedges.snapshot()
    };
    let steady = ask(60, "/200").await;
    assert!(steady.sent > 1000 && steady.while_paused == 0, "{steady:?}");
    let outage = ask(4, "/404").await;
    assert!(outage.paused);
    let burning = ask(1, "/404").await;
    assert_eq!(burning.sent, outage.sent, "not one while it burns");
    assert_eq!(burning.while_paused, outage.while_paused + 20);
    // The slow page of 6 x holds the longest: half an hour of the month and a fifth of it.
    let recovered = ask(60, "/200").await;
    assert!(!recovered.paused, "{:?}", handle.burn(time::now()));
    let after = ask(5, "/200").await;
    assert_eq!(after.sent, recovered.sent + 100);
    assert_eq!(after.while_paused, recovered.while_paused);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_retried_counts_once() {
    let sla = layer();
    let retry = RetryLayer::new(Backoff::constant(Duration::from_millis(10)));
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = calls.clone();
    let service = ServiceBuilder::new()
        .layer(sla.clone())
        .layer(retry)
        .service(service_fn(move |_: Request<ReplayBody<Empty<Bytes>>>| {
            let call = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                let mut response = Response::new(Empty::<Bytes>::new());
                // Of each three, the last succeeds; of the last three, none.
                if call % 3 != 2 || call >= 27 {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, BoxError>(response)
            }
        }));
    for _ in 0..10 {
        let answer = service
            .clone()
            .oneshot(Request::new(Empty::new()))
            .await
            .unwrap();
        answer.into_body().collect().await.unwrap();
    }
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 30);
    let burn = sla.handle().burn(time::now()).availability;
    assert_eq!((burn.events, burn.bad_events), (10, 1));
    assert_eq!(sla.handle().summary(PACE).total_requests, 10);
}
