//! What a mirror reports to the `metrics` facade. No label names a key or what a service calls its quotas.
//!
//! Handles are registered with the first event, by when the program has installed its recorder, and kept.

use std::sync::Arc;

use super::known::At;

#[cfg(feature = "metrics")]
use self::on::Handles;

#[derive(Debug)]
pub(super) struct Metrics {
    #[cfg(feature = "metrics")]
    layer: Arc<str>,
    #[cfg(feature = "metrics")]
    handles: std::sync::OnceLock<Handles>,
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    pub(super) fn new(_: &Arc<str>) -> Self {
        Self {}
    }

    pub(super) fn waited(&self, _: At) {}

    pub(super) fn refused(&self) {}

    pub(super) fn held(&self) {}

    pub(super) fn learned(&self, _: impl FnOnce() -> Option<f64>) {}

    pub(super) fn keys(&self, _: usize) {}
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(super) fn new(layer: &Arc<str>) -> Self {
        Self {
            layer: layer.clone(),
            handles: std::sync::OnceLock::new(),
        }
    }

    /// A request went out after it had waited.
    pub(super) fn waited(&self, nanos: At) {
        self.handles().wait.record(nanos as f64 / 1e9);
    }

    /// A request was refused.
    pub(super) fn refused(&self) {
        self.handles().refused.increment(1);
    }

    /// An answer has asked to be left alone.
    pub(super) fn held(&self) {
        self.handles().held.increment(1);
    }

    /// An answer has told what share is left of the quota of which the smallest is.
    pub(super) fn learned(&self, left: impl FnOnce() -> Option<f64>) {
        if let Some(left) = left() {
            self.handles().left.set(left);
        }
    }

    /// There are so many keys.
    pub(super) fn keys(&self, keys: usize) {
        self.handles().keys.set(keys as f64);
    }

    fn handles(&self) -> &Handles {
        self.handles.get_or_init(|| Handles::register(&self.layer))
    }
}

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::Arc};

    use metrics::{
        Counter, Gauge, Histogram, Label, counter, describe_counter, describe_gauge,
        describe_histogram, gauge, histogram,
    };

    const WAIT: &str = "palisade_quota_mirror_wait_seconds";
    const REFUSED: &str = "palisade_quota_mirror_refused_total";
    const HELD: &str = "palisade_quota_mirror_held_total";
    const LEFT: &str = "palisade_quota_mirror_remaining_ratio";
    const KEYS: &str = "palisade_quota_mirror_keys";

    pub(super) struct Handles {
        pub(super) wait: Histogram,
        pub(super) refused: Counter,
        pub(super) held: Counter,
        pub(super) left: Gauge,
        pub(super) keys: Gauge,
    }

    impl Handles {
        pub(super) fn register(layer: &Arc<str>) -> Self {
            describe_histogram!(
                WAIT,
                "How long requests that went out had waited for their turn."
            );
            describe_counter!(
                REFUSED,
                "Requests refused because their turn would come too late."
            );
            describe_counter!(HELD, "Answers that asked to be left alone.");
            describe_gauge!(
                LEFT,
                "The share that is left of the service's quota of which least is left."
            );
            describe_gauge!(KEYS, "Keys that are in memory.");
            let labels = || vec![Label::new("layer", layer.clone())];
            Self {
                wait: histogram!(WAIT, labels()),
                refused: counter!(REFUSED, labels()),
                held: counter!(HELD, labels()),
                left: gauge!(LEFT, labels()),
                keys: gauge!(KEYS, labels()),
            }
        }
    }

    impl fmt::Debug for Handles {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Handles").finish_non_exhaustive()
        }
    }
}
