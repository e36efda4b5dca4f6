//! What a store reports to the `metrics` facade. Handles are registered once, when it is first used.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use self::on::Handles;

#[derive(Debug)]
#[cfg_attr(not(feature = "metrics"), derive(Default))]
pub(super) struct Metrics {
    #[cfg(feature = "metrics")]
    name: Arc<str>,
    #[cfg(feature = "metrics")]
    handles: std::sync::OnceLock<Handles>,
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    pub(super) fn new(_: &Arc<str>) -> Self {
        Self::default()
    }

    pub(super) fn turned(&self, _: bool) {}

    pub(super) fn answered(&self, _: Duration) {}

    pub(super) fn tripped(&self) {}

    pub(super) fn may_have_charged(&self) {}

    pub(super) fn lost_a_job(&self) {}
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(super) fn new(name: &Arc<str>) -> Self {
        // Also of a store that never gets an upkeep; not kept, since the recorder may come later.
        on::up(name).set(0.0);
        Self {
            name: name.clone(),
            handles: std::sync::OnceLock::new(),
        }
    }

    pub(super) fn turned(&self, up: bool) {
        self.handles().up.set(if up { 1.0 } else { 0.0 });
    }

    pub(super) fn answered(&self, after: Duration) {
        self.handles().latency.record(after);
    }

    pub(super) fn tripped(&self) {
        self.handles().trips.increment(1);
    }

    pub(super) fn may_have_charged(&self) {
        self.handles().maybe_charged.increment(1);
    }

    pub(super) fn lost_a_job(&self) {
        self.handles().jobs_lost.increment(1);
    }

    fn handles(&self) -> &Handles {
        self.handles.get_or_init(|| Handles::register(&self.name))
    }
}

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::Arc};

    use metrics::{
        Counter, Gauge, Histogram, Label, counter, describe_counter, describe_gauge,
        describe_histogram, gauge, histogram,
    };

    const LATENCY: &str = "palisade_rate_limit_store_latency_seconds";
    const UP: &str = "palisade_rate_limit_store_up";
    const MAYBE_CHARGED: &str = "palisade_rate_limit_store_maybe_charged_total";
    const TRIPS: &str = "palisade_rate_limit_store_trips_total";
    const JOBS_LOST: &str = "palisade_rate_limit_store_jobs_lost_total";

    pub(super) struct Handles {
        pub(super) latency: Histogram,
        pub(super) up: Gauge,
        pub(super) maybe_charged: Counter,
        pub(super) trips: Counter,
        pub(super) jobs_lost: Counter,
    }

    impl Handles {
        pub(super) fn register(name: &Arc<str>) -> Self {
            describe_histogram!(LATENCY, "From a question to the answer of the store.");
            describe_counter!(
                MAYBE_CHARGED,
                "Questions without an answer, which may have been charged all the same."
            );
            describe_counter!(TRIPS, "Times that the store was given up for a while.");
            describe_counter!(JOBS_LOST, "Corrections that the store never got.");
            let labels = || vec![Label::new("store", name.clone())];
            Self {
                latency: histogram!(LATENCY, labels()),
                up: up(name),
                maybe_charged: counter!(MAYBE_CHARGED, labels()),
                trips: counter!(TRIPS, labels()),
                jobs_lost: counter!(JOBS_LOST, labels()),
            }
        }
    }

    pub(super) fn up(name: &Arc<str>) -> Gauge {
        describe_gauge!(UP, "1 while the store answers.");
        gauge!(UP, vec![Label::new("store", name.clone())])
    }

    impl fmt::Debug for Handles {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Handles").finish_non_exhaustive()
        }
    }
}
