use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
    ratio::Ratio,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{Handle, Mode, Settings, Window, circuit::Admission, common::Common, shared::Shared};

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
    /// Opens when these settings say so.
    pub fn new(settings: Settings) -> Self {
        let origin = time::now();
        let seed = RandomState::new().hash_one(origin);
        let common = Arc::new(Common::new());
        let shared = Arc::new(Shared::new(settings, seed, common, origin));
        Self { shared }
    }

    /// Opens after `failures` in a row (at least 1) and lets a probe through after `cooldown`.
    pub fn consecutive(failures: u32, cooldown: Duration) -> Self {
        Self::new(Settings::consecutive(failures, cooldown))
    }

    /// Opens when `share` of the last `calls` (1 to 1 048 576) have failed and lets a probe through after `cooldown`.
    ///
    /// Says nothing before the tenth call, or before the last if the window is smaller:
    /// [`minimum_calls`](Self::minimum_calls).
    pub fn window(share: Ratio, calls: u32, cooldown: Duration) -> Self {
        Self::new(Settings::window(share, Window::Calls(calls), cooldown))
    }

    /// Opens when `share` of the calls that have ended within `span` (10 ms to a year) have failed and lets a probe
    /// through after `cooldown`.
    ///
    /// Exact to a tenth of the span, of which one more is counted. Says nothing before the tenth call:
    /// [`minimum_calls`](Self::minimum_calls).
    pub fn time_window(share: Ratio, span: Duration, cooldown: Duration) -> Self {
        Self::new(Settings::window(share, Window::Time(span), cooldown))
    }

    /// Opens also after so many failures in a row.
    #[must_use]
    pub fn or_consecutive(self, failures: u32) -> Self {
        self.set(|settings| settings.consecutive = Some(failures))
    }

    /// Opens also after so many failures in the window, whatever their share.
    #[must_use]
    pub fn or_failures(self, failures: u32) -> Self {
        self.set(|settings| settings.failures = Some(failures))
    }

    /// Opens also when `share` of the calls in the window were slow: `after` without their first data, or without
    /// their end if they have no data. A probe that is slow fails.
    ///
    /// Without a window, that of the last 100 calls. A slow call that works is no failure besides.
    #[must_use]
    pub fn slow_calls(self, share: Ratio, after: Duration) -> Self {
        self.set(|settings| {
            settings.slow_share = Some(share);
            settings.slow_after = after;
        })
    }

    /// Takes a call for slow after this long instead of 5 s: a caller that leaves before the first data and after it
    /// counts as a failure.
    ///
    /// Set below what callers wait for: of a service that accepts and never answers nothing else is ever heard.
    #[must_use]
    pub fn slow_after(self, after: Duration) -> Self {
        self.set(|settings| settings.slow_after = after)
    }

    /// As [`slow_after`](Self::slow_after), half of the time that an attempt is given by a layer further in.
    #[must_use]
    pub fn attempt_timeout(self, timeout: Duration) -> Self {
        self.slow_after(timeout / 2)
    }

    /// Closes after this many probes have passed instead of one.
    ///
    /// One is sent first; each that passes makes room for two more, so that two, four, eight are out at once, and
    /// never more than are still needed. What is out when the circuit becomes half-open keeps the old number.
    #[must_use]
    pub fn probes(self, probes: u32) -> Self {
        self.set(|settings| settings.probes = probes)
    }

    /// Closes when this share of the [`probes`](Self::probes) have passed instead of all, and opens again when too many
    /// have failed for that.
    #[must_use]
    pub fn passing(self, share: Ratio) -> Self {
        self.set(|settings| settings.passing = Some(share))
    }

    /// Gives up a probe after this long instead of 10 s (1 ms to a year), so that another may go.
    ///
    /// The time doubles with every probe given up, up to 32 times of it, until the circuit opens or closes: a service
    /// whose first data take longer is found to work all the same, only later.
    #[must_use]
    pub fn probe_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.probe_timeout = timeout)
    }

    /// Stays half-open this long at most (1 ms to a year) instead of until the probes have decided.
    ///
    /// With the next request after that it closes if those that have ended are good enough, and opens again if they are
    /// not or none has.
    #[must_use]
    pub fn longest_half_open(self, longest: Duration) -> Self {
        self.set(|settings| settings.longest_half_open = Some(longest))
    }

    /// Stays open this long at most instead of 60 s, or instead of the cool-down if that is longer.
    ///
    /// The cool-down doubles up to this with every probe that fails. It bounds the time before
    /// [`jitter`](Self::jitter), and not the time that a service asks for in `Retry-After`, which is taken as it is up
    /// to 10 minutes.
    #[must_use]
    pub fn longest_cooldown(self, longest: Duration) -> Self {
        self.set(|settings| settings.longest_cooldown = longest)
    }

    /// Makes each cool-down longer or shorter by up to this share of it, at random, instead of by a fifth; `None`
    /// keeps it exact.
    #[must_use]
    pub fn jitter(self, share: impl Into<Option<Ratio>>) -> Self {
        let share = share.into();
        self.set(|settings| settings.jitter = share)
    }

    /// Draws the [`jitter`](Self::jitter) from this seed instead of another for each circuit.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.shared.configure(|circuit| circuit.seed(seed));
        self
    }

    /// Opens for no share before its window has seen this many calls instead of 10; nothing to
    /// [`consecutive`](Self::consecutive).
    #[must_use]
    pub fn minimum_calls(self, calls: u32) -> Self {
        self.set(|settings| settings.minimum_calls = calls)
    }

    /// Counts requests that end so neither as good nor as bad; a probe makes room for another. The first stays.
    ///
    /// Asked at the end of a request that would count, before anything is changed, and not while a panic unwinds.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use palisade_circuit_breaker::CircuitBreaker;
    /// use palisade_core::classify::Verdict;
    ///
    /// let breaker = CircuitBreaker::consecutive(5, Duration::from_secs(10))
    ///     .ignore(|end| matches!(end.verdict, Verdict::Unsent | Verdict::Overload { .. }));
    /// # let _ = breaker;
    /// ```
    #[must_use]
    pub fn ignore(self, which: impl Fn(&End) -> bool + Send + Sync + 'static) -> Self {
        self.shared.common().set_ignore(which);
        self
    }

    /// Refuses nothing, and counts what it would have refused: to try a breaker on live traffic.
    ///
    /// [`Handle::set_mode`] changes that at any time.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.shared.common().set_mode(Mode::Shadow);
        self
    }

    /// The label `layer` in metrics, instead of `circuit_breaker`. The first name stays; it has no effect on metrics
    /// once the circuit has been used.
    ///
    /// Circuits of one name are counted together: give each its own to tell them apart.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.shared.common().set_name(name.into());
        self
    }

    /// Looks at the circuit and steers it from outside.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn set(self, set: impl FnOnce(&mut Settings)) -> Self {
        self.shared.configure(|circuit| {
            let mut settings = circuit.settings().clone();
            set(&mut settings);
            circuit.update(settings, time::now());
        });
        self
    }
}

impl Gate for CircuitBreaker {
    type Guard = Call;

    #[inline]
    fn admit(&self, _: &RequestHead<'_>, now: Instant) -> Admit<Call> {
        Admit::Now(match self.shared.admit(now) {
            Ok(admission) => Ok(Call::new(self.shared.clone(), admission, now)),
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

impl Call {
    #[inline]
    pub(crate) fn new(shared: Arc<Shared>, admission: Admission, since: Instant) -> Self {
        Self {
            shared,
            admission,
            since,
        }
    }
}

impl Settle for Call {
    #[inline]
    fn first_data(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        self.shared.first_data(&mut self.admission, age, now);
    }

    #[inline]
    fn settle_untimed(&mut self, verdict: Verdict) -> bool {
        self.shared.settle_quietly(&mut self.admission, verdict)
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

impl From<Settings> for CircuitBreaker {
    fn from(settings: Settings) -> Self {
        Self::new(settings)
    }
}
