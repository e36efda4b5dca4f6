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
    const SHADOWED: &str = "palisade_circuit_breaker_shadowed_total";
    const EVICTIONS: &str = "palisade_circuit_breaker_evictions_total";

    /// Registered once, when a circuit is first used: a recorder may be installed after layers were made.
    #[derive(Default)]
    pub(crate) struct Meters(OnceLock<Registered>);

    struct Registered {
        states: [Gauge; 3],
        transitions: [Counter; 3],
        refusals: Counter,
        shadowed: Counter,
        evictions: Counter,
    }

    impl Meters {
        pub(crate) fn register<'a>(&self, name: impl FnOnce() -> &'a str) {
            self.0.get_or_init(|| Registered::new(name()));
        }

        pub(crate) fn join(&self, state: CircuitState) {
            if let Some(registered) = self.0.get() {
                registered.states[state as usize].increment(1.0);
            }
        }

        pub(crate) fn leave(&self, state: CircuitState) {
            if let Some(registered) = self.0.get() {
                registered.states[state as usize].decrement(1.0);
            }
        }

        pub(crate) fn evict(&self) {
            if let Some(registered) = self.0.get() {
                registered.evictions.increment(1);
            }
        }

        pub(crate) fn enter(&self, before: CircuitState, after: CircuitState) {
            if before != after
                && let Some(registered) = self.0.get()
            {
                registered.states[before as usize].decrement(1.0);
                registered.states[after as usize].increment(1.0);
                registered.transitions[after as usize].increment(1);
            }
        }

        #[inline]
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
            describe_gauge!(STATE, "Circuits that are in the state.");
            describe_counter!(TRANSITIONS, "Times that a circuit has entered the state.");
            describe_counter!(
                REFUSALS,
                "Requests refused because the circuit was not closed."
            );
            describe_counter!(
                SHADOWED,
                "Requests that passed and would have been refused, in shadow mode."
            );
            describe_counter!(EVICTIONS, "Circuits of keys that were forgotten.");
            let layer = || name.to_owned();
            Self {
                states: CircuitState::ALL
                    .map(|each| gauge!(STATE, "layer" => layer(), "state" => each.name())),
                transitions: CircuitState::ALL
                    .map(|each| counter!(TRANSITIONS, "layer" => layer(), "state" => each.name())),
                refusals: counter!(REFUSALS, "layer" => layer()),
                shadowed: counter!(SHADOWED, "layer" => layer()),
                evictions: counter!(EVICTIONS, "layer" => layer()),
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
        pub(crate) fn register<'a>(&self, _: impl FnOnce() -> &'a str) {}

        pub(crate) fn join(&self, _: CircuitState) {}

        pub(crate) fn leave(&self, _: CircuitState) {}

        pub(crate) fn evict(&self) {}

        pub(crate) fn enter(&self, _: CircuitState, _: CircuitState) {}

        pub(crate) fn refuse(&self) {}

        pub(crate) fn shadow(&self) {}
    }
}
