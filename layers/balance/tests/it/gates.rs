use std::time::Duration;

use http::{Request, StatusCode};
use palisade_balance::{Endpoint, EndpointState, Endpoints};
use palisade_core::{
    attempt::Attempts,
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
    reject::{Reason, Rejected},
    testing::{Log, Slow},
    time,
};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Service, ServiceExt};

use crate::support::{
    Circuit, Fake, MS, PATIENCE, balance, calls, in_flight, load, of, send, state,
};

const COOLDOWN: Duration = Duration::from_secs(5);

fn guarded(endpoints: &Endpoints<Fake, Circuit>, number: usize) -> (Vec<Fake>, Vec<Circuit>) {
    let one = |at: usize| {
        let (fake, circuit) = (Fake::new(10), Circuit::new(1, COOLDOWN));
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()).gate(circuit.clone()));
        (fake, circuit)
    };
    (0..number).map(one).unzip()
}

/// Lets each of these fail once, which opens its circuit.
async fn open(endpoints: &Endpoints<Fake, Circuit>, fakes: &[Fake]) {
    let service = balance(endpoints);
    for (at, fake) in fakes.iter().enumerate() {
        fake.now(1, StatusCode::BAD_GATEWAY);
        let others: Vec<_> = endpoints
            .snapshot()
            .iter()
            .filter(|other| *other.name != *at.to_string())
            .map(|other| other.name.clone())
            .collect();
        others
            .iter()
            .for_each(|name| assert!(endpoints.suspend(name)));
        send(&service).await.unwrap();
        others
            .iter()
            .for_each(|name| assert!(endpoints.resume(name)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_skipped_with_the_request_still_whole() {
    let endpoints = Endpoints::default();
    let (fakes, _) = guarded(&endpoints, 2);
    open(&endpoints, &fakes[..1]).await;
    let service = balance(&endpoints);
    for _ in 0..20 {
        assert_eq!(send(&service).await.unwrap(), StatusCode::OK);
    }
    assert_eq!(fakes[0].calls(), 1);
    assert_eq!(state(&endpoints, "0"), EndpointState::Ejected);
    assert!(of(&endpoints, "0").retry_in.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_due_gets_the_next_request_and_passes_into_a_slow_start() {
    let endpoints = Endpoints::default();
    let (fakes, circuits) = guarded(&endpoints, 3);
    let service = balance(&endpoints);
    open(&endpoints, &fakes[..1]).await;
    fakes[0].now(10, StatusCode::OK);
    sleep(COOLDOWN).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Probing);
    send(&service).await.unwrap();
    assert_eq!(fakes[0].calls(), 2);
    assert!(circuits[0].is_closed());
    assert_eq!(state(&endpoints, "0"), EndpointState::SlowStart);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(state(&endpoints, "0"), EndpointState::Serving);
    assert_eq!(
        of(&endpoints, "0").latency,
        Some(MS * 10),
        "its penalties are forgotten"
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_passes_lets_all_go_that_wait() {
    let endpoints = Endpoints::default();
    let (fakes, _) = guarded(&endpoints, 1);
    open(&endpoints, &fakes).await;
    fakes[0].now(10, StatusCode::OK);
    sleep(COOLDOWN).await;
    let service = balance(&endpoints);
    let mut sent: Vec<_> = (0..4)
        .map(|_| task::spawn(service.clone().call(Request::new(()))))
        .collect();
    for sent in &mut sent {
        assert_pending!(sent.poll());
    }
    assert_eq!(in_flight(&endpoints), 1);
    sleep(MS * 11).await;
    drop(assert_ready_ok!(sent[0].poll()));
    assert!(sent[1..].iter().all(task::Spawn::is_woken));
}

#[tokio::test(start_paused = true)]
async fn a_gate_counts_alone_and_the_set_ejects_nothing_behind_it() {
    let endpoints = Endpoints::default();
    let fakes: Vec<_> = (0..4).map(|_| Fake::new(10)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        let circuit = Circuit::new(1000, COOLDOWN);
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()).gate(circuit));
    }
    fakes[0].now(10, StatusCode::BAD_GATEWAY);
    let service = balance(&endpoints);
    sleep(Duration::from_secs(11)).await;
    load(&service, 60_000, MS * 5).await;
    let seen = of(&endpoints, "0");
    assert!(seen.failures >= 5, "{seen:?}");
    assert_eq!((seen.ejections, seen.state), (0, EndpointState::Serving));
    assert!(
        seen.failures < 600,
        "the penalty alone keeps it under 1 %: {seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn beyond_the_ceiling_open_gates_are_advice() {
    let endpoints = Endpoints::default();
    let (fakes, circuits) = guarded(&endpoints, 3);
    let service = balance(&endpoints);
    open(&endpoints, &fakes).await;
    for fake in &fakes {
        fake.now(10, StatusCode::OK);
    }
    let started = time::now();
    for _ in 0..9 {
        assert_eq!(send(&service).await.unwrap(), StatusCode::OK);
    }
    assert!(started.elapsed() < COOLDOWN, "nobody waited for a probe");
    assert_eq!(calls(&fakes).iter().sum::<usize>(), 3 + 9);
    assert!(
        !circuits.iter().any(Circuit::is_closed),
        "they heard nothing of it"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_open_comes_last_even_when_it_is_advice() {
    let endpoints = Endpoints::default();
    let (fakes, _) = guarded(&endpoints, 10);
    open(&endpoints, &fakes[..4]).await;
    let before = calls(&fakes);
    let service = balance(&endpoints);
    load(&service, 400, MS * 2).await;
    assert_eq!(calls(&fakes)[..4], before[..4], "six can carry it");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_forced_open_is_never_overruled() {
    let endpoints = Endpoints::default();
    let (_, circuits) = guarded(&endpoints, 5);
    circuits.iter().for_each(Circuit::force_open);
    let error = send(&balance(&endpoints)).await.unwrap_err();
    assert_eq!(
        Rejected::find(&*error).unwrap().reason(),
        Reason::NoEndpoint
    );
}

#[tokio::test(start_paused = true)]
async fn two_endpoints_are_too_few_to_overrule_their_gates() {
    let endpoints = Endpoints::default();
    let (fakes, _) = guarded(&endpoints, 2);
    open(&endpoints, &fakes).await;
    send(&balance(&endpoints)).await.unwrap_err();
    assert_eq!(calls(&fakes), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_closed_by_hand_lets_those_go_that_wait() {
    let endpoints = Endpoints::default();
    let (fakes, circuits) = guarded(&endpoints, 1);
    circuits[0].force_open();
    let mut waiting = task::spawn(balance(&endpoints).oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    endpoints.with_gate("0", Circuit::close).unwrap();
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(fakes[0].calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_takes_its_time_is_waited_for() {
    let log = Log::default();
    let endpoints = Endpoints::default();
    let fake = Fake::new(10);
    let gate = Slow(log.gate("gate"), MS * 50);
    endpoints.insert(Endpoint::new("0", fake.clone()).gate(gate));
    let service = balance(&endpoints);
    let mut sent = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(sent.poll());
    assert_eq!(
        (fake.calls(), in_flight(&endpoints)),
        (0, 1),
        "its place is taken"
    );
    sleep(MS * 51).await;
    assert_pending!(sent.poll());
    assert_eq!(fake.calls(), 1);
    sleep(MS * 11).await;
    drop(assert_ready_ok!(sent.poll()));
    assert_eq!(
        log.take(),
        ["gate admitted", "gate Success after 0s", "gate released"]
    );

    let mut leaves = task::spawn(service.oneshot(Request::new(())));
    assert_pending!(leaves.poll());
    drop(leaves);
    assert_eq!(in_flight(&endpoints), 0);
    assert_eq!(of(&endpoints, "0").requests, 1, "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_refuses_after_a_while_sends_the_request_elsewhere() {
    let endpoints = Endpoints::default();
    let (slow, fast) = (Fake::new(10), Fake::new(10));
    let held = Circuit::new(1, COOLDOWN);
    held.force_open();
    endpoints.insert(Endpoint::new("0", slow.clone()).gate(Slow(held, MS * 50)));
    let circuit = Circuit::new(1, COOLDOWN);
    endpoints.insert(Endpoint::new("1", fast.clone()).gate(Slow(circuit, MS * 50)));
    let service = balance(&endpoints);
    for _ in 0..4 {
        send(&service).await.unwrap();
    }
    assert_eq!((slow.calls(), fast.calls()), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_never_answers_is_given_up_in_time() {
    let endpoints = Endpoints::default();
    let gate = Slow(Circuit::new(1, COOLDOWN), PATIENCE * 10);
    endpoints.insert(Endpoint::new("0", Fake::new(10)).gate(gate));
    let started = time::now();
    send(&balance(&endpoints)).await.unwrap_err();
    assert_eq!((started.elapsed(), in_flight(&endpoints)), (PATIENCE, 0));
}

/// Lets nobody through who is in a hurry, and says nothing about it beforehand.
#[derive(Clone)]
struct ByHead;

impl Gate for ByHead {
    type Guard = ();

    fn admit(&self, head: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(if head.headers.contains_key("hurry") {
            Err(Rejected::new(Reason::RateLimited, "hurry"))
        } else {
            Ok(())
        })
    }

    fn outlook(&self, _: Instant) -> Outlook {
        Outlook::Admits
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_a_gate_denies_to_one_goes_to_the_next() {
    let endpoints = Endpoints::default();
    let fake = Fake::new(10);
    endpoints.insert(
        Endpoint::new("0", fake.clone())
            .gate(ByHead)
            .max_in_flight(1),
    );
    let service = balance(&endpoints);
    let spawn = |request| task::spawn(service.clone().call(request));
    let hurried = || Request::builder().header("hurry", "yes").body(()).unwrap();
    let mut runs = spawn(Request::new(()));
    assert_pending!(runs.poll());
    let (mut one, mut two) = (spawn(hurried()), spawn(hurried()));
    assert_pending!(one.poll());
    assert_pending!(two.poll());
    let mut patient = spawn(Request::new(()));
    assert_pending!(patient.poll());
    drop(runs);
    // Each wakes the next, until it is of use, and nobody spins.
    for _ in 0..10 {
        for hurried in [&mut one, &mut two] {
            if hurried.is_woken() {
                assert_pending!(hurried.poll());
            }
        }
    }
    assert!(!one.is_woken() && !two.is_woken() && patient.is_woken());
    assert_pending!(patient.poll());
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_gate_refused_is_no_attempt() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", Fake::new(10)).gate(ByHead));
    let attempts = Attempts::default();
    let mut request = Request::builder().header("hurry", "yes").body(()).unwrap();
    request.extensions_mut().insert(attempts.clone());
    balance(&endpoints).oneshot(request).await.unwrap_err();
    assert_eq!((attempts.count(), of(&endpoints, "0").requests), (0, 0));
}
