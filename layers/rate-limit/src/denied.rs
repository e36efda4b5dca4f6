//! Who was refused by the store a moment ago, and need not ask it again.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{meter::Standing, store::Payer};

/// How long the store is not asked again, so that resets and what is given back show soon.
const LONGEST: u64 = Duration::from_secs(1).as_nanos() as u64;

const SHARDS: usize = 16;

/// In each shard. A flood of keys that are refused finds no more room, and asks the store.
const MOST: usize = 1024;

/// Who was refused a moment ago.
#[derive(Debug)]
pub(crate) struct Denied {
    shards: Box<[Mutex<HashMap<Payer, Refused>>]>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    /// This much, or more.
    cost: u64,
    standing: Standing,
    at: u64,
    /// When there is room.
    until: u64,
}

impl Denied {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default());
        Self {
            shards: shards.collect(),
            hasher: RandomState::new(),
        }
    }

    /// Remembers that there is no room for this cost for so long.
    pub(crate) fn note(&self, payer: Payer, cost: u64, standing: Standing, wait: u64, now: u64) {
        let mut shard = self.shard(payer);
        if shard.len() >= MOST && !shard.contains_key(&payer) {
            shard.retain(|_, refused| refused.holds(now));
            if shard.len() >= MOST {
                return;
            }
        }
        let until = now.saturating_add(wait);
        let refused = Refused {
            cost,
            standing,
            at: now,
            until,
        };
        shard.insert(payer, refused);
    }

    /// How long there is no room yet, if that is known, and how the payer stands.
    #[inline]
    pub(crate) fn find(&self, payer: Payer, cost: u64, now: u64) -> Option<(u64, Standing)> {
        let shard = self.shard(payer);
        let refused = shard.get(&payer)?;
        if !refused.holds(now) || cost < refused.cost {
            return None;
        }
        let since = now.saturating_sub(refused.at);
        let standing = Standing {
            retry_after: refused.standing.retry_after.saturating_sub(since),
            reset_after: refused.standing.reset_after.saturating_sub(since),
            ..refused.standing
        };
        Some((refused.until - now, standing))
    }

    pub(crate) fn forget(&self, payer: Payer) {
        self.shard(payer).remove(&payer);
    }

    pub(crate) fn forget_all(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn shard(&self, payer: Payer) -> std::sync::MutexGuard<'_, HashMap<Payer, Refused>> {
        let index = self.hasher.hash_one(payer) as usize % SHARDS;
        let shard = self.shards[index].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refused {
    fn holds(&self, now: u64) -> bool {
        now < self.until && now.saturating_sub(self.at) < LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const NOTHING: Standing = Standing {
        remaining: 2,
        retry_after: 0,
        reset_after: 60_000 * MS,
    };

    #[test]
    fn a_refusal_is_remembered_for_its_wait_or_a_second_and_for_costs_that_are_no_less() {
        let denied = Denied::new();
        let alice = Payer::hashed(1 << 9, 0);
        denied.note(alice, 3, NOTHING, 600 * MS, 0);
        assert_eq!(denied.find(alice, 2, 0), None);
        assert_eq!(denied.find(alice, 3, 0).unwrap().0, 600 * MS);
        let (wait, standing) = denied.find(alice, 9, 100 * MS).unwrap();
        assert_eq!((wait, standing.reset_after), (500 * MS, 59_900 * MS));
        assert_eq!(denied.find(alice, 3, 600 * MS), None);

        denied.note(alice, 3, NOTHING, 60_000 * MS, 0);
        assert!(denied.find(alice, 3, 999 * MS).is_some());
        assert_eq!(denied.find(alice, 3, 1000 * MS), None);
        denied.forget(alice);
        assert_eq!(denied.find(alice, 3, 0), None);
    }

    #[test]
    fn a_flood_of_keys_that_are_refused_takes_no_more_room() {
        let denied = Denied::new();
        for key in 0..100_000_u64 {
            denied.note(Payer::hashed(key << 9, 0), 1, NOTHING, 60_000 * MS, 0);
        }
        let held = denied
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().len());
        let held: usize = held.sum();
        assert!(held <= SHARDS * MOST, "{held}");
        // A second later they make room.
        let late = Payer::hashed(7 << 40, 0);
        denied.note(late, 1, NOTHING, 60_000 * MS, 2 * LONGEST);
        assert!(denied.find(late, 1, 2 * LONGEST).is_some());
    }
}
