use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, channel::Channel};
use palisade_balance::{Endpoint, Endpoints};
use palisade_core::testing::{Log, Step, Steps};
use tokio_test::{assert_pending, task};
use tower::{Service, ServiceExt};

use crate::support::{Body, Circuit, Fake, MS, PATIENCE, balance, fakes, in_flight, of, send};

#[tokio::test(start_paused = true)]
async fn in_flight_returns_to_zero_wherever_the_caller_leaves() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10]);
    let service = balance(&endpoints);
    drop(service.clone().oneshot(Request::new(())));

    let mut canceled = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(canceled.poll());
    assert_eq!(in_flight(&endpoints), 1);
    drop(canceled);
    assert_eq!(in_flight(&endpoints), 0);

    let (mut sender, body) = Channel::<Bytes, Infallible>::new(2);
    fakes[0].next_body(body.boxed());
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(in_flight(&endpoints), 1);
    drop(body);
    assert_eq!(in_flight(&endpoints), 0);

    send(&service).await.unwrap();
    assert_eq!(in_flight(&endpoints), 0);
}

#[tokio::test(start_paused = true)]
async fn latency_ends_with_the_first_data_and_in_flight_with_the_last() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10]);
    let service = balance(&endpoints);
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(2);
    fakes[0].next_body(body.boxed());
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    tokio::time::sleep(MS * 90).await;
    sender
        .send_data(Bytes::from_static(b"first"))
        .await
        .unwrap();
    body.frame().await.unwrap().unwrap();
    tokio::time::sleep(MS * 5000).await;
    assert_eq!(in_flight(&endpoints), 1);
    drop(sender);
    assert!(body.frame().await.is_none());
    let seen = of(&endpoints, "0");
    assert_eq!((seen.in_flight, seen.latency), (0, Some(MS * 100)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_head_has_ended_though_nobody_reads_its_body() {
    let endpoints = Endpoints::default();
    let fakes = fakes(&endpoints, &[10]);
    let service = balance(&endpoints);
    let (_sender, body) = Channel::<Bytes, Infallible>::new(2);
    fakes[0].next_body(body.boxed());
    let request = Request::head("/").body(()).unwrap();
    drop(service.oneshot(request).await.unwrap());
    assert_eq!(of(&endpoints, "0").latency, Some(MS * 10));
}

#[derive(Clone)]
struct Panics;

impl Service<Request<()>> for Panics {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        panic!("on purpose")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_endpoint_gives_everything_back() {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("a", Panics).gate(Circuit::new(1, PATIENCE)));
    let service = balance(&endpoints);
    for _ in 0..3 {
        let sent = tokio::spawn(service.clone().oneshot(Request::new(())));
        assert!(sent.await.unwrap_err().is_panic());
        assert_eq!(in_flight(&endpoints), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_becoming_ready_or_while_judging_gives_everything_back() {
    #[derive(Clone)]
    struct PanicsBefore;
    impl Service<Request<()>> for PanicsBefore {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            panic!("on purpose")
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("a", PanicsBefore).gate(Circuit::new(1, PATIENCE)));
    let sent = tokio::spawn(balance(&endpoints).oneshot(Request::new(())));
    assert!(sent.await.unwrap_err().is_panic());
    assert_eq!(in_flight(&endpoints), 0);

    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("a", Fake::new(1)).gate(Circuit::new(1, PATIENCE)));
    let judge = |_: &palisade_core::head::ResponseHead<'_>| panic!("on purpose");
    let service = tower::Layer::layer(
        &palisade_balance::BalanceLayer::adaptive().classify(judge),
        endpoints.clone(),
    );
    let sent = tokio::spawn(service.oneshot(Request::new(())));
    assert!(sent.await.unwrap_err().is_panic());
    assert_eq!(in_flight(&endpoints), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_body_gives_everything_back_once() {
    let log = Log::default();
    let endpoints = Endpoints::default();
    let service = palisade_core::testing::Answers(|| {
        Response::new(Steps::new([Step::Data("a"), Step::Panic]))
    });
    endpoints.insert(Endpoint::new("a", service).gate(log.gate("gate")));
    let response = balance(&endpoints).oneshot(Request::new(())).await.unwrap();
    let read = tokio::spawn(response.into_body().collect());
    assert!(read.await.unwrap_err().is_panic());
    assert_eq!(in_flight(&endpoints), 0);
    let heard = [
        "gate admitted",
        "gate data",
        "gate Canceled after 0s",
        "gate released",
    ];
    assert_eq!(log.take(), heard);
}

#[tokio::test(start_paused = true)]
async fn the_gate_of_an_endpoint_hears_what_the_balancer_hears() {
    let log = Log::default();
    let endpoints = Endpoints::default();
    let service = palisade_core::testing::Answers(|| {
        Response::new(Steps::new([Step::Data("a"), Step::Data("b")]))
    });
    endpoints.insert(Endpoint::new("a", service).gate(log.gate("gate")));
    let response = balance(&endpoints).oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
    let heard = [
        "gate admitted",
        "gate data",
        "gate Success after 0s",
        "gate released",
    ];
    assert_eq!(log.take(), heard);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_counts_as_a_failure() {
    let endpoints = Endpoints::default();
    let service = palisade_core::testing::Answers(|| {
        Response::new(Steps::new([Step::Data("a"), Step::Error("reset")]))
    });
    endpoints.insert(Endpoint::new("a", service));
    let service = balance(&endpoints);
    send(&service).await.unwrap_err();
    assert_eq!(of(&endpoints, "a").failures, 1);
}
