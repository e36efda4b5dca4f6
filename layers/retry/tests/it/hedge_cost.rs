use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{
    BoxError,
    classify::{Classify, Grpc},
    testing::CountingAllocator,
};
use palisade_retry::{
    HedgeBody, HedgeLayer,
    hedge::{Delay, Mode},
};
use tower::{Layer, Service};

/// Reads the request and answers.
#[derive(Clone)]
struct Reads;

/// By hand, so that it allocates nothing.
#[pin_project::pin_project]
struct Reading<B>(#[pin] HedgeBody<B>, bool);

impl<B> Future for Reading<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Full<Bytes>>, BoxError>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let mut body = self.as_mut().project().0;
        while let Some(frame) = std::task::ready!(body.as_mut().poll_frame(cx)) {
            frame?;
        }
        let mut response = Response::new(Full::from("hello"));
        if *self.project().1 {
            let kind = http::HeaderValue::from_static("application/grpc");
            response.headers_mut().insert("content-type", kind);
        }
        std::task::Poll::Ready(Ok(response))
    }
}

impl<B> Service<Request<HedgeBody<B>>> for Reads
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Reading<B>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HedgeBody<B>>) -> Reading<B> {
        let kind = request.headers().get("content-type");
        let is_grpc = kind.is_some_and(|kind| kind == "application/grpc");
        Reading(request.into_body(), is_grpc)
    }
}

/// Allocations of one request and its whole answer, once the layer is warm.
async fn cost<C, B>(layer: HedgeLayer<C>, request: impl Fn() -> Request<B>) -> u64
where
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut service = layer.layer(Reads);
    let mut cost = 0;
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

fn second() -> HedgeLayer {
    HedgeLayer::new(Duration::from_secs(1))
}

#[tokio::test]
async fn a_request_that_may_not_be_hedged_allocates_nothing() {
    let post = || with(Method::POST, &["content-type"], hello());
    assert_eq!(cost(second(), post).await, 0);
    let get = || with(Method::GET, &["accept"], Empty::new());
    assert_eq!(cost(second().mode(Mode::Shadow), get).await, 0);
    assert_eq!(cost(second().mode(Mode::Off), get).await, 0);
    let never = HedgeLayer::new(Delay::by(|_| None));
    assert_eq!(cost(never, get).await, 0);
    // Still learning.
    let learns = HedgeLayer::new(Delay::default().samples(1000));
    assert_eq!(cost(learns, get).await, 0);
}

#[tokio::test]
async fn a_request_that_may_be_hedged_allocates_what_its_parts_cost() {
    // The place of the attempts in extensions that were empty.
    let bare = || with(Method::GET, &[], Empty::new());
    assert_eq!(cost(second(), bare).await, 3);
    assert_eq!(cost(HedgeLayer::default(), bare).await, 3);
    // A copy of the headers.
    let get = || with(Method::GET, &["accept", "user-agent"], Empty::new());
    assert_eq!(cost(second(), get).await, 3 + 2);
    // What attempts share of the body, and the list of its frames.
    let put = || with(Method::PUT, &["content-type"], hello());
    assert_eq!(cost(second(), put).await, 3 + 2 + 2);
}

#[tokio::test]
async fn an_answer_that_is_looked_into_allocates_two_more() {
    let call = || {
        let mut request = with(Method::PUT, &["accept"], hello());
        let kind = http::HeaderValue::from_static("application/grpc");
        request.headers_mut().insert("content-type", kind);
        request
    };
    // The server's own header costs two.
    let post = || {
        let mut request = call();
        *request.method_mut() = Method::POST;
        request
    };
    let layer = || second().classify(Grpc);
    assert_eq!(cost(layer(), post).await, 2);
    assert_eq!(cost(layer(), call).await, 2 + (3 + 2 + 2) + 2);
    // Still learning: only how far the body has been read.
    let learns = HedgeLayer::new(Delay::default().samples(1000)).classify(Grpc);
    assert_eq!(cost(learns, call).await, 2 + 2 + 2);
}

#[tokio::test]
async fn while_attempts_fail_nothing_is_prepared() {
    let layer = second();
    let broken = tower::service_fn(|_: Request<HedgeBody<Empty<Bytes>>>| {
        std::future::ready(Err::<Response<Full<Bytes>>, _>("broken"))
    });
    let mut broken = layer.layer(broken);
    for _ in 0..10 {
        let request = with(Method::GET, &["accept"], Empty::new());
        assert!(broken.call(request).await.is_err());
    }
    let mut service = layer.layer(Reads);
    let request = with(Method::GET, &["accept"], Empty::<Bytes>::new());
    let before = CountingAllocator::count();
    assert!(service.call(request).await.is_ok());
    assert_eq!(CountingAllocator::count() - before, 0);
}
