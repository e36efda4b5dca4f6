use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_chaos::{Delay, Fault};
use palisade_core::time;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt};
use tower_test::mock::{self, Mock};

use crate::support::{Backend, MILLI, SECOND, chaos, request, send};

fn latency(millis: u32) -> Fault {
    Fault::latency(Delay::constant(millis * MILLI))
}

#[tokio::test(start_paused = true)]
async fn a_request_is_held_up_for_exactly_its_delay() {
    let (mut service, mut backend) =
        mock::spawn_with(|mock: Mock<Request<()>, _>| chaos([latency(200)]).layer(mock));
    assert_ready!(service.poll_ready()).unwrap();
    let mut call = task::spawn(service.call(request()));
    assert_pending!(call.poll());
    advance(199 * MILLI).await;
    assert_pending!(call.poll());
    assert_pending!(backend.poll_request());
    advance(MILLI).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (_, reply) = assert_ready!(backend.poll_request()).unwrap();
    reply.send_response(Response::new(Full::<bytes::Bytes>::from("hello")));
    assert!(assert_ready!(call.poll()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn several_delays_add_up_and_come_before_what_ends_a_request() {
    let since = time::now();
    let busy = Fault::status(StatusCode::SERVICE_UNAVAILABLE);
    let layer = chaos([latency(200), busy, latency(300)]);
    let response = send(&layer, request()).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(time::now() - since, 500 * MILLI);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_leaves_during_the_delay_is_never_sent() {
    let backend = Backend::default();
    let layer = chaos([latency(200)]);
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(request()));
    assert_pending!(call.poll());
    advance(100 * MILLI).await;
    drop(call);
    advance(SECOND).await;
    assert_eq!(backend.calls(), 0);
    assert_eq!(layer.handle().snapshot().faults[0].struck, 1);
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_ready_is_called_after_the_delay() {
    let backend = Backend::default();
    let mut service = chaos([latency(200)]).layer(backend.clone());
    for _ in 0..3 {
        let first = ServiceExt::<Request<()>>::ready(&mut service)
            .await
            .unwrap()
            .call(request());
        // Two at once, each by an instance of its own. The backend panics if one was not ready.
        let second = ServiceExt::<Request<()>>::ready(&mut service)
            .await
            .unwrap()
            .call(request());
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_ok() && second.is_ok());
    }
    assert_eq!(backend.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn delays_are_drawn_anew_for_each_request_and_alike_by_the_same_seed() {
    let uniform = Delay::uniform(100 * MILLI, 200 * MILLI).unwrap();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let layer = chaos([Fault::latency(uniform)]);
        let mut delays = Vec::new();
        for _ in 0..20 {
            let since = time::now();
            send(&layer, request()).await.unwrap();
            delays.push(since.elapsed());
        }
        runs.push(delays);
    }
    assert_eq!(runs[0], runs[1]);
    let mut sorted = runs[0].clone();
    sorted.sort();
    sorted.dedup();
    assert!(sorted.len() > 10, "{sorted:?}");
    // A sleep ends with the next millisecond.
    assert!(sorted[0] >= 100 * MILLI && *sorted.last().unwrap() <= 201 * MILLI);
}
