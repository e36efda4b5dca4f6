use std::{
    future::pending,
    pin::pin,
    task::{Context, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    testing::{Answers, CountingAllocator},
};
use palisade_deadline::{
    Adaptive, AttemptTimeoutLayer, DeadlineLayer, Need, Pings, Propagate, TimeoutHeader, Timeouts,
};
use tower::{Layer, Service, ServiceBuilder, service_fn};

use crate::support::SECOND;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations of one request and its whole answer.
async fn cost<L, B>(layer: L) -> u64
where
    L: Layer<Answers<fn() -> Response<Full<Bytes>>>>,
    L::Service: Service<Request<()>, Response = Response<B>>,
    B: http_body::Body,
{
    let mut service = layer.layer(Answers(|| Response::new(Full::from("hello"))));
    let mut took = 0;
    // The first request registers what is counted.
    for _ in 0..2 {
        let request = Request::new(());
        let before = CountingAllocator::count();
        if let Ok(response) = service.call(request).await {
            let mut body = pin!(response.into_body());
            while body.frame().await.is_some() {}
        }
        took = CountingAllocator::count() - before;
    }
    took
}

#[tokio::test]
async fn the_quiet_path_allocates_nothing() {
    assert_eq!(cost(DeadlineLayer::new(SECOND)).await, 0);
    assert_eq!(cost(DeadlineLayer::from_header("grpc-timeout")).await, 0);
    assert_eq!(cost(AttemptTimeoutLayer::first_byte(SECOND)).await, 0);
    let both = ServiceBuilder::new()
        .layer(DeadlineLayer::new(SECOND))
        .layer(AttemptTimeoutLayer::first_byte(SECOND));
    assert_eq!(cost(both).await, 0);
    let timeouts = Timeouts::none().first_byte(SECOND).idle(SECOND);
    let all = timeouts.total(SECOND).pings(Pings::Ignore);
    assert_eq!(cost(AttemptTimeoutLayer::new(all)).await, 0);
    assert_eq!(cost(AttemptTimeoutLayer::new(all).shadow()).await, 0);
}

#[tokio::test]
async fn so_does_watching_how_long_it_takes_once_it_is_known() {
    let adaptive = Adaptive::between(SECOND, 2 * SECOND);
    let timeouts = Timeouts::none().first_byte(adaptive).total(adaptive);
    let attempt = AttemptTimeoutLayer::new(timeouts);
    let deadline = DeadlineLayer::new(SECOND).refuse_below_median(Need::Whole);
    for _ in 0..150 {
        // The first that is measured registers its gauge.
        cost(&attempt).await;
        cost(&deadline).await;
    }
    assert_eq!(attempt.handle().snapshot().total, Some(SECOND));
    assert!(deadline.handle().snapshot().median.is_some());
    assert_eq!((cost(&attempt).await, cost(&deadline).await), (0, 0));
}

#[test]
fn what_is_there_at_once_arms_no_timer() {
    // Tokio panics where there is no runtime that could drive one.
    assert!(tokio::runtime::Handle::try_current().is_err());
    let timeouts = Timeouts::none().first_byte(SECOND).idle(SECOND);
    let attempt = AttemptTimeoutLayer::new(timeouts.total(SECOND));
    let mut exchange = pin!(cost((DeadlineLayer::new(SECOND), attempt)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(exchange.as_mut().poll(&mut cx).is_ready());
}

#[tokio::test]
async fn telling_others_allocates_the_extension_and_the_header() {
    let layer = DeadlineLayer::new(SECOND);
    assert_eq!(cost(layer.clone().propagate(Propagate::Extension)).await, 3);
    let header = Propagate::Header(TimeoutHeader::grpc());
    assert_eq!(cost(layer.propagate(header)).await, 6);
}

#[tokio::test(start_paused = true)]
async fn waiting_allocates_nothing_and_a_timeout_itself_and_its_source() {
    let pending = service_fn(|_: Request<()>| pending::<Result<Response<Full<Bytes>>, BoxError>>());
    let mut service = DeadlineLayer::new(SECOND).layer(pending);
    let mut cx = Context::from_waker(Waker::noop());
    let mut cost = (0, 0);
    // The first request registers what is counted.
    for _ in 0..2 {
        let mut call = pin!(service.call(Request::new(())));
        let before = CountingAllocator::count();
        assert!(call.as_mut().poll(&mut cx).is_pending());
        cost.0 = CountingAllocator::count() - before;
        tokio::time::advance(SECOND).await;
        let before = CountingAllocator::count();
        assert!(call.as_mut().poll(&mut cx).is_ready());
        cost.1 = CountingAllocator::count() - before;
    }
    assert_eq!(cost, (0, 2));
}
