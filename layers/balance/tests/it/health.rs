use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::StatusCode;
use palisade_balance::{Endpoint, EndpointState, Endpoints, Finding, Health, HealthChecks};
use palisade_core::time;
use tokio::time::sleep;
use tower::ServiceExt;

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

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_starts_unhealthy_gets_requests_once_a_check_has_passed() {
    let endpoints = Endpoints::default();
    let (old, new) = (Fake::new(1), Fake::new(1));
    new.kill();
    endpoints.insert(Endpoint::new("old", old.clone()));
    let checker =
        tokio::spawn(endpoints.health_checks(checks(), async |_, fake: Fake| fake.is_up()));
    sleep(SECOND * 5).await;
    let starts = Endpoint::new("new", new.clone()).health(Health::Unhealthy);
    endpoints.insert(starts.clone());
    let service = balance(&endpoints);
    sleep(SECOND * 3).await;
    for _ in 0..10 {
        send(&service).await.unwrap();
    }
    assert_eq!((old.calls(), new.calls()), (10, 0));
    assert_eq!(state(&endpoints, "new"), EndpointState::Unhealthy);
    new.now(1, StatusCode::OK);
    sleep(SECOND * 2).await;
    assert_eq!(state(&endpoints, "new"), EndpointState::SlowStart);

    // So does one that takes the place of another that was healthy, and it is checked soon, and once.
    endpoints.insert(starts);
    assert_eq!(state(&endpoints, "new"), EndpointState::Unhealthy);
    sleep(SECOND).await;
    assert_eq!(state(&endpoints, "new"), EndpointState::SlowStart);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn the_last_check_says_when_it_was_and_what_it_found() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1, 1, 1]);
    assert_eq!(of(&endpoints, "0").last_check, None);
    let check = async |name: Arc<str>, _: Fake| {
        sleep(MS * 7).await;
        match &*name {
            "0" => Ok(()),
            "1" => Err("no disk"),
            _ => std::future::pending().await,
        }
    };
    let checks = HealthChecks::every(SECOND * 60).timeout(SECOND);
    let checker = tokio::spawn(endpoints.health_checks(checks, check));
    sleep(SECOND * 3).await;
    let last = |name| of(&endpoints, name).last_check.unwrap();
    assert_eq!(
        (last("0").finding, last("0").took),
        (Finding::Passed, MS * 7)
    );
    assert_eq!(last("1").finding, Finding::Failed("no disk".into()));
    let late = last("2");
    assert_eq!(late.finding, Finding::Failed("timed out".into()));
    assert_eq!(late.took, SECOND);
    let ago = late.ago;
    assert!(ago >= SECOND && ago <= SECOND * 2, "{ago:?}");
    sleep(SECOND).await;
    assert_eq!(last("2").ago, ago + SECOND);
    // Nothing is said of an endpoint by the checks of its predecessor.
    endpoints.insert(Endpoint::new("1", Fake::new(1)));
    assert_eq!(of(&endpoints, "1").last_check, None);
    checker.abort();
}

/// Says when it is dropped.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_checker_that_is_dropped_leaves_its_checks_and_what_they_found_holds() {
    let endpoints = Endpoints::default();
    fakes(&endpoints, &[1, 1, 1]);
    let running = Arc::new(AtomicUsize::new(0));
    let counted = running.clone();
    let check = move |name: Arc<str>, _: Fake| {
        let running = Running::new(&counted);
        async move {
            let _running = running;
            if &*name != "0" {
                std::future::pending::<()>().await;
            }
            false
        }
    };
    let checks = HealthChecks::every(SECOND).timeout(SECOND * 60);
    let checker = tokio::spawn(endpoints.health_checks(checks, check));
    sleep(SECOND * 5).await;
    assert_eq!(running.load(SeqCst), 2);
    // A check of one that has left, or been replaced, is of no use.
    endpoints.remove("1");
    endpoints.insert(Endpoint::new("2", Fake::new(1)));
    tokio::task::yield_now().await;
    assert_eq!(running.load(SeqCst), 0);
    sleep(SECOND * 2).await;
    assert_eq!(running.load(SeqCst), 1);
    checker.abort();
    assert!(checker.await.unwrap_err().is_cancelled());
    assert_eq!(running.load(SeqCst), 0);
    sleep(SECOND * 60).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    assert_eq!(
        of(&endpoints, "0").last_check.unwrap().finding,
        Finding::from(false)
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_found_of_an_endpoint_that_has_just_been_replaced_is_not_said_of_the_other() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", Fake::new(1)));
    let set = endpoints.clone();
    let replaced = Arc::new(AtomicUsize::new(0));
    let count = replaced.clone();
    let check = move |_, _: Fake| {
        let (set, count) = (set.clone(), count.clone());
        async move {
            let first = count.fetch_add(1, SeqCst) == 0;
            if first {
                set.insert(Endpoint::new("0", Fake::new(1)));
            }
            !first
        }
    };
    let checks = HealthChecks::every(SECOND * 60).fall(1);
    let checker = tokio::spawn(endpoints.health_checks(checks, check));
    while replaced.load(SeqCst) == 0 {
        sleep(MS).await;
    }
    assert_eq!(of(&endpoints, "0").last_check, None);
    assert_eq!(of(&endpoints, "0").health, Health::Healthy);
    // The other is checked soon, too.
    sleep(SECOND).await;
    let last = of(&endpoints, "0").last_check.unwrap();
    assert_eq!(last.finding, Finding::Passed);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn checks_are_neither_in_flight_nor_attempts() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[100]);
    let check = async |_, fake: Fake| {
        let answer = fake.oneshot(http::Request::new(())).await;
        answer.is_ok_and(|response| response.status().is_success())
    };
    let checker = tokio::spawn(endpoints.health_checks(HealthChecks::every(SECOND), check));
    for _ in 0..500 {
        sleep(MS * 10).await;
        assert_eq!(of(&endpoints, "0").in_flight, 0);
    }
    assert!(fakes[0].calls() >= 3);
    assert_eq!(of(&endpoints, "0").requests, 0);
    checker.abort();
}

#[test]
fn checks_are_every_half_minute_unless_said_otherwise() {
    let half_minute = HealthChecks::every(SECOND * 30).timeout(SECOND * 5);
    assert_eq!(HealthChecks::default(), half_minute.rise(2).fall(3));
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn checks_are_counted_by_what_they_find() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let endpoints = Endpoints::named("chat");
    fakes(&endpoints, &[1, 1, 1]);
    let check = async |name: Arc<str>, _: Fake| match &*name {
        "0" => true,
        "1" => false,
        _ => std::future::pending().await,
    };
    let checks = HealthChecks::every(SECOND * 60).timeout(SECOND);
    let mut checker = Box::pin(endpoints.health_checks(checks, check));
    // Handles are registered when an endpoint is first seen.
    metrics::with_local_recorder(&recorder, || {
        tokio_test::assert_pending!(tokio_test::task::spawn(checker.as_mut()).poll());
    });
    let checker = tokio::spawn(checker);
    sleep(SECOND * 3).await;
    let told = crate::metrics::seen(&snapshotter);
    let told: Vec<_> = told
        .iter()
        .filter_map(|(key, count)| Some((key.strip_prefix("health_checks_total")?, *count)))
        .collect();
    let expected = [
        ("{endpoint=0,layer=chat,result=passed}", 1.0),
        ("{endpoint=1,layer=chat,result=failed}", 1.0),
        ("{endpoint=2,layer=chat,result=timed_out}", 1.0),
    ];
    assert_eq!(told, expected);
    checker.abort();
}
