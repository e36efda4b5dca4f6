//! One budget, as threads share it.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::{
    Terms,
    account::{Account, TOKEN},
};
use crate::sync::{AtomicU64, Mutex};

/// Requests are paid in by so many ordinary ones, or when an attempt asks: most take neither lock nor clock.
///
/// Nothing is ever taken out that was not paid in, and whoever takes out has all before it paid in first. What waits in
/// a batch is only told of late to the income of ten seconds, that may be saved: by 64 requests' worth at most.
pub(super) const BATCH: u64 = 64 * TOKEN;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) terms: Terms,
    /// The size of the requests that have not been paid in yet.
    owed: AtomicU64,
    account: Mutex<Account>,
}

impl Shared {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            owed: AtomicU64::new(0),
            account: Mutex::new(Account::new(u64::from(terms.reserve) * TOKEN)),
        }
    }

    /// Pays in for a request of this size: the balance, if a batch was full.
    #[inline]
    pub(super) fn pay(&self, size: u64, now: impl FnOnce() -> Instant) -> Option<u64> {
        let before = self.owed.fetch_add(size, Relaxed);
        // Only the one that fills it: others that come meanwhile do not queue for the lock.
        let fills = before < BATCH && before.saturating_add(size) >= BATCH;
        fills.then(|| self.balance(now))
    }

    /// Takes out all of it or nothing. Either way with what is left.
    pub(super) fn take(&self, size: u64, now: impl FnOnce() -> Instant) -> Result<u64, u64> {
        self.with(now, |account, now| {
            let taken = account.withdraw(size, now);
            let left = account.balance(now);
            if taken { Ok(left) } else { Err(left) }
        })
    }

    /// Pays in again what was taken out for nothing.
    pub(super) fn give_back(&self, size: u64, now: impl FnOnce() -> Instant) {
        self.with(now, |account, now| account.give_back(size, now));
    }

    pub(super) fn balance(&self, now: impl FnOnce() -> Instant) -> u64 {
        self.with(now, Account::balance)
    }

    /// Whether a new one would be the same.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.with(|| now, Account::is_idle)
    }

    fn with<T>(
        &self,
        now: impl FnOnce() -> Instant,
        act: impl FnOnce(&mut Account, Instant) -> T,
    ) -> T {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let owed = u128::from(self.owed.swap(0, Relaxed));
        let amount = owed * u128::from(self.terms.share) / u128::from(TOKEN);
        account.deposit(u64::try_from(amount).unwrap_or(u64::MAX), now);
        act(&mut account, now)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn owed(&self) -> u64 {
        self.owed.load(Relaxed)
    }
}
