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

    use metrics::{Counter, Gauge, Label, counter, describe_counter, describe_gauge, gauge};
    use palisade_core::classify::Verdict;

    use crate::policy::Exhausted;

    const RETRIES: &str = "palisade_retry_retries_total";
    const SHADOWED: &str = "palisade_retry_shadowed_total";
    const BUDGET_LEFT: &str = "palisade_retry_budget_left";
    const EXHAUSTED: &str = "palisade_retry_exhausted_total";

    /// The names of those verdicts that are ever retried.
    const VERDICTS: [&str; 5] = ["failure", "overload", "caller_fault", "timed_out", "unsent"];

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Named>);

    struct Named {
        layer: Cow<'static, str>,
        handles: OnceLock<Handles>,
        /// Registered when it is known.
        budget_left: OnceLock<Gauge>,
    }

    /// Registered with the first request: a recorder may be installed after layers were made, and what has not
    /// happened yet is a zero that a first time can be told from.
    struct Handles {
        retries: [Counter; VERDICTS.len()],
        shadowed: [Counter; VERDICTS.len()],
        exhausted: [Counter; Exhausted::ALL.len()],
    }

    impl Handles {
        fn register(layer: Cow<'static, str>) -> Self {
            describe_counter!(RETRIES, "Attempts made because the one before ended so.");
            describe_counter!(
                SHADOWED,
                "Attempts that would have been made, in shadow mode."
            );
            describe_counter!(
                EXHAUSTED,
                "Requests that ended in what is to be retried and was not, and why."
            );
            describe_gauge!(BUDGET_LEFT, "Attempts that the budget has room for.");
            let one = |name: &'static str, label, value| {
                let layer = Label::new("layer", layer.clone());
                counter!(name, vec![layer, Label::from_static_parts(label, value)])
            };
            Self {
                retries: VERDICTS.map(|verdict| one(RETRIES, "verdict", verdict)),
                shadowed: VERDICTS.map(|verdict| one(SHADOWED, "verdict", verdict)),
                exhausted: Exhausted::ALL.map(|why| one(EXHAUSTED, "reason", why.name())),
            }
        }
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Named {
                layer,
                handles: OnceLock::new(),
                budget_left: OnceLock::new(),
            }))
        }

        /// There is a request.
        #[inline]
        pub(crate) fn register(&self) {
            self.handles();
        }

        pub(crate) fn retry(&self, verdict: Verdict) {
            self.handles().retries[place(verdict)].increment(1);
        }

        pub(crate) fn shadowed(&self, verdict: Verdict) {
            self.handles().shadowed[place(verdict)].increment(1);
        }

        pub(crate) fn budget_left(&self, attempts: f64) {
            let register = || gauge!(BUDGET_LEFT, "layer" => self.0.layer.clone());
            self.0.budget_left.get_or_init(register).set(attempts);
        }

        pub(crate) fn exhausted(&self, why: Exhausted) {
            self.handles().exhausted[why as usize].increment(1);
        }

        fn handles(&self) -> &Handles {
            let Named { layer, handles, .. } = &*self.0;
            handles.get_or_init(|| Handles::register(layer.clone()))
        }
    }

    fn place(verdict: Verdict) -> usize {
        match verdict {
            Verdict::Overload { .. } => 1,
            Verdict::CallerFault => 2,
            Verdict::TimedOut => 3,
            Verdict::Unsent => 4,
            _ => 0,
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

        #[inline]
        pub(crate) fn register(&self) {}

        pub(crate) fn retry(&self, _: Verdict) {}

        pub(crate) fn shadowed(&self, _: Verdict) {}

        pub(crate) fn budget_left(&self, _: f64) {}

        pub(crate) fn exhausted(&self, _: Exhausted) {}
    }
}
