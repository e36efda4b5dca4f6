use std::convert::Infallible;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, channel::Channel};
use palisade_balance::{Endpoint, EndpointState, Endpoints, Health};
use tokio_test::{assert_pending, assert_ready, task};
use tower::ServiceExt;

use crate::support::{Fake, balance, fakes, send, state};

#[tokio::test(start_paused = true)]
async fn draining_lets_streams_end() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1]);
    let service = balance(&endpoints);
    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
    fakes[0].next_body(body.boxed());
    let response = service.clone().oneshot(Request::new(())).await.unwrap();

    let mut drained = task::spawn(endpoints.drain("0"));
    assert_pending!(drained.poll());
    let mut again = task::spawn(endpoints.drain("0"));
    assert_pending!(again.poll());
    assert_eq!(state(&endpoints, "0"), EndpointState::Draining);
    let other = Fake::new(1);
    endpoints.insert(Endpoint::new("other", other.clone()));
    send(&service).await.unwrap();
    assert_eq!((fakes[0].calls(), other.calls()), (1, 1));
    drop(sender);
    response.into_body().collect().await.unwrap();
    assert!(drained.is_woken());
    assert!(assert_ready!(drained.poll()), "it was there");
    assert!(!assert_ready!(again.poll()), "it had been removed before");
    assert_eq!(endpoints.snapshot().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_endpoint_finishes_what_it_has_and_the_new_one_gets_the_rest() {
    let endpoints = Endpoints::default();
    let old = fakes(&endpoints, &[1]).remove(0);
    let service = balance(&endpoints);
    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
    old.next_body(body.boxed());
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    let new = Fake::new(1);
    let id = endpoints.insert(Endpoint::new("0", new.clone()));
    assert_eq!((endpoints.len(), endpoints.snapshot().len()), (1, 2));
    send(&service).await.unwrap();
    assert_eq!((old.calls(), new.calls()), (1, 1));
    drop(sender);
    response.into_body().collect().await.unwrap();
    assert_eq!(endpoints.snapshot()[0].id, id);
    assert_eq!(endpoints.snapshot().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_endpoint_gets_nothing_until_it_is_resumed() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1]);
    let service = balance(&endpoints);
    assert!(endpoints.suspend("0"));
    assert_eq!(state(&endpoints, "0"), EndpointState::Draining);
    for _ in 0..10 {
        send(&service).await.unwrap();
    }
    assert_eq!((fakes[0].calls(), endpoints.len()), (0, 2));
    endpoints.insert(Endpoint::new("0", fakes[0].clone()));
    assert_eq!(
        state(&endpoints, "0"),
        EndpointState::Draining,
        "discovery does not undo it"
    );
    assert!(endpoints.resume("0"));
    endpoints.remove("1");
    send(&service).await.unwrap();
    assert_eq!(fakes[0].calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn names_that_are_not_there_are_said_to_be_not_there() {
    let endpoints = Endpoints::<Fake>::default();
    assert!(!endpoints.remove("x") && !endpoints.drain("x").await);
    assert!(!endpoints.suspend("x") && !endpoints.resume("x"));
    assert!(!endpoints.set_weight("x", 1.0) && !endpoints.set_health("x", Health::Healthy));
    assert_eq!(endpoints.with_gate("x", |()| ()), None);
    assert!(endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn weights_that_are_no_weights_do_no_harm() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1, 1]);
    let service = balance(&endpoints);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        endpoints.set_weight("0", weight);
        send(&service).await.unwrap();
    }
}
