use std::{future::poll_fn, time::Duration};

use http::{Request, StatusCode};
use palisade_balance::{BalanceLayer, Endpoint, Endpoints, NoEndpoint};
use palisade_core::{
    deadline::Deadline,
    reject::{Reason, Rejected},
    time,
};
use tokio::time::sleep;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_test::mock::Spawn;

use crate::support::{Circuit, Fake, MS, PATIENCE, balance, fakes, in_flight, send};

#[tokio::test(start_paused = true)]
async fn waits_for_the_breaker_without_spinning_and_goes_through() {
    let endpoints = Endpoints::default();
    let only = Fake::new(1);
    only.now(1, StatusCode::BAD_GATEWAY);
    endpoints.insert(Endpoint::new("only", only.clone()).gate(Circuit::new(1, PATIENCE / 2)));
    let service = balance(&endpoints);
    send(&service).await.unwrap();
    only.now(1, StatusCode::OK);

    let started = time::now();
    let mut polls = 0;
    let mut waiting = Box::pin(service.clone().oneshot(Request::new(())));
    let response = poll_fn(|cx| {
        polls += 1;
        waiting.as_mut().poll(cx)
    })
    .await
    .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(started.elapsed() >= PATIENCE / 2 - MS);
    assert!(polls <= 4, "{polls}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_in_flight_is_waited_for_without_spinning() {
    let endpoints = Endpoints::default();
    let only = Fake::new(1);
    only.now(1, StatusCode::BAD_GATEWAY);
    endpoints.insert(Endpoint::new("only", only.clone()).gate(Circuit::new(1, MS)));
    let service = balance(&endpoints);
    send(&service).await.unwrap();
    only.now(1000, StatusCode::OK);
    sleep(MS * 2).await;
    let probe = tokio::spawn(service.clone().oneshot(Request::new(())));
    sleep(MS).await;

    let mut second = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(second.poll());
    sleep(MS * 900).await;
    assert!(!second.is_woken(), "nothing has changed");
    drop(probe.await.unwrap().unwrap());
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(only.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn none_to_pick_is_not_ready_then_wakes_on_insertion() {
    let endpoints = Endpoints::<Fake>::default();
    let service = balance(&endpoints);
    let mut first = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(first.poll());
    let mut second = Spawn::new(service.clone());
    assert_pending!(second.poll_ready::<Request<()>>());
    sleep(MS * 500).await;
    assert!(!first.is_woken() && !second.is_woken());

    fakes(&endpoints, &[1]);
    assert!(first.is_woken() && second.is_woken());
    assert_pending!(first.poll());
    assert_ready_ok!(second.poll_ready::<Request<()>>());
    sleep(MS * 2).await;
    assert_ready_ok!(first.poll());
}

#[tokio::test(start_paused = true)]
async fn none_to_pick_is_refused_after_the_bound_and_waited_for_once() {
    let endpoints = Endpoints::<Fake>::default();
    let service = balance(&endpoints);
    let mut first = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(first.poll());
    let mut second = Spawn::new(service.clone());
    assert_pending!(second.poll_ready::<Request<()>>());

    sleep(PATIENCE + MS).await;
    let error = assert_ready_err!(first.poll());
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::NoEndpoint);
    assert!(
        std::error::Error::source(rejected)
            .unwrap()
            .is::<NoEndpoint>()
    );
    assert_ready_ok!(second.poll_ready::<Request<()>>());
    let mut refused = task::spawn(second.call(Request::new(())));
    assert_ready_err!(refused.poll());
}

#[tokio::test(start_paused = true)]
async fn no_patience_refuses_at_once_and_says_when_to_come_back() {
    let endpoints = Endpoints::default();
    let only = Fake::new(1);
    only.now(1, StatusCode::BAD_GATEWAY);
    endpoints.insert(Endpoint::new("only", only).gate(Circuit::new(1, PATIENCE)));
    let service = BalanceLayer::adaptive()
        .wait(Duration::ZERO)
        .layer(endpoints.clone());
    send(&service).await.unwrap();
    let error = send(&service).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().delay(), Some(PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn patience_without_end_is_no_overflow() {
    let endpoints = Endpoints::<Fake>::default();
    let service = BalanceLayer::adaptive()
        .wait(Duration::MAX)
        .layer(endpoints);
    let mut waits = task::spawn(service.oneshot(Request::new(())));
    assert_pending!(waits.poll());
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_and_is_kept_takes_no_place_from_others() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", Fake::new(60_000)).max_in_flight(1));
    let service = balance(&endpoints);
    let spawn = || task::spawn(service.clone().call(Request::new(())));
    let (mut runs, mut refused) = (spawn(), spawn());
    assert_pending!(runs.poll());
    assert_pending!(refused.poll());
    sleep(PATIENCE).await;
    assert_ready_err!(refused.poll());
    let mut waits = spawn();
    assert_pending!(waits.poll());
    drop(runs);
    assert!(waits.is_woken());
    drop(refused);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_the_deadline_of_the_request() {
    let endpoints = Endpoints::<Fake>::default();
    let service = balance(&endpoints);
    let started = time::now();
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline(started + MS * 100));
    service.oneshot(request).await.unwrap_err();
    assert_eq!(started.elapsed(), MS * 100);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_not_ready_is_passed_over_and_waited_for_if_alone() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1, 1]);
    let service = balance(&endpoints);
    fakes[0].set_ready(false);
    for _ in 0..10 {
        send(&service).await.unwrap();
    }
    assert_eq!(fakes[1].calls(), 10);

    fakes[1].set_ready(false);
    let mut waiting = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    assert_eq!(in_flight(&endpoints), 0, "waiting is not being in flight");
    fakes[0].set_ready(true);
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(fakes[0].calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_does_not_leave_the_others_unready() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[1]);
    let service = balance(&endpoints);
    fakes[0].set_ready(false);
    let mut leaver = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(leaver.poll());
    let mut other = Spawn::new(service);
    assert_pending!(other.poll_ready::<Request<()>>());
    drop(leaver);
    assert!(other.is_woken());
    assert_ready_ok!(other.poll_ready::<Request<()>>());
}

#[tokio::test(start_paused = true)]
async fn endpoints_may_have_layers() {
    let endpoints = Endpoints::default();
    for name in ["a", "b"] {
        let service = ServiceBuilder::new()
            .concurrency_limit(1)
            .service(Fake::new(10));
        endpoints.insert(Endpoint::new(name, service));
    }
    let service = balance(&endpoints);
    let mut sent: Vec<_> = (0..3)
        .map(|_| task::spawn(service.clone().oneshot(Request::new(()))))
        .collect();
    for sent in &mut sent {
        assert_pending!(sent.poll());
    }
    assert_eq!(in_flight(&endpoints), 2, "the third waits for a permit");
    sleep(MS * 11).await;
    drop(assert_ready_ok!(sent[0].poll()));
    assert!(sent[2].is_woken());
}

#[tokio::test(start_paused = true)]
async fn no_endpoint_has_more_in_flight_than_it_may_and_the_rest_wait_their_turn() {
    let endpoints = Endpoints::default();
    let fakes: Vec<_> = (0..2).map(|_| Fake::new(10)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()).max_in_flight(3));
    }
    let service = balance(&endpoints);
    let mut sent: Vec<_> = (0..9)
        .map(|_| task::spawn(service.clone().call(Request::new(()))))
        .collect();
    for sent in &mut sent {
        assert_pending!(sent.poll());
    }
    assert!(
        endpoints
            .snapshot()
            .iter()
            .all(|endpoint| endpoint.in_flight == 3)
    );
    sleep(MS * 11).await;
    drop(assert_ready_ok!(sent[0].poll()));
    drop(assert_ready_ok!(sent[1].poll()));
    let woken: Vec<_> = sent[6..].iter().map(task::Spawn::is_woken).collect();
    assert_eq!(woken, [true, true, false], "two places are for two");
    for sent in &mut sent[6..8] {
        assert_pending!(sent.poll());
    }
    assert!(
        endpoints
            .snapshot()
            .iter()
            .all(|endpoint| endpoint.in_flight == 3)
    );
}

#[tokio::test(start_paused = true)]
async fn a_place_that_its_first_waiter_leaves_goes_to_the_next() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", Fake::new(10)).max_in_flight(1));
    let service = balance(&endpoints);
    let spawn = || task::spawn(service.clone().call(Request::new(())));
    let (mut runs, mut first, mut second) = (spawn(), spawn(), spawn());
    assert_pending!(runs.poll());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    assert!(!first.is_woken() && !second.is_woken(), "not before");
    drop(runs);
    assert_eq!([first.is_woken(), second.is_woken()], [true, false]);
    drop(first);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(in_flight(&endpoints), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_waits_is_served_without_a_stampede() {
    let endpoints = Endpoints::default();
    let fake = Fake::new(1);
    endpoints.insert(Endpoint::new("0", fake.clone()).max_in_flight(1));
    let service = balance(&endpoints);
    let polls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (service, polls) = (service.clone(), polls.clone());
        tasks.spawn(async move {
            let mut sent = Box::pin(service.oneshot(Request::new(())));
            let answer = poll_fn(|cx| {
                polls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                sent.as_mut().poll(cx)
            });
            answer.await.map(drop)
        });
    }
    let served = tasks
        .join_all()
        .await
        .iter()
        .filter(|end| end.is_ok())
        .count();
    assert_eq!(served, 1000);
    let polls = polls.load(std::sync::atomic::Ordering::Relaxed);
    assert!(polls < 6000, "{polls} polls for 1000 requests");
}

#[tokio::test(start_paused = true)]
async fn ready_means_ready_again_after_the_shortage() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("0", Fake::new(10)).max_in_flight(1));
    let service = balance(&endpoints);
    let mut runs = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(runs.poll());
    let mut waits = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(waits.poll());
    let mut unready = Spawn::new(service.clone());
    assert_pending!(unready.poll_ready::<Request<()>>());
    sleep(MS * 11).await;
    drop(assert_ready!(runs.poll()));
    assert!(unready.is_woken());
    assert_ready_ok!(unready.poll_ready::<Request<()>>());
}
