//! Streams that fail, ended in the words that their readers understand.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    respond::{RespondBody, RespondLayer},
    testing::{CountingAllocator, Step, Steps},
};
use tower::{Layer, ServiceExt, service_fn};

/// Some frames, and then an error.
struct Failing {
    frames: Vec<Frame<Bytes>>,
    error: fn() -> BoxError,
    /// Shared with the test as long as the body lives.
    _alive: Arc<()>,
}

impl Body for Failing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.frames.is_empty() {
            return Poll::Ready(Some(Err((self.error)())));
        }
        Poll::Ready(Some(Ok(self.frames.remove(0))))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_upper(10);
        hint
    }
}

fn late() -> BoxError {
    Rejected::new(Reason::TimedOut, "no \"data\" after 5s").into()
}

fn foreign() -> BoxError {
    "connection to 10.0.0.1 reset".into()
}

const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream; charset=utf-8")];
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc+proto")];

async fn respond<B: Body>(
    request: Request<()>,
    headers: &[(&str, &str)],
    body: B,
) -> RespondBody<B> {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let mut response = Some(response.body(body).unwrap());
    let inner = service_fn(move |_: Request<()>| {
        let response = response.take().expect("called once");
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let layer = RespondLayer::auto();
    let Ok(response) = layer.layer(inner).oneshot(request).await;
    response.into_body()
}

fn post(path: &str, kind: &str) -> Request<()> {
    let request = Request::post(path).header("content-type", kind);
    request.body(()).unwrap()
}

fn failing(frames: &[&'static str], error: fn() -> BoxError) -> (Failing, Arc<()>) {
    let alive = Arc::new(());
    let frames = frames
        .iter()
        .map(|data| Frame::data(Bytes::from_static(data.as_bytes())));
    let body = Failing {
        frames: frames.collect(),
        error,
        _alive: Arc::clone(&alive),
    };
    (body, alive)
}

/// All data, or the error that there is instead of an end.
async fn text<B>(body: B) -> Result<String, BoxError>
where
    B: Body<Data = Bytes, Error = BoxError>,
{
    let all = body.collect().await?.to_bytes();
    Ok(String::from_utf8(all.into()).unwrap())
}

#[tokio::test]
async fn a_stream_of_events_that_fails_ends_with_a_typed_event() {
    let (body, _) = failing(&["data: one\n\n", "data: tw"], late);
    let body = respond(post("/v1/chat/completions", "application/json"), SSE, body).await;
    assert_eq!(
        text(body).await.unwrap(),
        "data: one\n\ndata: tw\n\nevent: error\ndata: {\"error\":{\"message\":\"no \\\"data\\\" after 5s\",\
         \"type\":\"server_error\",\"param\":null,\"code\":\"timed_out\"}}\n\n"
    );

    let (body, _) = failing(&["data: one\n\n"], late);
    let body = respond(post("/generate", "application/json"), SSE, body).await;
    assert_eq!(
        text(body).await.unwrap(),
        "data: one\n\nevent: error\ndata: {\"error\":{\"message\":\"no \\\"data\\\" after 5s\",\
         \"type\":\"server_error\",\"code\":\"timed_out\"}}\n\n"
    );
}

#[tokio::test]
async fn the_words_of_a_foreign_error_stay_inside_also_in_mid_stream() {
    let (body, _) = failing(&[], foreign);
    let body = respond(post("/v1/x", "application/json"), SSE, body).await;
    let all = text(body).await.unwrap();
    assert!(all.starts_with("event: error\ndata: {\"error\":{\"message\":\"bad gateway\""));
    assert!(!all.contains("10.0.0.1"), "{all}");

    let (body, _) = failing(&[], foreign);
    let body = respond(post("/x", "application/grpc"), GRPC, body).await;
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap();
    assert_eq!(trailers["grpc-status"], "2");
    assert_eq!(trailers["grpc-message"], "bad gateway");
}

#[tokio::test]
async fn a_grpc_stream_that_fails_ends_with_its_status_in_trailers() {
    for (reason, status) in [
        (Reason::TimedOut, "4"),
        (Reason::DeadlineExceeded, "4"),
        (Reason::Overloaded, "14"),
        (Reason::RateLimited, "8"),
    ] {
        let body = Steps::new([Step::Data("\0\0\0\0\x01x")]);
        let body = body.chain(Failed(Some(Rejected::new(reason, "100 %").into())));
        let body = respond(post("/x", "application/grpc"), GRPC, body).await;
        let all = body.collect().await.unwrap();
        let trailers = all.trailers().cloned().unwrap();
        assert_eq!(all.to_bytes(), "\0\0\0\0\x01x");
        assert_eq!(trailers["grpc-status"], status, "{reason:?}");
        assert_eq!(trailers["grpc-message"], "100 %25");
        assert!(!trailers.contains_key("content-type"));
    }
}

/// Fails at once.
struct Failed(Option<BoxError>);

impl Body for Failed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

/// One body after the other.
trait Chain: Body + Sized {
    fn chain<B>(self, next: B) -> Chained<Self, B> {
        Chained(self, next)
    }
}

impl<B: Body> Chain for B {}

struct Chained<A, B>(A, B);

impl<A, B> Body for Chained<A, B>
where
    A: Body<Data = Bytes, Error = BoxError> + Unpin,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.0).poll_frame(cx) {
            Poll::Ready(None) => Pin::new(&mut self.1).poll_frame(cx),
            frame => frame,
        }
    }
}

#[tokio::test]
async fn a_status_that_was_told_is_not_told_again() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = Steps::new([Step::Trailers(trailers), Step::Error("reset")]);
    let body = respond(post("/x", "application/grpc"), GRPC, body).await;
    let all = body.collect().await.unwrap();
    assert_eq!(all.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn what_is_cut_short_does_not_look_whole() {
    let length = ("content-length", "1000");
    let gzip = ("content-encoding", "gzip");
    for headers in [
        &[("content-type", "application/json")][..],
        &[("content-type", "application/x-ndjson")],
        &[],
        // No room for words of ours.
        &[SSE[0], length],
        &[SSE[0], gzip],
        // Its trailers are in the body.
        &[("content-type", "application/grpc-web+proto")],
    ] {
        for kind in ["application/json", "application/grpc"] {
            let (body, _) = failing(&["half"], late);
            let body = respond(post("/v1/x", kind), headers, body).await;
            let error = text(body).await.unwrap_err();
            assert!(Rejected::find(&*error).is_some(), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn an_event_stream_of_known_length_gets_no_event_that_would_not_fit() {
    let (body, _) = failing(&["data: x\n\n"], late);
    let body = respond(post("/v1/x", "application/json"), SSE, Long(body)).await;
    assert_eq!(body.size_hint().exact(), Some(10));
    let error = text(body).await.unwrap_err();
    assert!(Rejected::find(&*error).is_some());
}

/// Says how long it is, from which servers make a `content-length`.
struct Long(Failing);

impl Body for Long {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(10)
    }
}

#[tokio::test]
async fn a_body_that_has_failed_is_let_go_at_once() {
    for (headers, kind) in [
        (SSE, "application/json"),
        (GRPC, "application/grpc"),
        (&[], "text/plain"),
    ] {
        let (body, alive) = failing(&["x"], late);
        let body = respond(post("/", kind), headers, body).await;
        let mut body = std::pin::pin!(body);
        // With words of ours there is no telling how long it becomes.
        let is_plain = headers.is_empty();
        assert_eq!(body.size_hint().upper(), is_plain.then_some(10));
        assert!(body.frame().await.unwrap().is_ok());
        assert!(!body.is_end_stream());
        assert_eq!(Arc::strong_count(&alive), 2);
        let last = body.frame().await.unwrap();
        assert_eq!(last.is_err(), headers.is_empty());
        assert_eq!(
            Arc::strong_count(&alive),
            1,
            "while the reader keeps the rest"
        );
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_stream_that_ends_well_is_passed_as_it_is_without_an_allocation() {
    let stream = ["data: a\n\n", "", "data: b\n"];
    let body = Steps::new(stream.map(Step::Data));
    let mut body = std::pin::pin!(respond(post("/", "x/y"), SSE, body).await);
    assert_eq!(body.size_hint().exact(), None, "an event may come on top");
    let before = CountingAllocator::count();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        assert_eq!(frame.unwrap().into_data().unwrap(), stream[read]);
        read += 1;
    }
    assert_eq!(CountingAllocator::count() - before, 0);
    assert_eq!(read, stream.len());
}
