//! What is counted, and nothing at all without the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Metric;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Metric;

#[cfg(feature = "metrics")]
mod on {
    use std::{
        fmt,
        sync::{Arc, OnceLock},
    };

    use metrics::{Counter, counter, describe_counter};

    const FAULTS: &str = "palisade_chaos_faults_total";
    const SHADOWED: &str = "palisade_chaos_shadowed_total";

    /// Registered with the first request: a recorder may be installed after layers were made, and what has not
    /// happened yet is a zero that a first time can be told from.
    #[derive(Default)]
    pub(crate) struct Metric(OnceLock<Registered>);

    struct Registered {
        struck: Counter,
        shadowed: Counter,
    }

    impl Metric {
        #[inline]
        pub(crate) fn register(&self, layer: &Arc<str>, fault: &Arc<str>) {
            self.0.get_or_init(|| {
                describe_counter!(FAULTS, "Faults that have struck.");
                describe_counter!(SHADOWED, "Faults that would have struck, in shadow mode.");
                let one = |name: &'static str| counter!(name, "layer" => layer.clone(), "fault" => fault.clone());
                Registered {
                    struck: one(FAULTS),
                    shadowed: one(SHADOWED),
                }
            });
        }

        pub(crate) fn struck(&self) {
            if let Some(registered) = self.0.get() {
                registered.struck.increment(1);
            }
        }

        pub(crate) fn shadowed(&self) {
            if let Some(registered) = self.0.get() {
                registered.shadowed.increment(1);
            }
        }
    }

    impl fmt::Debug for Metric {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Metric").finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::sync::Arc;

    #[derive(Debug, Default)]
    pub(crate) struct Metric(());

    impl Metric {
        #[inline]
        pub(crate) fn register(&self, _: &Arc<str>, _: &Arc<str>) {}

        pub(crate) fn struck(&self) {}

        pub(crate) fn shadowed(&self) {}
    }
}
