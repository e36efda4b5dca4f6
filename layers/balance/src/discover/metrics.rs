//! Metrics of one source. Nothing without the feature `metrics`.

use std::sync::Arc;

#[cfg(feature = "metrics")]
pub(super) use self::on::Meters;

#[cfg(feature = "metrics")]
mod on {
    use std::time::UNIX_EPOCH;

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
    use palisade_core::time;

    use super::Arc;

    const LISTS: &str = "palisade_balance_discovery_lists_total";
    const ERRORS: &str = "palisade_balance_discovery_errors_total";
    const TARGETS: &str = "palisade_balance_discovery_targets";
    const LISTED: &str = "palisade_balance_discovery_listed_timestamp_seconds";

    pub(in super::super) struct Meters {
        lists: Counter,
        errors: Counter,
        targets: Gauge,
        listed: Gauge,
    }

    impl Meters {
        pub(in super::super) fn new(layer: &Arc<str>, source: &Arc<str>) -> Self {
            describe_counter!(LISTS, "Lists of endpoints that a source has brought.");
            describe_counter!(
                ERRORS,
                "Lists that did not come, and entries that could not be used."
            );
            describe_gauge!(TARGETS, "Entries of the last list.");
            describe_gauge!(LISTED, "When the last list came, in seconds since 1970.");
            let labels = [("layer", layer.clone()), ("source", source.clone())];
            Self {
                lists: counter!(LISTS, &labels),
                errors: counter!(ERRORS, &labels),
                targets: gauge!(TARGETS, &labels),
                listed: gauge!(LISTED, &labels),
            }
        }

        pub(in super::super) fn listed(&self, targets: usize, failed: usize) {
            self.lists.increment(1);
            self.errors.increment(failed as u64);
            self.targets.set(targets as f64);
            let date = time::wall_clock().duration_since(UNIX_EPOCH);
            self.listed.set(date.unwrap_or_default().as_secs_f64());
        }

        pub(in super::super) fn failed(&self) {
            self.errors.increment(1);
        }
    }
}

#[cfg(not(feature = "metrics"))]
pub(super) struct Meters;

#[cfg(not(feature = "metrics"))]
impl Meters {
    pub(super) fn new(_: &Arc<str>, _: &Arc<str>) -> Self {
        Self
    }

    pub(super) fn listed(&self, _: usize, _: usize) {}

    pub(super) fn failed(&self) {}
}
