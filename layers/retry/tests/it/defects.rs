//! What retries of other libraries are reported for most: each as a sentence that holds here.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    testing::Steps,
};
use palisade_retry::{Budget, ReplayBody};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt};

use crate::support::{Backend, MILLI, SECOND, get, head, layer, request, send, status};

type Sent = Request<ReplayBody<Full<Bytes>>>;

/// Panics when it is called without having said that it is ready; each clone has to say so itself, once per call.
struct Strict {
    ready: bool,
    calls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            ready: false,
            calls: self.calls.clone(),
        }
    }
}

impl Service<Sent> for Strict {
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Steps>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Sent) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        self.calls.fetch_add(1, Relaxed);
        let response = Response::builder().status(503);
        std::future::ready(Ok(response.body(Steps::new([])).unwrap()))
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_is_made_on_readiness_that_was_used_up() {
    let calls = Arc::default();
    let service = layer().layer(Strict {
        ready: false,
        calls: Arc::clone(&calls),
    });
    // Two at once, of one service: each has the instance that was ready for it.
    let mut service = service;
    let first = service.ready().await.unwrap().call(get());
    let second = service.ready().await.unwrap().call(get());
    let post = service.ready().await.unwrap().call(request(Method::POST));
    drop(tokio::join!(first, second, post));
    assert_eq!(calls.load(Relaxed), 3 + 3 + 1);
}

#[tokio::test(start_paused = true)]
async fn half_a_body_is_sent_again_from_its_start() {
    // Reads one frame and answers 503, then all.
    let read: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let attempts = AtomicUsize::new(0);
    let service = tower::service_fn(|request: Request<ReplayBody<_>>| {
        let (read, first) = (read.clone(), attempts.fetch_add(1, Relaxed) == 0);
        async move {
            let mut body = request.into_body();
            let got = if first {
                body.frame().await.unwrap()?.into_data().unwrap()
            } else {
                body.collect().await?.to_bytes()
            };
            read.lock().unwrap().push(got);
            let response = Response::builder().status(if first { 503 } else { 200 });
            Ok::<_, BoxError>(response.body(Steps::new([]))?)
        }
    });
    let frames = ["one ", "two ", "three"].map(|text| {
        let data = Bytes::from_static(text.as_bytes());
        Ok::<_, BoxError>(http_body::Frame::data(data))
    });
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::put("/").body(body).unwrap();
    let answer = layer().layer(service).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(*read.lock().unwrap(), ["one ", "one two three"]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_is_asked_for_is_neither_ignored_nor_waited_for_without_end() {
    for (hint, times) in [
        ("2", vec![0, 2000]),
        ("86400", vec![0]),
        ("18446744073709551615", vec![0]),
        ("99999999999999999999999999", vec![0]),
        ("Fri, 31 Dec 9999 23:59:59 GMT", vec![0]),
        // Past: at once.
        ("Sun, 06 Nov 1994 08:49:37 GMT", vec![0, 0]),
    ] {
        for code in [429, 503] {
            let backend = Backend::new([head(code, &[("retry-after", hint)]), status(200)]);
            send(&layer(), &backend, get()).await.unwrap();
            assert_eq!(backend.times(), times, "{code} {hint}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_never_goes_below_nothing_whatever_is_asked_of_it_at_once() {
    let budget = Budget::percent(20).reserve(7);
    let layer = layer().budget(budget.clone());
    let backend = Backend::new([status(503)]);
    let mut calls: Vec<_> = (0..1000)
        .map(|_| task::spawn(layer.layer(backend.clone()).oneshot(get())))
        .collect();
    // All of them fail in the same instant.
    calls.retain_mut(|call| call.poll().is_pending());
    assert_eq!(backend.attempts(), 1000);
    assert_eq!(calls.len(), 7 + 200, "the reserve and a fifth");
    assert_eq!(budget.left(), Some(0));
    for call in calls {
        call.await.unwrap();
    }
    assert!(
        backend.attempts() <= 1000 + 7 + 200 + 1,
        "{}",
        backend.attempts()
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_a_caller_that_has_left() {
    let backend = Backend::new([status(503)]);
    let mut call = task::spawn(layer().layer(backend.clone()).oneshot(get()));
    assert_pending!(call.poll());
    drop(call);
    advance(60 * SECOND).await;
    tokio::task::yield_now().await;
    assert_eq!(backend.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_breaker_further_in_refuses_is_not_hammered_and_costs_no_budget() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let open = tower::service_fn(move |_: Sent| {
        counted.fetch_add(1, Relaxed);
        let open = Rejected::new(Reason::CircuitOpen, "open").retry_after(MILLI);
        std::future::ready(Err::<Response<Steps>, BoxError>(open.into()))
    });
    let layer = layer().condition(|_, _| true);
    for _ in 0..100 {
        let error = layer.layer(open.clone()).oneshot(get()).await.unwrap_err();
        assert!(
            !Rejected::find(&*error).unwrap().is_final(),
            "nothing was tried"
        );
    }
    assert_eq!(calls.load(Relaxed), 100);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.retries, snapshot.budget_left), (0, Some(100)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_http2_refuses_is_made_again_whatever_it_does_once_and_free() {
    let refused = || crate::support::fails(|| h2::Error::from(h2::Reason::REFUSED_STREAM).into());
    let layer = layer().repeat(palisade_retry::Repeatable::IdempotentOrUnsent);
    let backend = Backend::new([refused(), status(200)]);
    let post = request(Method::POST);
    assert_eq!(send(&layer, &backend, post).await.unwrap().status(), 200);
    assert_eq!(backend.times(), [0, 0]);
    assert_eq!(layer.handle().snapshot().budget_left, Some(100));
}

#[tokio::test(start_paused = true)]
async fn callers_that_fail_together_do_not_come_back_together() {
    let layer = palisade_retry::RetryLayer::default().budget(Budget::unlimited());
    let backend = Backend::new([status(503)]);
    let calls = (0..200).map(|_| send(&layer, &backend, get()));
    let calls: Vec<_> = calls.collect();
    futures_util::future::join_all(calls).await;
    let second = backend.seen();
    let again: Vec<_> = second
        .iter()
        .filter(|seen| seen.headers.get("x-attempt").is_some_and(|n| n == "3"))
        .collect();
    let moments: HashSet<_> = again.iter().map(|seen| seen.at.as_millis()).collect();
    assert_eq!(again.len(), 200);
    assert!(moments.len() > 30, "{} different ones", moments.len());
}
