//! A circuit for each destination.

use std::{thread, time::Duration};

use http::{Request, Response, StatusCode};
use palisade_circuit_breaker::{
    CircuitOpen, CircuitState, KeyedCall, KeyedCircuitBreaker, KeyedCircuitBreakerLayer, Mode,
    Settings, destination,
};
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    key::{Key, header},
    reject::{Reason, Rejected},
    settle::{End, Settle},
    time::now,
};
use std::error::Error;
use tokio::time::advance;
use tower::{Layer, Service, service_fn};

use crate::support::{Answer, COOLDOWN, says};

fn settings() -> Settings {
    let mut settings = Settings::consecutive(2, COOLDOWN);
    settings.jitter = None;
    settings
}

fn to(host: &str) -> Request<()> {
    Request::get(format!("http://{host}/")).body(()).unwrap()
}

fn admit(breaker: &KeyedCircuitBreaker, host: &str) -> Result<KeyedCall, Rejected> {
    match breaker.admit(&(&to(host)).into(), now()) {
        Admit::Now(decided) => decided,
        later => panic!("{later:?}"),
    }
}

fn fail(breaker: &KeyedCircuitBreaker, host: &str, count: usize) {
    for _ in 0..count {
        let mut call = admit(breaker, host).unwrap();
        call.settle(&End::new(Verdict::Failure), now());
    }
}

#[tokio::test(start_paused = true)]
async fn one_destination_that_fails_is_refused_with_the_time_left_and_the_others_are_not() {
    let breaker = KeyedCircuitBreaker::new(settings(), destination());
    let layer = KeyedCircuitBreakerLayer::new(breaker);
    let mut service = layer.layer(service_fn(|request: Request<()>| async move {
        let status = match request.uri().host() {
            Some("bad.example") => StatusCode::BAD_GATEWAY,
            _ => StatusCode::OK,
        };
        let answer: Result<Answer, _> = says(status).call(request).await;
        answer
    }));
    for _ in 0..2 {
        let answer = service.call(to("bad.example")).await;
        assert_eq!(answer.unwrap().status(), StatusCode::BAD_GATEWAY);
    }
    advance(Duration::from_secs(1)).await;
    let Err(error) = service.call(to("bad.example")).await else {
        panic!("it passed");
    };
    let rejected = Rejected::find(&*error).unwrap();
    let left = Some(Duration::from_secs(4));
    assert_eq!(
        (rejected.reason(), rejected.delay()),
        (Reason::CircuitOpen, left)
    );
    let source = rejected.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&CircuitOpen { remaining: left }));
    let good: Result<Response<_>, _> = service.call(to("good.example")).await;
    assert_eq!(good.unwrap().status(), StatusCode::OK);

    let handle = layer.handle();
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.keys, snapshot.open), (2, 1));
    let of = |host: &str| handle.circuit(&Key::from(host)).unwrap().snapshot();
    assert_eq!(of("bad.example").refused_total, 1);
    assert_eq!(of("good.example").refused_total, 0);
    assert!(handle.circuit(&Key::from("unknown.example")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_passes_and_harms_nobody() {
    let breaker = KeyedCircuitBreaker::new(settings(), header("x-model"));
    fail(&breaker, "any.example", 100);
    assert_eq!(breaker.handle().snapshot().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn many_keys_leave_no_more_than_the_capacity_and_no_open_circuit_is_lost() {
    let breaker = KeyedCircuitBreaker::new(settings(), destination()).capacity(100);
    fail(&breaker, "bad.example", 2);
    let mut request = to("x");
    for number in 0..50_000 {
        *request.uri_mut() = format!("http://h{number}/").parse().unwrap();
        let Admit::Now(Ok(_)) = breaker.admit(&(&request).into(), now()) else {
            panic!("refused");
        };
    }
    let snapshot = breaker.handle().snapshot();
    assert_eq!((snapshot.keys, snapshot.capacity), (100, 100));
    assert_eq!(snapshot.evicted_total, 50_000 - 99);
    assert!(admit(&breaker, "bad.example").is_err());
}

#[tokio::test(start_paused = true)]
async fn other_settings_reach_the_circuits_that_are_there_and_those_to_come() {
    let breaker = KeyedCircuitBreaker::new(settings(), destination());
    fail(&breaker, "a", 1);
    let handle = breaker.handle();
    let mut settings = handle.settings();
    settings.consecutive = Some(3);
    handle.update(settings);
    for (host, more) in [("a", 2), ("b", 3)] {
        fail(&breaker, host, more);
        assert!(admit(&breaker, host).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_about_one_key_is_kept_and_shadow_is_for_all() {
    let breaker = KeyedCircuitBreaker::new(settings(), destination()).capacity(2);
    let handle = breaker.handle();
    drop(admit(&breaker, "a"));
    handle.circuit(&Key::from("a")).unwrap().force_open();
    for number in 0..100 {
        drop(admit(&breaker, &format!("h{number}")));
    }
    assert!(admit(&breaker, "a").is_err());
    handle.set_mode(Mode::Shadow);
    assert!(admit(&breaker, "a").is_ok());
    handle.set_mode(Mode::Enforce);
    assert!(handle.forget(&Key::from("a")));
    assert!(admit(&breaker, "a").is_ok());
}

#[tokio::test(start_paused = true)]
async fn circuits_are_carried_over_a_restart_key_by_key() {
    let make = || KeyedCircuitBreaker::new(settings(), destination());
    let before = make();
    fail(&before, "bad.example", 2);
    fail(&before, "ill.example", 1);
    let after = make();
    for (key, circuit) in before.handle().circuits() {
        assert!(after.handle().restore(&key, &circuit.save()));
    }
    assert!(admit(&after, "bad.example").is_err());
    fail(&after, "ill.example", 1);
    assert!(admit(&after, "ill.example").is_err());
}

#[tokio::test(start_paused = true)]
async fn threads_that_come_with_new_keys_and_old_ones_agree_on_their_circuits() {
    let breaker = KeyedCircuitBreaker::new(settings(), destination()).capacity(64);
    fail(&breaker, "bad.example", 2);
    let at = now();
    thread::scope(|scope| {
        for number in 0..16_u32 {
            let breaker = &breaker;
            scope.spawn(move || {
                for turn in 0..500_u32 {
                    let host = format!("h{}", (number * 31 + turn) % 200);
                    let request = to(&host);
                    let Admit::Now(decided) = breaker.admit(&(&request).into(), at) else {
                        panic!("it decides at once");
                    };
                    if let Ok(mut call) = decided {
                        let verdict = match turn % 3 {
                            0 => Verdict::Failure,
                            _ => Verdict::Success,
                        };
                        call.settle(&End::new(verdict), at);
                    }
                    let bad = to("bad.example");
                    assert!(matches!(
                        breaker.admit(&(&bad).into(), at),
                        Admit::Now(Err(_))
                    ));
                }
            });
        }
    });
    let handle = breaker.handle();
    assert_eq!(handle.snapshot().keys, 64);
    let states = handle.circuits();
    let open = states
        .iter()
        .filter(|(_, circuit)| circuit.snapshot().state == CircuitState::Open);
    assert_eq!(open.count(), handle.snapshot().open);
}
