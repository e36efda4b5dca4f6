use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    classify::Sse,
    testing::{Step, Steps},
};
use palisade_retry::ReplayBody;
use proptest::prelude::*;
use tower::{Layer, ServiceExt};

use crate::support::{Backend, Line, SECOND, echoes, layer, send, status, text};

/// Reads this many frames, writes down what they held, and answers.
fn reads<B>(frames: usize, read: &Arc<Mutex<Vec<Vec<Bytes>>>>, status: u16) -> Line<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    let read = read.clone();
    Arc::new(move |request| {
        let read = read.clone();
        Box::pin(async move {
            let mut body = request.into_body();
            let mut got = Vec::new();
            while got.len() < frames
                && let Some(frame) = body.frame().await
            {
                got.push(frame?.into_data().unwrap_or_default());
            }
            read.lock().unwrap().push(got);
            let response = Response::builder().status(status);
            Ok(response.body(Steps::new([]))?)
        })
    })
}

fn put(body: impl Into<Full<Bytes>>) -> Request<Full<Bytes>> {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::PUT;
    request
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_cap_goes_through_once() {
    let layer = layer().replay_up_to(100);
    for (length, made) in [(100, 3), (101, 1)] {
        let read = Arc::default();
        let read_all = || -> Line {
            let read: Arc<Mutex<Vec<usize>>> = Arc::clone(&read);
            Arc::new(move |request| {
                let read = read.clone();
                Box::pin(async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    read.lock().unwrap().push(body.len());
                    Ok(Response::builder().status(503).body(Steps::new([]))?)
                })
            })
        };
        let backend = Backend::new([read_all()]);
        let response = send(&layer, &backend, put(vec![b'x'; length]))
            .await
            .unwrap();
        assert_eq!(*read.lock().unwrap(), vec![length; made]);
        let marked = response.headers().contains_key("x-should-retry");
        assert_eq!(marked, made == 3, "the caller still has its body");
    }
    assert_eq!(layer.handle().snapshot().exhausted, 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_cap_that_was_not_read_goes_through_again() {
    let backend = Backend::new([status(503), echoes()]);
    let layer = layer().replay_up_to(1);
    let response = send(&layer, &backend, put("hello")).await.unwrap();
    assert_eq!(text(response).await, ("hello".into(), None));
}

#[tokio::test(start_paused = true)]
async fn a_failed_answer_is_read_as_far_as_it_is_there() {
    /// What comes first, if anything, and so many kilobytes; how many are left is said when it is dropped.
    struct Kilobytes(Option<&'static str>, usize, Arc<Mutex<Option<usize>>>);

    impl Body for Kilobytes {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            if let Some(first) = self.0.take() {
                return Poll::Ready(Some(Ok(Frame::data(first.into()))));
            }
            if self.1 == 0 {
                return Poll::Pending;
            }
            self.1 -= 1;
            let kilobyte = Bytes::from_static(&[b'x'; 1024]);
            Poll::Ready(Some(Ok(Frame::data(kilobyte))))
        }
    }

    impl Drop for Kilobytes {
        fn drop(&mut self) {
            *self.2.lock().unwrap() = Some(self.1);
        }
    }

    let error_event = Some("event: error\n\n");
    for (status, first) in [(502, None), (200, error_event)] {
        for (kilobytes, unread) in [(3, 0), (16, 0), (100, 83)] {
            let left = Arc::default();
            let service = tower::service_fn(|request: Request<ReplayBody<Full<Bytes>>>| {
                drop(request);
                let body = Kilobytes(first, kilobytes, Arc::clone(&left));
                let response = Response::builder().status(status);
                let response = response.header("content-type", "text/event-stream");
                std::future::ready(Ok::<_, BoxError>(response.body(body).unwrap()))
            });
            let service = layer().classify(Sse).layer(service);
            let mut call = tokio_test::task::spawn(service.oneshot(put("hello")));
            assert!(call.poll().is_pending());
            let left = *left.lock().unwrap();
            assert_eq!(left, Some(unread), "{status}, and dropped before the wait");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_of_the_request_are_sent_again() {
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "123".parse().unwrap());
    let seen: Arc<Mutex<Vec<Option<HeaderMap>>>> = Arc::default();
    let line: Line<Steps> = {
        let seen = seen.clone();
        Arc::new(move |request| {
            let seen = seen.clone();
            Box::pin(async move {
                let body = request.into_body().collect().await?;
                seen.lock().unwrap().push(body.trailers().cloned());
                Ok(Response::builder().status(503).body(Steps::new([]))?)
            })
        })
    };
    let body = Steps::new([Step::Data("one"), Step::Trailers(trailers.clone())]);
    let mut request = Request::new(body);
    *request.method_mut() = Method::PUT;
    let service = layer().layer(Backend::new([line]));
    assert!(service.oneshot(request).await.is_ok());
    assert_eq!(*seen.lock().unwrap(), vec![Some(trailers); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_broke_is_not_sent_again() {
    let line = {
        let read = Arc::default();
        reads::<Steps>(usize::MAX, &read, 200)
    };
    let backend = Backend::new([line]);
    let mut request = Request::new(Steps::new([Step::Data("one"), Step::Error("caller gone")]));
    *request.method_mut() = Method::PUT;
    let layer = layer();
    let error = layer
        .layer(backend.clone())
        .oneshot(request)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "caller gone");
    assert_eq!(backend.attempts(), 1);
    assert_eq!(layer.handle().snapshot().budget_left, Some(100));
}

proptest! {
    /// Whatever the frames, the cap, and how much each attempt has read when it failed.
    #[test]
    fn the_bytes_that_are_sent_again_are_the_same(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
        cap in 0_usize..600,
        first in 0_usize..12,
        second in 0_usize..12,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let frames: Vec<_> = frames.into_iter().map(Bytes::from).collect();
            let body = Frames(frames.clone().into());
            let read = Arc::default();
            let backend = Backend::new([
                reads(first, &read, 503),
                reads(second, &read, 503),
                reads(usize::MAX, &read, 200),
            ]);
            let mut request = Request::new(body);
            *request.method_mut() = Method::PUT;
            let service = layer().replay_up_to(cap).layer(backend);
            let response = service.oneshot(request).await.unwrap();
            let read: Vec<Vec<Bytes>> = std::mem::take(&mut *read.lock().unwrap());
            for attempt in &read {
                assert_eq!(attempt[..], frames[..attempt.len()]);
            }
            let fits = |attempts: usize| {
                let most = [first, second][..attempts].iter().max().copied().unwrap_or(0);
                let charged = |data: &Bytes| data.len().max(size_of::<Bytes>());
                frames.iter().take(most).map(charged).sum::<usize>() <= cap
            };
            let attempts = 1 + usize::from(fits(1)) + usize::from(fits(1) && fits(2));
            assert_eq!(read.len(), attempts);
            assert_eq!(response.status() == 200, attempts == 3);
            assert!(attempts < 3 || read[2] == frames);
        });
    }
}

/// A body of frames.
struct Frames(VecDeque<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

/// Bytes that tell while they are held.
struct Counted {
    bytes: Vec<u8>,
    _alive: Arc<()>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_given_back_with_the_head_of_the_answer() {
    let alive = Arc::new(());
    let frame = || {
        Bytes::from_owner(Counted {
            bytes: vec![b'x'; 1000],
            _alive: alive.clone(),
        })
    };
    let held: Arc<Mutex<Vec<ReplayBody<Frames>>>> = Arc::default();
    // Reads seven frames and fails; then five and answers, while its body is still to be sent, as over HTTP/2.
    let line = |frames: usize, status: u16| -> Line<Frames> {
        let held = held.clone();
        Arc::new(move |request| {
            let held = held.clone();
            Box::pin(async move {
                let mut body = request.into_body();
                for _ in 0..frames {
                    body.frame().await.unwrap()?;
                }
                held.lock().unwrap().push(body);
                Ok(Response::builder().status(status).body(Steps::new([]))?)
            })
        })
    };
    let mut request = Request::new(Frames((0..10).map(|_| frame()).collect()));
    *request.method_mut() = Method::PUT;
    let backend = Backend::new([line(7, 503), line(5, 200)]);
    let response = layer().layer(backend).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    // Two that were kept and are not read again yet, and three that nobody has read.
    assert_eq!(Arc::strong_count(&alive) - 1, 2 + 3);
    let last = held.lock().unwrap().pop().unwrap();
    let rest = last.collect().await.unwrap().to_bytes();
    assert_eq!(rest.len(), 5 * 1000);
    assert_eq!(Arc::strong_count(&alive), 1);
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_of_a_request_that_has_no_answer() {
    // As the task of an HTTP/2 connection, which reads the body apart from the attempt.
    let reads: Arc<Mutex<Vec<ReplayBody<_>>>> = Arc::default();
    let kept = reads.clone();
    let hangs: Line = Arc::new(move |request| {
        kept.lock().unwrap().push(request.into_body());
        Box::pin(std::future::pending())
    });
    let layer = layer().attempts(2).attempt_timeout(SECOND);
    let error = send(&layer, &Backend::new([hangs]), put("hello")).await;
    assert!(error.is_err());
    let reads = std::mem::take(&mut *reads.lock().unwrap());
    assert_eq!(reads.len(), 2);
    for body in reads {
        assert!(body.collect().await.is_err());
    }
}
