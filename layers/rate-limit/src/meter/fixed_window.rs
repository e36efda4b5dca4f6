//! Counts in windows that all keys turn together.

use super::{Count, Full, Standing};

#[derive(Debug)]
pub(crate) struct FixedWindow {
    pub(super) limit: u64,
    pub(super) window: u64,
}

impl FixedWindow {
    /// The count in the window of `now`. One who comes late with an earlier time finds the window of the others.
    #[inline]
    pub(super) fn turn(&self, count: &Count, now: u64) -> Count {
        let at = now / self.window;
        if at <= count.at {
            return *count;
        }
        Count {
            at,
            ..Count::default()
        }
    }

    #[inline]
    pub(super) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Count, Full> {
        if cost > self.limit {
            return Err(Full::Forever);
        }
        let mut count = self.turn(count, now);
        if count.used + cost > self.limit {
            return Err(Full::For(self.ends(&count) - now));
        }
        count.used += cost;
        Ok(count)
    }

    /// Nothing, once the window has turned.
    pub(super) fn give_back(&self, count: &Count, cost: u64, taken_at: u64) -> Count {
        let mut count = *count;
        if taken_at / self.window == count.at {
            count.used = count.used.saturating_sub(cost);
        }
        count
    }

    pub(super) fn standing(&self, count: &Count, now: u64) -> Standing {
        let count = self.turn(count, now);
        let left = self.ends(&count) - now;
        let remaining = self.limit.saturating_sub(count.used);
        Standing {
            remaining,
            retry_after: if remaining == 0 { left } else { 0 },
            reset_after: if count.used == 0 { 0 } else { left },
        }
    }

    fn ends(&self, count: &Count) -> u64 {
        (count.at + 1) * self.window
    }
}
