//! A gate becomes a layer in `gates` or `GateLayer`, or has one of its own: `CircuitBreakerLayer`.

use std::time::Duration;

use palisade::circuit_breaker::CircuitBreaker;
use tower::ServiceBuilder;

fn main() {
    let breaker = CircuitBreaker::consecutive(5, Duration::from_secs(10));
    let _service = ServiceBuilder::new().layer(breaker).service(());
}
