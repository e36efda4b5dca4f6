use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_core::{
    BoxError,
    attempt::{Attempts, EndpointId},
    testing::Steps,
};
use palisade_retry::ReplayBody;
use tower::{Layer, ServiceExt};

use crate::support::{get, layer};

/// Sends to the first endpoint that was not tried, as a balancer does; the first two are broken.
#[derive(Clone)]
struct Balance {
    endpoints: [EndpointId; 3],
    sent: Arc<Mutex<Vec<usize>>>,
}

impl tower::Service<Request<ReplayBody<Full<Bytes>>>> for Balance {
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Steps>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        let attempts = request.extensions().get::<Attempts>().unwrap();
        let tried = self.endpoints.iter().position(|&id| !attempts.went_to(id));
        let at = tried.unwrap();
        attempts.note(self.endpoints[at]);
        self.sent.lock().unwrap().push(at);
        let status = if at < 2 { 503 } else { 200 };
        let response = Response::builder().status(status);
        std::future::ready(Ok(response.body(Steps::new([])).unwrap()))
    }
}

fn balance() -> Balance {
    Balance {
        endpoints: [EndpointId::new(), EndpointId::new(), EndpointId::new()],
        sent: Arc::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_balancer_further_in_hears_where_the_attempts_have_gone() {
    let balance = balance();
    let response = layer().layer(balance.clone()).oneshot(get()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(*balance.sent.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_further_out_that_counts_sees_all_attempts() {
    let balance = balance();
    let attempts = Attempts::default();
    let mut request = get();
    request.extensions_mut().insert(attempts.clone());
    layer()
        .layer(balance.clone())
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(attempts.count(), 3);
    assert_eq!(attempts.last(), Some(balance.endpoints[2]));
}

#[tokio::test(start_paused = true)]
async fn each_request_has_attempts_of_its_own() {
    let balance = balance();
    let service = layer().layer(balance.clone());
    for _ in 0..2 {
        service.clone().oneshot(get()).await.unwrap();
    }
    assert_eq!(*balance.sent.lock().unwrap(), [0, 1, 2, 0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_callers_put_into_extensions_is_there_in_each_attempt() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = tower::service_fn({
        let seen = seen.clone();
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            let text = request.extensions().get::<&'static str>().copied();
            seen.lock()
                .unwrap()
                .push((text, request.uri().clone(), request.version()));
            std::future::ready(Err::<Response<Steps>, _>("broken"))
        }
    });
    let mut request = get();
    request.extensions_mut().insert("mine");
    *request.uri_mut() = "http://example.com/a?b".parse().unwrap();
    *request.version_mut() = http::Version::HTTP_2;
    let all = (Some("mine"), request.uri().clone(), request.version());
    assert!(layer().layer(service).oneshot(request).await.is_err());
    assert_eq!(*seen.lock().unwrap(), vec![all; 3]);
}
