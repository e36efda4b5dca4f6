use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use palisade_core::{
    gate::{Admit, Gate},
    head::RequestHead,
    key::{ExtractKey, Key},
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use super::{KeyedHandle, table::Table};
use crate::{Call, Mode, Settings, common::Common, shared::Shared};

/// Rejects the requests of a key while its circuit is open, and lets those of others through.
///
/// Each key has a circuit of its own: a destination, a tenant, a model. There are 1024 at most; a newcomer takes the
/// place of one that is closed and was not asked for lately, and only if none is closed that of the open one that was
/// asked for the longest ago. A request without a key passes and is not counted. Clones share the circuits.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::{CircuitState, KeyedCircuitBreaker, Settings, destination};
/// use palisade_core::{classify::Verdict, gate::{Admit, Gate}, key::Key, settle::{End, Settle}, time::now};
///
/// let settings = Settings::consecutive(1, Duration::from_secs(10));
/// let breaker = KeyedCircuitBreaker::new(settings, destination()).capacity(100);
///
/// let request = http::Request::get("http://a.example/").body(())?;
/// let Admit::Now(Ok(mut call)) = breaker.admit(&(&request).into(), now()) else { panic!() };
/// call.settle(&End::new(Verdict::Failure), now());
///
/// let circuit = breaker.handle().circuit(&Key::from("a.example")).unwrap();
/// assert_eq!(circuit.snapshot().state, CircuitState::Open);
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone)]
pub struct KeyedCircuitBreaker {
    keyed: Arc<Keyed>,
}

pub(super) struct Keyed {
    key: Box<dyn ExtractKey>,
    table: RwLock<Table>,
    pub(super) common: Arc<Common>,
}

impl KeyedCircuitBreaker {
    /// Opens the circuit of a key when these settings say so.
    pub fn new(settings: Settings, key: impl ExtractKey) -> Self {
        let common = Arc::new(Common::new());
        let table = Table::new(settings, common.clone(), time::now());
        let keyed = Arc::new(Keyed {
            key: Box::new(key),
            table: RwLock::new(table),
            common,
        });
        Self { keyed }
    }

    /// Keeps the circuits of this many keys at most (1 to 65 536) instead of 1024.
    ///
    /// While all of them are open a newcomer has to look at each.
    #[must_use]
    pub fn capacity(self, keys: usize) -> Self {
        self.keyed.write().capacity = keys.clamp(1, 1 << 16);
        self
    }

    /// Forgets a circuit that was not asked for this long instead of 10 minutes, unless it still refuses: as others
    /// come, two are looked at for each.
    #[must_use]
    pub fn idle(self, time: Duration) -> Self {
        self.keyed.write().idle = time;
        self
    }

    /// Draws the jitter from this seed instead of another for each breaker.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.keyed.write().set_seed(seed);
        self
    }

    /// Counts requests that end so neither as good nor as bad:
    /// [`CircuitBreaker::ignore`](crate::CircuitBreaker::ignore).
    #[must_use]
    pub fn ignore(self, which: impl Fn(&End) -> bool + Send + Sync + 'static) -> Self {
        self.keyed.common.set_ignore(which);
        self
    }

    /// Refuses nothing, and counts what it would have refused.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.keyed.common.set_mode(Mode::Shadow);
        self
    }

    /// The label `layer` in metrics, instead of `circuit_breaker`. The first name stays.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.keyed.common.set_name(name.into());
        self
    }

    /// Looks at the circuits and steers them from outside.
    pub fn handle(&self) -> KeyedHandle {
        KeyedHandle::new(self.keyed.clone())
    }
}

impl Keyed {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        // Nothing of users runs while it is held, and each step leaves it whole.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn circuit(&self, key: &Key<'_>, now: Instant) -> Option<Arc<Shared>> {
        let known = self.read().ask(key, now).cloned();
        known.or_else(|| self.write().seat(key, now))
    }
}

impl Gate for KeyedCircuitBreaker {
    type Guard = KeyedCall;

    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<KeyedCall> {
        let key = self.keyed.key.key(head);
        let shared = key.and_then(|key| self.keyed.circuit(&key, now));
        let Some(shared) = shared else {
            return Admit::Now(Ok(KeyedCall(None)));
        };
        Admit::Now(match shared.admit(now) {
            Ok(admission) => Ok(KeyedCall(Some(Call::new(shared, admission, now)))),
            Err(open) => Err(Rejected::from(open)),
        })
    }
}

impl fmt::Debug for KeyedCircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle().fmt(f)
    }
}

/// An admitted request, which reports to the circuit of its key how it ends.
///
/// Dropped before it has, it gives its place among the probes back.
#[derive(Debug)]
pub struct KeyedCall(Option<Call>);

impl Settle for KeyedCall {
    #[inline]
    fn first_data(&mut self, now: Instant) {
        if let Some(call) = &mut self.0 {
            call.first_data(now);
        }
    }

    #[inline]
    fn settle(&mut self, end: &End, now: Instant) {
        if let Some(call) = &mut self.0 {
            call.settle(end, now);
        }
    }
}
