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

    use metrics::{Counter, Gauge, counter, gauge};
    use palisade_core::classify::Verdict;

    use crate::policy::Exhausted;

    const RETRIES: &str = "palisade_retry_retries_total";
    const SHADOWED: &str = "palisade_retry_shadowed_total";
    const BUDGET_LEFT: &str = "palisade_retry_budget_left";
    const EXHAUSTED: &str = "palisade_retry_exhausted_total";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Counters>);

    struct Counters {
        layer: Cow<'static, str>,
        retries: ByVerdict,
        shadowed: ByVerdict,
        exhausted: [OnceLock<Counter>; Exhausted::ALL.len()],
        budget_left: OnceLock<Gauge>,
    }

    /// One for each verdict that is ever retried, registered when it is first needed.
    #[derive(Default)]
    struct ByVerdict([OnceLock<Counter>; 5]);

    impl ByVerdict {
        fn count(&self, name: &'static str, layer: &str, verdict: Verdict) {
            let at = match verdict {
                Verdict::Overload { .. } => 1,
                Verdict::CallerFault => 2,
                Verdict::TimedOut => 3,
                Verdict::Unsent => 4,
                _ => 0,
            };
            let register =
                || counter!(name, "layer" => layer.to_owned(), "verdict" => verdict.name());
            self.0[at].get_or_init(register).increment(1);
        }
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Counters {
                layer,
                retries: ByVerdict::default(),
                shadowed: ByVerdict::default(),
                exhausted: Default::default(),
                budget_left: OnceLock::new(),
            }))
        }

        pub(crate) fn retry(&self, verdict: Verdict) {
            self.0.retries.count(RETRIES, &self.0.layer, verdict);
        }

        pub(crate) fn shadowed(&self, verdict: Verdict) {
            self.0.shadowed.count(SHADOWED, &self.0.layer, verdict);
        }

        pub(crate) fn budget_left(&self, attempts: f64) {
            let register = || gauge!(BUDGET_LEFT, "layer" => self.0.layer.clone());
            self.0.budget_left.get_or_init(register).set(attempts);
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

        pub(crate) fn shadowed(&self, _: Verdict) {}

        pub(crate) fn budget_left(&self, _: f64) {}

        pub(crate) fn exhausted(&self, _: Exhausted) {}
    }
}
