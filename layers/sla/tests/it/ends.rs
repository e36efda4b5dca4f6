//! How requests end.

use std::{panic::AssertUnwindSafe, time::Duration};

use http::{Request, Response, StatusCode};
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate, GateLayer, gates},
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected},
    testing::{Answers, Step, Steps, exchange},
    time,
};
use palisade_sla::{Handle, SlaLayer, Verdicts};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{layer, objective, serve};

const FIVE: Duration = Duration::from_secs(5);

fn verdicts(handle: &Handle) -> Verdicts {
    assert_eq!(handle.in_flight(), 0, "all requests are over");
    handle.snapshot().verdicts
}

/// Refuses all requests.
#[derive(Clone)]
struct Refuses(Reason);

impl Gate for Refuses {
    type Guard = ();

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Err(Rejected::new(self.0, "on purpose")))
    }
}

#[tokio::test]
async fn statuses_are_good_bad_or_left_out() {
    let layer = layer();
    for status in [200, 204, 302, 404, 429, 500, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        serve(&layer, status, Duration::ZERO).await;
    }
    let expected = Verdicts {
        success: 3,
        caller_fault: 1,
        overload: 2,
        failure: 1,
        ..Verdicts::default()
    };
    assert_eq!(verdicts(&layer.handle()), expected);
    let summary = layer.handle().summary(FIVE);
    assert_eq!(summary.verdicts, expected);
    assert_eq!((summary.total_requests, summary.error_count), (6, 3));
    assert_eq!(summary.error_metrics.error_rate_percent, 50.0);
    assert_eq!(
        (expected.good(), expected.bad(), expected.left_out()),
        (3, 3, 1)
    );
}

#[tokio::test]
async fn each_verdict_of_a_classifier_is_counted_by_its_name() {
    let count = async |verdict: Verdict| {
        let judge = move |_: &ResponseHead<'_>| Some(verdict);
        let layer = SlaLayer::new(objective()).classify(judge);
        serve(&layer, StatusCode::OK, Duration::ZERO).await;
        verdicts(&layer.handle())
    };
    let none = Verdicts::default();
    let overload = Verdict::Overload { retry_after: None };
    assert_eq!(
        count(Verdict::TimedOut).await,
        Verdicts {
            timed_out: 1,
            ..none
        }
    );
    assert_eq!(count(Verdict::Unsent).await, Verdicts { unsent: 1, ..none });
    assert_eq!(
        count(Verdict::Canceled).await,
        Verdicts {
            canceled: 1,
            ..none
        }
    );
    assert_eq!(
        count(Verdict::CallerFault).await,
        Verdicts {
            caller_fault: 1,
            ..none
        }
    );
    assert_eq!(
        count(overload).await,
        Verdicts {
            overload: 1,
            ..none
        }
    );
}

#[tokio::test]
async fn what_a_layer_further_in_refuses_counts_by_its_reason() {
    for (reason, limited) in [
        (Reason::RateLimited, true),
        (Reason::QuotaExhausted, true),
        (Reason::CostExceedsQuota, true),
        (Reason::CircuitOpen, false),
        (Reason::Overloaded, false),
        (Reason::NoEndpoint, false),
        (Reason::DeadlineExceeded, false),
        (Reason::StoreUnavailable, false),
    ] {
        let answers = || Answers(|| Response::new(Steps::new([])));
        let nested = layer();
        let inner = GateLayer::new(Refuses(reason)).layer(answers());
        assert!(exchange(nested.layer(inner)).await.is_err());
        let fused = layer();
        let both = gates((fused.gate().clone(), Refuses(reason)));
        assert!(exchange(both.layer(answers())).await.is_err());
        for layer in [nested, fused] {
            let verdicts = verdicts(&layer.handle());
            let counted = (verdicts.rate_limited, verdicts.refused);
            let expected = if limited { (1, 0) } else { (0, 1) };
            assert_eq!(counted, expected, "{reason:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_took_too_long_further_in_has_timed_out() {
    let layer = layer();
    let inner = GateLayer::new(Refuses(Reason::TimedOut));
    let inner = inner.layer(Answers(|| Response::new(Steps::new([]))));
    assert!(exchange(layer.layer(inner)).await.is_err());
    assert_eq!(verdicts(&layer.handle()).timed_out, 1);
}

#[tokio::test]
async fn an_error_of_the_service_or_of_its_body_is_a_failure() {
    let layer = layer();
    let fails = service_fn(async |_: Request<()>| {
        Err::<Response<Steps>, _>(std::io::Error::other("on purpose"))
    });
    assert!(exchange(layer.layer(fails)).await.is_err());
    let breaks = Answers(|| Response::new(Steps::new([Step::Data("a"), Step::Error("cut")])));
    assert!(exchange(layer.layer(breaks)).await.is_err());
    assert_eq!(verdicts(&layer.handle()).failure, 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_the_end_is_left_out() {
    let layer = layer();
    let handle = layer.handle();
    let hangs = service_fn(async |_: Request<()>| {
        std::future::pending::<Result<Response<Steps>, std::io::Error>>().await
    });
    let mut call = tokio_test::task::spawn(layer.layer(hangs).call(Request::new(())));
    assert!(call.poll().is_pending());
    assert_eq!(handle.in_flight(), 1);
    drop(call);
    assert_eq!(verdicts(&handle).canceled, 1);

    let streams = Answers(|| Response::new(Steps::new([Step::Data("a"), Step::Hang])));
    let response = layer.layer(streams).call(Request::new(())).await.unwrap();
    assert_eq!(handle.in_flight(), 1);
    drop(response);
    assert_eq!(verdicts(&handle).canceled, 2);
    assert_eq!(handle.summary(FIVE).total_requests, 0);
    assert_eq!(handle.burn(time::now()).availability.events, 0);
}

#[tokio::test]
async fn a_panic_of_the_service_or_of_its_body_is_counted_once() {
    let layer = layer();
    let handle = layer.handle();
    let mut panics = layer.layer(Answers(|| -> Response<Steps> { panic!("on purpose") }));
    let call = AssertUnwindSafe(|| drop(panics.call(Request::new(()))));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(verdicts(&handle).canceled, 1);

    let panics = layer.layer(Answers(|| Response::new(Steps::new([Step::Panic]))));
    let reader = tokio::spawn(async move { exchange(panics).await.map(drop) });
    assert!(reader.await.unwrap_err().is_panic());
    assert_eq!(verdicts(&handle).canceled, 2);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_by_the_head_is_counted_when_the_body_has_ended() {
    let layer = layer();
    let handle = layer.handle();
    let fails = Answers(|| {
        let mut response = Response::new(Steps::new([Step::Data("sorry"), Step::Hang]));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    });
    let response = layer.layer(fails).call(Request::new(())).await.unwrap();
    assert_eq!(
        (handle.in_flight(), handle.snapshot().verdicts.failure),
        (1, 0)
    );
    advance(FIVE).await;
    drop(response);
    // The caller did not leave it open how it went: the head had said so.
    assert_eq!(
        verdicts(&handle),
        Verdicts {
            failure: 1,
            ..Verdicts::default()
        }
    );
    assert_eq!(handle.summary(FIVE).latency_metrics.avg_seconds, 5.0);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_ready_service_leaves_nothing_behind() {
    let layer = layer();
    let mut service = layer.layer(Answers(|| Response::new(Steps::new([]))));
    let ready = ServiceExt::<Request<()>>::ready(&mut service).await;
    assert!(ready.is_ok());
    drop(service);
    assert_eq!(verdicts(&layer.handle()), Verdicts::default());
}
