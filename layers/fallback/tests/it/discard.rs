use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use palisade_core::BoxError;
use palisade_fallback::{FallbackLayer, ReplayBody};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Sent, by, request};

/// Two frames and no end: what a server that has failed may leave on its connection.
struct Failed {
    read: Arc<AtomicUsize>,
    _permit: Arc<()>,
}

impl Body for Failed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.read.load(Relaxed) == 2 {
            return Poll::Pending;
        }
        self.read.fetch_add(1, Relaxed);
        Poll::Ready(Some(Ok(Frame::data("failed".into()))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_answer_is_read_as_far_as_it_is_there_and_let_go_before_the_next_is_asked() {
    let (read, permit) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
    let first = service_fn(|_: Request<ReplayBody<Sent>>| {
        let mut answer = Response::new(Failed {
            read: read.clone(),
            _permit: permit.clone(),
        });
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        async { Ok::<_, BoxError>(answer) }
    });
    let (was_read, held) = (read.clone(), permit.clone());
    let second = service_fn(move |_: Request<ReplayBody<Sent>>| {
        assert_eq!(was_read.load(Relaxed), 2);
        // The test has one and clones of this service two: none is in an answer.
        let free = Arc::strong_count(&held) == 3;
        async move {
            assert!(free, "a permit is held by an answer that nobody wants");
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("second")))
        }
    });
    let service = FallbackLayer::new().service("second", second).layer(first);
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(by(&response), Some("second"));
}
