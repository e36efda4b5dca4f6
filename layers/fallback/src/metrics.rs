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

    const SERVED: &str = "palisade_fallback_served_total";
    const SHADOWED: &str = "palisade_fallback_shadowed_total";
    const EXHAUSTED: &str = "palisade_fallback_exhausted_total";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Named>);

    struct Named {
        layer: Cow<'static, str>,
        handles: OnceLock<Handles>,
    }

    /// Registered with the first request: a recorder may be installed after layers were made, and what has not
    /// happened yet is a zero that a first time can be told from.
    struct Handles {
        served: Vec<Counter>,
        shadowed: Vec<Counter>,
        exhausted: Counter,
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Named {
                layer,
                handles: OnceLock::new(),
            }))
        }

        pub(crate) fn layer(&self) -> Cow<'static, str> {
            self.0.layer.clone()
        }

        /// There is a request, and these are the names of the alternatives.
        #[inline]
        pub(crate) fn register<'a>(&self, names: impl Iterator<Item = &'a Arc<str>> + Clone) {
            self.0.handles.get_or_init(|| {
                describe_counter!(SERVED, "Answers that an alternative has given.");
                describe_counter!(SHADOWED, "Requests that would have gone to an alternative.");
                describe_counter!(EXHAUSTED, "Failures passed on for want of an alternative.");
                let all = |metric: &'static str| {
                    let one = |name: &Arc<str>| counter!(metric, "layer" => self.layer(), "by" => name.clone());
                    names.clone().map(one).collect()
                };
                Handles {
                    served: all(SERVED),
                    shadowed: all(SHADOWED),
                    exhausted: counter!(EXHAUSTED, "layer" => self.layer()),
                }
            });
        }

        pub(crate) fn served(&self, at: usize) {
            if let Some(served) = self.handles().and_then(|it| it.served.get(at)) {
                served.increment(1);
            }
        }

        pub(crate) fn shadowed(&self, at: usize) {
            if let Some(shadowed) = self.handles().and_then(|it| it.shadowed.get(at)) {
                shadowed.increment(1);
            }
        }

        pub(crate) fn exhausted(&self) {
            if let Some(handles) = self.handles() {
                handles.exhausted.increment(1);
            }
        }

        fn handles(&self) -> Option<&Handles> {
            self.0.handles.get()
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::{borrow::Cow, sync::Arc};

    #[derive(Clone)]
    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>) -> Self {
            Self
        }

        pub(crate) fn layer(&self) -> Cow<'static, str> {
            Cow::Borrowed("")
        }

        pub(crate) fn register<'a>(&self, _: impl Iterator<Item = &'a Arc<str>> + Clone) {}

        pub(crate) fn served(&self, _: usize) {}

        pub(crate) fn shadowed(&self, _: usize) {}

        pub(crate) fn exhausted(&self) {}
    }
}
