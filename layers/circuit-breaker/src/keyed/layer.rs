use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
};
use tower_layer::Layer;

use super::{KeyedCircuitBreaker, KeyedHandle};

/// Puts a [`KeyedCircuitBreaker`] in front of a service.
///
/// ```
/// use palisade_circuit_breaker::{KeyedCircuitBreaker, KeyedCircuitBreakerLayer, Settings, destination};
/// use palisade_core::classify::Grpc;
///
/// let breaker = KeyedCircuitBreaker::new(Settings::half_of_ten(), destination()).named("egress");
/// let layer = KeyedCircuitBreakerLayer::new(breaker).classify(Grpc);
/// assert_eq!(layer.handle().name(), "egress");
/// ```
#[derive(Clone, Debug)]
pub struct KeyedCircuitBreakerLayer<C = Http> {
    breaker: KeyedCircuitBreaker,
    classify: C,
}

impl KeyedCircuitBreakerLayer {
    /// Judges how requests end by HTTP status.
    pub fn new(breaker: KeyedCircuitBreaker) -> Self {
        Self {
            breaker,
            classify: Http,
        }
    }
}

impl<C> KeyedCircuitBreakerLayer<C> {
    /// Judges how requests end with `classify` instead.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> KeyedCircuitBreakerLayer<D> {
        KeyedCircuitBreakerLayer {
            breaker: self.breaker,
            classify,
        }
    }

    /// Looks at the circuits and steers them from outside.
    pub fn handle(&self) -> KeyedHandle {
        self.breaker.handle()
    }

    /// The breaker itself, which a clone shares: to put it together with other gates.
    pub fn gate(&self) -> &KeyedCircuitBreaker {
        &self.breaker
    }
}

impl<S, C: Classify> Layer<S> for KeyedCircuitBreakerLayer<C> {
    type Service = Gated<S, KeyedCircuitBreaker, C>;

    fn layer(&self, inner: S) -> Self::Service {
        GateLayer::new(self.breaker.clone())
            .classify(self.classify.clone())
            .layer(inner)
    }
}
