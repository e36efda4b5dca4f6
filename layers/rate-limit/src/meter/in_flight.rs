//! Counts what has begun and not ended.

use super::{Full, Next, Standing, corrected};

#[derive(Debug)]
pub(crate) struct InFlight {
    pub(super) limit: u64,
}

impl InFlight {
    /// Nanoseconds after which to ask again: a guess, as nobody knows when a request ends.
    pub(super) const GUESS: u64 = 1_000_000_000;

    #[inline]
    pub(super) fn take(&self, mut count: Next, cost: u64) -> Result<Next, Full> {
        if cost > self.limit.max(1) {
            return Err(Full::Forever);
        }
        if count.used + cost > self.limit {
            return Err(Full::For(Self::GUESS));
        }
        count.used += cost;
        Ok(count)
    }

    pub(super) fn charge(&self, count: &mut Next, cost: u64) {
        count.used = corrected(count.used, 0, cost);
    }

    pub(super) fn give_back(&self, count: &mut Next, cost: u64) {
        count.used = corrected(count.used, cost, 0);
    }

    pub(super) fn standing(&self, count: Next) -> Standing {
        let remaining = self.limit.saturating_sub(count.used);
        Standing {
            remaining,
            retry_after: if remaining == 0 { Self::GUESS } else { 0 },
            reset_after: if count.used == 0 { 0 } else { Self::GUESS },
        }
    }
}
