//! What is counted for the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Meters;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Meters;

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::OnceLock};

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

    const CHANCE: &str = "palisade_throttle_refused_ratio";
    const REFUSALS: &str = "palisade_throttle_refusals_total";
    const SHADOWED: &str = "palisade_throttle_shadowed_total";

    /// Registered with the first request: a recorder may be installed after layers were made.
    #[derive(Default)]
    pub(crate) struct Meters(OnceLock<Registered>);

    struct Registered {
        chance: Gauge,
        refusals: Counter,
        shadowed: Counter,
    }

    impl Meters {
        #[inline]
        pub(crate) fn register<'a>(&self, name: impl FnOnce() -> &'a str) {
            self.0.get_or_init(|| Registered::new(name()));
        }

        pub(crate) fn set(&self, chance: f64) {
            if let Some(registered) = self.0.get() {
                registered.chance.set(chance);
            }
        }

        pub(crate) fn refuse(&self) {
            if let Some(registered) = self.0.get() {
                registered.refusals.increment(1);
            }
        }

        pub(crate) fn shadow(&self) {
            if let Some(registered) = self.0.get() {
                registered.shadowed.increment(1);
            }
        }
    }

    impl Registered {
        fn new(name: &str) -> Self {
            describe_gauge!(CHANCE, "The share of requests that is refused.");
            describe_counter!(REFUSALS, "Requests refused by chance.");
            describe_counter!(
                SHADOWED,
                "Requests that passed and would have been refused, in shadow mode."
            );
            let layer = || name.to_owned();
            let chance = gauge!(CHANCE, "layer" => layer());
            chance.set(0.0);
            Self {
                chance,
                refusals: counter!(REFUSALS, "layer" => layer()),
                shadowed: counter!(SHADOWED, "layer" => layer()),
            }
        }
    }

    impl fmt::Debug for Meters {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Meters").finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    #[derive(Debug, Default)]
    pub(crate) struct Meters(());

    impl Meters {
        pub(crate) fn register<'a>(&self, _: impl FnOnce() -> &'a str) {}

        pub(crate) fn set(&self, _: f64) {}

        pub(crate) fn refuse(&self) {}

        pub(crate) fn shadow(&self) {}
    }
}
