//! Counts in windows that all keys turn together.

use super::{Full, Next, Standing, corrected, is_late};

#[derive(Debug)]
pub(crate) struct FixedWindow {
    pub(super) limit: u64,
    pub(super) window: u64,
}

impl FixedWindow {
    /// The count in the window of `now`, or in that of others for one who comes late.
    #[inline]
    pub(super) fn turn(&self, count: Next, now: u64) -> Next {
        let at = now / self.window;
        if at == count.at || at < count.at && is_late(count.at * self.window, now, self.window) {
            return count;
        }
        Next {
            at,
            ..Next::default()
        }
    }

    #[inline]
    pub(super) fn take(&self, count: Next, cost: u64, now: u64) -> Result<Next, Full> {
        if cost > self.limit {
            return Err(Full::Forever);
        }
        let mut count = self.turn(count, now);
        if count.used + cost > self.limit {
            return Err(Full::For(self.ends(count) - now));
        }
        count.used += cost;
        Ok(count)
    }

    /// Only while the window has not turned: what was used in the one before no longer counts, and who uses more than
    /// was reserved would get it for nothing.
    pub(super) fn settle(
        &self,
        count: &mut Next,
        reserved: u64,
        used: u64,
        taken_at: u64,
        now: u64,
    ) {
        *count = self.turn(*count, now);
        if taken_at / self.window >= count.at || used > reserved {
            count.used = corrected(count.used, reserved, used);
        }
    }

    pub(super) fn is_idle(&self, count: Next, now: u64) -> bool {
        count.used == 0 || now / self.window > count.at
    }

    pub(super) fn standing(&self, count: Next, now: u64) -> Standing {
        let count = self.turn(count, now);
        let left = self.ends(count) - now;
        let remaining = self.limit.saturating_sub(count.used);
        Standing {
            remaining,
            retry_after: if remaining == 0 { left } else { 0 },
            reset_after: if count.used == 0 { 0 } else { left },
        }
    }

    fn ends(&self, count: Next) -> u64 {
        (count.at + 1) * self.window
    }
}
