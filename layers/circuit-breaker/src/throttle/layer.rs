use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
};
use tower_layer::Layer;

use super::{Throttle, ThrottleHandle};

/// Puts a [`Throttle`] in front of a service.
///
/// A layer and its clones share what was counted.
///
/// ```
/// use palisade_circuit_breaker::{Throttle, ThrottleLayer};
/// use palisade_core::classify::Grpc;
///
/// let layer = ThrottleLayer::new(Throttle::new().multiplier(1.5).named("models")).classify(Grpc);
/// assert_eq!(layer.handle().name(), "models");
/// ```
#[derive(Clone, Debug)]
pub struct ThrottleLayer<C = Http> {
    throttle: Throttle,
    classify: C,
}

impl ThrottleLayer {
    /// Judges how requests end by HTTP status.
    pub fn new(throttle: Throttle) -> Self {
        Self {
            throttle,
            classify: Http,
        }
    }
}

impl<C> ThrottleLayer<C> {
    /// Judges how requests end with `classify` instead.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> ThrottleLayer<D> {
        ThrottleLayer {
            throttle: self.throttle,
            classify,
        }
    }

    /// Looks at the throttle and steers it from outside.
    pub fn handle(&self) -> ThrottleHandle {
        self.throttle.handle()
    }

    /// The throttle itself, which a clone shares: to put it together with other gates.
    pub fn gate(&self) -> &Throttle {
        &self.throttle
    }
}

impl<S, C: Classify> Layer<S> for ThrottleLayer<C> {
    type Service = Gated<S, Throttle, C>;

    fn layer(&self, inner: S) -> Self::Service {
        GateLayer::new(self.throttle.clone())
            .classify(self.classify.clone())
            .layer(inner)
    }
}
