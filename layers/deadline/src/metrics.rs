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

    use metrics::{Counter, counter};
    use palisade_core::reject::Reason;

    const ELAPSED: &str = "palisade_deadline_elapsed_total";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Counters>);

    struct Counters {
        layer: Cow<'static, str>,
        exceeded: OnceLock<Counter>,
        timed_out: OnceLock<Counter>,
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Counters {
                layer,
                exceeded: OnceLock::new(),
                timed_out: OnceLock::new(),
            }))
        }

        pub(crate) fn elapsed(&self, reason: Reason) {
            let counters = &*self.0;
            let once = match reason {
                Reason::DeadlineExceeded => &counters.exceeded,
                _ => &counters.timed_out,
            };
            let layer = &counters.layer;
            once.get_or_init(
                || counter!(ELAPSED, "layer" => layer.clone(), "reason" => reason.name()),
            )
            .increment(1);
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::borrow::Cow;

    use palisade_core::reject::Reason;

    #[derive(Clone)]
    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>) -> Self {
            Self
        }

        pub(crate) fn elapsed(&self, _: Reason) {}
    }
}
