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
    use palisade_core::classify::Verdict;

    use crate::policy::Exhausted;

    const RETRIES: &str = "palisade_retry_retries_total";
    const EXHAUSTED: &str = "palisade_retry_exhausted_total";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Counters>);

    struct Counters {
        layer: Cow<'static, str>,
        failure: OnceLock<Counter>,
        overload: OnceLock<Counter>,
        caller_fault: OnceLock<Counter>,
        timed_out: OnceLock<Counter>,
        unsent: OnceLock<Counter>,
        exhausted: [OnceLock<Counter>; Exhausted::ALL.len()],
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Counters {
                layer,
                failure: OnceLock::new(),
                overload: OnceLock::new(),
                caller_fault: OnceLock::new(),
                timed_out: OnceLock::new(),
                unsent: OnceLock::new(),
                exhausted: Default::default(),
            }))
        }

        pub(crate) fn retry(&self, verdict: Verdict) {
            let counters = &*self.0;
            let once = match verdict {
                Verdict::Overload { .. } => &counters.overload,
                Verdict::CallerFault => &counters.caller_fault,
                Verdict::TimedOut => &counters.timed_out,
                Verdict::Unsent => &counters.unsent,
                _ => &counters.failure,
            };
            let layer = &counters.layer;
            once.get_or_init(
                || counter!(RETRIES, "layer" => layer.clone(), "verdict" => verdict.name()),
            )
            .increment(1);
        }

        pub(crate) fn exhausted(&self, why: Exhausted) {
            let Counters {
                layer, exhausted, ..
            } = &*self.0;
            exhausted[why as usize]
                .get_or_init(
                    || counter!(EXHAUSTED, "layer" => layer.clone(), "reason" => why.name()),
                )
                .increment(1);
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::borrow::Cow;

    use palisade_core::classify::Verdict;

    use crate::policy::Exhausted;

    #[derive(Clone)]
    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>) -> Self {
            Self
        }

        pub(crate) fn retry(&self, _: Verdict) {}

        pub(crate) fn exhausted(&self, _: Exhausted) {}
    }
}
