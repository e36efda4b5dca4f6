use std::time::Duration;

use palisade_core::{
    classify::{Classify, Http},
    gate::Gate,
};
use tower_layer::Layer;

use crate::{Balance, Endpoints, Strategy};

/// Long enough for one ejection to pass, short enough for a caller to try elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// As good as for ever, and no instant overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Turns a set of [`Endpoints`] into one service.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::{BalanceLayer, Endpoint, Endpoints, Strategy};
/// use palisade_core::classify::Grpc;
/// use tower_layer::Layer;
///
/// let endpoints = Endpoints::default();
/// endpoints.insert(Endpoint::new("a", "client of a"));
/// let balance = BalanceLayer::round_robin()
///     .classify(Grpc)
///     .wait(Duration::from_secs(1));
/// let service = balance.layer(endpoints.clone());
/// assert_eq!(endpoints.strategy(), Strategy::RoundRobin);
/// # drop(service);
/// ```
#[derive(Clone, Debug)]
pub struct BalanceLayer<C = Http> {
    strategy: Strategy,
    classify: C,
    patience: Duration,
    hears_reports: bool,
}

impl BalanceLayer {
    /// Picks by latency x work in flight / weight.
    pub fn adaptive() -> Self {
        Self::new(Strategy::Adaptive)
    }

    /// Picks one after the other.
    pub fn round_robin() -> Self {
        Self::new(Strategy::RoundRobin)
    }

    /// Picks one after the other, by weight.
    pub fn weighted_round_robin() -> Self {
        Self::new(Strategy::WeightedRoundRobin)
    }

    /// Picks by in-flight / weight.
    pub fn least_connections() -> Self {
        Self::new(Strategy::LeastConnections)
    }

    /// Picks by latency x (1 + in-flight) / weight.
    pub fn least_response_time() -> Self {
        Self::new(Strategy::LeastResponseTime)
    }

    /// Picks any, by weight.
    pub fn random() -> Self {
        Self::new(Strategy::Random)
    }

    /// Picks by in-flight / weight between two that are drawn.
    pub fn p2c() -> Self {
        Self::new(Strategy::P2c)
    }

    /// Picks by the request's [`Affinity`](crate::Affinity), while that endpoint has not too much to do.
    pub fn consistent_hash() -> Self {
        Self::new(Strategy::ConsistentHash)
    }

    /// Picks by what probes have found.
    pub fn prequal() -> Self {
        Self::new(Strategy::Prequal)
    }

    /// Picks by any [`Strategy`]. The set keeps it, where it can be changed.
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            classify: Http,
            patience: PATIENCE,
            hears_reports: true,
        }
    }
}

impl<C> BalanceLayer<C> {
    /// Judges attempts with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> BalanceLayer<D> {
        BalanceLayer {
            strategy: self.strategy,
            classify,
            patience: self.patience,
            hears_reports: self.hears_reports,
        }
    }

    /// Does not believe what answers say of the load of their endpoint in `endpoint-load-metrics`: for endpoints that
    /// others run. The set keeps it; [`Endpoints::report`] and probes are still believed.
    #[must_use]
    pub fn ignore_load_reports(mut self) -> Self {
        self.hears_reports = false;
        self
    }

    /// Waits this long for an endpoint instead of three seconds before [`NoEndpoint`](crate::NoEndpoint); zero refuses
    /// at once.
    #[must_use]
    pub fn wait(mut self, patience: Duration) -> Self {
        self.patience = patience.min(LONGEST);
        self
    }
}

impl<S, G: Gate, C: Clone> Layer<Endpoints<S, G>> for BalanceLayer<C> {
    type Service = Balance<S, G, C>;

    fn layer(&self, endpoints: Endpoints<S, G>) -> Self::Service {
        endpoints.set_strategy(self.strategy);
        endpoints.0.hear_reports(self.hears_reports);
        Balance::new(endpoints, self.classify.clone(), self.patience)
    }
}
