//! `gates` takes gates: `layer.gate().clone()`, or `CircuitBreaker` itself.

use std::time::Duration;

use palisade::{circuit_breaker::CircuitBreakerLayer, gate::GateLayer};

fn main() {
    let layer = CircuitBreakerLayer::consecutive(5, Duration::from_secs(10));
    let _ = GateLayer::new(layer);
}
