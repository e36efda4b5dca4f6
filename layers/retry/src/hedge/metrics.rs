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

    use metrics::{Counter, Gauge, counter, gauge};

    use crate::hedge::policy::Why;

    const SENT: &str = "palisade_hedge_sent_total";
    const SETTLED: &str = "palisade_hedge_settled_total";
    const HELD_BACK: &str = "palisade_hedge_held_back_total";
    const DELAY: &str = "palisade_hedge_delay_seconds";

    #[derive(Clone)]
    pub(crate) struct Metrics(Arc<Handles>);

    struct Handles {
        layer: Cow<'static, str>,
        sent: OnceLock<Counter>,
        won: OnceLock<Counter>,
        lost: OnceLock<Counter>,
        held_back: [OnceLock<Counter>; Why::ALL.len()],
        delay: OnceLock<Gauge>,
    }

    impl Metrics {
        pub(crate) fn new(layer: Cow<'static, str>) -> Self {
            Self(Arc::new(Handles {
                layer,
                sent: OnceLock::new(),
                won: OnceLock::new(),
                lost: OnceLock::new(),
                held_back: Default::default(),
                delay: OnceLock::new(),
            }))
        }

        pub(crate) fn sent(&self) {
            let Handles { layer, sent, .. } = &*self.0;
            let counter = sent.get_or_init(|| counter!(SENT, "layer" => layer.clone()));
            counter.increment(1);
        }

        pub(crate) fn settled(&self, has_won: bool) {
            let Handles {
                layer, won, lost, ..
            } = &*self.0;
            let (counter, result) = if has_won {
                (won, "won")
            } else {
                (lost, "lost")
            };
            counter
                .get_or_init(|| counter!(SETTLED, "layer" => layer.clone(), "result" => result))
                .increment(1);
        }

        pub(crate) fn held_back(&self, why: Why) {
            let Handles {
                layer, held_back, ..
            } = &*self.0;
            held_back[why as usize]
                .get_or_init(
                    || counter!(HELD_BACK, "layer" => layer.clone(), "reason" => why.name()),
                )
                .increment(1);
        }

        /// Unknown is infinite: nothing is hedged.
        pub(crate) fn delay(&self, delay: Option<Duration>) {
            let Handles {
                layer, delay: once, ..
            } = &*self.0;
            let gauge = once.get_or_init(|| gauge!(DELAY, "layer" => layer.clone()));
            gauge.set(delay.map_or(f64::INFINITY, |delay| delay.as_secs_f64()));
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

        pub(crate) fn sent(&self) {}

        pub(crate) fn settled(&self, _: bool) {}

        pub(crate) fn held_back(&self, _: Why) {}

        pub(crate) fn delay(&self, _: Option<Duration>) {}
    }
}
