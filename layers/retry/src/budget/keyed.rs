//! A budget for each destination, and a bound on how many there are.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use palisade_core::{head::RequestHead, key::ExtractKey, time};
use tokio::time::Instant;

use super::{Terms, shared::Shared};

/// How often at most all of them are looked through for those that can be forgotten.
const SWEEP: Duration = Duration::from_secs(1);

pub(super) struct Keyed {
    key: Arc<dyn ExtractKey>,
    most: usize,
    /// Of requests without a key, and of keys that there is no room for.
    common: Arc<Shared>,
    /// Keys are told apart by 64 bits that no caller can foresee: two that are alike share a budget.
    hasher: RandomState,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    budgets: HashMap<u64, Arc<Shared>>,
    swept: Option<Instant>,
}

impl Keyed {
    pub(super) fn new(terms: Terms, key: Arc<dyn ExtractKey>, most: usize) -> Self {
        Self {
            key,
            most,
            common: Arc::new(Shared::new(terms)),
            hasher: RandomState::new(),
            known: RwLock::default(),
        }
    }

    /// The same with other terms, and nothing used yet.
    pub(super) fn like(&self, terms: Terms, most: usize) -> Self {
        Self::new(terms, self.key.clone(), most)
    }

    pub(super) fn terms(&self) -> Terms {
        self.common.terms
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn common(&self) -> &Shared {
        &self.common
    }

    pub(super) fn of(&self, head: &RequestHead<'_>) -> Arc<Shared> {
        let Some(key) = self.key.key(head) else {
            return self.common.clone();
        };
        let hash = self.hasher.hash_one(&key);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.budgets.get(&hash) {
            return shared.clone();
        }
        drop(known);
        self.add(hash)
    }

    fn add(&self, hash: u64) -> Arc<Shared> {
        let now = time::now();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.budgets.len() >= self.most && !known.budgets.contains_key(&hash) {
            known.sweep(now);
            if known.budgets.len() >= self.most {
                return self.common.clone();
            }
        }
        let new = || Arc::new(Shared::new(self.terms()));
        known.budgets.entry(hash).or_insert_with(new).clone()
    }

    /// The balance of the emptiest.
    pub(super) fn least(&self) -> u64 {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let all = known.budgets.values().chain([&self.common]);
        let balances = all.map(|shared| shared.balance(time::now));
        balances.min().unwrap_or_default()
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn len(&self) -> usize {
        self.known.read().map_or(0, |known| known.budgets.len())
    }
}

impl Known {
    /// Forgets those that are as if they were new, and that no request holds on to.
    fn sweep(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < SWEEP;
        if self.swept.is_some_and(recent) {
            return;
        }
        self.swept = Some(now);
        self.budgets
            .retain(|_, shared| Arc::strong_count(shared) > 1 || !shared.is_idle(now));
    }
}
