//! Metrics of the checks of one endpoint. Nothing without the feature `metrics`.

use std::sync::Arc;

#[cfg(feature = "metrics")]
use metrics::{Counter, counter, describe_counter};

#[cfg(feature = "metrics")]
const CHECKS: &str = "palisade_balance_health_checks_total";

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    TimedOut,
}

/// Registered when the endpoint is first seen.
pub(super) struct CheckMeters {
    #[cfg(feature = "metrics")]
    results: [Counter; 3],
}

impl CheckMeters {
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(super) fn new(layer: &Arc<str>, endpoint: &Arc<str>) -> Self {
        #[cfg(feature = "metrics")]
        describe_counter!(CHECKS, "Health checks of the endpoint, by their result.");
        Self {
            #[cfg(feature = "metrics")]
            results: ["passed", "failed", "timed_out"].map(|result| {
                let (layer, endpoint) = (layer.clone(), endpoint.clone());
                counter!(CHECKS, "layer" => layer, "endpoint" => endpoint, "result" => result)
            }),
        }
    }

    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(super) fn checked(&self, outcome: Outcome) {
        #[cfg(feature = "metrics")]
        self.results[outcome as usize].increment(1);
    }
}
