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
        time::Duration,
    };

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

    use crate::hedge::policy::Why;

    const SENT: &str = "palisade_hedge_sent_total";
    const SETTLED: &str = "palisade_hedge_settled_total";
    const HELD_BACK: &str = "palisade_hedge_held_back_total";
    const DELAY: &str = "palisade_hedge_delay_seconds";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Named>);

    struct Named {
        layer: Cow<'static, str>,
        handles: OnceLock<Handles>,
        /// Registered when it is known.
        delay: OnceLock<Gauge>,
    }

    /// Registered with the first request: a recorder may be installed after layers were made, and what has not
    /// happened yet is a zero that a first time can be told from.
    struct Handles {
        sent: Counter,
        won: Counter,
        lost: Counter,
        held_back: [Counter; Why::ALL.len()],
    }

    impl Handles {
        fn register(layer: Cow<'static, str>) -> Self {
            describe_counter!(SENT, "Second attempts sent while the first still ran.");
            describe_counter!(
                SETTLED,
                "Second attempts that are over, by who answered first."
            );
            describe_counter!(
                HELD_BACK,
                "Second attempts that were due and not sent, and why."
            );
            describe_gauge!(
                DELAY,
                "After how long a second attempt is sent; infinite while that is not known."
            );
            let settled = |result: &'static str| counter!(SETTLED, "layer" => layer.clone(), "result" => result);
            Self {
                sent: counter!(SENT, "layer" => layer.clone()),
                won: settled("won"),
                lost: settled("lost"),
                held_back: Why::ALL.map(
                    |why| counter!(HELD_BACK, "layer" => layer.clone(), "reason" => why.name()),
                ),
            }
        }
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Named {
                layer,
                handles: OnceLock::new(),
                delay: OnceLock::new(),
            }))
        }

        /// There is a request.
        #[inline]
        pub(crate) fn register(&self) {
            self.handles();
        }

        pub(crate) fn sent(&self) {
            self.handles().sent.increment(1);
        }

        pub(crate) fn settled(&self, has_won: bool) {
            let Handles { won, lost, .. } = self.handles();
            let counter = if has_won { won } else { lost };
            counter.increment(1);
        }

        pub(crate) fn held_back(&self, why: Why) {
            self.handles().held_back[why as usize].increment(1);
        }

        /// Unknown is infinite: nothing is hedged.
        pub(crate) fn delay(&self, delay: Option<Duration>) {
            let Named {
                layer, delay: once, ..
            } = &*self.0;
            let gauge = once.get_or_init(|| gauge!(DELAY, "layer" => layer.clone()));
            gauge.set(delay.map_or(f64::INFINITY, |delay| delay.as_secs_f64()));
        }

        fn handles(&self) -> &Handles {
            let Named { layer, handles, .. } = &*self.0;
            handles.get_or_init(|| Handles::register(layer.clone()))
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::{borrow::Cow, time::Duration};

    use crate::hedge::policy::Why;

    #[derive(Clone)]
    pub(crate) struct Metrics;

    impl Metrics {
        pub(crate) fn new(_: Cow<'static, str>) -> Self {
            Self
        }

        #[inline]
        pub(crate) fn register(&self) {}

        pub(crate) fn sent(&self) {}

        pub(crate) fn settled(&self, _: bool) {}

        pub(crate) fn held_back(&self, _: Why) {}

        pub(crate) fn delay(&self, _: Option<Duration>) {}
    }
}
