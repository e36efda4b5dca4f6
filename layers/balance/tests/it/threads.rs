//! Many threads, one set that changes under them.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_balance::{Balance, Endpoint, EndpointState, Endpoints};
use palisade_core::testing::Answers;
use tower::ServiceExt;

use crate::support::Circuit;

type Answer = fn() -> Response<Full<Bytes>>;

fn fine() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"x")))
}

fn broken() -> Response<Full<Bytes>> {
    let mut response = fine();
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

fn endpoint(at: usize) -> Endpoint<Answers<Answer>, Circuit> {
    let service = Answers(if at == 0 { broken as Answer } else { fine });
    let circuit = Circuit::new(2, Duration::from_millis(1));
    Endpoint::new(at.to_string(), service)
        .gate(circuit)
        .max_in_flight(8)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_while_endpoints_come_and_go() {
    let endpoints = Endpoints::default();
    let service = Balance::adaptive(endpoints.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let service = service.clone();
        tasks.spawn(async move {
            for turn in 0..500 {
                let response = service.clone().oneshot(Request::new(())).await.unwrap();
                if turn % 3 > 0 {
                    response.into_body().collect().await.unwrap();
                }
            }
        });
    }
    for turn in 0..400 {
        endpoints.insert(endpoint(turn % 5));
        if turn % 7 == 0 {
            (0..5).for_each(|at| {
                endpoints.remove(&at.to_string());
            });
        }
        tokio::task::yield_now().await;
    }
    endpoints.insert(endpoint(1));
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for endpoint in endpoints.snapshot() {
        assert_eq!(endpoint.in_flight, 0, "{endpoint:?}");
        assert_ne!(endpoint.state, EndpointState::Draining, "{endpoint:?}");
    }
}
