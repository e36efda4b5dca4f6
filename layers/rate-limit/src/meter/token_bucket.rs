//! Refills evenly and saves up a burst: the generic cell rate algorithm of `governor`.

use std::{
    cell::Cell,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    RateLimiter, clock::Clock, middleware::NoOpMiddleware, nanos::Nanos, state::StateStore,
};

use super::{Count, Full, Standing};
use crate::quota::Quota;

/// `governor` decides; the count belongs to whoever asks.
///
/// Its clock stands still at zero and its store is the key that it is handed, which holds how far the bucket is from
/// full. So one decider serves all keys, on a copy of their state, at any time that the caller names.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    decider: RateLimiter<UntilFull, InKey, Zero, NoOpMiddleware<Nanos>>,
    /// Nanoseconds that one token takes to come back.
    interval: u64,
    burst: u32,
}

impl TokenBucket {
    /// `None` if the burst is out of reach.
    pub(super) fn new(limit: u64, window: u64, burst: u64) -> Option<Self> {
        if burst > Self::most(limit, window) {
            return None;
        }
        let burst = NonZeroU32::new(u32::try_from(burst).ok()?)?;
        let interval = interval(limit, window);
        let quota = governor::Quota::with_period(Duration::from_nanos(interval))?;
        Some(Self {
            decider: RateLimiter::new(quota.allow_burst(burst), InKey, Zero),
            interval,
            burst: burst.get(),
        })
    }

    /// The largest burst; beyond [`Quota::LONGEST`] other stores could not follow.
    pub(super) fn most(limit: u64, window: u64) -> u64 {
        let longest = Quota::LONGEST.as_nanos() as u64;
        (longest / interval(limit, window)).min(u32::MAX.into())
    }

    #[inline]
    pub(super) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Count, Full> {
        // Not left to `governor`, which multiplies before it compares: far above the burst that overflows.
        let cost = u32::try_from(cost).ok().filter(|&cost| cost <= self.burst);
        let Some(cost) = cost else {
            return Err(Full::Forever);
        };
        let Some(cost) = NonZeroU32::new(cost) else {
            return Ok(*count);
        };
        let until_full = UntilFull(Cell::new(count.at.saturating_sub(now)));
        match self.decider.check_key_n(&until_full, cost) {
            Ok(Ok(())) => Ok(Count {
                at: now + until_full.0.get(),
                ..Count::default()
            }),
            Ok(Err(wait)) => {
                let wait = wait.wait_time_from(Nanos::default());
                Err(Full::For(wait.as_nanos() as u64))
            }
            Err(_) => Err(Full::Forever),
        }
    }

    pub(super) fn standing(&self, count: &Count, now: u64) -> Standing {
        let until_full = count.at.saturating_sub(now);
        let room = (self.burst() * self.interval).saturating_sub(until_full);
        Standing {
            remaining: room / self.interval,
            retry_after: self.interval.saturating_sub(room),
            reset_after: until_full,
        }
    }

    pub(super) fn burst(&self) -> u64 {
        self.burst.into()
    }
}

/// Rounded up, so that no rounding admits more than the quota.
fn interval(limit: u64, window: u64) -> u64 {
    window.div_ceil(limit.max(1))
}

/// The time at which every decision is made.
#[derive(Debug)]
struct Zero;

impl Clock for Zero {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::default()
    }
}

/// A store whose keys hold their state themselves.
#[derive(Debug)]
struct InKey;

impl StateStore for InKey {
    type Key = UntilFull;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, key: &UntilFull, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (decision, next) = decide(Some(Nanos::new(key.0.get())))?;
        key.0.set(next.as_u64());
        Ok(decision)
    }
}

/// Nanoseconds until the bucket is full.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UntilFull(Cell<u64>);

/// `governor` asks for it of all keys, and never hashes one that is its own store.
impl Hash for UntilFull {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}
