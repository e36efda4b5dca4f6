//! Attempts beyond the first, as a share of requests.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use palisade_core::time;

use crate::account::{Account, TOKEN};

/// How many attempts beyond the first a destination is given, as a share of requests.
///
/// One per destination, shared by clones: whatever sends more than the caller did, retries and hedges alike, takes from
/// the same budget. Each request pays its share in and each further attempt takes one out, so that under a total
/// outage a server gets `1 + share` times its load and not a multiple of it. It starts with a reserve of 100; up to
/// that, or the income of ten seconds, is saved. A floor of ten in ten seconds keeps quiet services going.
///
/// ```
/// use palisade_retry::Budget;
///
/// let budget = Budget::percent(20).reserve(1);
/// assert!(budget.withdraw(1));
/// assert!(!budget.withdraw(1));
/// for _ in 0..10 {
///     budget.deposit();
/// }
/// assert!(budget.withdraw(2));
/// assert_eq!(budget.left(), Some(0));
/// ```
#[derive(Clone, Debug)]
pub struct Budget(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// What one request pays in.
    share: u64,
    /// Requests that have not been paid in yet.
    owed: AtomicU64,
    account: Mutex<Account>,
}

/// Requests are paid in by this many, or when an attempt asks: most of them take neither lock nor clock.
const BATCH: u64 = 64;

impl Budget {
    /// Each request pays for this many hundredths of an attempt.
    pub fn percent(percent: u32) -> Self {
        const RESERVE: u32 = 100;
        Self::new(u64::from(percent) * TOKEN / 100, RESERVE)
    }

    /// As much as anybody wants: for tests, and where something further in has a budget.
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// A budget of its own that starts with this many attempts, and always can save them.
    #[must_use]
    pub fn reserve(self, attempts: u32) -> Self {
        match self.0 {
            Some(shared) => Self::new(shared.share, attempts),
            None => self,
        }
    }

    fn new(share: u64, reserve: u32) -> Self {
        Self(Some(Arc::new(Shared {
            share,
            owed: AtomicU64::new(0),
            account: Mutex::new(Account::new(u64::from(reserve) * TOKEN)),
        })))
    }

    /// Pays in for a request.
    pub fn deposit(&self) {
        if let Some(shared) = &self.0
            && shared.owed.fetch_add(1, Relaxed) == BATCH - 1
        {
            shared.with(|_, _| ());
        }
    }

    /// Takes out this many attempts in one step, unless there are fewer.
    pub fn withdraw(&self, attempts: u32) -> bool {
        let amount = u64::from(attempts) * TOKEN;
        let shared = self.0.as_ref();
        shared.is_none_or(|shared| shared.with(|account, now| account.withdraw(amount, now)))
    }

    /// How many attempts there are for now; `None` without a limit.
    pub fn left(&self) -> Option<u32> {
        let shared = self.0.as_ref()?;
        let left = shared.with(|account, now| account.balance(now)) / TOKEN;
        Some(left.try_into().unwrap_or(u32::MAX))
    }
}

impl Default for Budget {
    /// A fifth: [`Budget::percent(20)`](Budget::percent).
    fn default() -> Self {
        Self::percent(20)
    }
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut Account, tokio::time::Instant) -> T) -> T {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let now = time::now();
        let owed = self.owed.swap(0, Relaxed);
        account.deposit(owed.saturating_mul(self.share), now);
        act(&mut account, now)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_paid_in_before_anybody_takes_out() {
        let budget = Budget::percent(20).reserve(0);
        for _ in 0..5 {
            assert!(!budget.withdraw(1));
            budget.deposit();
        }
        assert!(budget.withdraw(1));
        assert!(!budget.withdraw(1));
    }

    #[tokio::test(start_paused = true)]
    async fn clones_share_it_and_a_new_reserve_does_not() {
        let budget = Budget::default();
        let other = budget.clone();
        assert!(budget.withdraw(99));
        assert_eq!(other.left(), Some(1));
        assert_eq!(budget.clone().reserve(7).left(), Some(7));
        assert_eq!(budget.left(), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_counter_is_paid_in_by_batches() {
        let budget = Budget::percent(100).reserve(0);
        for _ in 0..BATCH - 1 {
            budget.deposit();
        }
        let shared = budget.0.as_ref().unwrap();
        assert_eq!(shared.owed.load(Relaxed), BATCH - 1);
        budget.deposit();
        assert_eq!(shared.owed.load(Relaxed), 0);
        assert_eq!(budget.left(), Some(64));
    }

    #[test]
    fn no_limit_never_ends() {
        let budget = Budget::unlimited().reserve(0);
        budget.deposit();
        assert!(budget.withdraw(u32::MAX) && budget.withdraw(u32::MAX));
        assert_eq!(budget.left(), None);
    }

    #[test]
    fn threads_together_take_out_what_is_there_and_not_one_more() {
        let (budget, start) = (Budget::percent(20).reserve(1000), time::now());
        let taken: u32 = thread::scope(|scope| {
            let take = || (0..500).map(|_| u32::from(budget.withdraw(1))).sum::<u32>();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        let floor = (time::now() - start).as_secs() as u32;
        assert!((1000..=1000 + floor).contains(&taken), "{taken}");
    }
}
