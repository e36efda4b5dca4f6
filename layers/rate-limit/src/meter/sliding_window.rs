//! Counts this window and, of the one before, the share that still lies within one window's length of now.
//!
//! A request passes if `before * (window - into) / window + used + cost <= limit`, multiplied out so that integers
//! decide.
//!
//! A store that only knows doubles decides alike while both products are below 2^53. So where `limit * window` in
//! microseconds is not, time in the window is counted in ticks: the shortest power of ten, in microseconds, that the
//! product stays below with, and the window is as many whole ticks as cover it. Below, nothing is rounded.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Full, MICRO, MOST, Next, Standing, corrected, is_late};

#[derive(Debug)]
pub(crate) struct SlidingWindow {
    limit: Limit,
    pub(super) window: u64,
    /// Nanoseconds that are told apart.
    pub(super) tick: u64,
    /// Ticks in the window.
    length: u64,
}

#[derive(Debug)]
pub(super) enum Limit {
    Still(u64),
    Moving { limit: Arc<AtomicU64>, most: u64 },
}

impl SlidingWindow {
    pub(super) fn new(limit: Limit, window: u64) -> Self {
        let (window, tick) = whole_ticks(limit.most(), window);
        Self {
            limit,
            window,
            tick,
            length: window / tick,
        }
    }

    #[inline]
    pub(super) fn limit(&self) -> u64 {
        match &self.limit {
            Limit::Still(limit) => *limit,
            Limit::Moving { limit, most } => limit.load(Relaxed).clamp(1, *most),
        }
    }

    #[inline]
    pub(super) fn take(&self, count: Next, cost: u64, now: u64) -> Result<Next, Full> {
        let limit = self.limit();
        if cost > limit {
            return Err(if cost > self.limit.most() {
                Full::Forever
            } else {
                // A guess: the limit may have moved up by then.
                Full::For(self.window)
            });
        }
        let mut count = self.turn(count, now);
        let into = self.into(count, now);
        let weighed = product(count.before, self.length - into / self.tick);
        let taken = product(count.used + cost, self.length);
        if weighed + taken > product(limit, self.length) {
            let late = count.at * self.window + into - now;
            return Err(Full::For(late + self.wait(count, cost, limit, into)));
        }
        count.used += cost;
        Ok(count)
    }

    /// In the window that it was taken in while that is this or the one before.
    pub(super) fn settle(
        &self,
        count: &mut Next,
        reserved: u64,
        used: u64,
        taken_at: u64,
        now: u64,
    ) {
        *count = self.turn(*count, now);
        let at = taken_at / self.window;
        if at + 1 == count.at {
            count.before = corrected(count.before, reserved, used);
        } else if at >= count.at || used > reserved {
            count.used = corrected(count.used, reserved, used);
        }
    }

    pub(super) fn is_idle(&self, count: Next, now: u64) -> bool {
        match (now / self.window).checked_sub(count.at) {
            Some(2..) => true,
            Some(1) => count.used == 0,
            _ => count.used == 0 && count.before == 0,
        }
    }

    pub(super) fn standing(&self, count: Next, now: u64) -> Standing {
        let limit = self.limit();
        let used = self.used(count, now);
        let count = self.turn(count, now);
        let into = self.into(count, now);
        let late = count.at * self.window + into - now;
        let remaining = limit.saturating_sub(used);
        Standing {
            remaining,
            retry_after: match remaining {
                0 => late + self.wait(count, 1, limit, into),
                _ => 0,
            },
            reset_after: match count {
                Next { used: 1.., .. } => late + 2 * self.window - into,
                Next { before: 1.., .. } => late + self.window - into,
                _ => 0,
            },
        }
    }

    /// A part of one counts as one.
    pub(super) fn used(&self, count: Next, now: u64) -> u64 {
        let count = self.turn(count, now);
        let into = self.into(count, now) / self.tick;
        let weighed = product(count.before, self.length - into);
        // No more than `before`.
        count.used + weighed.div_ceil(self.length.into()) as u64
    }

    /// The count in the window of `now`, or in that of others for one who comes late.
    #[inline]
    fn turn(&self, count: Next, now: u64) -> Next {
        let at = now / self.window;
        if at == count.at || at < count.at && is_late(count.at * self.window, now, self.window) {
            return count;
        }
        Next {
            at,
            used: 0,
            before: if at == count.at + 1 { count.used } else { 0 },
        }
    }

    /// How far now is into the window.
    #[inline]
    fn into(&self, count: Next, now: u64) -> u64 {
        now.saturating_sub(count.at * self.window)
    }

    /// Until `cost` passes, which it does not now.
    fn wait(&self, count: Next, cost: u64, limit: u64, into: u64) -> u64 {
        let left = limit - cost;
        if count.used <= left {
            return self.released(left - count.used, count.before) - into;
        }
        // In the next window, this one is the one before.
        self.window - into + self.released(left, count.used)
    }

    /// How far into a window no more than `room` is left of `before`.
    fn released(&self, room: u64, before: u64) -> u64 {
        // `before` is more than `room`, or there would be no wait.
        let share = product(room, self.length) / u128::from(before.max(1));
        self.length.saturating_sub(share as u64) * self.tick
    }
}

impl Limit {
    fn most(&self) -> u64 {
        match *self {
            Self::Still(most) | Self::Moving { most, .. } => most,
        }
    }
}

/// The window and what is told apart in it, both in nanoseconds.
fn whole_ticks(most: u64, window: u64) -> (u64, u64) {
    let micros = window.div_ceil(MICRO);
    let fits = |ticks: u64| product(most, ticks) < MOST.into();
    if fits(micros) {
        return (window, 1);
    }
    let mut tick = 10;
    // Ends: a window of one tick fits, as limits do.
    while !fits(micros.div_ceil(tick)) {
        tick *= 10;
    }
    (micros.next_multiple_of(tick) * MICRO, tick * MICRO)
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}
