use std::io;

use http::{HeaderName, StatusCode};
use http_body_util::BodyExt;
use palisade_chaos::{Fault, Injected};
use palisade_core::{
    BoxError,
    classify::{Classify, Grpc, Http, Judge, Verdict},
    head::{RequestHead, ResponseHead},
};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, MILLI, SECOND, chaos, grpc, request, send, strikes};

#[tokio::test(start_paused = true)]
async fn a_status_is_answered_and_the_service_is_not_called() {
    let busy = Fault::status(StatusCode::SERVICE_UNAVAILABLE).retry_after(1500 * MILLI);
    let layer = chaos([busy.named("busy")]);
    let backend = Backend::default();
    let response = layer
        .layer(backend.clone())
        .oneshot(request())
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    let verdict = Http
        .start(&RequestHead::from(&request()))
        .head(&ResponseHead::from(&response));
    let retry_after = Some(2 * SECOND);
    assert_eq!(verdict, Some(Verdict::Overload { retry_after }));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "the fault busy was injected");
    assert_eq!(backend.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_of_grpc_end_trailers_only_in_their_own_codes() {
    for (status, code) in [
        (400, "13"),
        (401, "16"),
        (403, "7"),
        (404, "12"),
        (429, "14"),
        (502, "14"),
        (503, "14"),
        (504, "14"),
        (500, "2"),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let layer = chaos([Fault::status(status).retry_after(700 * MILLI)]);
        let response = send(&layer, grpc()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], code);
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "700");
        assert!(http_body::Body::is_end_stream(response.body()));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_back_too_early() {
    let layer = chaos([Fault::grpc_status(14).retry_after(MILLI + MILLI / 1000)]);
    let response = send(&layer, grpc()).await.unwrap();
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "2");
}

#[tokio::test(start_paused = true)]
async fn a_code_of_grpc_is_for_calls_of_grpc() {
    let layer = chaos([Fault::grpc_status(8)]);
    let response = send(&layer, grpc()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
    let verdict = Grpc
        .start(&RequestHead::from(&grpc()))
        .head(&ResponseHead::from(&response));
    assert_eq!(verdict, Some(Verdict::Overload { retry_after: None }));
    assert!(!strikes(&layer, request()).await);
}

#[tokio::test(start_paused = true)]
async fn errors_are_judged_as_real_ones_and_can_be_told_from_them() {
    let own = || Fault::error(|injected| io::Error::new(io::ErrorKind::TimedOut, injected).into());
    for (fault, name, verdict) in [
        (Fault::refuse(), "refuse", Verdict::Unsent),
        (Fault::reset(), "reset", Verdict::Failure),
        (own(), "error", Verdict::TimedOut),
    ] {
        let error = send(&chaos([fault]), request()).await.unwrap_err();
        assert_eq!(Verdict::of(&*error), verdict);
        assert_eq!(Injected::find(&*error).unwrap().fault(), name);
    }
    let anonymous = Fault::error(|_| "broken".into());
    let error: BoxError = send(&chaos([anonymous]), request()).await.unwrap_err();
    assert!(Injected::find(&*error).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_comes_is_waited_for_until_the_caller_leaves() {
    let backend = Backend::default();
    let layer = chaos([Fault::hang()]);
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(request()));
    assert_pending!(call.poll());
    advance(1000 * SECOND).await;
    assert!(!call.is_woken());
    assert_pending!(call.poll());
    assert_eq!(backend.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_several_ends_the_first_one_counts() {
    let mark = HeaderName::from_static("x-fault");
    let faults = [
        Fault::status(StatusCode::BAD_GATEWAY),
        Fault::hang(),
        Fault::reset(),
    ];
    let layer = chaos(faults).mark(mark);
    let response = send(&layer, request()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-fault"]),
        (502, &"status".parse().unwrap())
    );
    let struck: Vec<_> = layer
        .handle()
        .snapshot()
        .faults
        .iter()
        .map(|each| each.struck)
        .collect();
    assert_eq!(struck, [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_marked_unless_asked_for() {
    let layer = chaos([Fault::status(StatusCode::BAD_GATEWAY)]);
    let response = send(&layer, request()).await.unwrap();
    let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["content-type"]);
}
