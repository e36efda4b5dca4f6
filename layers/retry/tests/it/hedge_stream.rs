use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, channel::Channel};
use palisade_core::{
    BoxError,
    classify::{Grpc, Sse},
    testing::Step,
};
use palisade_retry::{HedgeLayer, Repeatable};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::hedge_support::{
    Act, MILLI, Server, answers, hangs, head, hedge, rich, send, streams, text, with,
};

const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];

fn events(after: u64, steps: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Act {
    streams(after, 200, EVENTS, steps)
}

#[tokio::test(start_paused = true)]
async fn of_two_event_streams_the_first_with_data_wins() {
    let server = Server::new([
        events(0, || vec![Step::Data(": ping\n\n"), Step::Hang]),
        events(10, || {
            vec![Step::Data(": ping\n\n"), Step::Data("data: b\n\n")]
        }),
    ]);
    let layer = hedge().classify(Sse);
    let (answer, took) = send(&layer, &server, with(Method::GET, "")).await;
    assert_eq!(took, 110);
    assert_eq!(text(answer.unwrap()).await, ": ping\n\ndata: b\n\n");
}

#[tokio::test(start_paused = true)]
async fn an_error_event_before_data_leaves_the_field_to_the_other() {
    let error = || vec![Step::Data("data: {\"error\":{}}\n\n")];
    let server = Server::new([
        events(150, error),
        events(300, || vec![Step::Data("data: b\n\n")]),
    ]);
    let layer = hedge().classify(Sse);
    let (answer, took) = send(&layer, &server, with(Method::GET, "")).await;
    assert_eq!(
        (took, text(answer.unwrap()).await.as_str()),
        (400, "data: b\n\n")
    );
    // As does a broken connection; and the last one is passed on as it was.
    let server = Server::new([
        events(150, || vec![Step::Error("cut")]),
        events(300, || vec![Step::Data(": ping\n\n"), Step::Error("last")]),
    ]);
    let (answer, took) = send(&layer, &server, with(Method::GET, "")).await;
    let mut body = answer.unwrap().into_body();
    assert_eq!(took, 400);
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), ": ping\n\n");
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "last");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_data_is_hedged_no_more() {
    let server = Server::new([events(50, || vec![Step::Data("data: a\n\n"), Step::Hang])]);
    let layer = hedge().classify(Sse);
    let (answer, took) = send(&layer, &server, with(Method::GET, "")).await;
    assert_eq!(took, 50);
    advance(1000 * MILLI).await;
    assert_eq!(server.times().len(), 1);
    drop(answer);
}

fn grpc() -> HedgeLayer<Grpc> {
    hedge().classify(Grpc).repeat(Repeatable::All)
}

fn call() -> Request<http_body_util::Full<Bytes>> {
    let mut request = with(Method::POST, "message");
    let kind = "application/grpc+proto".parse().unwrap();
    request.headers_mut().insert("content-type", kind);
    request
}

fn status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers
}

fn unary(after: u64, data: Option<&'static str>, code: &'static str) -> Act {
    streams(after, 200, GRPC, move || {
        let data = data.map(Step::Data).into_iter();
        data.chain([Step::Trailers(status(code))]).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn a_unary_call_is_hedged_and_says_how_often_it_was_sent() {
    let server = Server::new([hangs(), unary(10, Some("reply"), "0")]);
    let (answer, took) = send(&grpc(), &server, call()).await;
    assert_eq!(took, 110);
    let all = answer.unwrap().into_body().collect().await.unwrap();
    assert_eq!(all.trailers(), Some(&status("0")));
    assert_eq!(all.to_bytes(), "reply");
    let sent = server.sent();
    assert_eq!(sent[1].headers["grpc-previous-rpc-attempts"], "1");
    assert!(sent[1].headers.get("x-attempt").is_none());
    assert_eq!(server.read.lock().unwrap()[1], Ok(Bytes::from("message")));
}

#[tokio::test(start_paused = true)]
async fn a_status_in_trailers_that_come_first_decides() {
    // UNAVAILABLE is put aside, NOT_FOUND is the answer.
    for (code, took) in [("14", 400), ("5", 150)] {
        let server = Server::new([unary(150, None, code), unary(300, Some("reply"), "0")]);
        let (answer, after) = send(&grpc(), &server, call()).await;
        assert_eq!(after, took, "{code}");
        let all = answer.unwrap().into_body().collect().await.unwrap();
        let expected = if took == 400 { "0" } else { code };
        assert_eq!(all.trailers(), Some(&status(expected)));
    }
    for (code, took) in [("14", 400), ("8", 400), ("13", 400), ("5", 150), ("0", 150)] {
        let only = head(
            150,
            200,
            &[("content-type", "application/grpc"), ("grpc-status", code)],
        );
        let server = Server::new([only, unary(300, Some("reply"), "0")]);
        assert_eq!(send(&grpc(), &server, call()).await.1, took, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pushback_cancels_the_hedges_that_are_left() {
    let pushback = head(
        150,
        200,
        &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")],
    );
    let server = Server::new([pushback, unary(300, Some("reply"), "0")]);
    let layer = rich(grpc().attempts(3).repeat(Repeatable::All)).await;
    assert_eq!(send(&layer, &server, call()).await.1, 400);
    assert_eq!(server.times(), [0, 100]);
    assert_eq!(layer.handle().snapshot().pushed_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_stream_wins_with_its_first_message() {
    let server = Server::new([
        streams(0, 200, GRPC, || vec![Step::Hang]),
        streams(10, 200, GRPC, || vec![Step::Data("one"), Step::Hang]),
    ]);
    let (answer, took) = send(&grpc(), &server, call()).await;
    assert_eq!(took, 110);
    let frame = answer.unwrap().into_body().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one");
}

/// Answers before it has read the request, as a server of a call that streams both ways does.
#[derive(Clone)]
struct Chats;

impl tower::Service<Request<palisade_retry::HedgeBody<Channel<Bytes, BoxError>>>> for Chats {
    type Response = http::Response<palisade_core::testing::Steps>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(
        &mut self,
        request: Request<palisade_retry::HedgeBody<Channel<Bytes, BoxError>>>,
    ) -> Self::Future {
        // A connection would hold it.
        std::mem::forget(request);
        let answer = palisade_core::testing::Steps::new([Step::Hang]);
        let response = http::Response::builder().header("content-type", "application/grpc");
        std::future::ready(response.body(answer).map_err(Into::into))
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_still_streams_gets_its_head_at_once() {
    // Also while the delay is not known.
    let learns = HedgeLayer::default().classify(Grpc).repeat(Repeatable::All);
    for layer in [grpc(), learns] {
        let (_send, body) = Channel::new(1);
        let mut request = Request::new(body);
        let kind = "application/grpc".parse().unwrap();
        request.headers_mut().insert("content-type", kind);
        let mut call = task::spawn(layer.layer(Chats).oneshot(request));
        assert!(call.poll().is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_stream_is_that_to_its_first_data() {
    let layer = HedgeLayer::default().classify(Sse);
    let service = layer.layer(Server::new([events(10, || {
        vec![Step::Data(": ping\n\n"), Step::Hang]
    })]));
    for _ in 0..200 {
        let mut call = task::spawn(service.clone().oneshot(with(Method::GET, "")));
        assert_pending!(call.poll());
        advance(20 * MILLI).await;
        assert_pending!(call.poll());
    }
    assert_eq!(layer.handle().snapshot().delay, None, "none had data");
    let service = layer.layer(Server::new([answers(10, 200)]));
    for _ in 0..100 {
        service
            .clone()
            .oneshot(with(Method::GET, ""))
            .await
            .unwrap();
    }
    assert!(layer.handle().snapshot().delay.is_some());
}
