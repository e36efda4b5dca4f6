//! What every layer does, whatever else it does.

use std::{error::Error, iter};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade::BoxError;
use palisade_core::testing::CountingAllocator;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt};
use tower_test::mock::Spawn;

use super::{
    Readiness,
    inner::{Inner, Plan, Remote, Step},
};

/// A test for each law. The layer is an expression, not a value: each law builds its own.
macro_rules! all {
    ($layer:expr, $readiness:expr, $allocations:expr) => {
        #[tokio::test(start_paused = true)]
        async fn is_ready_when_the_inner_service_is() {
            laws::readiness($layer, $readiness).await;
        }

        #[tokio::test(start_paused = true)]
        async fn calls_the_instance_that_was_ready() {
            laws::the_ready_instance($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn gives_everything_back_wherever_the_caller_leaves() {
            laws::cancellation($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn gives_everything_back_wherever_the_service_panics() {
            laws::panics($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn passes_data_and_trailers_unchanged() {
            laws::content($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn passes_errors_on_with_their_cause() {
            laws::errors($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn polls_nothing_that_was_not_woken() {
            laws::polls($layer).await;
        }

        #[tokio::test(start_paused = true)]
        async fn allocates_exactly_what_it_says() {
            laws::allocations!($layer, $allocations);
        }
    };
}
pub(crate) use all;

/// What one request and its whole answer allocate once the layer is warm.
macro_rules! allocations {
    ($layer:expr, $allocations:expr) => {{
        let hello = || http::Response::new(http_body_util::Full::new(bytes::Bytes::from("hello")));
        let mut service = $layer(palisade_core::testing::Answers(hello));
        let mut counted = 0;
        for _ in 0..3 {
            let request = laws::request();
            counted = laws::count(&mut service, request).await;
        }
        assert_eq!(counted, $allocations);
    }};
}
pub(crate) use allocations;

pub(crate) async fn count<S, B>(service: &mut S, request: Request<Full<Bytes>>) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    let before = CountingAllocator::count();
    {
        let Ok(service) = service.ready().await else {
            panic!("not ready");
        };
        let Ok(response) = service.call(request).await else {
            panic!("no answer");
        };
        let mut body = std::pin::pin!(response.into_body());
        while let Some(frame) = body.frame().await {
            assert!(frame.is_ok());
        }
    }
    CountingAllocator::count() - before
}

pub(crate) fn request() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

pub(crate) async fn readiness<S, B>(layer: impl Fn(Inner) -> S, readiness: Readiness)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if readiness == Readiness::Own {
        return;
    }
    let (service, remote) = around(&layer, Plan::ok([]));
    let mut service = Spawn::new(service);
    remote.set_ready(false);
    assert_pending!(service.poll_ready());
    assert!(!service.is_woken());
    remote.set_ready(true);
    assert!(service.is_woken());
    let ready = service.poll_ready();
    assert_ready_ok!(ready);

    remote.die();
    let dead = service.poll_ready();
    let error = assert_ready_err!(dead);
    assert!(says(&*error, "dead"), "{error}");
}

pub(crate) async fn the_ready_instance<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut service, remote) = around(&layer, Plan::ok([Step::Data("a")]));
    for _ in 0..3 {
        service.ready().await.unwrap();
        let clone = service.clone();
        let answer = service.call(request()).await;
        drop(answer.unwrap());
        // A clone has to ask for itself.
        exchange(clone).await.unwrap();
    }
    assert_eq!(remote.calls(), 6);
    assert_eq!(remote.called_unready(), 0);
}

pub(crate) async fn cancellation<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut service, remote) = around(&layer, Plan::Hang);
    let idle = remote.alive();
    for polls in [0, 1, 2] {
        service.ready().await.unwrap();
        let mut call = task::spawn(service.call(request()));
        for _ in 0..polls {
            assert_pending!(call.poll().map(|_| ()));
        }
        drop(call);
        assert!(remote.alive() <= idle, "after {polls} polls of the future");
    }

    let steps = [Step::Data("one"), Step::Hang, Step::Data("two")];
    for frames in [0, 1, 2] {
        remote.plan(Plan::ok(steps.clone()));
        service.ready().await.unwrap();
        let answer = service.call(request()).await;
        let mut body = task::spawn(Box::pin(answer.unwrap().into_body()));
        for _ in 0..frames {
            let _ = body.enter(|cx, body| body.get_mut().as_mut().poll_frame(cx).map(|_| ()));
        }
        drop(body);
        assert!(remote.alive() <= idle, "after {frames} polls of the body");
    }
    still_serves(&mut service, &remote).await;
}

pub(crate) async fn panics<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let (mut service, remote) = around(&layer, Plan::ok([]));
    let idle = remote.alive();
    for plan in [
        Plan::PanicInCall,
        Plan::PanicInPoll,
        Plan::ok([Step::Panic]),
        Plan::ok([Step::Data("one"), Step::Panic]),
    ] {
        remote.plan(plan.clone());
        let clone = service.clone();
        let exchange = tokio::spawn(async move {
            let _ = exchange(clone).await;
        });
        assert!(exchange.await.unwrap_err().is_panic(), "{plan:?}");
        assert!(remote.alive() <= idle, "{plan:?}");
    }
    still_serves(&mut service, &remote).await;
}

pub(crate) async fn content<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let steps = [
        Step::Data("one "),
        Step::Data("two"),
        Step::Trailers(trailers.clone()),
    ];
    let (service, _) = around(&layer, Plan::ok(steps));
    let answer = service.oneshot(request()).await.unwrap();
    let collected = answer.into_body().collect().await.map_err(Into::into);
    let collected = collected.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "one two");

    // Known to be empty from its head on: a server may never poll it.
    let (service, _) = around(&layer, Plan::ok([]));
    let answer = service.oneshot(request()).await.unwrap();
    assert!(answer.body().is_end_stream());
}

pub(crate) async fn errors<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (service, _) = around(&layer, Plan::Error("down"));
    let error = exchange(service).await.unwrap_err();
    assert!(says(&*error, "down"), "{error}");

    let (service, _) = around(&layer, Plan::ok([Step::Data("one"), Step::Error("cut")]));
    let error = exchange(service).await.unwrap_err();
    assert!(says(&*error, "cut"), "{error}");
}

pub(crate) async fn polls<S, B>(layer: impl Fn(Inner) -> S)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut service, remote) = around(&layer, Plan::Hang);
    service.ready().await.unwrap();
    let mut call = task::spawn(service.call(request()));
    assert_pending!(call.poll().map(|_| ()));
    assert_eq!(remote.polls(), 1);
    assert!(!call.is_woken(), "nothing has happened");
    remote.wake();
    assert!(call.is_woken());
    drop(call);

    remote.plan(Plan::ok([Step::Data("one"), Step::Hang]));
    service.ready().await.unwrap();
    let before = remote.polls();
    let mut call = task::spawn(service.call(request()));
    let answer = assert_ready!(call.poll());
    assert_eq!(remote.polls() - before, 1, "one poll for the head");
    let mut body = task::spawn(Box::pin(answer.unwrap().into_body()));
    let frame = body.enter(|cx, body| body.get_mut().as_mut().poll_frame(cx).map(|_| ()));
    assert_ready!(frame);
    let frame = body.enter(|cx, body| body.get_mut().as_mut().poll_frame(cx).map(|_| ()));
    assert_pending!(frame);
    assert!(!body.is_woken(), "nothing has happened");
    assert_eq!(remote.polls() - before, 3, "one poll a frame");
    remote.wake();
    assert!(body.is_woken());
}

/// What a layer makes of [`Inner`].
pub(crate) trait Serves<B>:
    Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static
{
}

impl<S, B> Serves<B> for S where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError>
        + Clone
        + Send
        + 'static
{
}

fn around<S>(layer: impl Fn(Inner) -> S, plan: Plan) -> (S, Remote) {
    let inner = Inner::new(plan);
    let remote = inner.remote();
    (layer(inner), remote)
}

async fn exchange<S, B>(service: S) -> Result<(StatusCode, Bytes), BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let response = service.oneshot(request()).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into)?;
    Ok((head.status, body.to_bytes()))
}

async fn still_serves<S, B>(service: &mut S, remote: &Remote)
where
    S: Serves<B>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    remote.plan(Plan::ok([Step::Data("hello")]));
    let (status, body) = exchange(service.clone()).await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello"[..]));
}

fn says(error: &(dyn Error + 'static), text: &str) -> bool {
    let mut chain = iter::successors(Some(error), |&error| error.source());
    chain.any(|error| error.to_string().contains(text))
}
