//! What a request costs: allocations, exactly.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    classify::Usage,
    testing::{Answers, CountingAllocator},
    time,
};
use tokio::time::advance;
use tower::{Layer, Service};

use crate::layer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations of one request and its whole answer, so long after the one before.
async fn cost(status: StatusCode, apart: Duration) -> u64 {
    let layer = layer();
    let mut service = layer.layer(Answers(move || {
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
        *response.status_mut() = status;
        response
    }));
    let mut most = 0;
    for request in 0..100 {
        advance(apart).await;
        let before = CountingAllocator::count();
        let mut body = service.call(Request::new(())).await.unwrap().into_body();
        while body.frame().await.is_some() {}
        drop(body);
        // The first one registers metrics.
        if request > 0 {
            most = most.max(CountingAllocator::count() - before);
        }
    }
    let verdicts = layer.handle().snapshot().verdicts;
    assert_eq!(verdicts.good() + verdicts.bad() + verdicts.left_out(), 100);
    most
}

#[tokio::test(start_paused = true)]
async fn a_request_allocates_nothing_also_in_a_new_bucket() {
    for status in [
        StatusCode::OK,
        StatusCode::NOT_FOUND,
        StatusCode::BAD_GATEWAY,
    ] {
        for apart in [0, 1, 60, 86_400] {
            assert_eq!(
                cost(status, Duration::from_secs(apart)).await,
                0,
                "{status} {apart}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn adding_tokens_and_asking_for_burn_rates_allocate_nothing() {
    let handle = layer().handle();
    let usage = Usage {
        prompt: 1,
        completion: 2,
    };
    handle.add_usage(usage, Duration::from_secs(1));
    let before = CountingAllocator::count();
    handle.add_usage(usage, Duration::from_secs(1));
    handle.burn(time::now());
    assert_eq!(CountingAllocator::count() - before, 0);
}
