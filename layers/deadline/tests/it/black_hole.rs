//! What a gate hears of a service that accepts and never answers.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use palisade_core::{
    BoxError,
    deadline::Deadline,
    gate::GateLayer,
    testing::{Log, Step, Steps},
    time::now,
};
use palisade_deadline::{AttemptTimeoutLayer, Awaited, DeadlineLayer, Limit, Propagate, Timeouts};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{SECOND, assert_reached, hanging};

/// deadline > gate > attempt timeout > service, as a stack has them.
const ATTEMPT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn behind_a_total_deadline_shorter_than_its_attempt_timeout_it_is_canceled_with_its_age() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(2 * SECOND))
        .layer(GateLayer::new(log.gate("gate")))
        .layer(AttemptTimeoutLayer::first_byte(ATTEMPT))
        .service(service_fn(|_: Request<()>| {
            pending::<Result<Response<Empty<Bytes>>, BoxError>>()
        }));
    let Err(error) = service.oneshot(Request::new(())).await else {
        panic!("answered");
    };
    assert_reached(&error, Limit::Deadline, 2 * SECOND, Awaited::Head);
    let heard = ["gate admitted", "gate Canceled after 2s", "gate released"];
    assert_eq!(log.take(), heard);
}

#[tokio::test(start_paused = true)]
async fn so_it_is_when_the_head_has_come_and_no_data() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(2 * SECOND))
        .layer(GateLayer::new(log.gate("gate")))
        .layer(AttemptTimeoutLayer::first_byte(ATTEMPT))
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, BoxError>(Response::new(Steps::new(hanging([]))))
        }));
    let Ok(response) = service.oneshot(Request::new(())).await else {
        panic!("no answer");
    };
    let mut body = Box::pin(response.into_body());
    let error = body.frame().await.unwrap().unwrap_err();
    assert_reached(&error, Limit::Deadline, 2 * SECOND, Awaited::End);
    let heard = ["gate admitted", "gate Canceled after 2s", "gate released"];
    assert_eq!(log.take(), heard, "while the body is kept");
}

#[tokio::test(start_paused = true)]
async fn inside_the_deadline_the_attempt_timeout_is_heard_as_a_timeout() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(ATTEMPT))
        .layer(GateLayer::new(log.gate("gate")))
        .layer(AttemptTimeoutLayer::new(
            palisade_deadline::Timeouts::none()
                .first_byte(2 * SECOND)
                .idle(SECOND),
        ))
        .service(service_fn(async |_: Request<()>| {
            let steps = hanging([Step::Data("x")]);
            Ok::<_, BoxError>(Response::new(Steps::new(steps)))
        }));
    let Ok(response) = service.oneshot(Request::new(())).await else {
        panic!("no answer");
    };
    let error = response.into_body().collect().await.unwrap_err();
    assert_reached(&error, Limit::Idle, SECOND, Awaited::Data);
    let heard = [
        "gate admitted",
        "gate data",
        "gate TimedOut after 1s",
        "gate released",
    ];
    assert_eq!(log.take(), heard);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_keeps_to_the_deadline_is_heard_as_a_timeout_though_the_deadline_is_shorter()
 {
    let log = Log::default();
    let timeouts = Timeouts::none().first_byte(ATTEMPT).within_deadline();
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(2 * SECOND).propagate(Propagate::Extension))
        .layer(GateLayer::new(log.gate("gate")))
        .layer(AttemptTimeoutLayer::new(timeouts))
        .service(service_fn(|_: Request<()>| {
            pending::<Result<Response<Empty<Bytes>>, BoxError>>()
        }));
    let Err(error) = service.clone().oneshot(Request::new(())).await else {
        panic!("answered");
    };
    assert_reached(&error, Limit::FirstByte, 2 * SECOND, Awaited::Head);
    let heard = ["gate admitted", "gate TimedOut after 2s", "gate released"];
    assert_eq!(log.take(), heard);

    // A later deadline changes nothing.
    let mut request = Request::new(());
    let alone = AttemptTimeoutLayer::new(timeouts).layer(service_fn(|_: Request<()>| {
        pending::<Result<Response<Empty<Bytes>>, BoxError>>()
    }));
    request
        .extensions_mut()
        .insert(Deadline(now() + 60 * SECOND));
    let Err(error) = alone.oneshot(request).await else {
        panic!("answered");
    };
    assert_reached(&error, Limit::FirstByte, ATTEMPT, Awaited::Head);
}
