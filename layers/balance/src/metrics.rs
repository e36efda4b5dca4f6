//! Metrics of one endpoint. Nothing without the feature `metrics`.

#[cfg(feature = "metrics")]
pub(crate) use self::on::{Meters, SetMeters};

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{Meters, SetMeters};

#[cfg(feature = "metrics")]
mod on {
    use std::sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    };

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
    use palisade_core::classify::Verdict;

    use crate::{EjectionReason, EndpointState};

    const IN_FLIGHT: &str = "palisade_balance_in_flight";
    const ATTEMPTS: &str = "palisade_balance_attempts_total";
    const EJECTIONS: &str = "palisade_balance_ejections_total";
    const SHADOWED: &str = "palisade_balance_shadowed_ejections_total";
    const PANIC: &str = "palisade_balance_panic";
    const STATE: &str = "palisade_balance_endpoint_state";

    /// Those of the set itself: what gates do is theirs to count.
    const REASONS: [EjectionReason; 4] = [
        EjectionReason::Consecutive,
        EjectionReason::SuccessRatio,
        EjectionReason::Overload,
        EjectionReason::ProbeFailed,
    ];

    /// Names as [`Verdict::name`] says them.
    const VERDICTS: [&str; 8] = [
        "success",
        "failure",
        "overload",
        "caller_fault",
        "timed_out",
        "unsent",
        "refused",
        "canceled",
    ];

    /// Of the whole set. Registered with the first endpoint, by whose recorder it is.
    pub(crate) struct SetMeters {
        layer: Arc<str>,
        panic: OnceLock<Gauge>,
        panics: AtomicBool,
    }

    impl SetMeters {
        pub(crate) fn new(layer: Arc<str>) -> Self {
            Self {
                layer,
                panic: OnceLock::new(),
                panics: AtomicBool::new(false),
            }
        }

        pub(crate) fn layer(&self) -> &Arc<str> {
            &self.layer
        }

        pub(crate) fn register(&self) {
            self.panic.get_or_init(|| {
                describe();
                let panic = gauge!(PANIC, "layer" => self.layer.clone());
                panic.set(0.0);
                panic
            });
        }

        /// Called under the lock of the set, so that the last one stands.
        #[inline]
        pub(crate) fn panics(&self, panics: bool) {
            if self.panics.load(Relaxed) == panics {
                return;
            }
            self.panics.store(panics, Relaxed);
            if let Some(panic) = self.panic.get() {
                panic.set(f64::from(u8::from(panics)));
            }
        }
    }

    /// Registered when the endpoint is inserted, so that a request only adds to them.
    pub(crate) struct Meters {
        in_flight: Gauge,
        attempts: [Counter; VERDICTS.len()],
        ejections: [Counter; REASONS.len()],
        shadowed: [Counter; REASONS.len()],
        states: [Gauge; EndpointState::ALL.len()],
        /// Which of them is 1.
        state: AtomicUsize,
    }

    impl Meters {
        pub(crate) const ON: bool = true;

        pub(crate) fn new(layer: &Arc<str>, endpoint: &Arc<str>) -> Self {
            let labels = [("layer", layer.clone()), ("endpoint", endpoint.clone())];
            let reasons = |name| {
                REASONS.map(|reason| {
                    let (layer, endpoint) = (layer.clone(), endpoint.clone());
                    counter!(name, "layer" => layer, "endpoint" => endpoint, "reason" => reason.name())
                })
            };
            Self {
                in_flight: gauge!(IN_FLIGHT, &labels),
                attempts: VERDICTS.map(|verdict| {
                    let (layer, endpoint) = (layer.clone(), endpoint.clone());
                    counter!(ATTEMPTS, "layer" => layer, "endpoint" => endpoint, "verdict" => verdict)
                }),
                ejections: reasons(EJECTIONS),
                shadowed: reasons(SHADOWED),
                states: EndpointState::ALL.map(|state| {
                    let (layer, endpoint) = (layer.clone(), endpoint.clone());
                    gauge!(STATE, "layer" => layer, "endpoint" => endpoint, "state" => state.name())
                }),
                state: AtomicUsize::new(usize::MAX),
            }
        }

        pub(crate) fn started(&self) {
            self.in_flight.increment(1.0);
        }

        pub(crate) fn ended(&self) {
            self.in_flight.decrement(1.0);
        }

        pub(crate) fn attempt(&self, verdict: Verdict) {
            let name = verdict.name();
            let mut all = VERDICTS.iter().zip(&self.attempts);
            if let Some((_, counter)) = all.find(|(verdict, _)| **verdict == name) {
                counter.increment(1);
            }
        }

        pub(crate) fn ejected(&self, reason: EjectionReason, shadow: bool) {
            let counters = if shadow {
                &self.shadowed
            } else {
                &self.ejections
            };
            let mut all = REASONS.iter().zip(counters);
            if let Some((_, counter)) = all.find(|(other, _)| **other == reason) {
                counter.increment(1);
            }
        }

        /// Called under the lock of the set, so that the last one stands.
        pub(crate) fn state(&self, state: EndpointState) {
            let at = EndpointState::ALL.iter().position(|other| *other == state);
            let at = at.unwrap_or(usize::MAX);
            if self.state.swap(at, Relaxed) == at {
                return;
            }
            for (other, gauge) in self.states.iter().enumerate() {
                gauge.set(f64::from(u8::from(other == at)));
            }
        }

        pub(crate) fn gone(&self) {
            for gauge in &self.states {
                gauge.set(0.0);
            }
        }
    }

    fn describe() {
        describe_gauge!(
            IN_FLIGHT,
            "Attempts at the endpoint before the end of their answer."
        );
        describe_counter!(ATTEMPTS, "Attempts that have ended, by how.");
        describe_counter!(EJECTIONS, "Times that the endpoint was ejected, and why.");
        describe_counter!(
            SHADOWED,
            "Times that the endpoint would have been ejected, in shadow mode, and why."
        );
        describe_gauge!(
            PANIC,
            "1 while so few endpoints are left that all are picked."
        );
        describe_gauge!(STATE, "1 for the state that the endpoint is in.");
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::sync::Arc;

    use palisade_core::classify::Verdict;

    use crate::{EjectionReason, EndpointState};

    pub(crate) struct SetMeters(Arc<str>);

    impl SetMeters {
        pub(crate) fn new(layer: Arc<str>) -> Self {
            Self(layer)
        }

        pub(crate) fn layer(&self) -> &Arc<str> {
            &self.0
        }

        pub(crate) fn register(&self) {}

        pub(crate) fn panics(&self, _: bool) {}
    }

    pub(crate) struct Meters;

    impl Meters {
        pub(crate) const ON: bool = false;

        pub(crate) fn new(_: &Arc<str>, _: &Arc<str>) -> Self {
            Self
        }

        pub(crate) fn started(&self) {}

        pub(crate) fn ended(&self) {}

        pub(crate) fn attempt(&self, _: Verdict) {}

        pub(crate) fn ejected(&self, _: EjectionReason, _: bool) {}

        pub(crate) fn state(&self, _: EndpointState) {}

        pub(crate) fn gone(&self) {}
    }
}
