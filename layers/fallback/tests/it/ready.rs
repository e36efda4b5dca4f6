use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_core::{
    deadline::Deadline,
    reject::{Reason, Rejected},
    time,
};
use palisade_fallback::{FallbackLayer, OutOfTime, ReplayBody};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, task};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_test::mock::{self, Handle};

use crate::support::{Backend, SECOND, Sent, by, ok, outcome, request, status};

type Mock = mock::Mock<Request<ReplayBody<Sent>>, Response<Full<Bytes>>>;
type Remote = Handle<Request<ReplayBody<Sent>>, Response<Full<Bytes>>>;

fn other() -> (FallbackLayer<Sent>, Remote) {
    let (mock, mut handle): (Mock, Remote) = mock::pair();
    handle.allow(0);
    let mock = BoxCloneSyncService::new(mock);
    (FallbackLayer::new().service("mock", mock), handle)
}

#[tokio::test(start_paused = true)]
async fn an_alternative_is_waited_for_and_called_when_it_is_ready() {
    let (layer, mut remote) = other();
    let first = Backend::new([status(503)]);
    let mut call = task::spawn(layer.layer(first.clone()).oneshot(request()));
    assert_pending!(call.poll());
    assert_pending!(remote.poll_request());
    assert!(!call.is_woken());
    // A mock panics if the instance that it called was not the one that was ready.
    remote.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (_, reply) = remote.next_request().await.unwrap();
    reply.send_response(Response::new(Full::from("other")));
    assert!(call.is_woken());
    let response = assert_ready!(call.poll()).unwrap();
    assert_eq!((by(&response), first.calls()), (Some("mock"), 1));
}

#[tokio::test(start_paused = true)]
async fn an_alternative_that_will_never_be_ready_has_failed() {
    let (layer, mut remote) = other();
    let layer = layer.value("value", Response::new("value"));
    remote.send_error("dead");
    let served = outcome(&layer, &Backend::new([status(503)])).await;
    assert_eq!(served.1.as_deref(), Some("value"));
}

#[tokio::test(start_paused = true)]
async fn an_alternative_that_is_ready_too_late_is_not_called() {
    let (layer, mut remote) = other();
    let layer = layer.value("value", Response::new("value"));
    let mut late = request();
    late.extensions_mut().insert(Deadline(time::now() + SECOND));
    let first = Backend::new([status(503)]);
    let mut call = task::spawn(layer.layer(first).oneshot(late));
    assert_pending!(call.poll());
    advance(SECOND - Duration::from_nanos(1)).await;
    assert_pending!(call.poll());
    advance(Duration::from_nanos(1)).await;
    remote.allow(1);
    let error = assert_ready_err!(call.poll());
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::DeadlineExceeded);
    let source = std::error::Error::source(rejected).unwrap();
    assert_eq!(source.downcast_ref(), Some(&OutOfTime));
    assert_pending!(remote.poll_request());
}

#[tokio::test(start_paused = true)]
async fn a_layer_is_as_ready_as_its_service() {
    let (mut service, mut handle) = mock::spawn_with(|mock: Mock| {
        let other = Backend::new([ok("other")]);
        FallbackLayer::new().service("other", other).layer(mock)
    });
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready!(service.poll_ready()).unwrap();
}
