//! What is reported, and nothing at all without the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Metrics;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Metrics;

#[cfg(feature = "metrics")]
mod on {
    use std::{borrow::Cow, sync::OnceLock, time::Duration};

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

    use crate::{
        error::Limit,
        tally::{Mode, WHYS, Why},
    };

    const ELAPSED: &str = "palisade_deadline_elapsed_total";
    const SHADOWED: &str = "palisade_deadline_shadowed_total";
    const TIMEOUT: &str = "palisade_deadline_timeout_seconds";
    const MEDIAN: &str = "palisade_deadline_median_seconds";

    #[derive(Default)]
    pub(crate) struct Metrics {
        layer: Cow<'static, str>,
        handles: OnceLock<Handles>,
        // Registered when they are known.
        first_byte: OnceLock<Gauge>,
        total: OnceLock<Gauge>,
        median: OnceLock<Gauge>,
    }

    /// Registered with the first request: a recorder may be installed after layers were made, and what has not
    /// happened yet is a zero that a first time can be told from.
    struct Handles {
        elapsed: [Counter; WHYS],
        shadowed: [Counter; WHYS],
    }

    impl Handles {
        fn register(layer: Cow<'static, str>) -> Self {
            describe_counter!(ELAPSED, "Requests that were ended because of their time.");
            describe_counter!(
                SHADOWED,
                "Requests that would have been ended because of their time, in shadow mode."
            );
            describe_gauge!(TIMEOUT, "The adaptive timeout that the last attempt got.");
            describe_gauge!(
                MEDIAN,
                "The median that the last request was measured against."
            );
            let all = |name: &'static str| {
                Why::ALL.map(|why| {
                    let (reason, limit) = (why.reason().name(), why.limit());
                    counter!(name, "layer" => layer.clone(), "reason" => reason, "limit" => limit)
                })
            };
            Self {
                elapsed: all(ELAPSED),
                shadowed: all(SHADOWED),
            }
        }
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self {
                layer,
                ..Self::default()
            }
        }

        /// There is a request.
        #[inline]
        pub(crate) fn register(&self) {
            self.handles();
        }

        pub(crate) fn ended(&self, why: Why, mode: Mode) {
            let handles = self.handles();
            let counters = match mode {
                Mode::Enforce => &handles.elapsed,
                Mode::Shadow => &handles.shadowed,
            };
            counters[why.index()].increment(1);
        }

        fn handles(&self) -> &Handles {
            self.handles
                .get_or_init(|| Handles::register(self.layer.clone()))
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

        #[inline]
        pub(crate) fn register(&self) {}

        pub(crate) fn ended(&self, _: Why, _: Mode) {}
        pub(crate) fn timeout(&self, _: Limit, _: Duration) {}
        pub(crate) fn median(&self, _: Duration) {}
    }
}
