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

use super::{Full, MOST, Next, Standing, is_late};
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
    pub(super) fn take(&self, count: Next, cost: u64, now: u64) -> Result<Next, Full> {
        // Not left to `governor`, which multiplies before it compares: far above the burst that overflows.
        let cost = u32::try_from(cost).ok().filter(|&cost| cost <= self.burst);
        let Some(cost) = cost else {
            return Err(Full::Forever);
        };
        let Some(cost) = NonZeroU32::new(cost) else {
            return Ok(count);
        };
        let count = self.drip(count, now);
        let until_full = UntilFull(Cell::new(count.used));
        match self.decider.check_key_n(&until_full, cost) {
            Ok(Ok(())) => Ok(Next {
                used: until_full.0.get(),
                ..count
            }),
            Ok(Err(wait)) => {
                let wait = wait.wait_time_from(Nanos::default()).as_nanos() as u64;
                Err(Full::For(count.at - now + wait))
            }
            Err(_) => Err(Full::Forever),
        }
    }

    pub(super) fn charge(&self, count: &mut Next, cost: u64, now: u64) {
        *count = self.drip(*count, now);
        let time = cost.saturating_mul(self.interval);
        count.used = count.used.saturating_add(time).min(MOST);
    }

    /// Gives back what has not refilled since by itself.
    ///
    /// All of it would be too much: what refilled since has been there for others, and would be there once more. This
    /// is not. Think of two buckets in which the same happens but that the second never heard of this request. The
    /// first is further from full, by `cost` intervals when it was taken; that shrinks only while the second is full,
    /// by a nanosecond each. So after a time the first is further from full by at least `cost` intervals less that
    /// time, and when it gets that much back it is never fuller than the second. One request after the other,
    /// requests that were kept meet a bucket that is no fuller than one which only ever saw them: of which any time `x`
    /// admits at most `burst + x / interval`.
    pub(super) fn give_back(&self, count: &mut Next, cost: u64, taken_at: u64, now: u64) {
        *count = self.drip(*count, now);
        // Else it was drained since, or the clock has stepped back.
        if (count.before..=count.at).contains(&taken_at) {
            let time = cost.saturating_mul(self.interval);
            let time = time.saturating_sub(count.at - taken_at);
            count.used = count.used.saturating_sub(time);
        }
    }

    pub(super) fn drain(&self, count: &mut Next, retry_after: u64, now: u64) {
        *count = self.drip(*count, now);
        let until_full = self.fills().saturating_add(retry_after).min(MOST);
        count.used = count.used.max(until_full);
        count.before = count.at + 1;
    }

    pub(super) fn carry(&self, from: &Self, count: &mut Next, now: u64) {
        *count = from.drip(*count, now);
        count.used = count.used.min(self.fills());
    }

    pub(super) fn is_idle(&self, count: Next, now: u64) -> bool {
        count.used <= now.saturating_sub(count.at)
    }

    pub(super) fn standing(&self, count: Next, now: u64) -> Standing {
        let count = self.drip(count, now);
        let late = count.at - now;
        let remaining = self.fills().saturating_sub(count.used) / self.interval;
        Standing {
            remaining,
            retry_after: match remaining {
                0 => late + count.used + self.interval - self.fills(),
                _ => 0,
            },
            reset_after: match count.used {
                0 => 0,
                until_full => late + until_full,
            },
        }
    }

    /// A part of one counts as one.
    pub(super) fn used(&self, count: Next, now: u64) -> u64 {
        self.drip(count, now).used.div_ceil(self.interval)
    }

    pub(super) fn interval(&self) -> u64 {
        self.interval
    }

    pub(super) fn burst(&self) -> u64 {
        self.burst.into()
    }

    /// As it is at `now`, or as others have left it for one who comes late. Never at a time before `now`.
    #[inline]
    fn drip(&self, count: Next, now: u64) -> Next {
        if now >= count.at {
            return Next {
                at: now,
                used: count.used.saturating_sub(now - count.at),
                ..count
            };
        }
        if is_late(count.at, now, self.fills()) {
            return count;
        }
        Next {
            at: now,
            ..Next::default()
        }
    }

    /// Nanoseconds that an empty one takes.
    fn fills(&self) -> u64 {
        self.burst() * self.interval
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
