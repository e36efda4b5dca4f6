use std::{
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    testing::{Answers, Step, Steps},
};
use palisade_deadline::{Awaited, DeadlineBody, DeadlineLayer};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{Alive, Counted, MILLI, SECOND, assert_elapsed, hanging, poll_once};

async fn body_of<B>(make: impl Fn() -> B + Clone) -> Pin<Box<DeadlineBody<B>>>
where
    B: Body<Error: Into<BoxError>>,
{
    let answers = Answers(move || Response::new(make()));
    let service = DeadlineLayer::new(SECOND).layer(answers);
    let response = service.oneshot(Request::new(())).await;
    Box::pin(
        response
            .unwrap_or_else(|error| panic!("{error}"))
            .into_body(),
    )
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_has_a_frame_is_cut_off_too() {
    let mut body = body_of(|| Steps::new((0..3).map(|_| Step::Data("x")))).await;
    assert!(body.frame().await.unwrap().is_ok());
    advance(SECOND).await;
    assert!(
        body.frame().await.unwrap().is_ok(),
        "at the deadline is in time"
    );
    advance(MILLI).await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_elapsed(&error, SECOND, Awaited::End);
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn what_ends_the_body_passes_however_late_it_is_read() {
    let mut body = body_of(|| Steps::new([Step::Data("all")]).saying_its_end()).await;
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.frame().await.is_none());

    let mut body = body_of(|| Steps::new([Step::Trailers(HeaderMap::new())])).await;
    advance(2 * SECOND).await;
    assert!(body.frame().await.unwrap().unwrap().is_trailers());

    let mut body = body_of(|| Steps::new([])).await;
    advance(2 * SECOND).await;
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_body_passes_unchanged() {
    let mut body = body_of(|| Steps::new([Step::Error("broken")])).await;
    advance(2 * SECOND).await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "broken");
}

#[tokio::test(start_paused = true)]
async fn the_reader_is_woken_at_the_deadline_and_not_before() {
    let mut body = task::spawn(body_of(|| Steps::new(hanging([]))).await);
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    advance(SECOND - MILLI).await;
    assert!(!body.is_woken());
    advance(MILLI).await;
    assert!(body.is_woken());
    let Poll::Ready(Some(Err(error))) = body.enter(|cx, body| body.poll_frame(cx)) else {
        panic!("not cut off");
    };
    assert_elapsed(&error, SECOND, Awaited::End);
}

#[tokio::test(start_paused = true)]
async fn a_late_body_lets_go_of_what_it_holds_while_it_is_kept() {
    let alive = Alive::default();
    let polls = Arc::new(AtomicUsize::new(0));
    let make = {
        let alive = alive.clone();
        move || Counted {
            inner: Steps::new(hanging([])),
            polls: polls.clone(),
            _alive: alive.clone(),
        }
    };
    let mut body = body_of(make).await;
    assert_eq!(alive.count(), 1);
    assert!(poll_once(&mut body).is_pending());
    advance(SECOND).await;
    assert!(matches!(poll_once(&mut body), Poll::Ready(Some(Err(_)))));
    assert_eq!(alive.count(), 0);
    assert!(matches!(poll_once(&mut body), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn the_length_stays_known() {
    let answers = Answers(|| Response::new(Full::<Bytes>::from("hello")));
    let service = DeadlineLayer::new(SECOND).layer(answers);
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert!(!response.body().is_end_stream());
    let _: Result<_, BoxError> = response.into_body().collect().await;
}
