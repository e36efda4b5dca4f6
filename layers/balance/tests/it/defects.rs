//! Defects that were found, each by the behaviour that was missing.

use crate::support::{Body, Circuit, Fake, MS, balance, fakes, load, of, send, send_to, state};
use http::{Request, Response, StatusCode};
use palisade_balance::{BalanceLayer, Endpoint, EndpointState, Endpoints, HealthChecks};
use palisade_core::{
    BoxError,
    attempt::Attempts,
    deadline::Deadline,
    gate::{Admit, Gate},
    head::RequestHead,
    reject::{Reason, Rejected},
    testing::Slow,
    time,
};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt};
use tower_test::mock::Spawn;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_clone_that_waited_to_be_ready_still_keeps_the_deadline_of_the_request() {
    let endpoints = Endpoints::<Fake>::default();
    let service = balance(&endpoints);
    let mut first = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(first.poll());
    let mut second = Spawn::new(service.clone());
    assert_pending!(second.poll_ready::<Request<()>>());
    drop(first);
    assert!(matches!(
        second.poll_ready::<Request<()>>(),
        Poll::Ready(Ok(()))
    ));
    let started = time::now();
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline(started + MS * 100));
    second.call(request).await.unwrap_err();
    assert_eq!(started.elapsed(), MS * 100);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_removed_and_inserted_at_once_is_still_checked() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1]);
    fakes[0].kill();
    let checks = HealthChecks::every(SECOND).timeout(MS * 100);
    let checker = tokio::spawn(endpoints.health_checks(checks, async |_, fake: Fake| fake.is_up()));
    sleep(SECOND * 10).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    endpoints.remove("0");
    let dead = Fake::new(1);
    dead.kill();
    endpoints.insert(Endpoint::new("0", dead));
    sleep(SECOND * 60).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Unhealthy);
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn the_checker_of_an_empty_set_ends_with_it() {
    let endpoints = Endpoints::<Fake>::default();
    let checker =
        tokio::spawn(endpoints.health_checks(HealthChecks::every(SECOND), async |_, _: Fake| true));
    sleep(SECOND).await;
    drop(endpoints);
    tokio::time::timeout(SECOND * 3600, checker)
        .await
        .expect("still running")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_that_was_ejected_comes_back() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[12_000; 4]);
    let service = balance(&endpoints);
    fakes[0].kill();
    for _ in 0..5 {
        send_to(&endpoints, &service, "0").await.unwrap_err();
    }
    assert_eq!(state(&endpoints, "0"), EndpointState::Ejected);
    fakes[0].now(12_000, StatusCode::OK);
    let traffic = tokio::spawn(async move { load(&service, 700, SECOND).await });
    sleep(SECOND * 600).await;
    traffic.abort();
    assert!(
        matches!(
            state(&endpoints, "0"),
            EndpointState::Serving | EndpointState::SlowStart
        ),
        "{:?} after {} calls",
        state(&endpoints, "0"),
        fakes[0].calls()
    );
}

/// Fails while it becomes ready: the second poll of a clone, as one that connects.
#[derive(Clone)]
struct Connects {
    polls: u32,
    at_once: bool,
    tried: Arc<AtomicUsize>,
}
impl Service<Request<()>> for Connects {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.polls += 1;
        if self.polls == 1 && !self.at_once {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.tried.fetch_add(1, SeqCst);
        Poll::Ready(Err(std::io::Error::from(
            std::io::ErrorKind::ConnectionRefused,
        )
        .into()))
    }
    fn call(&mut self, _: Request<()>) -> Self::Future {
        unreachable!()
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_after_a_while_to_become_ready_is_blamed() {
    for at_once in [true, false] {
        let endpoints = Endpoints::default();
        for name in ["0", "1", "2"] {
            endpoints.insert(Endpoint::new(
                name,
                Connects {
                    polls: 0,
                    at_once,
                    tried: Arc::default(),
                },
            ));
        }
        let service = BalanceLayer::adaptive()
            .wait(SECOND)
            .layer(endpoints.clone());
        for _ in 0..10 {
            send(&service).await.unwrap_err();
        }
        let failures: u64 = endpoints.snapshot().iter().map(|e| e.failures).sum();
        assert!(
            failures >= 10,
            "at_once {at_once}: {failures} failures counted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_hears_that_its_endpoint_did_not_become_ready() {
    let endpoints = Endpoints::default();
    let circuit = Circuit::new(1, SECOND * 60);
    endpoints.insert(
        Endpoint::new(
            "0",
            Connects {
                polls: 0,
                at_once: true,
                tried: Arc::default(),
            },
        )
        .gate(circuit.clone()),
    );
    send(&balance(&endpoints)).await.unwrap_err();
    assert!(
        !circuit.is_closed(),
        "failures {}",
        of(&endpoints, "0").failures
    );
}

/// Refuses who carries this header.
#[derive(Clone)]
struct Not(&'static str);
impl Gate for Not {
    type Guard = ();
    fn admit(&self, head: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(if head.headers.contains_key(self.0) {
            Err(Rejected::new(Reason::RateLimited, "no"))
        } else {
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_held_while_a_gate_thought_goes_to_the_next() {
    let endpoints = Endpoints::default();
    let zero = Fake::new(10);
    let one = Fake::new(60_000);
    endpoints.insert(
        Endpoint::new("0", zero.clone())
            .gate(Slow(Not("a"), MS * 50))
            .max_in_flight(1),
    );
    let id = endpoints.insert(Endpoint::new("1", one.clone()).gate(Slow(Not("b"), Duration::ZERO)));
    let service = balance(&endpoints);
    let attempts = Attempts::default();
    attempts.note(id);
    let mut a = Request::builder().header("a", "").body(()).unwrap();
    a.extensions_mut().insert(attempts);
    let a = tokio::spawn(service.clone().oneshot(a));
    sleep(MS * 10).await;
    let b = Request::builder().header("b", "").body(()).unwrap();
    let b = tokio::spawn(service.clone().oneshot(b));
    let b = b.await.unwrap();
    assert_eq!(one.calls(), 1, "a went to 1");
    b.map(drop).unwrap();
    a.abort();
}

/// Decides later, which is at once.
#[derive(Clone)]
struct Prompt;
impl Gate for Prompt {
    type Guard = ();
    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Later(Box::pin(async {
            Err(Rejected::new(Reason::RateLimited, "no"))
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn refused_waiters_do_not_spin() {
    for slow in [false, true] {
        let polls = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let (prompt, thinks) = (Endpoints::default(), Endpoints::default());
        prompt.insert(
            Endpoint::new("0", Fake::new(10))
                .gate(Prompt)
                .max_in_flight(1),
        );
        thinks.insert(
            Endpoint::new("0", Fake::new(10))
                .gate(Slow(Prompt, MS * 50))
                .max_in_flight(1),
        );
        let (prompt, thinks) = (balance(&prompt), balance(&thinks));
        for _ in 0..10 {
            let (prompt, thinks, polls) = (prompt.clone(), thinks.clone(), polls.clone());
            tasks.spawn(async move {
                let mut sent: Pin<Box<dyn Future<Output = bool> + Send>> = if slow {
                    Box::pin(async move { thinks.oneshot(Request::new(())).await.is_err() })
                } else {
                    Box::pin(async move { prompt.oneshot(Request::new(())).await.is_err() })
                };
                std::future::poll_fn(|cx| {
                    polls.fetch_add(1, SeqCst);
                    sent.as_mut().poll(cx)
                })
                .await
            });
        }
        assert!(tasks.join_all().await.into_iter().all(|refused| refused));
        assert!(polls.load(SeqCst) < 1000);
    }
}

/// Refuses the first request, once.
#[derive(Clone, Default)]
struct NotAtFirst(Arc<AtomicUsize>);
impl Gate for NotAtFirst {
    type Guard = ();
    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(match self.0.fetch_add(1, SeqCst) {
            0 => Err(Rejected::new(Reason::RateLimited, "no")),
            _ => Ok(()),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_found_an_endpoint_at_last_keeps_nobody_waiting() {
    let endpoints = Endpoints::default();
    let gate = NotAtFirst::default();
    endpoints.insert(Endpoint::new("0", Fake::new(60_000)).gate(gate.clone()));
    let service = balance(&endpoints);
    let mut first = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(first.poll());
    assert_eq!(gate.0.load(SeqCst), 2, "asked again, and sent");
    let mut second = Spawn::new(service);
    assert!(second.poll_ready::<Request<()>>().is_ready());
}
