//! What is counted, and nothing at all without the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Metrics;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Metrics;

#[cfg(feature = "metrics")]
mod on {
    use std::{
        borrow::Cow,
        sync::{Arc, OnceLock},
    };

    use metrics::{Counter, counter, describe_counter};

    use crate::alternative::Entry;

    const SERVED: &str = "palisade_fallback_served_total";
    const SHADOWED: &str = "palisade_fallback_shadowed_total";
    const EXHAUSTED: &str = "palisade_fallback_exhausted_total";

    /// Registered when first counted: a recorder may be installed after layers were made.
    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Counters>);

    struct Counters {
        layer: Cow<'static, str>,
        served: Vec<OnceLock<Counter>>,
        shadowed: Vec<OnceLock<Counter>>,
        exhausted: OnceLock<Counter>,
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>, alternatives: usize) -> Self {
            let counters = || (0..alternatives).map(|_| OnceLock::new()).collect();
            Self(Arc::new(Counters {
                layer,
                served: counters(),
                shadowed: counters(),
                exhausted: OnceLock::new(),
            }))
        }

        pub(crate) fn layer(&self) -> Cow<'static, str> {
            self.0.layer.clone()
        }

        pub(crate) fn served(&self, at: usize, by: &Entry) {
            let served = self.0.served[at].get_or_init(|| {
                describe_counter!(SERVED, "Answers that an alternative has given.");
                counter!(SERVED, "layer" => self.layer(), "by" => by.name.clone())
            });
            served.increment(1);
        }

        pub(crate) fn shadowed(&self, at: usize, by: &Entry) {
            let shadowed = self.0.shadowed[at].get_or_init(|| {
                describe_counter!(SHADOWED, "Requests that would have gone to an alternative.");
                counter!(SHADOWED, "layer" => self.layer(), "by" => by.name.clone())
            });
            shadowed.increment(1);
        }

        pub(crate) fn exhausted(&self) {
            let exhausted = self.0.exhausted.get_or_init(|| {
                describe_counter!(EXHAUSTED, "Failures passed on for want of an alternative.");
                counter!(EXHAUSTED, "layer" => self.layer())
            });
            exhausted.increment(1);
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::borrow::Cow;

    use crate::alternative::Entry;

    #[derive(Clone)]
    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>, _: usize) -> Self {
            Self
        }

        pub(crate) fn layer(&self) -> Cow<'static, str> {
            Cow::Borrowed("")
        }

        pub(crate) fn served(&self, _: usize, _: &Entry) {}

        pub(crate) fn shadowed(&self, _: usize, _: &Entry) {}

        pub(crate) fn exhausted(&self) {}
    }
}
