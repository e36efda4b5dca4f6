//! When most endpoints are out.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, StatusCode};
use palisade_balance::{Endpoint, EndpointState, Endpoints, Health, Panic};
use palisade_core::{
    BoxError,
    ratio::Ratio,
    reject::{Reason, Rejected},
    time,
};
use tokio::time::sleep;
use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{Service, ServiceExt};

use crate::support::{
    Circuit, Fake, MS, balance, calls, fakes, load, of, send, send_to, since, state,
};

const SECOND: Duration = Duration::from_secs(1);

/// Endpoints 0, 1, ... of which the gates of some are open.
async fn open(endpoints: &Endpoints<Fake, Circuit>, number: usize, open: usize) -> Vec<Fake> {
    let fakes: Vec<_> = (0..number).map(|_| Fake::new(10)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        let circuit = Circuit::new(1, SECOND);
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()).gate(circuit));
    }
    let service = balance(endpoints);
    for (at, fake) in fakes.iter().enumerate().take(open) {
        fake.now(0, StatusCode::BAD_GATEWAY);
        send_to(endpoints, &service, &at.to_string()).await.unwrap();
        fake.now(10, StatusCode::OK);
    }
    fakes
}

#[tokio::test(start_paused = true)]
async fn half_is_no_panic_and_less_is() {
    let endpoints = Endpoints::<Fake>::default();
    assert!(!endpoints.is_panicking(), "nobody is missing");
    fakes(&endpoints, &[10; 4]);
    for (name, panics) in [("0", false), ("1", false), ("2", true), ("3", true)] {
        endpoints.set_health(name, Health::Unhealthy);
        assert_eq!(endpoints.is_panicking(), panics, "{name}");
    }
    endpoints.remove("3");
    endpoints.remove("2");
    assert!(!endpoints.is_panicking(), "of two nobody can say");
}

#[tokio::test(start_paused = true)]
async fn refusing_refuses_at_once_and_says_when_to_come_back() {
    let endpoints = Endpoints::default();
    let fakes = open(&endpoints, 4, 3).await;
    endpoints.set_panic(Panic::Refuse);
    let before = calls(&fakes);
    let service = balance(&endpoints);
    let began = time::now();
    let error = send(&service).await.unwrap_err();
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::NoEndpoint);
    assert_eq!(rejected.delay(), Some(SECOND));
    assert_eq!(time::now(), began, "nobody waits");
    assert_eq!(calls(&fakes), before);

    endpoints.set_panic(Panic::UseAll);
    load(&service, 200, Duration::ZERO).await;
    let since = since(&fakes, &before);
    assert!(since.iter().all(|&calls| calls > 0), "{since:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_refuses_ends_by_probes() {
    let endpoints = Endpoints::default();
    let fakes = open(&endpoints, 4, 3).await;
    endpoints.set_panic(Panic::Refuse);
    let before = calls(&fakes);
    let service = balance(&endpoints);
    sleep(SECOND).await;
    let mut probes: Vec<_> = (0..2)
        .map(|_| task::spawn(service.clone().oneshot(Request::new(()))))
        .collect();
    for probe in &mut probes {
        assert_pending!(probe.poll());
    }
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    assert_eq!(calls(&fakes)[3], before[3], "they are sent to who is due");
    sleep(MS * 10).await;
    for probe in &mut probes {
        assert!(probe.is_woken());
        drop(tokio_test::assert_ready_ok!(probe.poll()));
    }
    assert!(!endpoints.is_panicking());
    for _ in 0..8 {
        send(&service).await.unwrap();
    }
    assert!(fakes[3].calls() > before[3]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_endpoint_is_not_ready_is_waited_for_in_a_panic() {
    let endpoints = Endpoints::default();
    let fakes = open(&endpoints, 3, 3).await;
    endpoints.set_panic(Panic::Refuse);
    let service = balance(&endpoints);
    sleep(SECOND).await;
    for name in ["1", "2"] {
        endpoints.set_health(name, Health::Unhealthy);
    }
    fakes[0].set_ready(false);
    let mut probe = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(probe.poll());
    fakes[0].set_ready(true);
    assert!(probe.is_woken());
    assert_pending!(probe.poll());
    assert_eq!(fakes[0].calls(), 2);
    let mut other = task::spawn(service.clone().oneshot(Request::new(())));
    assert_ready_err!(other.poll(), "and nobody else");
    drop(probe);
    assert_eq!(of(&endpoints, "0").in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_are_refused_when_refusing_begins() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10; 3]);
    for name in ["0", "1", "2"] {
        endpoints.set_health(name, Health::Unhealthy);
    }
    let service = balance(&endpoints);
    let mut waiting = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    endpoints.set_panic(Panic::Refuse);
    assert!(waiting.is_woken());
    assert_ready_err!(waiting.poll());
    endpoints.set_health("0", Health::Healthy);
    endpoints.set_health("1", Health::Healthy);
    send(&service).await.unwrap();
    assert_eq!(calls(&fakes).iter().sum::<usize>(), 1);
}

/// Each clone of it is ready when it is asked for the second time.
struct Shy(Fake, bool);

impl Clone for Shy {
    fn clone(&self) -> Self {
        Self(self.0.clone(), false)
    }
}

impl Service<Request<()>> for Shy {
    type Response = <Fake as Service<Request<()>>>::Response;
    type Error = BoxError;
    type Future = <Fake as Service<Request<()>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if std::mem::replace(&mut self.1, true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_panic_who_is_out_and_becomes_ready_is_called() {
    let endpoints = Endpoints::default();
    let fakes: Vec<_> = (0..3).map(|_| Fake::new(10)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        let circuit = Circuit::new(1, SECOND * 100);
        let shy = Shy(fake.clone(), false);
        endpoints.insert(Endpoint::new(at.to_string(), shy).gate(circuit));
        fake.now(0, StatusCode::BAD_GATEWAY);
    }
    let service = balance(&endpoints);
    for name in ["0", "1", "2"] {
        send_to(&endpoints, &service, name).await.unwrap();
    }
    assert!(endpoints.is_panicking());
    let mut request = task::spawn(service.oneshot(Request::new(())));
    let polls = (0..10).take_while(|_| request.poll().is_pending()).count();
    assert!(polls < 10, "it would go on for ever");
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_for_a_place_hear_that_a_panic_begins() {
    for begins in [
        |endpoints: &Endpoints<Fake, Circuit>| endpoints.set_health("2", Health::Unhealthy),
        |endpoints: &Endpoints<Fake, Circuit>| endpoints.remove("3"),
        |endpoints: &Endpoints<Fake, Circuit>| endpoints.suspend("3"),
        |endpoints: &Endpoints<Fake, Circuit>| {
            let ejection = endpoints.ejection();
            endpoints.set_ejection(ejection.ceiling(Ratio::new(0.01).unwrap()));
            true
        },
    ] {
        let endpoints = Endpoints::<Fake, Circuit>::default();
        let rules = endpoints.ejection();
        endpoints.set_ejection(rules.ceiling(Ratio::HALF));
        for at in 0..4 {
            let (circuit, fake) = (Circuit::new(1, SECOND * 100), Fake::new(10_000));
            if at < 2 {
                fake.now(0, StatusCode::BAD_GATEWAY);
            }
            let endpoint = Endpoint::new(at.to_string(), fake).gate(circuit);
            endpoints.insert(endpoint.max_in_flight(1));
        }
        let service = balance(&endpoints);
        for name in ["0", "1"] {
            send_to(&endpoints, &service, name).await.unwrap();
        }
        let mut all: Vec<_> = (0..4)
            .map(|_| task::spawn(service.clone().oneshot(Request::new(()))))
            .collect();
        for request in &mut all {
            assert_pending!(request.poll());
        }
        assert_eq!(
            of(&endpoints, "0").in_flight + of(&endpoints, "1").in_flight,
            0
        );
        assert!(begins(&endpoints));
        for waits in &mut all[2..] {
            assert!(waits.is_woken());
            let _ = waits.poll();
        }
        assert!(of(&endpoints, "0").requests + of(&endpoints, "1").requests > 2);
    }
}
