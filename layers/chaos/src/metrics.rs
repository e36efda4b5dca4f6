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

    /// Registered when first counted: a recorder may be installed after layers were made.
    #[derive(Default)]
    pub(crate) struct Metric(OnceLock<Counter>);

    impl Metric {
        pub(crate) fn count(&self, layer: &Arc<str>, fault: &Arc<str>) {
            let counter = self.0.get_or_init(|| {
                describe_counter!(FAULTS, "Faults that have struck.");
                counter!(FAULTS, "layer" => layer.clone(), "fault" => fault.clone())
            });
            counter.increment(1);
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
        pub(crate) fn count(&self, _: &Arc<str>, _: &Arc<str>) {}
    }
}
