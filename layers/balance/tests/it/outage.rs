use std::time::Duration;

use http::{Request, StatusCode};
use palisade_balance::{BalanceLayer, Endpoint, EndpointState, Endpoints, HealthChecks};
use palisade_core::{
    classify::Verdict,
    head::ResponseHead,
    reject::{Reason, Rejected},
};
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt};

use crate::support::{Fake, MS, balance, calls, fakes, load, of, send, send_to, since, state};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn failing_fast_does_not_attract() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[50, 50, 50, 50]);
    let service = balance(&endpoints);
    let share = async |requests: usize| {
        let before = calls(&fakes);
        load(&service, requests, MS * 2).await;
        since(&fakes, &before)[0] as f64 / requests as f64
    };
    let fair = share(1000).await;
    assert!((0.2..0.3).contains(&fair), "{fair}");

    fakes[0].now(1, StatusCode::INTERNAL_SERVER_ERROR);
    let first = share(1000).await;
    let then = share(1000).await;
    assert!(first < 0.02 && then < 0.01, "{first} {then}");

    fakes[0].now(50, StatusCode::OK);
    share(15_000).await;
    let recovered = share(1000).await;
    assert!(recovered >= 0.2, "{recovered} {:?}", endpoints.snapshot());
}

#[tokio::test(start_paused = true)]
async fn a_killed_endpoint_gets_a_hundredth_after_two_seconds_and_its_share_soon_after_it_is_back()
{
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[50, 50, 50]);
    let checks = HealthChecks::every(SECOND);
    let checker = tokio::spawn(endpoints.health_checks(checks, async |_, fake: Fake| fake.is_up()));
    let service = balance(&endpoints);
    load(&service, 2000, MS * 5).await;

    fakes[0].kill();
    load(&service, 400, MS * 5).await;
    for _ in 0..5 {
        let before = calls(&fakes);
        load(&service, 1000, MS * 5).await;
        let dead = since(&fakes, &before)[0];
        assert!(dead <= 10, "{dead} of 1000");
    }

    fakes[0].now(50, StatusCode::OK);
    load(&service, 1000, MS * 5).await;
    let before = calls(&fakes);
    load(&service, 400, MS * 5).await;
    let back = since(&fakes, &before)[0];
    assert!(back >= 80, "{back} of 400, from five seconds on");
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn without_health_checks_a_long_outage_is_found_to_be_over_by_probes_alone() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[50, 50, 50]);
    let service = balance(&endpoints);
    fakes[0].kill();
    load(&service, 1000, MS * 5).await;
    let before = calls(&fakes);
    load(&service, 10_000, MS * 5).await;
    let dead = since(&fakes, &before)[0];
    assert!((1..=20).contains(&dead), "{dead} probes in 50 s");
    fakes[0].now(50, StatusCode::OK);
    // The longest ejection, and the slow start.
    load(&service, 20_000, MS * 5).await;
    let before = calls(&fakes);
    load(&service, 400, MS * 5).await;
    let back = since(&fakes, &before)[0];
    assert!(back >= 107, "{back} of 400: 80 % of a fair share");
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_for_a_second_and_a_probe_reinstates() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    fakes[0].now(0, StatusCode::BAD_GATEWAY);
    for _ in 0..4 {
        send_to(&endpoints, &service, "0").await.unwrap();
    }
    assert_eq!(of(&endpoints, "0").ejections, 0);
    send_to(&endpoints, &service, "0").await.unwrap();
    let seen = of(&endpoints, "0");
    assert_eq!((seen.state, seen.ejections), (EndpointState::Ejected, 1));
    let pause = seen.retry_in.unwrap();
    assert!((SECOND / 2..SECOND * 3 / 2).contains(&pause), "{pause:?}");

    fakes[0].now(10, StatusCode::OK);
    sleep(pause - MS).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Ejected);
    sleep(MS * 2).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    send(&service).await.unwrap();
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn a_probe_passes_at_its_first_data() {
    use http_body_util::{BodyExt, channel::Channel};

    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    fakes[0].now(10, StatusCode::OK);
    let (mut sender, body) = Channel::<bytes::Bytes, std::convert::Infallible>::new(2);
    fakes[0].next_body(body.boxed());
    sleep(SECOND * 2).await;
    let mut body = service
        .clone()
        .oneshot(Request::new(()))
        .await
        .unwrap()
        .into_body();
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    sender
        .send_data(bytes::Bytes::from_static(b"x"))
        .await
        .unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn at_most_three_of_ten_are_ejected_though_all_fail() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 10]);
    for fake in &fakes {
        fake.now(10, StatusCode::INTERNAL_SERVER_ERROR);
    }
    let service = balance(&endpoints);
    for _ in 0..20 {
        load(&service, 50, MS * 2).await;
        let out = |endpoint: &palisade_balance::Snapshot| {
            matches!(
                endpoint.state,
                EndpointState::Ejected | EndpointState::Probing
            )
        };
        let all = endpoints.snapshot();
        let out = all.into_iter().filter(out).count();
        assert!(out <= 3, "{out}");
    }
    assert!(
        endpoints
            .snapshot()
            .iter()
            .any(|endpoint| endpoint.ejections > 0)
    );
}

#[tokio::test(start_paused = true)]
async fn two_endpoints_are_too_few_to_eject_one() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 2]);
    fakes[0].kill();
    fakes[1].kill();
    let service = balance(&endpoints);
    for _ in 0..100 {
        let error = send(&service).await.unwrap_err();
        assert_eq!(Verdict::of(&*error), Verdict::Unsent, "it reached for one");
    }
    assert!(
        endpoints
            .snapshot()
            .iter()
            .all(|endpoint| endpoint.ejections == 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_asks_to_be_left_alone_is_for_as_long_as_it_asks() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let judge = |head: &ResponseHead<'_>| {
        let retry_after = Some(SECOND * 20);
        (head.status == StatusCode::SERVICE_UNAVAILABLE)
            .then_some(Verdict::Overload { retry_after })
    };
    let service = BalanceLayer::adaptive()
        .classify(judge)
        .layer(endpoints.clone());
    fakes[0].now(1, StatusCode::SERVICE_UNAVAILABLE);
    load(&service, 100, MS * 5).await;
    fakes[0].now(10, StatusCode::OK);
    assert_eq!(
        (fakes[0].calls(), state(&endpoints, "0")),
        (1, EndpointState::Ejected)
    );
    load(&service, 1900, MS * 10).await;
    assert_eq!(fakes[0].calls(), 1);
    load(&service, 200, MS * 10).await;
    assert!(fakes[0].calls() > 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_hangs_is_found_by_callers_that_give_up() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 4]);
    let service = balance(&endpoints);
    load(&service, 100, MS * 5).await;
    fakes[0].now(3_600_000, StatusCode::OK);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4000 {
        let sent = service.clone().oneshot(Request::new(()));
        tasks.spawn(async move { timeout(SECOND, sent).await.is_ok() });
        sleep(MS * 5).await;
    }
    let lost = tasks.join_all().await.into_iter().filter(|ok| !ok).count();
    assert!(lost <= 40, "{lost} of 4000");
    assert!(of(&endpoints, "0").failures > 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_in_front_of_an_endpoint_refuses_is_not_held_against_it() {
    let endpoints = Endpoints::default();
    for name in ["a", "b", "c"] {
        let refuses = tower::service_fn(|_: Request<()>| async {
            Err::<http::Response<crate::support::Body>, palisade_core::BoxError>(
                Rejected::new(Reason::RateLimited, "no").into(),
            )
        });
        endpoints.insert(Endpoint::new(name, refuses));
    }
    let service = balance(&endpoints);
    for _ in 0..100 {
        send(&service).await.unwrap_err();
    }
    for endpoint in endpoints.snapshot() {
        assert_eq!(
            (endpoint.failures, endpoint.ejections, endpoint.latency),
            (0, 0, None)
        );
    }
}
