use std::time::Duration;

use http::{Request, StatusCode};
use palisade_balance::{Balance, Endpoint, Endpoints, Strategy};
use palisade_core::attempt::Attempts;
use tokio_test::{assert_pending, task};
use tower::ServiceExt;

use crate::support::{Fake, MS, balance, calls, fakes, load, of, send, since};

#[tokio::test(start_paused = true)]
async fn picks_the_cheapest() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[100, 10, 100]);
    let service = balance(&endpoints);
    for _ in 0..100 {
        send(&service).await.unwrap();
    }
    assert!(fakes[1].calls() >= 90, "{}", fakes[1].calls());
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_share_and_a_weight_counts() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10, 10]);
    assert!(endpoints.set_weight("0", 3.0));
    let service = balance(&endpoints);
    let sent: Vec<_> = (0..80)
        .map(|_| task::spawn(service.clone().oneshot(Request::new(()))))
        .collect();
    for mut sent in sent {
        assert_pending!(sent.poll());
        std::mem::forget(sent);
    }
    assert_eq!(calls(&fakes), [60, 20]);
}

#[tokio::test(start_paused = true)]
async fn round_robin_goes_round_whatever_is_in_flight_and_with_weights_if_it_is_told_to() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1000, 5]);
    endpoints.set_weight("2", 2.0);
    let service = Balance::round_robin(endpoints.clone());
    load(&service, 9, MS).await;
    assert_eq!(calls(&fakes), [3, 3, 3]);
    let before = calls(&fakes);
    endpoints.set_strategy(Strategy::WeightedRoundRobin);
    // Two rounds of four.
    load(&service, 8, MS).await;
    assert_eq!(since(&fakes, &before), [2, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_into_the_round_has_no_turns_to_catch_up() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1]);
    let service = Balance::round_robin(endpoints.clone());
    endpoints.suspend("0");
    load(&service, 100, MS).await;
    assert_eq!(calls(&fakes), [0, 100]);
    endpoints.resume("0");
    // Past the slow start.
    tokio::time::sleep(Duration::from_secs(11)).await;
    load(&service, 20, MS).await;
    let [first, _] = calls(&fakes)[..] else {
        unreachable!("there are two")
    };
    assert!((10..=12).contains(&first), "{first}");
}

#[tokio::test(start_paused = true)]
async fn least_connections_counts_what_is_in_flight_and_not_how_long_it_takes() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10, 200]);
    let service = Balance::least_connections(endpoints.clone());
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    assert_eq!(calls(&fakes), [10, 10], "one at a time: ties go round");
    let before = calls(&fakes);
    load(&service, 100, MS * 10).await;
    let [fast, slow] = since(&fakes, &before)[..] else {
        unreachable!("there are two")
    };
    assert!(fast > 2 * slow, "{fast} {slow}");
}

#[tokio::test(start_paused = true)]
async fn the_strategy_can_be_changed_while_requests_come() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10, 100]);
    let service = Balance::adaptive(endpoints.clone());
    assert_eq!(endpoints.strategy(), Strategy::Adaptive);
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    assert!(fakes[1].calls() <= 2);
    let before = calls(&fakes);
    endpoints.set_strategy(Strategy::RoundRobin);
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    let [_, slow] = since(&fakes, &before)[..] else {
        unreachable!("there are two")
    };
    assert!((9..=11).contains(&slow), "{slow}");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_its_share_slowly() {
    let endpoints = Endpoints::default();
    let mut all = fakes(&endpoints, &[20, 20]);
    let service = balance(&endpoints);
    load(&service, 6000, MS * 2).await;
    let newcomer = Fake::new(20);
    endpoints.insert(Endpoint::new("2", newcomer.clone()));
    all.push(newcomer);
    let before = calls(&all);
    load(&service, 500, MS * 2).await;
    let early = since(&all, &before)[2] as f64 / 500.0;
    assert!(early < 0.2, "{early}");
    load(&service, 5000, MS * 2).await;
    let before = calls(&all);
    load(&service, 500, MS * 2).await;
    let late = since(&all, &before)[2] as f64 / 500.0;
    assert!((0.28..0.38).contains(&late), "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 40, 50]);
    let service = balance(&endpoints);
    for _ in 0..30 {
        send(&service).await.unwrap();
    }
    let before = calls(&fakes);
    let attempts = Attempts::default();
    let mut request = Request::new(());
    request.extensions_mut().insert(attempts.clone());
    for _ in 0..3 {
        service.clone().oneshot(request.clone()).await.unwrap();
    }
    assert_eq!(since(&fakes, &before), [1, 1, 1]);
    service.clone().oneshot(request.clone()).await.unwrap();
    assert_eq!(attempts.count(), 4);
    let last = attempts.last().unwrap();
    assert_eq!(endpoints.name_of(last).as_deref(), Some("0"));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_sees_where_the_running_attempt_is() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[100, 100]);
    let service = balance(&endpoints);
    let mut request = Request::new(());
    request.extensions_mut().insert(Attempts::default());
    let mut first = task::spawn(service.clone().oneshot(request.clone()));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.oneshot(request));
    assert_pending!(second.poll());
    assert_eq!(calls(&fakes), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_counts_requests_and_failures() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10]);
    let service = balance(&endpoints);
    send(&service).await.unwrap();
    fakes[0].now(10, StatusCode::INTERNAL_SERVER_ERROR);
    send(&service).await.unwrap();
    fakes[0].now(10, StatusCode::NOT_FOUND);
    send(&service).await.unwrap();
    let seen = of(&endpoints, "0");
    assert_eq!((seen.requests, seen.failures, seen.in_flight), (3, 1, 0));
    assert!(seen.latency > Some(MS * 10), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn many_endpoints_all_get_their_share() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 200]);
    let service = balance(&endpoints);
    load(&service, 4000, MS).await;
    let calls = calls(&fakes);
    assert!(
        calls.iter().all(|calls| (2..60).contains(calls)),
        "{calls:?}"
    );
}
