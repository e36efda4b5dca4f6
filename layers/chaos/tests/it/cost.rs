use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_chaos::{After, ChaosLayer, Delay, Fault, Ratio, Secret};
use palisade_core::testing::{Answers, CountingAllocator};
use tower::{Layer, Service};

use crate::support::{MILLI, chaos};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations of one request and its whole answer, once the layer is warm.
async fn cost(layer: &ChaosLayer) -> u64 {
    let mut service = layer.layer(Answers(|| Response::new(Full::<Bytes>::from("hello"))));
    let mut cost = 0;
    for _ in 0..3 {
        let request = Request::new(());
        let before = CountingAllocator::count();
        let response = service.call(request).await.unwrap();
        let mut body = std::pin::pin!(response.into_body());
        while body.frame().await.is_some() {}
        cost = CountingAllocator::count() - before;
    }
    cost
}

#[tokio::test(start_paused = true)]
async fn what_is_off_allocates_nothing_and_counts_nothing() {
    let layer = chaos([Fault::reset()]);
    layer.handle().disable();
    assert_eq!(cost(&layer).await, 0);
    assert_eq!(layer.handle().snapshot().requests, 0);
    assert_eq!(cost(&ChaosLayer::off(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_strike_allocates_nothing() {
    let seldom = Ratio::new(1e-12).unwrap();
    let layer = chaos([
        Fault::reset().share(seldom),
        Fault::hang().when(|_| false),
        Fault::refuse().during(MILLI, MILLI),
        Fault::latency(Delay::exponential(MILLI)).on_demand(),
    ]);
    let layer = layer.on_demand(Secret::new([7; 16]).unwrap());
    assert_eq!(cost(&layer).await, 0);
    assert_eq!(layer.handle().snapshot().requests, 3);
}

#[tokio::test(start_paused = true)]
async fn a_fault_costs_what_it_makes() {
    // What is known of it and its name; the text of the answer, and its headers.
    let status = chaos([Fault::status(StatusCode::BAD_GATEWAY)]);
    assert_eq!(cost(&status).await, 8);
    // What is known of it, its name, and what waits for its byte.
    let abort = chaos([Fault::abort(After::Bytes(100))]);
    assert_eq!(cost(&abort).await, 3);
}
