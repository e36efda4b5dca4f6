use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{
    BoxError,
    classify::{Classify, Sse},
    cost::Cost,
    key,
    testing::{Answers, CountingAllocator},
};
use palisade_retry::{Budget, Mode, Repeatable, RetryLayer};
use tower::{Layer, Service};

use crate::support::layer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations of one request and its whole answer, once the layer is warm.
async fn cost<C, B>(layer: RetryLayer<C>, request: impl Fn() -> Request<B>) -> u64
where
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut service = layer.layer(Answers(|| Response::new(Full::from("hello"))));
    let mut cost = 0;
    // Some take the budget's lock.
    for _ in 0..200 {
        let request = request();
        let before = CountingAllocator::count();
        let response = service.call(request).await.unwrap();
        let mut body = std::pin::pin!(response.into_body());
        while body.frame().await.is_some() {}
        cost = CountingAllocator::count() - before;
    }
    cost
}

fn with<B>(method: Method, headers: &[&'static str], body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    for &name in headers {
        let value = http::HeaderValue::from_static("value");
        request.headers_mut().insert(name, value);
    }
    request
}

fn hello() -> Full<Bytes> {
    Full::from("hello")
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_allocates_nothing() {
    let post = || with(Method::POST, &["content-type"], hello());
    assert_eq!(cost(layer(), post).await, 0);
    assert_eq!(cost(layer().classify(Sse), post).await, 0);
    let get = || with(Method::GET, &["accept"], Empty::new());
    assert_eq!(cost(layer().attempts(1), get).await, 0);
    let never = layer().repeat(Repeatable::when(|_| false));
    assert_eq!(cost(never, get).await, 0);
    let limited = layer()
        .attempt_timeout(Duration::from_secs(60))
        .within(Duration::from_secs(90));
    assert_eq!(cost(limited, post).await, 0);
    let keyed = Budget::percent(20).per(key::header("content-type"));
    assert_eq!(cost(layer().budget(keyed), post).await, 0);
    let off = layer().mode(Mode::Off);
    assert_eq!(cost(off, get).await, 0);
}

#[tokio::test]
async fn a_request_that_may_be_repeated_allocates_what_its_parts_cost() {
    // The place of the attempts in extensions that were empty.
    let bare = || with(Method::GET, &[], Empty::new());
    assert_eq!(cost(layer(), bare).await, 3);
    // A copy of the headers.
    let get = || with(Method::GET, &["accept", "user-agent"], Empty::new());
    assert_eq!(cost(layer(), get).await, 3 + 2);
    // What attempts share of the body; not read here.
    let put = || with(Method::PUT, &["content-type"], hello());
    assert_eq!(cost(layer(), put).await, 3 + 2 + 1);
    // Limits and budgets of whatever kind add nothing.
    let limited = layer().attempt_timeout(Duration::from_secs(60));
    let limited = limited.within(Duration::from_secs(90));
    let thousand = Cost::new(1000.0).unwrap();
    let budget = Budget::percent(20).weighted(thousand).per(key::path());
    assert_eq!(cost(limited.budget(budget), bare).await, 3);
}
