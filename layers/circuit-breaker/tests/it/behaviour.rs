//! One state after the other.

use std::{convert::Infallible, error::Error, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Empty, channel::Channel, combinators::BoxBody};
use palisade_circuit_breaker::{
    Call, CircuitBreaker, CircuitBreakerLayer, CircuitOpen, CircuitState,
};
use palisade_core::{
    BoxError,
    classify::Verdict,
    gate::{Admit, Gate, Outlook, gates},
    head::RequestHead,
    ratio::Ratio,
    reject::{Reason, Rejected},
    settle::{End, Settle},
    testing::{Log, exchange},
    time::now,
};
use tokio::time::{advance, timeout};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::Layer;
use tower_test::mock;

type Body = BoxBody<Bytes, Infallible>;
type Backend = mock::Handle<Request<()>, Response<Body>>;

const COOLDOWN: Duration = Duration::from_secs(5);

fn layer() -> CircuitBreakerLayer {
    CircuitBreakerLayer::consecutive(1, COOLDOWN).jitter(None)
}

#[tokio::test(start_paused = true)]
async fn opens_after_failures_and_closes_after_a_good_probe() {
    let layer = layer();
    let handle = layer.handle();
    let (mut service, mut backend) = mock::spawn_layer(layer);

    assert_ready_ok!(service.poll_ready());
    let mut failing = task::spawn(service.call(Request::new(())));
    answer(&mut backend, StatusCode::BAD_GATEWAY).await;
    assert_ready_ok!(failing.poll());

    assert_ready_ok!(service.poll_ready());
    let mut refused = task::spawn(service.call(Request::new(())));
    let error: BoxError = assert_ready_err!(refused.poll());
    let rejected = Rejected::find(&*error).expect("a rejection");
    assert_eq!(rejected.reason(), Reason::CircuitOpen);
    assert_eq!(rejected.delay(), Some(COOLDOWN));
    let source = rejected.source().and_then(|source| source.downcast_ref());
    let remaining = Some(COOLDOWN);
    assert_eq!(source, Some(&CircuitOpen { remaining }));
    assert_eq!(
        source.map(CircuitOpen::to_string).as_deref(),
        Some("circuit open for another 5.0s")
    );

    advance(COOLDOWN).await;
    assert_eq!(handle.snapshot().next_probe_in, Some(Duration::ZERO));
    assert_ready_ok!(service.poll_ready());
    let mut probe = task::spawn(service.call(Request::new(())));
    assert_eq!(handle.snapshot().state, CircuitState::HalfOpen);
    answer(&mut backend, StatusCode::OK).await;
    assert_ready_ok!(probe.poll());
    assert_eq!(handle.snapshot().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_services_and_never_the_circuits() {
    let layer = layer();
    let handle = layer.handle();
    let (mut service, mut backend) = mock::spawn_layer::<_, Response<Body>, _>(layer);
    handle.force_open();
    backend.allow(0);
    assert_pending!(service.poll_ready());

    backend.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    let mut refused = task::spawn(service.call(Request::new(())));
    assert_ready_err!(refused.poll());
    assert_pending!(backend.poll_request(), "nothing reached the service");
}

#[tokio::test(start_paused = true)]
async fn a_probe_passes_at_the_first_data_frame() {
    let (mut service, mut backend) = mock::spawn_layer(layer());

    assert_ready_ok!(service.poll_ready());
    let mut failing = task::spawn(service.call(Request::new(())));
    answer(&mut backend, StatusCode::BAD_GATEWAY).await;
    assert_ready_ok!(failing.poll());
    advance(COOLDOWN).await;

    assert_ready_ok!(service.poll_ready());
    let mut probe = task::spawn(service.call(Request::new(())));
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    let reply = request(&mut backend).await;
    reply.send_response(Response::new(body.boxed()));
    let mut stream = assert_ready_ok!(probe.poll()).into_body();

    assert_ready_ok!(service.poll_ready());
    let mut early = task::spawn(service.call(Request::new(())));
    let error: BoxError = assert_ready_err!(early.poll());
    assert_eq!(Rejected::find(&*error).unwrap().delay(), None);

    sender.send_data(Bytes::from_static(b"one")).await.unwrap();
    stream.frame().await.unwrap().unwrap();
    assert_ready_ok!(service.poll_ready());
    let mut after = task::spawn(service.call(Request::new(())));
    assert_pending!(after.poll());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_after_its_probe_has_passed_counts_in_the_closed_circuit() {
    let breaker = layer().gate().clone();
    settle(&mut admitted(&breaker), Verdict::Failure);
    advance(COOLDOWN).await;

    let mut probe = admitted(&breaker);
    probe.first_data(now());
    assert_eq!(breaker.handle().snapshot().state, CircuitState::Closed);
    settle(&mut probe, Verdict::Failure);
    assert_eq!(breaker.handle().snapshot().state, CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_error_in_the_middle_of_a_good_answer_counts() {
    use palisade_core::testing::{Answers, Step, Steps};
    let layer = layer();
    let steps = || Steps::new([Step::Data("one"), Step::Error("reset")]);
    let service = layer.layer(Answers(move || Response::new(steps())));
    let error = exchange(service).await.unwrap_err();
    assert_eq!(error.to_string(), "reset");
    assert_eq!(layer.handle().snapshot().state, CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_asks_to_be_left_alone_is() {
    let layer = CircuitBreakerLayer::window(Ratio::HALF, 2, COOLDOWN);
    let service = layer.layer(palisade_core::testing::Answers(|| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, "42".parse().unwrap());
        response
    }));
    for _ in 0..2 {
        exchange(service.clone()).await.unwrap();
    }
    let error = exchange(service).await.unwrap_err();
    let delay = Rejected::find(&*error).unwrap().delay();
    assert_eq!(delay, Some(Duration::from_secs(42)));
}

#[tokio::test(start_paused = true)]
async fn a_forced_circuit_hears_nothing_until_it_is_released() {
    let layer = layer();
    let handle = layer.handle();
    let (mut service, mut backend) = mock::spawn_layer(layer);

    handle.force_closed();
    for _ in 0..3 {
        assert_ready_ok!(service.poll_ready());
        let mut failing = task::spawn(service.call(Request::new(())));
        answer(&mut backend, StatusCode::BAD_GATEWAY).await;
        assert_ready_ok!(failing.poll());
    }
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.state, CircuitState::Closed);
    assert!(snapshot.forced);

    handle.force_open();
    advance(COOLDOWN * 100).await;
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.forced),
        (CircuitState::Open, true)
    );
    assert_eq!(snapshot.opened_total, 0, "it did not open by itself");
    let mut refused = task::spawn(service.call(Request::new(())));
    let error: BoxError = assert_ready_err!(refused.poll());
    assert_eq!(Rejected::find(&*error).unwrap().delay(), None);

    handle.release();
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.forced),
        (CircuitState::Closed, false)
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_what_was_counted() {
    let breaker = CircuitBreaker::window(Ratio::HALF, 20, COOLDOWN).jitter(None);
    for turn in 0..9 {
        let verdict = match turn % 2 {
            0 => Verdict::Failure,
            _ => Verdict::Success,
        };
        settle(&mut admitted(&breaker), verdict);
    }
    let snapshot = breaker.handle().snapshot();
    assert_eq!((snapshot.failures, snapshot.calls), (5, 9));
    assert_eq!((snapshot.opened_total, snapshot.next_probe_in), (0, None));

    settle(&mut admitted(&breaker), Verdict::Success);
    advance(Duration::from_secs(1)).await;
    let snapshot = breaker.handle().snapshot();
    assert_eq!((snapshot.failures, snapshot.calls), (5, 10));
    assert_eq!(snapshot.opened_total, 1);
    assert_eq!(
        snapshot.next_probe_in,
        Some(COOLDOWN - Duration::from_secs(1))
    );
    assert_eq!(breaker.handle().name(), "circuit_breaker");
}

#[tokio::test(start_paused = true)]
async fn the_outlook_says_what_a_request_would_meet_and_takes_no_place() {
    let breaker = layer().gate().clone();
    let outlook = || breaker.outlook(now());
    assert_eq!(outlook(), Outlook::Admits);

    settle(&mut admitted(&breaker), Verdict::Failure);
    let until = Some(now() + COOLDOWN);
    assert_eq!(outlook(), Outlook::Refuses { until });

    advance(COOLDOWN).await;
    assert_eq!(outlook(), Outlook::Probes);
    assert_eq!(outlook(), Outlook::Probes, "a look takes no place");
    assert_eq!(breaker.handle().snapshot().state, CircuitState::Open);

    let mut probe = admitted(&breaker);
    assert_eq!(outlook(), Outlook::Refuses { until: None });
    advance(Duration::from_secs(10)).await;
    assert_eq!(outlook(), Outlook::Probes, "it has been out for too long");

    settle(&mut probe, Verdict::Success);
    assert_eq!(outlook(), Outlook::Admits, "nobody has replaced it yet");
    breaker.handle().force_open();
    assert_eq!(outlook(), Outlook::Held);
    breaker.handle().force_closed();
    assert_eq!(outlook(), Outlook::Admits);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_leaked_is_replaced_after_its_timeout() {
    let breaker = layer().probe_timeout(COOLDOWN).gate().clone();
    settle(&mut admitted(&breaker), Verdict::Failure);
    advance(COOLDOWN).await;
    std::mem::forget(admitted(&breaker));

    advance(COOLDOWN - Duration::from_nanos(1)).await;
    assert!(admit(&breaker).is_err());
    advance(Duration::from_nanos(1)).await;
    settle(&mut admitted(&breaker), Verdict::Success);
    assert_eq!(breaker.outlook(now()), Outlook::Admits);
}

#[tokio::test(start_paused = true)]
async fn services_and_clones_of_one_layer_share_one_circuit_and_another_layer_does_not() {
    use palisade_core::testing::Answers;
    let (layer, other) = (layer(), layer());
    let good = Answers(|| Response::new(Empty::<Bytes>::new()));
    let bad = Answers(|| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    });
    exchange(layer.clone().layer(bad)).await.unwrap();
    exchange(layer.layer(good.clone())).await.unwrap_err();
    exchange(other.layer(good)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fused_with_other_gates_a_refusal_is_heard_by_those_before_and_costs_those_after_nothing() {
    use palisade_core::testing::Answers;
    let (log, breaker) = (Log::default(), layer().gate().clone());
    let layer = gates((log.gate("outer"), breaker.clone(), log.gate("inner")));
    let service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    breaker.handle().force_open();
    exchange(service).await.unwrap_err();
    assert_eq!(
        log.take(),
        [
            "outer admitted",
            "outer Refused(CircuitOpen) after 0s",
            "outer released"
        ]
    );
}

fn admit(breaker: &CircuitBreaker) -> Result<Call, Rejected> {
    match breaker.admit(&RequestHead::from(&Request::new(())), now()) {
        Admit::Now(decided) => decided,
        later => panic!("{later:?}"),
    }
}

fn admitted(breaker: &CircuitBreaker) -> Call {
    admit(breaker).expect("room")
}

fn settle(call: &mut Call, verdict: Verdict) {
    let end = End::new(verdict);
    call.settle(&end, now());
}

/// In virtual time, so that a request that does not come is noticed at once.
async fn request(backend: &mut Backend) -> mock::SendResponse<Response<Body>> {
    let request = timeout(COOLDOWN, backend.next_request()).await;
    request.expect("in time").expect("a request").1
}

async fn answer(backend: &mut Backend, status: StatusCode) {
    let reply = request(backend).await;
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = status;
    reply.send_response(response);
}
