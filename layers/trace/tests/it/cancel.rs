//! Callers who leave, and services that panic.

use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    testing::{Step, Steps},
    time::wall_clock,
};
use palisade_trace::TraceLayer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tracing::Span;

use crate::support::{Spans, inner, request, says};

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn whoever_leaves_before_the_answer_ends_the_span_then() {
    let (spans, _listening) = Spans::listen();
    for polls in [0, 1, 3] {
        let hangs =
            service_fn(async |_: Request<_>| pending::<Result<Response<Steps>, BoxError>>().await);
        let mut service = TraceLayer::request().layer(TraceLayer::attempt().layer(hangs));
        let mut call = Box::pin(service.call(request()));
        for _ in 0..polls {
            assert!(poll(call.as_mut()).is_pending());
        }
        assert_eq!(spans.count(), 0);
        let left = wall_clock();
        drop(call);
        let ended = spans.take();
        assert_eq!(ended.len(), 2, "after {polls} polls");
        for span in ended {
            assert_eq!(span.says("palisade.verdict"), "canceled");
            assert_eq!(span.says("error.type"), "");
            assert!(!span.is_error());
            assert!(
                span.0.end_time >= left,
                "it ends when the caller leaves, not at the last poll"
            );
        }
    }
}

#[tokio::test]
async fn whoever_leaves_in_the_body_ends_the_span_then() {
    let (spans, _listening) = Spans::listen();
    let steps = || [Step::Data("one"), Step::Hang];
    for frames in [0, 1, 2] {
        let service = TraceLayer::request().layer(inner(move || says(200, "text/plain", steps())));
        let answer = service.oneshot(request()).await.unwrap();
        let mut body = Box::pin(answer.into_body());
        for _ in 0..frames {
            let _frame = body
                .as_mut()
                .poll_frame(&mut Context::from_waker(Waker::noop()));
        }
        assert_eq!(spans.count(), 0);
        let left = wall_clock();
        drop(body);
        let span = spans.one();
        assert_eq!(span.says("palisade.verdict"), "canceled");
        assert_eq!(span.says("http.response.status_code"), "200");
        assert!(span.0.end_time >= left);
    }
}

#[tokio::test]
async fn a_verdict_that_was_reached_stands_when_the_caller_leaves() {
    let (spans, _listening) = Spans::listen();
    let steps = || [Step::Data("sorry"), Step::Hang];
    let service = TraceLayer::request().layer(inner(move || says(500, "text/plain", steps())));
    drop(service.oneshot(request()).await.unwrap());
    let span = spans.one();
    assert_eq!(span.says("palisade.verdict"), "failure");
    assert_eq!(span.says("error.type"), "500");
}

#[tokio::test]
async fn wherever_the_service_panics_the_span_ends_once() {
    let (spans, _listening) = Spans::listen();
    let in_call = service_fn(
        |_: Request<_>| -> std::future::Ready<Result<Response<Steps>, BoxError>> {
            panic!("on purpose")
        },
    );
    let mut service = TraceLayer::request().layer(in_call);
    let called = catch_unwind(AssertUnwindSafe(|| drop(service.call(request()))));
    assert!(called.is_err());
    assert_eq!(spans.one().says("palisade.verdict"), "canceled");

    let in_poll = service_fn(async |_: Request<_>| -> Result<Response<Steps>, BoxError> {
        panic!("on purpose")
    });
    let mut service = TraceLayer::request().layer(in_poll);
    let mut call = Box::pin(service.call(request()));
    assert!(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()).is_ready())).is_err());
    drop(call);
    assert_eq!(spans.one().says("palisade.verdict"), "canceled");

    let service = TraceLayer::request().layer(inner(|| says(200, "text/plain", [Step::Panic])));
    let answer = service.oneshot(request()).await.unwrap();
    let mut frame = Box::pin(answer.into_body().collect());
    assert!(catch_unwind(AssertUnwindSafe(|| poll(frame.as_mut()).is_ready())).is_err());
    drop(frame);
    assert_eq!(spans.one().says("palisade.verdict"), "canceled");
    assert!(Span::current().is_none(), "and nobody is left inside of it");
}

/// Writes down the span that is current in each of its polls and when it is dropped.
#[derive(Clone, Default)]
struct Where(Arc<Mutex<Vec<Option<tracing::Id>>>>);

impl Where {
    fn note(&self) {
        self.0.lock().unwrap().push(Span::current().id());
    }
}

struct Noting(Where, Steps);

impl Body for Noting {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, BoxError>>> {
        self.0.note();
        Pin::new(&mut self.1).poll_frame(cx)
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.0.note();
    }
}

#[tokio::test]
async fn the_span_is_current_in_every_poll_and_in_every_drop() {
    let (spans, _listening) = Spans::listen();
    let noted = Where::default();
    let inside = noted.clone();
    let service = service_fn(move |_: Request<_>| {
        inside.note();
        let noted = inside.clone();
        async move {
            noted.note();
            tokio::task::yield_now().await;
            noted.note();
            Ok::<_, BoxError>(Response::new(Noting(
                noted,
                Steps::new([Step::Data("a"), Step::Hang]),
            )))
        }
    });
    let answer = TraceLayer::request()
        .layer(service)
        .oneshot(request())
        .await
        .unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(Span::current().is_none());
    drop(body);
    let noted = noted.0.lock().unwrap();
    assert_eq!(noted.len(), 5, "call, two polls, a frame, the drop");
    assert!(
        noted.iter().all(|span| span.is_some() && *span == noted[0]),
        "{noted:?}"
    );
    assert_eq!(spans.count(), 1);
}

/// Ready at once, and whoever polls it holds it for longer.
struct Ready(Where);

impl Future for Ready {
    type Output = Result<Response<Steps>, BoxError>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err("broken".into()))
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.note();
    }
}

#[tokio::test]
async fn what_a_future_holds_that_is_ready_ends_inside_of_the_span() {
    let (spans, _listening) = Spans::listen();
    let noted = Where::default();
    let inside = noted.clone();
    let service = service_fn(move |_: Request<_>| Ready(inside.clone()));
    let mut service = TraceLayer::request().layer(service);
    let mut call = Box::pin(service.call(request()));
    assert!(call.as_mut().await.is_err());
    drop(call);
    let noted = noted.0.lock().unwrap().clone();
    assert!(matches!(noted[..], [Some(_)]), "{noted:?}");
    assert_eq!(spans.one().says("palisade.verdict"), "failure");
}
