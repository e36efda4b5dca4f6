//! Counts this window and, of the one before, the share that still lies within one window's length of now.
//!
//! A request passes if `before * (window - into) / window + used + cost <= limit`, multiplied out so that integers
//! decide. `limit` has 50 bits and `window` 53, so products fit into 128.

use super::{Count, Full, Standing};

#[derive(Debug)]
pub(crate) struct SlidingWindow {
    pub(super) limit: u64,
    pub(super) window: u64,
}

impl SlidingWindow {
    /// The count in the window of `now`. One who comes late with an earlier time finds the window of the others.
    #[inline]
    pub(super) fn turn(&self, count: &Count, now: u64) -> Count {
        let at = now / self.window;
        if at <= count.at {
            return *count;
        }
        Count {
            at,
            used: 0,
            before: if at == count.at + 1 { count.used } else { 0 },
        }
    }

    #[inline]
    pub(super) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Count, Full> {
        if cost > self.limit {
            return Err(Full::Forever);
        }
        let mut count = self.turn(count, now);
        let into = self.into(&count, now);
        let weighed = product(count.before, self.window - into);
        let taken = product(count.used + cost, self.window);
        if weighed + taken > product(self.limit, self.window) {
            let late = count.at * self.window + into - now;
            return Err(Full::For(late + self.wait(&count, cost, into)));
        }
        count.used += cost;
        Ok(count)
    }

    /// Nothing, once the window has turned twice.
    pub(super) fn give_back(&self, count: &Count, cost: u64, taken_at: u64) -> Count {
        let (mut count, at) = (*count, taken_at / self.window);
        if at == count.at {
            count.used = count.used.saturating_sub(cost);
        } else if at + 1 == count.at {
            count.before = count.before.saturating_sub(cost);
        }
        count
    }

    pub(super) fn standing(&self, count: &Count, now: u64) -> Standing {
        let count = self.turn(count, now);
        let into = self.into(&count, now);
        let room = product(self.limit, self.window)
            .saturating_sub(product(count.before, self.window - into))
            .saturating_sub(product(count.used, self.window));
        let remaining = (room / u128::from(self.window)) as u64;
        Standing {
            remaining,
            retry_after: match remaining {
                0 => self.wait(&count, 1, into),
                _ => 0,
            },
            reset_after: match count {
                Count { used: 1.., .. } => 2 * self.window - into,
                Count { before: 1.., .. } => self.window - into,
                _ => 0,
            },
        }
    }

    /// How far now is into the window.
    fn into(&self, count: &Count, now: u64) -> u64 {
        now.saturating_sub(count.at * self.window)
    }

    /// Until `cost` passes, which it does not now.
    fn wait(&self, count: &Count, cost: u64, into: u64) -> u64 {
        let left = self.limit - cost;
        if count.used <= left {
            return self.released(left - count.used, count.before) - into;
        }
        // In the next window, this one is the one before.
        self.window - into + self.released(left, count.used)
    }

    /// How far into a window no more than `room` is left of `before`.
    fn released(&self, room: u64, before: u64) -> u64 {
        // `before` is more than `room`, or there would be no wait.
        let share = product(room, self.window) / u128::from(before.max(1));
        self.window.saturating_sub(share as u64)
    }
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}
