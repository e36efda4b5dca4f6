//! The layer around a service, on a paused clock.

#![allow(clippy::unwrap_used, reason = "tests say where they fail")]

mod alerts;
mod cost;
mod ends;
#[cfg(feature = "serde")]
mod json;
mod labels;
mod leaving;
#[cfg(feature = "metrics")]
mod metrics;
mod monitor;
#[cfg(feature = "hdr")]
mod replicas;
mod reports;
mod streams;
mod threads;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_core::{classify::Classify, testing::exchange};
use palisade_sla::{Objective, SlaLayer};
use tower::{Layer, service_fn};

/// 99.9 % of requests succeed, 90 % of them within a second.
fn objective() -> Objective {
    let objective = Objective::success(0.999).unwrap();
    objective.within(Duration::from_secs(1), 0.9).unwrap()
}

fn layer() -> SlaLayer {
    SlaLayer::new(objective())
}

/// One request, which is answered with this status after a while.
async fn serve<C: Classify>(layer: &SlaLayer<C>, status: StatusCode, after: Duration) {
    let service = layer.layer(service_fn(move |_: Request<()>| async move {
        tokio::time::sleep(after).await;
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
        *response.status_mut() = status;
        Ok::<_, std::convert::Infallible>(response)
    }));
    exchange(service).await.unwrap();
}

/// One request that passes this gate alone, and ends well.
#[cfg(feature = "metrics")]
async fn serve_by(gate: &palisade_sla::LabelledSla) {
    let service = service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let layer = palisade_core::gate::GateLayer::new(gate.clone());
    exchange(layer.layer(service)).await.unwrap();
}

/// What a percentile may be off by.
fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 0.032 * expected
}
