//! A judge sees heads, so that it fits every body.

use std::time::Duration;

use http::Response;
use palisade::{circuit_breaker::CircuitBreakerLayer, classify::Verdict};

fn main() {
    let judge = |response: &Response<()>| response.status().is_success().then_some(Verdict::Success);
    let _ = CircuitBreakerLayer::consecutive(5, Duration::from_secs(10)).classify(judge);
}
