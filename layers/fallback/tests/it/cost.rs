use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{
    BoxError,
    classify::{Classify, Sse},
    testing::{Answers, CountingAllocator},
};
use palisade_fallback::{FallbackLayer, ReplayBody};
use tower::{Layer, Service};

use crate::support::Backend;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations of one request and its whole answer, once the layer is warm.
async fn cost<C, B>(
    layer: FallbackLayer<B, C>,
    request: impl Fn() -> Request<B>,
    status: u16,
) -> u64
where
    C: Classify<Judge: Send>,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let answer = move || {
        let mut answer = Response::new(Full::<Bytes>::from("hello"));
        *answer.status_mut() = status.try_into().unwrap();
        answer
    };
    let mut service = layer.layer(Answers(answer));
    let mut cost = 0;
    for _ in 0..3 {
        let request = request();
        let before = CountingAllocator::count();
        let response = service.call(request).await.unwrap();
        let mut body = std::pin::pin!(response.into_body());
        while body.frame().await.is_some() {}
        cost = CountingAllocator::count() - before;
    }
    cost
}

fn with<B>(headers: &[&'static str], body: B) -> Request<B> {
    let mut request = Request::new(body);
    for &name in headers {
        let value = HeaderValue::from_static("value");
        request.headers_mut().insert(name, value);
    }
    request
}

fn value<B>() -> FallbackLayer<B> {
    FallbackLayer::new().value("value", Response::new("value"))
}

fn service<B: Send + 'static>() -> FallbackLayer<B> {
    FallbackLayer::new().service("service", Backend::new([]))
}

fn hello() -> Full<Bytes> {
    Full::from("hello")
}

#[tokio::test]
async fn with_values_only_nothing_is_kept_of_a_request() {
    let post = || with(&["content-type", "accept"], hello());
    assert_eq!(cost(value(), post, 200).await, 0);
    assert_eq!(cost(value().classify(Sse), post, 200).await, 0);
}

#[tokio::test]
async fn a_service_as_alternative_costs_what_it_keeps_of_a_request() {
    let bare = || with(&[], Empty::<Bytes>::new());
    assert_eq!(cost(service(), bare, 200).await, 0);
    // A copy of the headers.
    let get = || with(&["accept", "user-agent"], Empty::<Bytes>::new());
    assert_eq!(cost(service(), get, 200).await, 2);
    // What the alternatives share of the body; not read here.
    let post = || with(&["accept"], hello());
    assert_eq!(cost(service(), post, 200).await, 3);
}

#[tokio::test]
async fn what_is_read_of_a_request_costs_the_list_of_its_frames() {
    let reads = tower::service_fn(async |request: Request<ReplayBody<Full<Bytes>>>| {
        let mut body = std::pin::pin!(request.into_body());
        while body.frame().await.is_some() {}
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("hello")))
    });
    let mut service = service().layer(reads);
    // The first request registers what is counted.
    service.call(with(&[], hello())).await.unwrap();
    let before = CountingAllocator::count();
    service.call(with(&[], hello())).await.unwrap();
    assert_eq!(CountingAllocator::count() - before, 2);
}

#[tokio::test]
async fn a_value_costs_its_mark() {
    // The answer's box; the map of headers for the mark, and two for the extension that says the same.
    let get = || with(&["accept"], Empty::<Bytes>::new());
    assert_eq!(cost(value(), get, 503).await, 6);
    assert_eq!(cost(value().mark(None), get, 503).await, 4);
}
