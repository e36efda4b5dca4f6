use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use palisade_core::{
    gate::{Admit, Gate},
    head::RequestHead,
    ratio::Ratio,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use super::{
    ThrottleHandle, ThrottleSettings,
    shared::{Shared, Stage},
};
use crate::Mode;

/// Rejects a share of the requests, the larger the fewer of them a service accepts: the soft variant of a breaker.
///
/// Of the last two minutes, with n requests of which `ok` were accepted, it refuses max(0, (n - 2 ok) / (n + 1)), up to
/// nine in ten: Google's client-side throttling ("Site Reliability Engineering", 2016, chapter 21). What it refuses is
/// one of the n, so that a service that works again is found step by step. Clones share what was counted.
///
/// ```
/// use palisade_circuit_breaker::Throttle;
/// use palisade_core::{classify::Verdict, gate::{Admit, Gate}, settle::{End, Settle}, time::now};
///
/// let throttle = Throttle::new();
/// let request = http::Request::new(());
/// for _ in 0..10 {
///     let Admit::Now(Ok(mut call)) = throttle.admit(&(&request).into(), now()) else { panic!() };
///     call.settle(&End::new(Verdict::Failure), now());
/// }
/// assert_eq!(throttle.handle().snapshot().chance, 0.9);
/// ```
#[derive(Clone, Debug)]
pub struct Throttle {
    shared: Arc<Shared>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

impl Throttle {
    /// Refuses when fewer than half of the requests of two minutes were accepted, of ten at least.
    pub fn new() -> Self {
        let seed = RandomState::new().hash_one(time::now());
        let shared = Arc::new(Shared::new(seed));
        Self { shared }
    }

    /// Refuses as these settings say.
    #[must_use]
    pub fn with(self, settings: ThrottleSettings) -> Self {
        self.handle().update(settings);
        self
    }

    /// Lets so many requests (1 to 1000) for each that is accepted pass instead of 2: fewer spare the service more, and
    /// find out later that it takes more.
    #[must_use]
    pub fn multiplier(self, multiplier: f64) -> Self {
        self.set(|settings| settings.multiplier = multiplier)
    }

    /// Remembers a request for this long (12 ms to a year) instead of 2 minutes.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        self.set(|settings| settings.window = window)
    }

    /// Refuses this share at most instead of nine in ten.
    #[must_use]
    pub fn most(self, share: Ratio) -> Self {
        self.set(|settings| settings.most = share)
    }

    /// Refuses nothing before it remembers this many requests instead of 10.
    #[must_use]
    pub fn minimum_calls(self, calls: u32) -> Self {
        self.set(|settings| settings.minimum_calls = calls)
    }

    /// Takes a caller that leaves before any data and after this long, instead of 5 s, for one that was not answered.
    #[must_use]
    pub fn slow_after(self, after: Duration) -> Self {
        self.set(|settings| settings.slow_after = after)
    }

    /// Draws from this seed instead of another for each throttle.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.shared.seed(seed);
        self
    }

    /// Refuses nothing, and counts what it would have refused.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.shared.set_mode(Mode::Shadow);
        self
    }

    /// The label `layer` in metrics, instead of `throttle`. The first name stays; it has no effect on metrics once a
    /// request has come.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.shared.set_name(name.into());
        self
    }

    /// Looks at the throttle and steers it from outside.
    pub fn handle(&self) -> ThrottleHandle {
        ThrottleHandle::new(self.shared.clone())
    }

    fn set(self, set: impl FnOnce(&mut ThrottleSettings)) -> Self {
        let mut settings = self.handle().settings();
        set(&mut settings);
        self.with(settings)
    }
}

impl Gate for Throttle {
    type Guard = ThrottledCall;

    #[inline]
    fn admit(&self, _: &RequestHead<'_>, now: Instant) -> Admit<ThrottledCall> {
        Admit::Now(match self.shared.admit(now) {
            Ok(stage) => Ok(ThrottledCall {
                shared: self.shared.clone(),
                stage,
                sent: now,
            }),
            Err(throttled) => Err(Rejected::from(throttled)),
        })
    }
}

/// A request that was let through, which reports to the throttle whether it was accepted.
#[derive(Debug)]
pub struct ThrottledCall {
    shared: Arc<Shared>,
    stage: Stage,
    sent: Instant,
}

impl Settle for ThrottledCall {
    fn first_data(&mut self, now: Instant) {
        self.shared.first_data(&mut self.stage, self.sent, now);
    }

    fn settle(&mut self, end: &End, now: Instant) {
        self.shared.settle(&mut self.stage, end, self.sent, now);
    }
}
