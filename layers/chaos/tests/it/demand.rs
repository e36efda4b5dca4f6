use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use palisade_chaos::{ChaosLayer, Fault, Ratio, Secret};
use palisade_core::BoxError;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{chaos, request, send, strikes};

const SECRET: &str = "a secret that is long enough";

fn layer() -> ChaosLayer {
    let busy = Fault::status(StatusCode::SERVICE_UNAVAILABLE);
    chaos([busy.named("busy").on_demand(), Fault::reset().on_demand()])
}

fn asks(faults: &str, secret: &str) -> Request<()> {
    let request = Request::builder().header("x-chaos", faults);
    request.header("x-chaos-secret", secret).body(()).unwrap()
}

fn demanded() -> ChaosLayer {
    layer().on_demand(Secret::new(SECRET).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_knows_the_secret_gets_what_it_asks_for() {
    let response = send(&demanded(), asks("busy", SECRET)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(
        send(&demanded(), asks("slow, reset", SECRET))
            .await
            .is_err()
    );
    // Also what would strike others seldom.
    let seldom = Fault::reset().share(Ratio::new(1e-9).unwrap());
    let seldom = chaos([seldom]).on_demand(Secret::new(SECRET).unwrap());
    assert!(strikes(&seldom, asks("reset", SECRET)).await);
    assert!(!strikes(&seldom, request()).await);
}

#[tokio::test(start_paused = true)]
async fn faults_may_be_asked_for_in_several_lines() {
    // RFC 9110, 5.3: they are one list.
    let mut asks = asks("nothing", SECRET);
    asks.headers_mut()
        .append("x-chaos", "busy".parse().unwrap());
    let response = send(&demanded(), asks).await.unwrap();
    assert_eq!(response.status(), 503);
}

#[tokio::test(start_paused = true)]
async fn nothing_happens_without_the_secret_to_other_requests_or_unless_allowed() {
    let layer = demanded();
    assert!(!strikes(&layer, request()).await);
    assert!(!strikes(&layer, asks("busy", "a secret that is not right!!")).await);
    assert!(!strikes(&layer, asks("busy", "")).await);
    assert!(!strikes(&layer, asks("", SECRET)).await);
    assert!(!strikes(&layer, asks("status, latency=9s", SECRET)).await);
    let without = Request::builder()
        .header("x-chaos", "busy")
        .body(())
        .unwrap();
    assert!(!strikes(&layer, without).await);
    let closed = self::layer();
    assert!(!strikes(&closed, asks("busy", SECRET)).await);
    layer.handle().disable();
    assert!(!strikes(&layer, asks("busy", SECRET)).await);
    layer.handle().shadow();
    assert!(!strikes(&layer, asks("busy", SECRET)).await);
}

#[tokio::test(start_paused = true)]
async fn a_demand_keeps_to_the_condition_of_the_fault() {
    let layer = chaos([Fault::reset().when(|head| head.uri.path() == "/pay")]);
    let layer = layer.on_demand(Secret::new(SECRET).unwrap());
    assert!(!strikes(&layer, asks("reset", SECRET)).await);
}

#[tokio::test(start_paused = true)]
async fn the_secret_goes_no_further() {
    for (layer, left) in [(demanded(), 0), (layer(), 2)] {
        let heard = Arc::new(Mutex::new(HeaderMap::new()));
        let hears = heard.clone();
        let inner = service_fn(move |request: Request<()>| {
            *hears.lock().unwrap() = request.headers().clone();
            async { Ok::<_, BoxError>(Response::new(Full::<bytes::Bytes>::default())) }
        });
        layer
            .layer(inner)
            .oneshot(asks("nothing", SECRET))
            .await
            .unwrap();
        assert_eq!(heard.lock().unwrap().len(), left);
    }
}
