use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, channel::Channel};
use palisade_core::{
    BoxError,
    testing::{Step, Steps},
};
use palisade_retry::HedgeBody;
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::hedge_support::{MILLI, Server, answers, hangs, hedge, send, streams, with};

#[tokio::test(start_paused = true)]
async fn both_attempts_get_the_whole_body() {
    let server = Server::new([hangs(), answers(10, 200)]);
    send(&hedge(), &server, with(Method::PUT, "hello"))
        .await
        .0
        .unwrap();
    let read = server.read.lock().unwrap().clone();
    assert_eq!(read, [Ok(Bytes::from("hello")), Ok(Bytes::from("hello"))]);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_cap_is_sent_whole_and_once() {
    let (layer, server) = (hedge().keep_up_to(40), Server::new([answers(300, 200)]));
    let long = "a body that is longer than forty bytes are";
    send(&layer, &server, with(Method::PUT, long))
        .await
        .0
        .unwrap();
    assert_eq!(*server.read.lock().unwrap(), [Ok(Bytes::from(long))]);
    assert_eq!(server.times(), [0]);
    assert_eq!(layer.handle().snapshot().no_body, 1);
}

fn put(body: Channel<Bytes, BoxError>) -> Request<Channel<Bytes, BoxError>> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::PUT;
    request
}

#[tokio::test(start_paused = true)]
async fn a_body_that_still_streams_goes_on_without_a_hedge() {
    let (mut send, body) = Channel::new(4);
    let (layer, server) = (hedge(), Server::new([answers(10, 200)]));
    let mut call = task::spawn(layer.layer(server.clone()).oneshot(put(body)));
    assert_pending!(call.poll());
    for _ in 0..5 {
        send.send_data("more".into()).await.unwrap();
        advance(50 * MILLI).await;
        assert!(call.is_woken());
        assert_pending!(call.poll());
    }
    drop(send);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    advance(10 * MILLI).await;
    assert!(call.poll().is_ready());
    assert_eq!(
        *server.read.lock().unwrap(),
        [Ok(Bytes::from("more".repeat(5)))]
    );
    assert_eq!(layer.handle().snapshot().no_body, 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_has_all_come_before_the_delay_is_hedged() {
    let (mut send, body) = Channel::new(4);
    let server = Server::new([hangs(), streams(10, 200, &[], || vec![Step::Data("ok")])]);
    let mut call = task::spawn(hedge().layer(server.clone()).oneshot(put(body)));
    assert_pending!(call.poll());
    send.send_data("hello".into()).await.unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("checksum", 7.into());
    send.send_trailers(trailers).await.unwrap();
    drop(send);
    assert_pending!(call.poll());
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    advance(10 * MILLI).await;
    assert!(call.poll().is_ready());
    let read = server.read.lock().unwrap().clone();
    assert_eq!(read, [Ok(Bytes::from("hello")), Ok(Bytes::from("hello"))]);
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_of_a_request_that_has_no_answer() {
    // As the task of an HTTP/2 connection, which reads the body apart from the attempt.
    let (give, kept) = std::sync::mpsc::channel();
    let broken = tower::service_fn(move |request: Request<HedgeBody<_>>| {
        give.send(request.into_body()).unwrap();
        std::future::ready(Err::<Response<Steps>, BoxError>("connection reset".into()))
    });
    let request = with(Method::PUT, "hello");
    assert!(hedge().layer(broken).oneshot(request).await.is_err());
    let body = kept.recv().unwrap();
    assert!(body.collect().await.is_err());
}
