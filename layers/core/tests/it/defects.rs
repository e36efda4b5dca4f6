//! Defects that were found, each by the behaviour that was missing.

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use palisade_core::{
    BoxError,
    gate::GateLayer,
    ratio::Ratio,
    reject::{Reason, Rejected},
    respond::RespondLayer,
    testing::{Answers, Log, Slow},
};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt, service_fn};

#[test]
fn a_share_is_reached_by_exactly_that_share() {
    let mut wrong = vec![];
    for whole in 1..=1000u32 {
        for part in 1..=whole {
            let share: f64 = format!("{}", f64::from(part) / f64::from(whole))
                .parse()
                .unwrap();
            if !Ratio::new(share).unwrap().reached(part, whole) {
                wrong.push((part, whole));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong, 55/100: {}",
        wrong.len(),
        Ratio::new(0.55).unwrap().reached(55, 100)
    );
}

#[tokio::test]
async fn a_refusal_for_ever_is_answered() {
    let service = RespondLayer::auto().layer(service_fn(|_: Request<()>| async {
        Err::<Response<Full<Bytes>>, BoxError>(
            Rejected::new(Reason::Overloaded, "x")
                .retry_after(Duration::MAX)
                .into(),
        )
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_ne!(response.headers()["retry-after"], "1");
}

#[tokio::test(start_paused = true)]
async fn a_head_request_is_over_with_its_head() {
    let log = Log::default();
    let service = GateLayer::new(log.gate("a")).layer(Answers(|| {
        Response::new(palisade_core::testing::Steps::new([
            palisade_core::testing::Step::Data("hello"),
        ]))
    }));
    let request = Request::builder().method(Method::HEAD).body(()).unwrap();
    // What hyper's server and axum do with the answer to HEAD: the body is dropped unread.
    drop(service.oneshot(request).await.unwrap());
    assert_eq!(log.take()[1], "a Success after 0s");
}

#[tokio::test(start_paused = true)]
async fn age_is_counted_from_the_call_a_queue_included() {
    let log = Log::default();
    let mut service = GateLayer::new(Slow(log.gate("queue"), Duration::from_secs(6)))
        .and(log.gate("breaker"))
        .layer(Answers(|| Response::new(Full::<Bytes>::from("hello"))));
    let response = service.call(Request::new(())).await.unwrap();
    drop(response);
    assert_eq!(log.take()[2], "breaker Canceled after 6s");
}

#[test]
fn a_quoted_comma_in_forwarded_is_no_hop() {
    use palisade_core::key::{PeerAddr, client_address};
    let client = client_address(["10.0.0.0/8".parse().unwrap()]);
    // What a trusted proxy writes for `Host: evil, for=6.6.6.6`.
    let mut request = Request::builder()
        .header("forwarded", "for=192.0.2.9;host=\"evil, for=6.6.6.6\"")
        .body(())
        .unwrap();
    request
        .extensions_mut()
        .insert(PeerAddr("10.0.0.1:9".parse().unwrap()));
    assert_ne!(
        client.find(&(&request).into()),
        Some("6.6.6.6".parse().unwrap())
    );
}

#[test]
fn a_rejection_is_found_inside_an_io_error() {
    let error: BoxError = std::io::Error::other(Rejected::new(Reason::RateLimited, "x")).into();
    assert!(
        Rejected::find(&*error).is_some(),
        "{:?}",
        palisade_core::classify::Verdict::of(&*error)
    );
}

#[tokio::test(start_paused = true)]
async fn the_date_moves_with_the_paused_clock() {
    let before = palisade_core::time::wall_clock();
    tokio::time::advance(Duration::from_secs(86_400)).await;
    let moved = palisade_core::time::wall_clock()
        .duration_since(before)
        .unwrap();
    assert!(
        moved.abs_diff(Duration::from_secs(86_400)) < Duration::from_secs(3600),
        "{moved:?}"
    );
}
