use std::{borrow::Cow, time::Duration};

use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
    ratio::Ratio,
    settle::End,
};
use tower_layer::Layer;

use crate::{CircuitBreaker, Handle};

/// Puts a [`CircuitBreaker`] in front of a service.
///
/// A layer and its clones share one circuit, also when axum applies the layer to many routes.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::CircuitBreakerLayer;
/// use palisade_core::{classify::Grpc, ratio::Ratio};
///
/// let layer = CircuitBreakerLayer::window(Ratio::new(0.5)?, 100, Duration::from_secs(10))
///     .minimum_calls(20)
///     .probes(3)
///     .classify(Grpc)
///     .named("inference");
/// assert_eq!(layer.handle().name(), "inference");
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = Http> {
    breaker: CircuitBreaker,
    classify: C,
}

impl CircuitBreakerLayer {
    /// Opens after `failures` in a row: [`CircuitBreaker::consecutive`].
    pub fn consecutive(failures: u32, cooldown: Duration) -> Self {
        Self::new(CircuitBreaker::consecutive(failures, cooldown))
    }

    /// Opens when `share` of the last `calls` have failed: [`CircuitBreaker::window`].
    pub fn window(share: Ratio, calls: u32, cooldown: Duration) -> Self {
        Self::new(CircuitBreaker::window(share, calls, cooldown))
    }

    /// Opens when `share` of the calls that have ended within `span` have failed: [`CircuitBreaker::time_window`].
    pub fn time_window(share: Ratio, span: Duration, cooldown: Duration) -> Self {
        Self::new(CircuitBreaker::time_window(share, span, cooldown))
    }

    /// Opens when this breaker does, or one with these settings.
    pub fn new(breaker: impl Into<CircuitBreaker>) -> Self {
        Self {
            breaker: breaker.into(),
            classify: Http,
        }
    }
}

impl<C> CircuitBreakerLayer<C> {
    /// Opens also after so many failures in a row: [`CircuitBreaker::or_consecutive`].
    #[must_use]
    pub fn or_consecutive(self, failures: u32) -> Self {
        self.with(|breaker| breaker.or_consecutive(failures))
    }

    /// Opens also after so many failures in the window: [`CircuitBreaker::or_failures`].
    #[must_use]
    pub fn or_failures(self, failures: u32) -> Self {
        self.with(|breaker| breaker.or_failures(failures))
    }

    /// Opens also when too many calls are slow: [`CircuitBreaker::slow_calls`].
    #[must_use]
    pub fn slow_calls(self, share: Ratio, after: Duration) -> Self {
        self.with(|breaker| breaker.slow_calls(share, after))
    }

    /// Takes a call for slow after this long: [`CircuitBreaker::slow_after`].
    #[must_use]
    pub fn slow_after(self, after: Duration) -> Self {
        self.with(|breaker| breaker.slow_after(after))
    }

    /// Takes a call for slow after half of this: [`CircuitBreaker::attempt_timeout`].
    #[must_use]
    pub fn attempt_timeout(self, timeout: Duration) -> Self {
        self.with(|breaker| breaker.attempt_timeout(timeout))
    }

    /// Closes when this share of the probes have passed: [`CircuitBreaker::passing`].
    #[must_use]
    pub fn passing(self, share: Ratio) -> Self {
        self.with(|breaker| breaker.passing(share))
    }

    /// Stays half-open this long at most: [`CircuitBreaker::longest_half_open`].
    #[must_use]
    pub fn longest_half_open(self, longest: Duration) -> Self {
        self.with(|breaker| breaker.longest_half_open(longest))
    }

    /// Draws the jitter from this seed: [`CircuitBreaker::seed`].
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.with(|breaker| breaker.seed(seed))
    }

    /// Counts requests that end so neither as good nor as bad: [`CircuitBreaker::ignore`].
    #[must_use]
    pub fn ignore(self, which: impl Fn(&End) -> bool + Send + Sync + 'static) -> Self {
        self.with(|breaker| breaker.ignore(which))
    }

    /// Refuses nothing, and counts what it would have refused: [`CircuitBreaker::shadow`].
    #[must_use]
    pub fn shadow(self) -> Self {
        self.with(CircuitBreaker::shadow)
    }

    /// Closes after this many probes: [`CircuitBreaker::probes`].
    #[must_use]
    pub fn probes(self, probes: u32) -> Self {
        self.with(|breaker| breaker.probes(probes))
    }

    /// Gives up a probe after this long: [`CircuitBreaker::probe_timeout`].
    #[must_use]
    pub fn probe_timeout(self, timeout: Duration) -> Self {
        self.with(|breaker| breaker.probe_timeout(timeout))
    }

    /// Stays open this long at most: [`CircuitBreaker::longest_cooldown`].
    #[must_use]
    pub fn longest_cooldown(self, longest: Duration) -> Self {
        self.with(|breaker| breaker.longest_cooldown(longest))
    }

    /// Makes each cool-down longer or shorter at random: [`CircuitBreaker::jitter`].
    #[must_use]
    pub fn jitter(self, share: impl Into<Option<Ratio>>) -> Self {
        self.with(|breaker| breaker.jitter(share))
    }

    /// Opens no window before it has seen this many calls: [`CircuitBreaker::minimum_calls`].
    #[must_use]
    pub fn minimum_calls(self, calls: u32) -> Self {
        self.with(|breaker| breaker.minimum_calls(calls))
    }

    /// The label `layer` in metrics: [`CircuitBreaker::named`].
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.with(|breaker| breaker.named(name))
    }

    /// Judges how requests end with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> CircuitBreakerLayer<D> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify,
        }
    }

    /// Looks at the circuit and steers it from outside.
    pub fn handle(&self) -> Handle {
        self.breaker.handle()
    }

    /// The breaker itself, which a clone shares: to put it together with other gates.
    pub fn gate(&self) -> &CircuitBreaker {
        &self.breaker
    }

    fn with(self, set: impl FnOnce(CircuitBreaker) -> CircuitBreaker) -> Self {
        Self {
            breaker: set(self.breaker),
            classify: self.classify,
        }
    }
}

impl<S, C: Classify> Layer<S> for CircuitBreakerLayer<C> {
    type Service = Gated<S, CircuitBreaker, C>;

    fn layer(&self, inner: S) -> Self::Service {
        GateLayer::new(self.breaker.clone())
            .classify(self.classify.clone())
            .layer(inner)
    }
}
