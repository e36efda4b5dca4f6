use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::StatusCode;
use palisade_balance::{Endpoint, EndpointState, Endpoints, Health, HealthChecks};
use palisade_core::time;
use tokio::time::sleep;

use crate::support::{Fake, MS, balance, fakes, of, send, send_to, state};

const SECOND: Duration = Duration::from_secs(1);

fn checks() -> HealthChecks {
    HealthChecks::every(SECOND).timeout(MS * 100)
}

#[tokio::test(start_paused = true)]
async fn failed_checks_take_an_endpoint_out_and_passing_ones_bring_it_back() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1]);
    let checker =
        tokio::spawn(endpoints.health_checks(checks(), async |_, fake: Fake| fake.is_up()));
    let service = balance(&endpoints);
    sleep(SECOND * 3).await;
    fakes[0].kill();
    // The interval and its jitter, then two more in a hurry.
    sleep(SECOND * 2).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    assert_eq!((fakes[0].calls(), fakes[1].calls()), (0, 20));
    fakes[0].now(1, StatusCode::OK);
    sleep(SECOND * 2).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn one_check_that_hangs_does_not_delay_the_others_and_is_a_failed_one() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1, 1, 1]);
    let checked: Arc<[AtomicUsize; 3]> = Arc::default();
    let counts = checked.clone();
    let check = move |name: Arc<str>, _: Fake| {
        let at: usize = name.parse().unwrap();
        counts[at].fetch_add(1, SeqCst);
        async move {
            if at == 0 {
                std::future::pending::<()>().await;
            }
            true
        }
    };
    let checks = HealthChecks::every(SECOND).timeout(SECOND * 10).fall(1);
    let checker = tokio::spawn(endpoints.health_checks(checks, check));
    sleep(SECOND * 10).await;
    let counts = [0, 1, 2].map(|at: usize| checked[at].load(SeqCst));
    assert_eq!(counts[0], 1);
    assert!(
        counts[1..].iter().all(|count| (7..=14).contains(count)),
        "{counts:?}"
    );
    assert_ne!(state(&endpoints, "0"), EndpointState::Unhealthy);
    sleep(SECOND * 2).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn checks_of_different_gateways_do_not_fall_together() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1; 20]);
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = times.clone();
    let start = time::now();
    let checker = tokio::spawn(endpoints.health_checks(checks(), move |_, _: Fake| {
        noted.lock().unwrap().push(start.elapsed());
        std::future::ready(true)
    }));
    sleep(SECOND).await;
    let times = times.lock().unwrap().clone();
    assert!(times.len() >= 20);
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(last - first > SECOND / 3, "{first:?} {last:?}");
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_come_later_are_checked_and_those_that_go_are_not() {
    let endpoints = Endpoints::default();
    let checker =
        tokio::spawn(endpoints.health_checks(checks(), async |_, fake: Fake| fake.is_up()));
    sleep(SECOND * 5).await;
    let dead = Fake::new(1);
    dead.kill();
    endpoints.insert(Endpoint::new("0", dead));
    sleep(SECOND * 3).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    endpoints.remove("0");
    sleep(SECOND * 3).await;
    let alive = Fake::new(1);
    endpoints.insert(Endpoint::new("0", alive));
    assert_eq!(
        state(&endpoints, "0"),
        EndpointState::SlowStart,
        "another one of that name"
    );
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn health_is_kept_when_an_endpoint_is_replaced() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1, 1]);
    endpoints.set_health("0", Health::Unhealthy);
    let new = Fake::new(1);
    endpoints.insert(Endpoint::new("0", new.clone()));
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    let checker =
        tokio::spawn(endpoints.health_checks(checks(), async |_, fake: Fake| fake.is_up()));
    new.kill();
    sleep(SECOND * 4).await;
    endpoints.insert(Endpoint::new("0", Fake::new(1)));
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    sleep(SECOND * 3).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_long_ejection_ends_when_checks_pass_again() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    fakes[0].kill();
    // Probes fail, and the pauses grow.
    while of(&endpoints, "0").ejections < 7 {
        send_to(&endpoints, &service, "0").await.ok();
        sleep(of(&endpoints, "0").retry_in.unwrap_or_default()).await;
    }
    send_to(&endpoints, &service, "0").await.unwrap_err();
    assert!(of(&endpoints, "0").retry_in > Some(SECOND * 20));
    fakes[0].now(10, StatusCode::OK);
    endpoints.set_health("0", Health::Healthy);
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    send(&service).await.unwrap();
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn the_checker_ends_with_the_set() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1]);
    let checker =
        tokio::spawn(endpoints.health_checks(checks(), async |_, fake: Fake| fake.is_up()));
    sleep(SECOND).await;
    drop(endpoints);
    checker.await.unwrap();
}
