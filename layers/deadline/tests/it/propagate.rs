use std::time::Duration;

use http::{Request, Response};
use palisade_core::{BoxError, deadline::Deadline, testing::Steps, time};
use palisade_deadline::{DeadlineLayer, Propagate, TimeoutHeader};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{MILLI, SECOND};

/// The deadline that the service sees, as what remains, and the header.
async fn seen(layer: DeadlineLayer, request: Request<()>) -> (Option<Duration>, Option<String>) {
    let now = time::now();
    let service = service_fn(async |request: Request<()>| {
        let mut response = Response::new(Steps::new([]));
        let header = request.headers().get("grpc-timeout").cloned();
        response
            .headers_mut()
            .extend(header.map(|value| (http::header::AGE, value)));
        *response.extensions_mut() = request.extensions().clone();
        Ok::<_, BoxError>(response)
    });
    let response = layer.layer(service).oneshot(request).await.unwrap();
    let deadline = response.extensions().get::<Deadline>().copied();
    let header = response.headers().get("age");
    let header = header.map(|value| value.to_str().unwrap().into());
    (deadline.map(|deadline| deadline.remaining(now)), header)
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_unless_asked() {
    let told = seen(DeadlineLayer::new(SECOND), Request::new(())).await;
    assert_eq!(told, (None, None));
}

#[tokio::test(start_paused = true)]
async fn the_layers_further_in_see_the_deadline() {
    let layer = DeadlineLayer::new(SECOND).propagate(Propagate::Extension);
    let told = seen(layer, Request::new(())).await;
    assert_eq!(told, (Some(SECOND), None));
}

#[tokio::test(start_paused = true)]
async fn the_next_server_is_told_what_remains() {
    let layer = DeadlineLayer::new(SECOND).propagate(Propagate::Header(TimeoutHeader::grpc()));
    let told = seen(layer.clone(), Request::new(())).await;
    assert_eq!(told, (Some(SECOND), Some("1S".into())));

    let mut request = Request::new(());
    request
        .headers_mut()
        .insert("grpc-timeout", "1H".parse().unwrap());
    request
        .extensions_mut()
        .insert(Deadline(time::now() + 250 * MILLI));
    let told = seen(layer, request).await;
    assert_eq!(told, (Some(250 * MILLI), Some("250m".into())));
}

#[tokio::test(start_paused = true)]
async fn of_two_deadlines_the_earlier_is_told() {
    let outer = DeadlineLayer::new(SECOND).propagate(Propagate::Extension);
    let inner = DeadlineLayer::new(2 * SECOND).propagate(Propagate::Extension);
    let now = time::now();
    let service = service_fn(move |request: Request<()>| {
        let deadline = request.extensions().get::<Deadline>().copied();
        assert_eq!(deadline, Some(Deadline(now + SECOND)));
        std::future::ready(Ok::<_, BoxError>(Response::new(Steps::new([]))))
    });
    let service = (outer, inner).layer(service);
    assert!(service.oneshot(Request::new(())).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_there_is_nothing_to_tell() {
    let layer = DeadlineLayer::from_header("grpc-timeout");
    let layer = layer.propagate(Propagate::Header(TimeoutHeader::grpc()));
    assert_eq!(seen(layer, Request::new(())).await, (None, None));
}

#[tokio::test(start_paused = true)]
async fn what_is_forwarded_is_what_is_left_when_it_is_sent() {
    let sent = service_fn(async |request: Request<()>| {
        assert_eq!(request.headers()["grpc-timeout"], "600m");
        Ok::<_, BoxError>(Response::new(Steps::new([])))
    });
    let sent = DeadlineLayer::forward("grpc-timeout").layer(sent);
    // A queue, or a retry that has waited.
    let queue = service_fn(move |request: Request<()>| {
        let sent = sent.clone();
        async move {
            tokio::time::sleep(400 * MILLI).await;
            sent.oneshot(request).await
        }
    });
    let outer = DeadlineLayer::new(SECOND).propagate(Propagate::Extension);
    assert!(outer.layer(queue).oneshot(Request::new(())).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_shadow_tells_nobody() {
    let layer = DeadlineLayer::new(SECOND).propagate(Propagate::Header(TimeoutHeader::grpc()));
    assert_eq!(seen(layer.shadow(), Request::new(())).await, (None, None));
}
