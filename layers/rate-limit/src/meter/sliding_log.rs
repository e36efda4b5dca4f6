//! Remembers when each request came, so that no window has more than the limit, wherever it begins.
//!
//! What came at `t` has left the window at `t + window`. Each entry holds the sum of all costs up to its own, so that
//! one search finds what is in the window, or when there will be room. The sums wrap around.

use std::collections::VecDeque;

use super::{Count, Full, MOST, Next, Standing, is_late};

#[derive(Debug)]
pub(crate) struct SlidingLog {
    pub(super) limit: u64,
    pub(super) window: u64,
}

/// 16 bytes for each time at which something was taken, of which there are at most as many as the limit.
/// Doubles in size when it is full and shrinks when less than a quarter is left: 256 KiB for the largest limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) struct Log(VecDeque<Entry>);

impl Log {
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.capacity() * size_of::<Entry>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
struct Entry {
    at: u64,
    /// The costs of all that there ever were, through this one.
    through: u64,
}

impl SlidingLog {
    /// The largest limit.
    pub(super) const MOST: u64 = 10_000;

    #[inline]
    pub(super) fn take(&self, count: &Count, cost: u64, now: u64) -> Result<Next, Full> {
        if cost > self.limit {
            return Err(Full::Forever);
        }
        let before = self.gone(count, now);
        if count.next.used.wrapping_sub(before) + cost > self.limit {
            return Err(Full::For(self.until_room(count, cost, now)));
        }
        Ok(self.next(count, before, cost, now))
    }

    pub(super) fn charge(&self, count: &mut Count, cost: u64, now: u64) {
        let before = self.gone(count, now);
        let room = MOST.saturating_sub(count.next.used.wrapping_sub(before));
        self.accept(count, self.next(count, before, cost.min(room), now));
    }

    pub(super) fn accept(&self, count: &mut Count, next: Next) {
        let log = &mut count.log.get_or_insert_default().0;
        if next.at < count.next.at {
            // The clock has stepped back.
            log.clear();
        }
        let left = |entry: &Entry| entry.at + self.window <= next.at;
        while log.front().is_some_and(left) {
            log.pop_front();
        }
        match log.back_mut() {
            _ if next.used == count.next.used => {}
            Some(entry) if entry.at == next.at => entry.through = next.used,
            _ => log.push_back(Entry {
                at: next.at,
                through: next.used,
            }),
        }
        // Beyond the limit, there is no room yet when the first has left: it can wait for the second.
        let waits = |first: &Entry| next.used.wrapping_sub(first.through) >= self.limit;
        while log.front().is_some_and(waits) {
            log.pop_front();
        }
        count.next = next;
        shrink(&mut count.log);
    }

    /// Lowers the entry. One who came late was counted with a later one, and a full log puts some together: then it is
    /// the first that may hold it, so that what stays is what leaves last.
    pub(super) fn give_back(&self, count: &mut Count, cost: u64, taken_at: u64, now: u64) {
        let Count { next, log } = count;
        let Some(Log(entries)) = log.as_deref_mut() else {
            return;
        };
        if taken_at + self.window <= self.as_of(*next, now) {
            return;
        }
        let first = entries.partition_point(|entry| entry.at < taken_at);
        let mut before = match first.checked_sub(1) {
            Some(index) => entries[index].through,
            None => next.before,
        };
        let (mut kept, mut given) = (first, 0);
        for index in first..entries.len() {
            let Entry { at, through } = entries[index];
            let costs = through.wrapping_sub(before);
            let gives = costs.min(cost - given);
            before = through;
            given += gives;
            if gives < costs {
                let through = through.wrapping_sub(given);
                entries[kept] = Entry { at, through };
                kept += 1;
            }
        }
        entries.truncate(kept);
        next.used = next.used.wrapping_sub(given);
        shrink(log);
    }

    pub(super) fn is_idle(&self, count: &Count, now: u64) -> bool {
        let last = count.entries().back();
        last.is_none_or(|last| last.at + self.window <= now)
    }

    pub(super) fn standing(&self, count: &Count, now: u64) -> Standing {
        let used = self.used(count, now);
        let remaining = self.limit.saturating_sub(used);
        let last = count.entries().back().filter(|_| used > 0);
        Standing {
            remaining,
            retry_after: match remaining {
                0 => self.until_room(count, 1, now),
                _ => 0,
            },
            reset_after: last.map_or(0, |last| last.at + self.window - now),
        }
    }

    /// In the window.
    pub(super) fn used(&self, count: &Count, now: u64) -> u64 {
        count.next.used.wrapping_sub(self.gone(count, now))
    }

    /// The costs of all that have left the window.
    fn gone(&self, count: &Count, now: u64) -> u64 {
        let now = self.as_of(count.next, now);
        if now < count.next.at {
            return count.next.used;
        }
        let entries = count.entries();
        let gone = entries.partition_point(|entry| entry.at + self.window <= now);
        match gone.checked_sub(1) {
            Some(index) => entries[index].through,
            None => count.next.before,
        }
    }

    fn next(&self, count: &Count, before: u64, cost: u64, now: u64) -> Next {
        Next {
            at: self.as_of(count.next, now),
            used: count.next.used.wrapping_add(cost),
            before,
        }
    }

    /// Until `cost` passes, which it does not now.
    fn until_room(&self, count: &Count, cost: u64, now: u64) -> u64 {
        let stays = |entry: &Entry| count.next.used.wrapping_sub(entry.through);
        let entries = count.entries();
        let leaves = entries.partition_point(|entry| stays(entry) > self.limit - cost);
        let leaves = entries.get(leaves);
        leaves.map_or(0, |entry| entry.at + self.window - now)
    }

    /// When to decide: with the others for one who comes late. Before them, if the clock has stepped back.
    fn as_of(&self, last: Next, now: u64) -> u64 {
        if is_late(last.at, now, self.window) {
            now.max(last.at)
        } else {
            now
        }
    }
}

impl Count {
    fn entries(&self) -> &VecDeque<Entry> {
        const NONE: &VecDeque<Entry> = &VecDeque::new();
        self.log.as_deref().map_or(NONE, |log| &log.0)
    }
}

fn shrink(log: &mut Option<Box<Log>>) {
    let Some(Log(entries)) = log.as_deref_mut() else {
        return;
    };
    if entries.is_empty() {
        *log = None;
    } else if entries.capacity() > 16 && entries.len() < entries.capacity() / 4 {
        entries.shrink_to(entries.len() * 2);
    }
}

#[cfg(test)]
impl Log {
    /// Entries, and for how many there is space.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.0.len(), self.0.capacity())
    }
}
