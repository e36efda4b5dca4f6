//! How the attempts of the last seconds have ended. No allocation, and the same work whatever the rate.

const TENTHS: usize = 10;
/// After so many windows without an end, the ends before are of another time.
const ANOTHER_TIME: u64 = 30;

/// Counts of the running tenth of a window and the nine before it.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    counts: [Count; TENTHS],
    /// Nanoseconds.
    tenth: u64,
    /// Which tenth is the running one, since the beginning of time.
    running: u64,
    /// When it ends, and where it is counted: an end costs no division.
    until: u64,
    at: usize,
    tail: Tail,
}

/// The last ends, however long ago they were, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    failed: u64,
    known: u32,
    /// When the last one was.
    at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) worked: u32,
    pub(super) failed: u32,
}

impl Recent {
    pub(super) fn over(window: u64) -> Self {
        let tenth = (window / TENTHS as u64).max(1);
        Self {
            counts: [Count::default(); TENTHS],
            tenth,
            running: 0,
            until: tenth,
            at: 0,
            tail: Tail::default(),
        }
    }

    /// Looks back over another window, and forgets what was counted for the one before.
    pub(super) fn look_back(&mut self, window: u64) {
        let other = Self::over(window);
        if other.tenth != self.tenth {
            *self = other;
        }
    }

    #[inline]
    pub(super) fn worked(&mut self, now: u64) {
        let count = self.running(now);
        count.worked = count.worked.saturating_add(1);
        self.note(0, now);
    }

    pub(super) fn failed(&mut self, now: u64) {
        let count = self.running(now);
        count.failed = count.failed.saturating_add(1);
        self.note(1, now);
    }

    pub(super) fn sum(&mut self, now: u64) -> Count {
        self.running(now);
        let add = |sum: Count, one: &Count| Count {
            worked: sum.worked.saturating_add(one.worked),
            failed: sum.failed.saturating_add(one.failed),
        };
        self.counts.iter().fold(Count::default(), add)
    }

    /// Of the last ends, so many at most and 64, however long each is ago.
    pub(super) fn last(&self, most: u32) -> Count {
        let known = self.tail.known.min(most).min(u64::BITS);
        let mask = u64::MAX.checked_shr(u64::BITS - known).unwrap_or(0);
        let failed = (self.tail.failed & mask).count_ones();
        Count {
            worked: known - failed,
            failed,
        }
    }

    pub(super) fn clear(&mut self) {
        self.counts = [Count::default(); TENTHS];
        self.tail = Tail::default();
    }

    fn note(&mut self, failed: u64, now: u64) {
        let another_time = self.tenth.saturating_mul(TENTHS as u64 * ANOTHER_TIME);
        if now.saturating_sub(self.tail.at) > another_time {
            self.tail = Tail::default();
        }
        self.tail = Tail {
            failed: self.tail.failed << 1 | failed,
            known: self.tail.known.saturating_add(1),
            at: now,
        };
    }

    #[inline]
    fn running(&mut self, now: u64) -> &mut Count {
        // Time never runs back; should it seem to, the end counts where the last one did.
        if now >= self.until {
            self.go_on(now);
        }
        &mut self.counts[self.at]
    }

    #[cold]
    fn go_on(&mut self, now: u64) {
        let running = now / self.tenth;
        let passed = (running - self.running).min(TENTHS as u64);
        for gone in 0..passed {
            self.counts[((running - gone) % TENTHS as u64) as usize] = Count::default();
        }
        self.running = running;
        self.until = running.saturating_add(1).saturating_mul(self.tenth);
        self.at = (running % TENTHS as u64) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_those_of_a_list_of_all_ends(
            window in 1..100_000u64,
            ends in prop::collection::vec((0..30_000u64, 0..2usize), 0..200),
        ) {
            let mut recent = Recent::over(window);
            let tenth = (window / 10).max(1);
            let (mut now, mut list) = (0, Vec::new());
            for (pause, kind) in ends {
                now += pause;
                [Recent::worked, Recent::failed][kind](&mut recent, now);
                list.push((now, kind));
                let of = |kind| {
                    let counts = |(at, other): &&(u64, usize)| at / tenth + 10 > now / tenth && *other == kind;
                    list.iter().filter(counts).count() as u32
                };
                let model = Count { worked: of(0), failed: of(1) };
                prop_assert_eq!(recent.sum(now), model);
                for most in [0, 1, 20, 64, 1000] {
                    let same = list.windows(2).rev().take_while(|pair| pair[1].0 - pair[0].0 <= tenth * 300);
                    let last = list.iter().rev().take((same.count() + 1).min(most as usize).min(64));
                    let failed = last.clone().filter(|(_, kind)| *kind == 1).count() as u32;
                    let model = Count { worked: last.count() as u32 - failed, failed };
                    prop_assert_eq!(recent.last(most), model);
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_of_it_when_the_window_has_passed() {
        let mut recent = Recent::over(10_000);
        recent.failed(500);
        assert_eq!(recent.sum(9_999).failed, 1);
        assert_eq!(recent.sum(10_000).failed, 0);
        recent.worked(u64::MAX);
        assert_eq!(recent.sum(u64::MAX).worked, 1);
    }
}
