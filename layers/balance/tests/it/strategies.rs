//! What strategies read from requests, and when it is over.

use std::convert::Infallible;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, channel::Channel};
use palisade_balance::{Affinity, Balance, Endpoints, Strategy};
use palisade_core::{attempt::Attempts, cost::Cost};
use tokio_test::{assert_pending, task};
use tower::ServiceExt;

use crate::support::{calls, fakes, in_flight, send, since};

fn with<T: Clone + Send + Sync + 'static>(extension: T) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(extension);
    request
}

#[tokio::test(start_paused = true)]
async fn requests_with_the_same_affinity_go_to_the_same_endpoint_and_others_spread() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1; 5]);
    let service = Balance::consistent_hash(endpoints.clone());
    let mut homes = [0; 5];
    for session in 0..40 {
        let before = calls(&fakes);
        for _ in 0..5 {
            let request = with(Affinity::of(format!("session {session}")));
            service.clone().oneshot(request).await.unwrap();
        }
        let since = since(&fakes, &before);
        let home = since.iter().position(|&calls| calls == 5);
        homes[home.unwrap()] += 1;
    }
    assert!(homes.iter().all(|&sessions| sessions > 0), "{homes:?}");
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_place_of_an_endpoint_by_name_gets_its_sessions() {
    let endpoints = Endpoints::default();
    let first = fakes(&endpoints, &[1; 5]);
    let service = Balance::consistent_hash(endpoints.clone());
    let go = async |session: usize| {
        let request = with(Affinity::of(format!("session {session}")));
        service.clone().oneshot(request).await.unwrap();
    };
    for session in 0..20 {
        go(session).await;
    }
    let before = calls(&first);
    // All of the same age, so that slow start changes nobody's share.
    let second = fakes(&endpoints, &[1; 5]);
    for session in 0..20 {
        go(session).await;
    }
    assert_eq!(calls(&second), before);
}

#[tokio::test(start_paused = true)]
async fn a_retry_leaves_home_and_finds_the_same_second_home() {
    let endpoints = Endpoints::default();
    let _fakes = fakes(&endpoints, &[1; 5]);
    let service = Balance::consistent_hash(endpoints.clone());
    let mut seen = Vec::new();
    for _ in 0..3 {
        let attempts = Attempts::default();
        let mut request = with(Affinity::of("session 7"));
        request.extensions_mut().insert(attempts.clone());
        let mut went = Vec::new();
        for _ in 0..3 {
            service.clone().oneshot(request.clone()).await.unwrap();
            went.push(attempts.last().unwrap());
        }
        assert!(went[0] != went[1] && went[1] != went[2] && went[0] != went[2]);
        seen.push(went);
    }
    assert!(seen.iter().all(|went| *went == seen[0]));
}

#[tokio::test(start_paused = true)]
async fn a_large_request_keeps_others_away_until_its_body_is_over() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10, 10]);
    let service = Balance::adaptive(endpoints.clone());
    let cost = |units| with(Cost::new(units).unwrap());
    for _ in 0..20 {
        service.clone().oneshot(cost(100.0)).await.unwrap();
    }
    let (_first, body) = Channel::<Bytes, Infallible>::new(1);
    fakes[0].next_body(body.boxed());
    let (_second, body) = Channel::<Bytes, Infallible>::new(1);
    fakes[1].next_body(body.boxed());
    let before = calls(&fakes);
    let large = service.clone().oneshot(cost(1e9)).await.unwrap();
    let busy = since(&fakes, &before).iter().position(|&calls| calls == 1);
    let busy = busy.unwrap();
    let eight = || {
        let before = calls(&fakes);
        let mut sent = Vec::new();
        for _ in 0..8 {
            let mut one = task::spawn(service.clone().oneshot(cost(100.0)));
            assert_pending!(one.poll());
            sent.push(one);
        }
        since(&fakes, &before)[busy]
    };
    assert_eq!(eight(), 0, "one of a hundred times the size is like eleven");
    drop(large);
    assert_eq!(eight(), 4);
    assert_eq!(in_flight(&endpoints), 0);
}

#[tokio::test(start_paused = true)]
async fn a_strategy_can_be_anything_at_any_time() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1; 4]);
    let service = Balance::prequal(endpoints.clone());
    for strategy in Strategy::ALL.into_iter().cycle().take(90) {
        endpoints.set_strategy(strategy);
        send(&service).await.unwrap();
    }
    let calls = calls(&fakes);
    assert_eq!(calls.iter().sum::<usize>(), 90);
    assert!(calls.iter().all(|&calls| calls > 10), "{calls:?}");
}
