//! What is reported, and nothing at all without the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Metrics;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Metrics;

#[cfg(feature = "metrics")]
mod on {
    use std::{borrow::Cow, sync::OnceLock, time::Duration};

    use metrics::{Counter, Gauge, counter, gauge};

    use crate::{
        error::Limit,
        tally::{Mode, WHYS, Why},
    };

    const ELAPSED: &str = "palisade_deadline_elapsed_total";
    const SHADOWED: &str = "palisade_deadline_shadowed_total";
    const TIMEOUT: &str = "palisade_deadline_timeout_seconds";
    const MEDIAN: &str = "palisade_deadline_median_seconds";

    /// Each is registered when it is first needed.
    #[derive(Default)]
    pub(crate) struct Metrics {
        layer: Cow<'static, str>,
        elapsed: [OnceLock<Counter>; WHYS],
        shadowed: [OnceLock<Counter>; WHYS],
        first_byte: OnceLock<Gauge>,
        total: OnceLock<Gauge>,
        median: OnceLock<Gauge>,
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self {
                layer,
                ..Self::default()
            }
        }

        pub(crate) fn ended(&self, why: Why, mode: Mode) {
            let (counters, name) = match mode {
                Mode::Enforce => (&self.elapsed, ELAPSED),
                Mode::Shadow => (&self.shadowed, SHADOWED),
            };
            let register = || {
                let (reason, limit) = (why.reason().name(), why.limit());
                counter!(name, "layer" => self.layer.clone(), "reason" => reason, "limit" => limit)
            };
            counters[why.index()].get_or_init(register).increment(1);
        }

        pub(crate) fn timeout(&self, limit: Limit, timeout: Duration) {
            let once = match limit {
                Limit::FirstByte => &self.first_byte,
                _ => &self.total,
            };
            let register =
                || gauge!(TIMEOUT, "layer" => self.layer.clone(), "limit" => limit.name());
            once.get_or_init(register).set(timeout.as_secs_f64());
        }

        pub(crate) fn median(&self, median: Duration) {
            let register = || gauge!(MEDIAN, "layer" => self.layer.clone());
            let gauge = self.median.get_or_init(register);
            gauge.set(median.as_secs_f64());
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::{borrow::Cow, time::Duration};

    use crate::{
        error::Limit,
        tally::{Mode, Why},
    };

    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>) -> Self {
            Self
        }

        pub(crate) fn ended(&self, _: Why, _: Mode) {}
        pub(crate) fn timeout(&self, _: Limit, _: Duration) {}
        pub(crate) fn median(&self, _: Duration) {}
    }
}
