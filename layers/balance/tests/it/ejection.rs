//! Rules of ejection, changed live, and what is told of them.

use std::time::Duration;

use http::{Request, StatusCode};
use palisade_balance::{Ejection, EjectionReason, Endpoint, EndpointState, Endpoints, Health};
use palisade_core::{ratio::Ratio, time};
use tokio::time::sleep;
use tokio_test::{assert_pending, task};
use tower::ServiceExt;

use crate::support::{Circuit, Fake, MS, balance, calls, fakes, load, of, send, send_to, state};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn one_that_fails_every_other_time_is_ejected_for_its_ratio() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    let began = time::now();
    for turn in 0..10 {
        assert_eq!(of(&endpoints, "0").ejections, 0, "{turn}");
        let status = [StatusCode::OK, StatusCode::BAD_GATEWAY][turn % 2];
        fakes[0].now(10, status);
        send_to(&endpoints, &service, "0").await.unwrap();
    }
    let seen = of(&endpoints, "0");
    assert_eq!((seen.state, seen.ejections), (EndpointState::Ejected, 1));
    let ejected = seen.ejected.unwrap();
    assert_eq!(ejected.reason, EjectionReason::SuccessRatio);
    assert_eq!(ejected.at - began, MS * 100);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_is_the_reason_for_the_next_ejection() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    let first = of(&endpoints, "0");
    assert_eq!(first.ejected.unwrap().reason, EjectionReason::Consecutive);
    sleep(first.retry_in.unwrap() + MS).await;
    send(&service).await.unwrap_err();
    let second = of(&endpoints, "0");
    assert_eq!(second.ejected.unwrap().reason, EjectionReason::ProbeFailed);
    assert!(second.ejected.unwrap().at > first.ejected.unwrap().at);
    fakes[0].now(10, StatusCode::OK);
    sleep(second.retry_in.unwrap() + MS).await;
    send(&service).await.unwrap();
    let back = of(&endpoints, "0");
    assert_eq!(back.state, EndpointState::SlowStart);
    assert_eq!(back.ejected, second.ejected, "what was last is remembered");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_ejects_nobody_and_tells_what_it_would_have() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    endpoints.set_ejection(Ejection::default().shadow());
    let service = balance(&endpoints);
    fakes[0].now(10, StatusCode::BAD_GATEWAY);
    for _ in 0..20 {
        send_to(&endpoints, &service, "0").await.unwrap();
    }
    assert_eq!(fakes[0].calls(), 20);
    let seen = of(&endpoints, "0");
    assert_eq!(seen.state, EndpointState::SlowStart, "it is new");
    assert_eq!((seen.ejections, seen.shadowed_ejections), (0, 1));
    assert_eq!(seen.ejected.unwrap().reason, EjectionReason::Consecutive);

    endpoints.set_ejection(Ejection::default());
    assert_eq!(of(&endpoints, "0").state, EndpointState::SlowStart);
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap();
    }
    assert_eq!(state(&endpoints, "0"), EndpointState::Ejected);
}

#[tokio::test(start_paused = true)]
async fn switching_ejection_off_lets_those_go_that_wait() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10]);
    for name in ["1", "2"] {
        endpoints.insert(Endpoint::new(name, Fake::new(100_000)).max_in_flight(1));
    }
    let service = balance(&endpoints);
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    fakes[0].now(10, StatusCode::OK);
    let mut full = [1, 2].map(|_| task::spawn(service.clone().oneshot(Request::new(()))));
    full.iter_mut()
        .for_each(|full| assert_pending!(full.poll()));
    let mut waiting = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    endpoints.set_ejection(Ejection::off());
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(fakes[0].calls(), 6);
    for _ in 0..20 {
        fakes[0].kill();
        send(&service).await.unwrap_err();
    }
    assert_eq!(of(&endpoints, "0").ejections, 1);
}

#[tokio::test(start_paused = true)]
async fn rules_change_live() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 4]);
    let rules = Ejection::default()
        .consecutive(2)
        .pause(SECOND * 4)
        .longest(SECOND * 4)
        .ceiling(Ratio::new(0.25).unwrap());
    endpoints.set_ejection(rules);
    let service = balance(&endpoints);
    for name in ["0", "1"] {
        fakes[name.parse::<usize>().unwrap()].kill();
        for _ in 0..2 {
            send_to(&endpoints, &service, name).await.unwrap_err();
        }
    }
    let seen = of(&endpoints, "0");
    assert_eq!((seen.failures, seen.ejections), (2, 1));
    let pause = seen.retry_in.unwrap();
    assert!((SECOND * 2..=SECOND * 4).contains(&pause), "{pause:?}");
    assert_eq!(of(&endpoints, "1").ejections, 0, "one of four is enough");
    endpoints.set_ejection(rules.ceiling(Ratio::HALF));
    send_to(&endpoints, &service, "1").await.unwrap_err();
    assert_eq!(of(&endpoints, "1").ejections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_opens_is_told_as_the_reason() {
    let endpoints = Endpoints::default();
    let fakes: Vec<_> = (0..3).map(|_| Fake::new(10)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        let circuit = Circuit::new(2, SECOND);
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()).gate(circuit));
    }
    let service = balance(&endpoints);
    assert_eq!(of(&endpoints, "0").ejected, None);
    fakes[0].now(10, StatusCode::BAD_GATEWAY);
    for _ in 0..2 {
        send_to(&endpoints, &service, "0").await.unwrap();
    }
    let seen = of(&endpoints, "0");
    assert_eq!((seen.state, seen.ejections), (EndpointState::Ejected, 0));
    assert_eq!(seen.ejected.unwrap().reason, EjectionReason::Gate);
    assert_eq!(seen.ejected.unwrap().at, time::now());
}

#[tokio::test(start_paused = true)]
async fn one_that_sheds_everything_is_out_and_one_that_sheds_some_stays() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 4]);
    let service = balance(&endpoints);
    for turn in 0..40 {
        fakes[0].now(1, StatusCode::SERVICE_UNAVAILABLE);
        let other = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE][usize::from(turn % 8 > 0)];
        fakes[1].now(1, other);
        for name in ["0", "1"] {
            if state(&endpoints, name) != EndpointState::Ejected {
                send_to(&endpoints, &service, name).await.unwrap();
            }
        }
    }
    assert_eq!(fakes[0].calls(), 10);
    let seen = of(&endpoints, "0");
    assert_eq!(seen.ejected.unwrap().reason, EjectionReason::Overload);
    assert_eq!((fakes[1].calls(), of(&endpoints, "1").ejections), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_a_probe_hands_it_to_the_next() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    let service = balance(&endpoints);
    load(&service, 30, MS * 5).await;
    fakes[0].kill();
    while state(&endpoints, "0") != EndpointState::Ejected {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    fakes[0].now(10, StatusCode::OK);
    sleep(of(&endpoints, "0").retry_in.unwrap() + MS).await;
    let calls = fakes[0].calls();
    for leaves in 1..=3 {
        let mut probe = task::spawn(service.clone().oneshot(Request::new(())));
        assert_pending!(probe.poll());
        assert_eq!(fakes[0].calls(), calls + leaves);
        assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
        drop(probe);
    }
    send(&service).await.unwrap();
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn when_most_are_overloaded_nobody_is_ejected_for_it() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 4]);
    let service = balance(&endpoints);
    for fake in &fakes[..3] {
        fake.now(1, StatusCode::SERVICE_UNAVAILABLE);
    }
    for _ in 0..20 {
        for name in ["0", "1", "2"] {
            send_to(&endpoints, &service, name).await.unwrap();
        }
    }
    assert_eq!(calls(&fakes), [20, 20, 20, 0]);
    // Two of four is not most.
    fakes[2].now(1, StatusCode::OK);
    send_to(&endpoints, &service, "2").await.unwrap();
    send_to(&endpoints, &service, "1").await.unwrap();
    assert_eq!(state(&endpoints, "1"), EndpointState::Ejected);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_unhealthy_comes_back_slowly_in_shadow_too() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    endpoints.set_ejection(Ejection::default().shadow());
    let service = balance(&endpoints);
    sleep(SECOND * 11).await;
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    assert_eq!(of(&endpoints, "0").shadowed_ejections, 1);
    assert_eq!(state(&endpoints, "0"), EndpointState::Serving);
    endpoints.set_health("0", Health::Unhealthy);
    endpoints.set_health("0", Health::Healthy);
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
}
