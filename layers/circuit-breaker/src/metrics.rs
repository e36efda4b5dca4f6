//! What is counted for the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::Meters;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Meters;

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::OnceLock};

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

    use crate::CircuitState;

    const STATE: &str = "palisade_circuit_breaker_state";
    const TRANSITIONS: &str = "palisade_circuit_breaker_transitions_total";
    const REFUSALS: &str = "palisade_circuit_breaker_refusals_total";

    /// Registered once, when the circuit is first used: a recorder may be installed after layers were made.
    #[derive(Default)]
    pub(crate) struct Meters(OnceLock<Registered>);

    struct Registered {
        states: [Gauge; 3],
        transitions: [Counter; 3],
        refusals: Counter,
    }

    impl Meters {
        #[inline]
        pub(crate) fn are_registered(&self) -> bool {
            self.0.get().is_some()
        }

        pub(crate) fn register<'a>(&self, name: impl FnOnce() -> &'a str, state: CircuitState) {
            self.0.get_or_init(|| Registered::new(name(), state));
        }

        pub(crate) fn enter(&self, before: CircuitState, after: CircuitState) {
            if before != after
                && let Some(registered) = self.0.get()
            {
                registered.states[before as usize].set(0.0);
                registered.states[after as usize].set(1.0);
                registered.transitions[after as usize].increment(1);
            }
        }

        #[inline]
        pub(crate) fn refuse(&self) {
            if let Some(registered) = self.0.get() {
                registered.refusals.increment(1);
            }
        }
    }

    impl Registered {
        fn new(name: &str, state: CircuitState) -> Self {
            describe_gauge!(
                STATE,
                "1 for the state that the circuit is in, 0 for the two others."
            );
            describe_counter!(TRANSITIONS, "Times that the circuit has entered the state.");
            describe_counter!(
                REFUSALS,
                "Requests refused because the circuit was not closed."
            );
            let layer = || name.to_owned();
            let states = CircuitState::ALL.map(|each| {
                let gauge = gauge!(STATE, "layer" => layer(), "state" => each.name());
                gauge.set(f64::from(u8::from(each == state)));
                gauge
            });
            Self {
                states,
                transitions: CircuitState::ALL
                    .map(|each| counter!(TRANSITIONS, "layer" => layer(), "state" => each.name())),
                refusals: counter!(REFUSALS, "layer" => layer()),
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
    use crate::CircuitState;

    #[derive(Debug, Default)]
    pub(crate) struct Meters(());

    impl Meters {
        pub(crate) fn are_registered(&self) -> bool {
            true
        }

        pub(crate) fn register<'a>(&self, _: impl FnOnce() -> &'a str, _: CircuitState) {}

        pub(crate) fn enter(&self, _: CircuitState, _: CircuitState) {}

        pub(crate) fn refuse(&self) {}
    }
}
