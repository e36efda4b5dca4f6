use std::sync::Arc;

use http::{HeaderMap, HeaderName, Response};
use http_body_util::BodyExt;
use palisade_core::{
    attempt::Attempts,
    classify::Grpc,
    reject::{Reason, Rejected},
    testing::{Step, Steps},
};
use palisade_fallback::{FallbackLayer, ServedBy};

use crate::support::{
    Backend, Line, by, fails, get, ok, rejects, request, says, secondary, send, status,
};

#[tokio::test(start_paused = true)]
async fn the_mark_has_another_name_or_none() {
    let first = Backend::new([status(503)]);
    let layer = FallbackLayer::new().value("value", Response::new("value"));
    let named = layer.clone().mark(HeaderName::from_static("x-served-by"));
    let response = get(&named, &first).await.unwrap();
    assert_eq!(response.headers()["x-served-by"], "value");
    assert!(!response.headers().contains_key("x-fallback"));
    let response = get(&layer.mark(None), &first).await.unwrap();
    assert!(response.headers().is_empty());
    let by = response.extensions().get().map(ServedBy::name);
    assert_eq!(by, Some("value"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_no_header_is_made_one() {
    let layer = FallbackLayer::new().value("zweite Wahl\n", Response::new("value"));
    let response = get(&layer, &Backend::new([status(503)])).await.unwrap();
    assert_eq!(response.headers()["x-fallback"], "zweite?Wahl?");
    let by = response.extensions().get().map(ServedBy::name);
    assert_eq!(by, Some("zweite Wahl\n"));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_was_given_up_is_not_tried_again_whoever_fails_last() {
    let spent = says(503, &[("x-should-retry", "false")], "spent");
    let layer = secondary(&Backend::new([status(500)]));
    let response = get(&layer, &Backend::new([spent])).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["x-should-retry"], "false");

    // And not if nobody has said so.
    let response = get(&layer, &Backend::new([status(503)])).await.unwrap();
    assert!(!response.headers().contains_key("x-should-retry"));

    // Nor on what an alternative has served.
    let spent = says(503, &[("x-should-retry", "false")], "spent");
    let layer = secondary(&Backend::new([ok("other")]));
    let response = get(&layer, &Backend::new([spent])).await.unwrap();
    assert!(!response.headers().contains_key("x-should-retry"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_was_given_up_stays_so() {
    let spent: Line = fails(|| {
        let mut rejected = Rejected::new(Reason::CircuitOpen, "open");
        rejected.give_up();
        rejected.into()
    });
    let layer = secondary(&Backend::new([rejects(Reason::NoEndpoint)]));
    let error = get(&layer, &Backend::new([spent])).await.unwrap_err();
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(
        (rejected.reason(), rejected.is_final()),
        (Reason::NoEndpoint, true)
    );
}

#[tokio::test(start_paused = true)]
async fn calls_of_grpc_are_told_by_pushback() {
    let call = || {
        let mut call = request();
        let kind = "application/grpc".parse().unwrap();
        call.headers_mut().insert("content-type", kind);
        call
    };
    let spent = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")];
    let first = Backend::new([says(200, &spent, "")]);
    let other = Backend::new([says(200, &[("grpc-status", "13")], "")]);
    let layer = secondary(&other).classify(Grpc);
    let response = send(&layer, &first, call()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "13");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
    assert_eq!(by(&response), None);
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_held_back_are_told_in_their_trailers() {
    let ends = |trailers: &[(&'static str, &'static str)]| -> Line {
        let named =
            |&(name, value): &(_, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        let trailers: HeaderMap = trailers.iter().map(named).collect();
        Arc::new(move |_| {
            let body = Steps::new([Step::Trailers(trailers.clone())]);
            Box::pin(async { Ok(Response::new(body)) })
        })
    };
    let spent = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")];
    for (first, pushback) in [(ends(&spent), Some("-1")), (ends(&spent[..1]), None)] {
        let mut call = request();
        let kind = "application/grpc".parse().unwrap();
        call.headers_mut().insert("content-type", kind);
        let other = Backend::new([ends(&[("grpc-status", "13")])]);
        let layer = secondary(&other).hold_back(|_| true).classify(Grpc);
        let response = send(&layer, &Backend::new([first]), call).await.unwrap();
        assert!(response.headers().is_empty());
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "13");
        let told = trailers.get("grpc-retry-pushback-ms");
        assert_eq!(told.map(|value| value.to_str().unwrap()), pushback);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_alternative_gave_up_is_told_to_those_outside() {
    let spent: Line = Arc::new(|request| {
        request.extensions().get::<Attempts>().unwrap().give_up();
        fails(|| "broken".into())(request)
    });
    let attempts = Attempts::default();
    let mut asked = request();
    asked.extensions_mut().insert(attempts.clone());
    let layer = secondary(&Backend::new([spent]));
    drop(send(&layer, &Backend::new([status(503)]), asked).await);
    assert!(attempts.gave_up());
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_marked_is_given_up_all_the_same() {
    let spent: Line = Arc::new(|request| {
        request.extensions().get::<Attempts>().unwrap().give_up();
        fails(|| "broken".into())(request)
    });
    let mut asked = request();
    asked.extensions_mut().insert(Attempts::default());
    let layer = secondary(&Backend::new([status(500)]));
    let response = send(&layer, &Backend::new([spent]), asked).await.unwrap();
    assert_eq!(response.headers()["x-should-retry"], "false");
}
