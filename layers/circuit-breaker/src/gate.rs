use std::{borrow::Cow, sync::Arc, time::Duration};

use palisade_core::{
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
    ratio::Ratio,
    reject::Rejected,
    settle::{End, Settle},
};
use tokio::time::Instant;

use crate::{Handle, circuit::Admission, shared::Shared, tally::Tally};

/// Rejects requests while its circuit is open.
///
/// A [`Gate`]: a balancer asks one per endpoint, [`gates`](palisade_core::gate::gates) puts it together with others,
/// and [`CircuitBreakerLayer`](crate::CircuitBreakerLayer) puts it in front of a service. Clones share one circuit,
/// so each endpoint gets its own from a function, not a clone of one value.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::CircuitBreaker;
/// use palisade_core::{gate::{Gate, Outlook}, time::now};
///
/// let breaker = CircuitBreaker::consecutive(5, Duration::from_secs(10)).probes(3);
/// assert_eq!(breaker.outlook(now()), Outlook::Admits);
/// breaker.handle().force_open();
/// assert_eq!(breaker.outlook(now()), Outlook::Held);
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

impl CircuitBreaker {
    /// Opens after `failures` in a row (at least 1) and lets a probe through after `cooldown`.
    pub fn consecutive(failures: u32, cooldown: Duration) -> Self {
        Self::new(Tally::row(failures), cooldown)
    }

    /// Opens when `share` of the last `calls` (1 to 1 048 576) have failed and lets a probe through after `cooldown`.
    ///
    /// Says nothing before the tenth call, or before the last if the window is smaller:
    /// [`minimum_calls`](Self::minimum_calls).
    pub fn window(share: Ratio, calls: u32, cooldown: Duration) -> Self {
        Self::new(Tally::window(share, calls), cooldown)
    }

    fn new(tally: Tally, cooldown: Duration) -> Self {
        let shared = Arc::new(Shared::new(tally, cooldown));
        Self { shared }
    }

    /// Closes after this many probes have passed instead of one.
    ///
    /// One is sent first; each that passes makes room for two more, so that two, four, eight are out at once, and
    /// never more than are still needed. What is out when the circuit becomes half-open keeps the old number.
    #[must_use]
    pub fn probes(self, probes: u32) -> Self {
        self.configured(|shared| shared.configure(|circuit| circuit.probes = probes.max(1)))
    }

    /// Gives up a probe after this long instead of 10 s (1 ms to a year), so that another may go.
    ///
    /// The time doubles with every probe given up, up to 32 times of it, until the circuit opens or closes: a service
    /// whose first data take longer is found to work all the same, only later.
    #[must_use]
    pub fn probe_timeout(self, timeout: Duration) -> Self {
        self.configured(|shared| shared.configure(|circuit| circuit.patience = timeout))
    }

    /// Stays open this long at most instead of 60 s, or instead of the cool-down if that is longer.
    ///
    /// The cool-down doubles up to this with every probe that fails. It bounds the time before
    /// [`jitter`](Self::jitter), and not the time that a service asks for in `Retry-After`, which is taken as it is up
    /// to 10 minutes.
    #[must_use]
    pub fn longest_cooldown(self, longest: Duration) -> Self {
        self.configured(|shared| shared.configure(|circuit| circuit.cooldown.set_longest(longest)))
    }

    /// Makes each cool-down longer or shorter by up to this share of it, at random, instead of by a fifth; `None`
    /// keeps it exact.
    #[must_use]
    pub fn jitter(self, share: impl Into<Option<Ratio>>) -> Self {
        let share = share.into();
        self.configured(|shared| shared.configure(|circuit| circuit.cooldown.set_jitter(share)))
    }

    /// Opens no [`window`](Self::window) before it has seen this many calls instead of 10; nothing to
    /// [`consecutive`](Self::consecutive).
    #[must_use]
    pub fn minimum_calls(self, calls: u32) -> Self {
        self.configured(|shared| shared.configure(|circuit| circuit.tally.set_minimum(calls)))
    }

    /// The label `layer` in metrics, instead of `circuit_breaker`. The first name stays; it has no effect on metrics
    /// once the circuit has been used.
    ///
    /// Two circuits of one name write the same gauges, so give each its own.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.configured(|shared| shared.set_name(name.into()))
    }

    /// Looks at the circuit and steers it from outside.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn configured(self, set: impl FnOnce(&Shared)) -> Self {
        set(&self.shared);
        self
    }
}

impl Gate for CircuitBreaker {
    type Guard = Call;

    #[inline]
    fn admit(&self, _: &RequestHead<'_>, now: Instant) -> Admit<Call> {
        Admit::Now(match self.shared.admit(now) {
            Ok(admission) => Ok(Call {
                shared: self.shared.clone(),
                admission,
                since: now,
            }),
            Err(open) => Err(Rejected::from(open)),
        })
    }

    /// Takes no lock.
    #[inline]
    fn outlook(&self, now: Instant) -> Outlook {
        self.shared.outlook(now)
    }
}

/// An admitted request, which reports to the circuit how it ends.
///
/// Dropped before it has, it gives its place among the probes back.
#[derive(Debug)]
pub struct Call {
    shared: Arc<Shared>,
    admission: Admission,
    since: Instant,
}

impl Settle for Call {
    #[inline]
    fn first_data(&mut self, _: Instant) {
        self.shared.first_data(&mut self.admission);
    }

    #[inline]
    fn settle(&mut self, end: &End, now: Instant) {
        // Without the time that gates before this one took: a queue is not the service's slowness.
        let age = end.age.min(now.saturating_duration_since(self.since));
        self.shared
            .settle(&mut self.admission, &End { age, ..*end }, now);
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        self.shared.give_back(&mut self.admission);
    }
}
