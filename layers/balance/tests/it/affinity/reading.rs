//! How long a request is kept while its prompt is read, and what becomes of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Request, header::HeaderName};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Channel, Empty, Full};
use palisade_balance::{Affinity, PromptAffinityLayer};
use palisade_core::{
    BoxError,
    testing::{Step, Steps},
    time,
};
use tokio_test::{assert_pending, assert_ready, task};

use super::{CHAT, by_prompt, call, call_with, reader, reader_by, steps};
use crate::support::MS;

#[test]
fn a_body_whose_request_is_known_is_not_read() {
    let (mut service, remote) = reader();
    let mut request = Request::new(Steps::new([Step::Panic]));
    request.extensions_mut().insert(Affinity::of("ann"));
    assert_ready!(call_with(&mut service, request).poll()).unwrap();
    assert_eq!(remote.affinity(), Some(Affinity::of("ann")));

    let (mut service, remote) = reader_by(PromptAffinityLayer::new().read(0));
    assert_ready!(call(&mut service, Steps::new([Step::Panic])).poll()).unwrap();
    assert_eq!(remote.affinity(), None);
}

#[test]
fn a_request_without_a_body_goes_on_as_it_is() {
    let (mut service, remote) = reader();
    assert_ready!(call(&mut service, Empty::<Bytes>::new()).poll()).unwrap();
    let request = remote.take();
    assert_eq!(request.extensions().get::<Affinity>(), None);
    assert!(request.body().is_end_stream());
    // Not known to be empty before it is read.
    let (mut service, remote) = reader();
    assert_ready!(call(&mut service, steps(&[])).poll()).unwrap();
    let request = remote.take();
    assert_eq!(request.extensions().get::<Affinity>(), None);
    assert!(request.body().is_end_stream());
}

#[test]
fn turns_of_a_conversation_share_an_affinity() {
    let first = by_prompt(CHAT);
    assert!(first.is_some());
    let next =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#;
    assert_eq!(by_prompt(next), first);
    assert_ne!(
        by_prompt(r#"{"messages":[{"role":"user","content":"Bye"}]}"#),
        first
    );
}

#[test]
fn what_is_compressed_is_not_looked_into_and_grpc_is_without_its_head() {
    let of = |name: HeaderName, value: &'static str, body: &'static str| {
        let (mut service, remote) = reader();
        let mut request = Request::new(Full::from(body));
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        assert_ready!(call_with(&mut service, request).poll()).unwrap();
        remote.affinity()
    };
    let chat = by_prompt(CHAT);
    assert_eq!(of(http::header::CONTENT_ENCODING, "identity", CHAT), chat);
    assert_ne!(of(http::header::CONTENT_ENCODING, "gzip", CHAT), chat);
    let grpc = |body| of(http::header::CONTENT_TYPE, "application/grpc+proto", body);
    assert_eq!(grpc("\0\0\0\0\x03abc"), grpc("\0\0\0\0\x04abc"));
    assert_ne!(grpc("\0\0\0\0\x03abc"), grpc("\0\0\0\0\x03abd"));
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_on_as_soon_as_its_prompt_is_known() {
    let (mut service, remote) = reader();
    let (mut sender, body) = Channel::<Bytes>::new(8);
    let mut response = call(&mut service, body);
    let end = CHAT.find(r#","stream""#).unwrap();
    sender
        .try_send(Frame::data(Bytes::from_static(&CHAT.as_bytes()[..end - 2])))
        .unwrap();
    assert_pending!(response.poll());
    assert_eq!(remote.calls(), 0);
    sender
        .try_send(Frame::data(Bytes::from_static(
            &CHAT.as_bytes()[end - 2..end],
        )))
        .unwrap();
    assert!(response.is_woken());
    assert_ready!(response.poll()).unwrap();
    let mut request = remote.take();
    assert_eq!(request.extensions().get(), by_prompt(CHAT).as_ref());

    // The rest streams on, at the pace of the sender.
    let mut frame = task::spawn(request.body_mut().frame());
    let sizes = [end - 2, 2].map(|size| {
        let frame = assert_ready!(frame.poll()).unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap().len(), size);
        size
    });
    assert_eq!(sizes, [end - 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_waited_for_a_while_and_goes_on_without_an_affinity() {
    let layer = PromptAffinityLayer::new().wait(MS * 30);
    for sent in [&[][..], &[r#"{"messages":[{"role":"user""#][..]] {
        let (mut service, remote) = reader_by(layer);
        let (mut sender, body) = Channel::<Bytes>::new(8);
        for piece in sent {
            sender
                .try_send(Frame::data(Bytes::from_static(piece.as_bytes())))
                .unwrap();
        }
        let start = time::now();
        call(&mut service, body).await.unwrap();
        assert_eq!(start.elapsed(), MS * 30);
        let mut request = remote.take();
        assert_eq!(request.extensions().get::<Affinity>(), None);
        let rest = r#","content":"Hi"}]}"#;
        sender
            .try_send(Frame::data(Bytes::from_static(rest.as_bytes())))
            .unwrap();
        drop(sender);
        let whole = request.body_mut().collect().await.unwrap().to_bytes();
        assert_eq!(whole, sent.concat() + rest);
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_for_all_of_it_not_for_each_frame() {
    let (mut service, remote) = reader_by(PromptAffinityLayer::new().wait(MS * 100));
    let (mut sender, body) = Channel::<Bytes>::new(100);
    let drip = tokio::spawn(async move {
        loop {
            tokio::time::sleep(MS * 40).await;
            if sender.send_data(Bytes::from_static(b" ")).await.is_err() {
                return;
            }
        }
    });
    let start = time::now();
    call(&mut service, body).await.unwrap();
    assert_eq!(start.elapsed(), MS * 100);
    assert_eq!(remote.affinity(), None);
    drip.abort();
}

/// Says when it is dropped.
struct Guarded(Steps, #[allow(dead_code, reason = "it counts")] Arc<()>);

impl Body for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_a_caller_that_leaves_while_its_body_is_read() {
    for polls in [0, 1, 2] {
        let (mut service, remote) = reader();
        let alive = Arc::new(());
        let steps = Steps::new([Step::Data("{\"pro"), Step::Hang, Step::Hang]);
        let mut response = call(&mut service, Guarded(steps, alive.clone()));
        for _ in 0..polls {
            assert_pending!(response.poll());
        }
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(response);
        assert_eq!((remote.calls(), Arc::strong_count(&alive)), (0, 1));
    }
}

#[test]
fn nothing_is_sent_when_reading_panics() {
    let (mut service, remote) = reader();
    let body = Steps::new([Step::Data("{\"pro"), Step::Panic]);
    let mut response = call(&mut service, body);
    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| response.poll()));
    assert!(polled.is_err());
    drop(response);
    assert_eq!(remote.calls(), 0);
    assert_eq!(
        Arc::strong_count(&remote.0),
        2,
        "only the service and this are left"
    );
}

#[tokio::test]
async fn each_call_takes_the_instance_that_was_ready() {
    // Keeper asserts it; two calls side by side take one each.
    let (mut service, remote) = reader();
    let (mut a, first) = Channel::<Bytes>::new(1);
    let (mut b, second) = Channel::<Bytes>::new(1);
    let mut one = call(&mut service, first);
    let mut two = call(&mut service, second);
    assert_pending!(one.poll());
    assert_pending!(two.poll());
    b.try_send(Frame::data(Bytes::from_static(b"{\"prompt\":\"b\"}")))
        .unwrap();
    assert_ready!(two.poll()).unwrap();
    a.try_send(Frame::data(Bytes::from_static(b"{\"prompt\":\"a\"}")))
        .unwrap();
    assert_ready!(one.poll()).unwrap();
    assert_eq!(remote.calls(), 2);
}
