//! Where the counts of one rule live: sharded, bounded, and locked only for as long as a decision takes.
//!
//! This is the boundary for stores that other processes share: they get payers, costs and the time, and never see a
//! request.

mod table;

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use self::table::Table;
use crate::meter::Count;

/// Who pays: the keyed hash of a key, so that no store holds what callers sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Payer(u64);

impl Payer {
    /// All who have no count of their own.
    pub(crate) const SHARED: Self = Self(0);

    pub(crate) fn hashed(hash: u64) -> Self {
        Self(hash.max(1))
    }
}

/// Enough that as many threads seldom meet; 64 bytes each.
const SHARDS: usize = 32;

/// A shard has this many seats at least: a newcomer only finds the idle ones of its own.
const SEATS: usize = 256;

/// Seats that a newcomer inspects for one that is idle.
const LOOK: usize = 8;

/// Nanoseconds that an idle payer keeps its seat while there are others: who comes back sooner would be a newcomer
/// each time, and put out others who come back.
const GRACE: u64 = 10_000_000_000;

/// The counts of one rule.
#[derive(Debug)]
pub(crate) struct Store {
    /// None for a rule without keys.
    shards: Box<[Shard]>,
    /// For requests without a key, and for newcomers when there is no seat.
    shared: Mutex<Shared>,
    held: AtomicUsize,
    capacity: usize,
}

/// On its own cache line, so that neighbours do not slow each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Seats>);

#[derive(Debug, Default)]
pub(crate) struct Seats {
    table: Table,
    totals: Totals,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    count: Count,
    totals: Totals,
}

/// How many requests a rule has had room for, and how many not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
}

impl Store {
    pub(crate) fn unkeyed() -> Self {
        Self::with_shards(0, 0)
    }

    pub(crate) fn keyed(capacity: usize) -> Self {
        let shards = (capacity / SEATS).next_power_of_two().min(SHARDS);
        Self::with_shards(shards, capacity)
    }

    fn with_shards(shards: usize, capacity: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            shared: Mutex::default(),
            held: AtomicUsize::new(0),
            capacity,
        }
    }

    /// Locks the count of this payer, or a seat for it. `payer` becomes [`Payer::SHARED`] when there is none.
    ///
    /// `idle` says whether a count is as good as none, and has been for so many nanoseconds.
    ///
    /// Who locks several stores does so in one order, always the same, and keeps all until the decision is made.
    #[inline]
    pub(crate) fn lock(&self, payer: &mut Payer, idle: impl Fn(&Count, u64) -> bool) -> Locked<'_> {
        if *payer != Payer::SHARED {
            let mut seats = lock(self.shard(*payer));
            if let Some(index) = seats.table.find(payer.0) {
                return Locked::Seat { seats, index };
            }
            let grace = if self.held() < self.capacity {
                GRACE
            } else {
                0
            };
            let left = seats.table.sweep(LOOK, |count| idle(count, grace));
            self.held.fetch_sub(left, Relaxed);
            if self.reserve() {
                return Locked::Free {
                    seats,
                    payer: *payer,
                    held: Some(&self.held),
                };
            }
        }
        *payer = Payer::SHARED;
        Locked::Shared(lock(&self.shared))
    }

    /// A power of two of shards, by the high half of the hash: the table takes the low bits.
    fn shard(&self, payer: Payer) -> &Mutex<Seats> {
        let index = (payer.0 >> 32) as usize & (self.shards.len() - 1);
        &self.shards[index].0
    }

    fn reserve(&self) -> bool {
        let one_more = |held| (held < self.capacity).then_some(held + 1);
        self.held.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// The count of this payer; one that has no seat has used nothing.
    pub(crate) fn read(&self, payer: Payer) -> Count {
        if payer == Payer::SHARED {
            return lock(&self.shared).count;
        }
        let seats = lock(self.shard(payer));
        let index = seats.table.find(payer.0);
        index.map_or_else(Count::default, |index| *seats.table.count(index))
    }

    /// Changes the count of this payer, if it is still held.
    pub(crate) fn change(&self, payer: Payer, change: impl FnOnce(&mut Count)) {
        if payer == Payer::SHARED {
            return change(&mut lock(&self.shared).count);
        }
        let mut seats = lock(self.shard(payer));
        if let Some(index) = seats.table.find(payer.0) {
            change(seats.table.count_mut(index));
        }
    }

    /// Forgets what this payer has used. `during` is called before it can be counted again.
    pub(crate) fn forget(&self, payer: Payer, during: impl FnOnce()) -> bool {
        if payer == Payer::SHARED {
            let mut shared = lock(&self.shared);
            during();
            return std::mem::take(&mut shared.count) != Count::default();
        }
        let mut seats = lock(self.shard(payer));
        let Some(index) = seats.table.find(payer.0) else {
            return false;
        };
        during();
        seats.table.remove(index);
        self.held.fetch_sub(1, Relaxed);
        true
    }

    pub(crate) fn is_keyed(&self) -> bool {
        !self.shards.is_empty()
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes of all seats.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |shard: &Shard| size_of::<Shard>() + lock(&shard.0).table.bytes();
        self.shards.iter().map(bytes).sum()
    }

    pub(crate) fn totals(&self) -> Totals {
        let shared = lock(&self.shared).totals;
        let shards = self.shards.iter().map(|shard| lock(&shard.0).totals);
        shards.fold(shared, |sum, next| Totals {
            admitted: sum.admitted + next.admitted,
            refused: sum.refused + next.refused,
        })
    }
}

/// A count that nobody else can read or change.
#[derive(Debug)]
pub(crate) enum Locked<'a> {
    Seat {
        seats: MutexGuard<'a, Seats>,
        index: usize,
    },
    /// Given up again unless it is taken.
    Free {
        seats: MutexGuard<'a, Seats>,
        payer: Payer,
        held: Option<&'a AtomicUsize>,
    },
    Shared(MutexGuard<'a, Shared>),
}

impl Locked<'_> {
    #[inline]
    pub(crate) fn count(&self) -> Count {
        match self {
            Self::Seat { seats, index } => *seats.table.count(*index),
            Self::Free { .. } => Count::default(),
            Self::Shared(shared) => shared.count,
        }
    }

    #[inline]
    pub(crate) fn admit(mut self, count: Count) {
        self.totals().admitted += 1;
        match &mut self {
            Self::Seat { seats, index } => *seats.table.count_mut(*index) = count,
            Self::Free { seats, payer, held } => {
                seats.table.insert(payer.0, count);
                *held = None;
            }
            Self::Shared(shared) => shared.count = count,
        }
    }

    pub(crate) fn refuse(mut self) {
        self.totals().refused += 1;
    }

    fn totals(&mut self) -> &mut Totals {
        match self {
            Self::Seat { seats, .. } | Self::Free { seats, .. } => &mut seats.totals,
            Self::Shared(shared) => &mut shared.totals,
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Self::Free { held, .. } = self
            && let Some(held) = held.take()
        {
            held.fetch_sub(1, Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of users runs while it is held, and each step leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
