//! What one key has used of one quota, with no clock, no lock and no I/O of its own.
//!
//! Times are nanoseconds since the limit was made. One who comes late, with a time that is earlier than that of
//! others before, finds what they have left. A time that is earlier by more than a window is that of a clock that has
//! stepped back, and counting begins anew: what was used would never be over, as a refusal writes down no new time, and
//! all would wait for the clock to come back.

mod fixed_window;
mod in_flight;
mod pool;
mod sliding_log;
mod sliding_window;
mod token_bucket;

use std::sync::{Arc, atomic::AtomicU64};

use self::{
    fixed_window::FixedWindow,
    in_flight::InFlight,
    pool::Pool,
    sliding_log::{Log, SlidingLog},
    sliding_window::{Limit, SlidingWindow},
    token_bucket::TokenBucket,
};
use crate::{
    central::{Course, Plan},
    quota::{Quota, QuotaError},
    rule::Strategy,
};

/// Counts end here: what a store counts exactly that only knows doubles.
const MOST: u64 = 1 << 53;

/// Nanoseconds that a thread may lose between the clock and the lock, in windows shorter than that.
const LATE: u64 = 1_000_000_000;

/// Nanoseconds that a store of microseconds tells apart.
const MICRO: u64 = 1000;

/// What one key has used; the default has used nothing. Only its [`Meter`] knows how to read it.
///
/// 32 bytes, and for a log those of its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) struct Count {
    next: Next,
    log: Option<Box<Log>>,
}

/// What [`Meter::take`] has found, for [`Meter::accept`] to write down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) struct Next {
    /// A window: its number. A bucket and a log: the latest time.
    at: u64,
    /// A window: in it. A bucket: nanoseconds until it is full. A log: in all entries that there ever were, wrapping.
    used: u64,
    /// A window: in the one before. A bucket: the nanosecond after it was drained. A log: in all entries that have
    /// left the window, wrapping.
    before: u64,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Full {
    /// For this long.
    For(u64),
    /// And there never will be.
    Forever,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What can be taken now.
    pub(crate) remaining: u64,
    /// Until one can be taken.
    pub(crate) retry_after: u64,
    /// Until all can be taken.
    pub(crate) reset_after: u64,
}

/// Counts for one quota.
#[derive(Debug)]
pub(crate) enum Meter {
    TokenBucket(TokenBucket),
    FixedWindow(FixedWindow),
    SlidingWindow(SlidingWindow),
    SlidingLog(SlidingLog),
    InFlight(InFlight),
    /// What was leased from another.
    Pool(Pool),
    /// A limit of zero; one of places in flight still has to know of those that are taken.
    Closed {
        window: u64,
    },
}

impl Meter {
    /// [`Strategy::Adaptive`] stays at the quota here: what moves is made by [`adaptive`](Self::adaptive).
    pub(crate) fn new(strategy: Strategy, quota: &Quota) -> Result<Self, QuotaError> {
        let (limit, window) = check(strategy, quota)?;
        let burst = quota.allowed_burst();
        if (limit == 0 || burst == Some(0)) && strategy != Strategy::InFlight {
            return Ok(Self::Closed { window });
        }
        Ok(match strategy {
            Strategy::TokenBucket => {
                let bucket = TokenBucket::new(limit, window, burst.unwrap_or(limit));
                Self::TokenBucket(bucket.ok_or(QuotaError::LargeBurst)?)
            }
            Strategy::FixedWindow => Self::FixedWindow(FixedWindow { limit, window }),
            Strategy::SlidingLog if limit > SlidingLog::MOST => return Err(QuotaError::LargeLog),
            Strategy::SlidingLog => Self::SlidingLog(SlidingLog { limit, window }),
            Strategy::SlidingWindow | Strategy::Adaptive => {
                Self::SlidingWindow(SlidingWindow::new(Limit::Still(limit), window))
            }
            Strategy::InFlight => Self::in_flight(limit),
        })
    }

    /// Counts what has begun and not ended.
    pub(crate) fn in_flight(limit: u64) -> Self {
        Self::InFlight(InFlight { limit })
    }

    /// Spends what was leased of a quota that holds so much.
    pub(crate) fn pool(holds: u64, batch: u32, lasts: u64, at_least: u64) -> Self {
        Self::Pool(Pool {
            holds,
            batch,
            lasts,
            at_least,
        })
    }

    /// A sliding window whose limit is read for each decision, and cut to the most that its course allows.
    pub(crate) fn adaptive(
        quota: &Quota,
        course: &Course,
        limit: Arc<AtomicU64>,
    ) -> Result<Self, QuotaError> {
        let (base, window) = check(Strategy::Adaptive, quota)?;
        if base == 0 {
            return Ok(Self::Closed { window });
        }
        let most = course.most.clamp(1, Quota::MOST);
        let limit = Limit::Moving { limit, most };
        Ok(Self::SlidingWindow(SlidingWindow::new(limit, window)))
    }

    /// A quota for a token bucket, its limit and burst cut to what can be kept.
    pub(crate) fn within_reach(quota: Quota) -> Quota {
        let quota = quota.limited_to(Quota::MOST);
        let most = TokenBucket::most(quota.limit(), quota.nanos());
        if quota.allowed_burst().unwrap_or(quota.limit()) > most {
            quota.burst(most)
        } else {
            quota
        }
    }

    /// What there would be after `cost` more, or how long there is no room for it.
    #[inline]
    pub(crate) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Next, Full> {
        match self {
            Self::TokenBucket(bucket) => bucket.take(count.next, cost, now),
            Self::FixedWindow(window) => window.take(count.next, cost, now),
            Self::SlidingWindow(window) => window.take(count.next, cost, now),
            Self::SlidingLog(log) => log.take(count, cost, now),
            Self::InFlight(in_flight) => in_flight.take(count.next, cost),
            Self::Pool(pool) => pool.take(&count.next, cost, now),
            Self::Closed { window } => Err(Full::For(*window)),
        }
    }

    /// Writes down what [`take`](Self::take) has found, under the same lock and with the same time. Only a log
    /// allocates.
    #[inline]
    pub(crate) fn accept(&self, count: &mut Count, next: Next, _now: u64) {
        match self {
            Self::SlidingLog(log) => log.accept(count, next),
            _ => count.next = next,
        }
    }

    /// Takes, also what is not there: there is no room then until that is made up for.
    pub(crate) fn charge(&self, count: &mut Count, cost: u64, now: u64) {
        match self {
            Self::TokenBucket(bucket) => bucket.charge(&mut count.next, cost, now),
            Self::FixedWindow(window) => window.settle(&mut count.next, 0, cost, now, now),
            Self::SlidingWindow(window) => window.settle(&mut count.next, 0, cost, now, now),
            Self::SlidingLog(log) => log.charge(count, cost, now),
            Self::InFlight(in_flight) => in_flight.charge(&mut count.next, cost),
            Self::Pool(_) | Self::Closed { .. } => {}
        }
    }

    /// Corrects what was taken at `taken_at` by its difference to what was used.
    ///
    /// A window is corrected while it still counts. After that, what was used beyond is charged to the one of now,
    /// and what was not used is gone. So the order in which requests end changes nothing.
    ///
    /// Elsewhere, what was not used is [given back](Self::give_back), and what was used
    /// beyond is charged; a place in flight is one.
    pub(crate) fn settle(
        &self,
        count: &mut Count,
        reserved: u64,
        used: u64,
        taken_at: u64,
        now: u64,
    ) {
        let next = &mut count.next;
        match self {
            Self::FixedWindow(window) => window.settle(next, reserved, used, taken_at, now),
            Self::SlidingWindow(window) => window.settle(next, reserved, used, taken_at, now),
            _ if used <= reserved => self.give_back(count, reserved - used, taken_at, now),
            Self::TokenBucket(_) | Self::SlidingLog(_) => self.charge(count, used - reserved, now),
            Self::InFlight(_) | Self::Pool(_) | Self::Closed { .. } => {}
        }
    }

    /// Gives back what was taken at `taken_at` and never worked on, as far as it has not come back by itself.
    pub(crate) fn give_back(&self, count: &mut Count, cost: u64, taken_at: u64, now: u64) {
        match self {
            Self::TokenBucket(bucket) => bucket.give_back(&mut count.next, cost, taken_at, now),
            Self::FixedWindow(window) => window.settle(&mut count.next, cost, 0, taken_at, now),
            Self::SlidingWindow(window) => window.settle(&mut count.next, cost, 0, taken_at, now),
            Self::SlidingLog(log) => log.give_back(count, cost, taken_at, now),
            Self::InFlight(in_flight) => in_flight.give_back(&mut count.next, cost),
            Self::Pool(_) => Pool::give_back(&mut count.next, cost, taken_at, now),
            Self::Closed { .. } => {}
        }
    }

    /// Takes all that remains. A bucket refills only after `retry_after` more; nothing that was taken before comes
    /// back to it.
    ///
    /// Places in flight stay as they are: nobody would give these back.
    pub(crate) fn drain(&self, count: &mut Count, retry_after: Option<u64>, now: u64) {
        match self {
            Self::TokenBucket(bucket) => {
                bucket.drain(&mut count.next, retry_after.unwrap_or(0), now);
            }
            Self::InFlight(_) | Self::Pool(_) | Self::Closed { .. } => {}
            _ => {
                let remaining = self.standing(count, now).remaining;
                self.charge(count, remaining, now);
            }
        }
    }

    /// Goes on with what another meter has counted: the limits were changed.
    ///
    /// A bucket keeps the time until it is full, up to the time that a whole one takes, as a store does that knows no
    /// more than that. A window of the same kind and length, and places in flight, are kept as they are, also above
    /// the new limit. Whatever else changes, as much is used as was, up to what there is now.
    pub(crate) fn carry(&self, from: &Self, count: &mut Count, now: u64) {
        match (self, from) {
            (Self::TokenBucket(bucket), Self::TokenBucket(from)) => {
                bucket.carry(from, &mut count.next, now);
            }
            (Self::FixedWindow(new), Self::FixedWindow(old)) if new.window == old.window => {}
            (Self::SlidingWindow(new), Self::SlidingWindow(old)) if new.window == old.window => {}
            (Self::SlidingLog(new), Self::SlidingLog(old)) if new.window == old.window => {}
            (Self::InFlight(_), Self::InFlight(_)) | (Self::Pool(_), Self::Pool(_)) => {}
            // What a rate has counted does not end, so that it would never be given back.
            (Self::InFlight(_), _) => *count = Count::default(),
            _ => {
                let used = from.used(count, now).min(self.holds());
                *count = Count::default();
                self.charge(count, used, now);
            }
        }
    }

    /// Makes sure that at least so much is used, as others have seen.
    ///
    /// Places in flight stay as they are: those of others are not given back here.
    pub(crate) fn raise(&self, count: &mut Count, used: u64, now: u64) {
        if !matches!(self, Self::InFlight(_)) {
            let missing = used.saturating_sub(self.used(count, now));
            self.charge(count, missing, now);
        }
    }

    /// Puts down a lease that was asked for at `asked`: how much was granted of what was wanted, and for how long there
    /// is no more.
    pub(crate) fn deposit(
        &self,
        count: &mut Count,
        granted: (u64, u64),
        wait: u64,
        asked: u64,
        now: u64,
    ) {
        if let Self::Pool(pool) = self {
            pool.deposit(&mut count.next, granted, wait, asked, now);
        }
    }

    /// Whether the next lease should be asked for.
    pub(crate) fn is_low(&self, count: &Count, now: u64) -> bool {
        matches!(self, Self::Pool(pool) if pool.is_low(&count.next, now))
    }

    /// Whether the count is as good as none since `now`, which may be a while ago.
    pub(crate) fn is_idle(&self, count: &Count, now: u64) -> bool {
        match self {
            Self::TokenBucket(bucket) => bucket.is_idle(count.next, now),
            Self::FixedWindow(window) => window.is_idle(count.next, now),
            Self::SlidingWindow(window) => window.is_idle(count.next, now),
            Self::SlidingLog(log) => log.is_idle(count, now),
            Self::InFlight(_) => count.next.used == 0,
            Self::Pool(_) => Pool::is_idle(&count.next, now),
            Self::Closed { .. } => true,
        }
    }

    pub(crate) fn standing(&self, count: &Count, now: u64) -> Standing {
        match self {
            Self::TokenBucket(bucket) => bucket.standing(count.next, now),
            Self::FixedWindow(window) => window.standing(count.next, now),
            Self::SlidingWindow(window) => window.standing(count.next, now),
            Self::SlidingLog(log) => log.standing(count, now),
            Self::InFlight(in_flight) => in_flight.standing(count.next),
            Self::Pool(pool) => pool.standing(&count.next, now),
            Self::Closed { window } => Standing {
                remaining: 0,
                retry_after: *window,
                reset_after: *window,
            },
        }
    }

    /// The most that can be taken at once; of a limit that moves, where it is.
    pub(crate) fn holds(&self) -> u64 {
        match self {
            Self::TokenBucket(bucket) => bucket.burst(),
            Self::FixedWindow(window) => window.limit,
            Self::SlidingWindow(window) => window.limit(),
            Self::SlidingLog(log) => log.limit,
            Self::InFlight(in_flight) => in_flight.limit,
            Self::Pool(pool) => pool.holds,
            Self::Closed { .. } => 0,
        }
    }

    /// How another store has to count to decide alike at each of its microseconds; of a limit that moves, where it
    /// is. `None` if there is nothing to count.
    pub(crate) fn plan(&self) -> Option<Plan> {
        Some(match self {
            Self::TokenBucket(bucket) => Plan::TokenBucket {
                interval: bucket.interval(),
                burst: bucket.burst(),
            },
            Self::FixedWindow(FixedWindow { limit, window }) => Plan::FixedWindow {
                limit: *limit,
                window: whole_micros(*window),
            },
            Self::SlidingWindow(window) => Plan::SlidingWindow {
                limit: window.limit(),
                window: whole_micros(window.window),
                tick: window.tick.max(MICRO),
            },
            Self::SlidingLog(SlidingLog { limit, window }) => Plan::SlidingLog {
                limit: *limit,
                window: whole_micros(*window),
            },
            Self::InFlight(InFlight { limit: 0 }) | Self::Pool(_) | Self::Closed { .. } => {
                return None;
            }
            Self::InFlight(InFlight { limit }) => Plan::InFlight { limit: *limit },
        })
    }

    /// Also beyond the limit; a part of one counts as one.
    fn used(&self, count: &Count, now: u64) -> u64 {
        match self {
            Self::TokenBucket(bucket) => bucket.used(count.next, now),
            Self::FixedWindow(window) => window.turn(count.next, now).used,
            Self::SlidingWindow(window) => window.used(count.next, now),
            Self::SlidingLog(log) => log.used(count, now),
            Self::InFlight(_) => count.next.used,
            Self::Pool(_) | Self::Closed { .. } => 0,
        }
    }
}

/// The limit and the nanoseconds of the window.
fn check(strategy: Strategy, quota: &Quota) -> Result<(u64, u64), QuotaError> {
    quota.check()?;
    if quota.allowed_burst().is_some() && strategy != Strategy::TokenBucket {
        return Err(QuotaError::NoBurst);
    }
    Ok((quota.limit(), quota.nanos()))
}

/// Whether one who comes at `now`, after others who came at `last`, is only late. Else the clock has stepped back.
fn is_late(last: u64, now: u64, window: u64) -> bool {
    last.saturating_sub(now) <= window.max(LATE)
}

/// `reserved` of it became `used`.
fn corrected(count: u64, reserved: u64, used: u64) -> u64 {
    match used.checked_sub(reserved) {
        Some(more) => count.saturating_add(more).min(MOST),
        None => count.saturating_sub(reserved - used),
    }
}

fn whole_micros(nanos: u64) -> u64 {
    nanos.next_multiple_of(MICRO)
}

impl Count {
    /// Nothing was used.
    pub(crate) const UNUSED: Self = Self {
        next: Next {
            at: 0,
            used: 0,
            before: 0,
        },
        log: None,
    };

    /// The memory of its entries.
    pub(crate) fn owned_bytes(&self) -> usize {
        self.log.as_ref().map_or(0, |log| log.bytes())
    }
}

#[cfg(test)]
impl Count {
    pub(crate) fn used(used: u64) -> Self {
        let next = Next {
            used,
            ..Next::default()
        };
        Self { next, log: None }
    }
}

#[cfg(test)]
mod tests;
