//! Where the counts of one rule live: sharded, bounded, and locked only for as long as a decision takes.
//!
//! It gets payers, costs and the time, and never sees a request.

mod table;

use std::{
    ops::Add,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use self::table::Table;
use crate::{
    meter::{Count, Full, Meter, Next},
    numbers::Numbers,
};

/// Who pays: the keyed hash of a key with its tier in the upper eight bits, so that no store holds what callers sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Payer(u64);

impl Payer {
    /// All who have no count of their own.
    pub(crate) const SHARED: Self = Self(0);

    pub(crate) fn hashed(hash: u64, tier: u8) -> Self {
        let hash = (hash >> 8).max(1);
        Self(hash | u64::from(tier) << 56)
    }

    #[inline]
    pub(crate) fn tier(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// Enough that as many threads seldom meet; 64 bytes each.
const SHARDS: usize = 32;

/// A shard has this many seats at least: a newcomer only finds the idle ones of its own.
const SEATS: usize = 256;

/// Seats that a newcomer inspects for one that is idle.
const LOOK: usize = 8;

/// How often it does so when there is no room: a small table is looked through, and of a large one enough.
const TURNS: usize = 8;

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
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<Seats>);

#[derive(Debug)]
pub(crate) struct Seats {
    table: Table,
    forgotten: Option<Box<Forgotten>>,
    /// Beside what they count, so that nobody counts by other numbers than the one before.
    numbers: Arc<Numbers>,
    totals: Totals,
}

#[derive(Debug)]
pub(crate) struct Shared {
    count: Count,
    /// The epoch since it was forgotten last.
    since: u64,
    numbers: Arc<Numbers>,
    totals: Totals,
}

/// Since when payers are counted anew whose counts were forgotten. The last few are known each by itself, and all
/// before them are taken to be of the latest of these epochs.
#[derive(Debug, Default)]
struct Forgotten {
    last: [(Payer, u64); Self::KNOWN],
    next: usize,
    others: u64,
}

/// How many requests a rule has had room for, and how many not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            admitted: self.admitted + other.admitted,
            refused: self.refused + other.refused,
        }
    }
}

impl Store {
    pub(crate) fn unkeyed(numbers: &Arc<Numbers>) -> Self {
        Self::with_shards(0, 0, numbers)
    }

    pub(crate) fn keyed(capacity: usize, numbers: &Arc<Numbers>) -> Self {
        let shards = (capacity / SEATS).next_power_of_two().min(SHARDS);
        Self::with_shards(shards, capacity, numbers)
    }

    fn with_shards(shards: usize, capacity: usize, numbers: &Arc<Numbers>) -> Self {
        let shard = || Seats {
            table: Table::default(),
            forgotten: None,
            numbers: numbers.clone(),
            totals: Totals::default(),
        };
        let shared = Shared {
            count: Count::default(),
            since: 0,
            numbers: numbers.clone(),
            totals: Totals::default(),
        };
        Self {
            shards: (0..shards).map(|_| Shard(Mutex::new(shard()))).collect(),
            shared: Mutex::new(shared),
            held: AtomicUsize::new(0),
            capacity,
        }
    }

    /// Locks the count of this payer, or a seat for it. `payer` becomes [`Payer::SHARED`] when there is none.
    ///
    /// Who locks several stores does so in one order, always the same, and keeps all until the decision is made.
    #[inline]
    pub(crate) fn lock(&self, payer: &mut Payer, at: u64) -> Locked<'_> {
        if *payer != Payer::SHARED {
            let mut seats = lock(self.shard(*payer));
            if let Some(index) = seats.table.find(payer.0) {
                let tier = payer.tier();
                return Locked::Seat { seats, index, tier };
            }
            if self.has_room(&mut seats, at) {
                return Locked::Free {
                    seats,
                    payer: *payer,
                    place: Place(&self.held),
                };
            }
        }
        *payer = Payer::SHARED;
        Locked::Shared(lock(&self.shared))
    }

    /// Looks for seats that nobody needs, and reserves one if it can.
    fn has_room(&self, seats: &mut Seats, at: u64) -> bool {
        let grace = if self.held() < self.capacity {
            GRACE
        } else {
            0
        };
        let since = at.saturating_sub(grace);
        let Seats { table, numbers, .. } = seats;
        let one_more = |held| (held < self.capacity).then_some(held + 1);
        // Those that it looks at first may all be free, or busy where others are idle.
        (0..TURNS).any(|_| {
            let left = table.sweep(LOOK, |hash, count| {
                numbers.meter(Payer(hash).tier()).is_idle(count, since)
            });
            self.held.fetch_sub(left, Relaxed);
            self.held.fetch_update(Relaxed, Relaxed, one_more).is_ok()
        })
    }

    /// A power of two of shards, by bits of the hash that the table does not take.
    fn shard(&self, payer: Payer) -> &Mutex<Seats> {
        let index = (payer.0 >> 32) as usize & (self.shards.len() - 1);
        &self.shards[index].0
    }

    /// The count of this payer; one that has no seat has used nothing.
    pub(crate) fn read<T>(&self, payer: Payer, read: impl FnOnce(&Meter, &Count) -> T) -> T {
        if payer == Payer::SHARED || !self.is_keyed() {
            let shared = lock(&self.shared);
            return read(shared.numbers.meter(0), &shared.count);
        }
        let seats = lock(self.shard(payer));
        let meter = seats.numbers.meter(payer.tier());
        match seats.table.find(payer.0) {
            Some(index) => read(meter, seats.table.count(index)),
            None => read(meter, &Count::default()),
        }
    }

    /// Changes the count of this payer, if it is still held, and says whether what was taken in this epoch is in it.
    pub(crate) fn change(
        &self,
        payer: Payer,
        epoch: u64,
        change: impl FnOnce(&Meter, &mut Count, bool),
    ) {
        if payer == Payer::SHARED {
            let mut shared = lock(&self.shared);
            let is_in = epoch >= shared.since;
            let Shared { count, numbers, .. } = &mut *shared;
            return change(numbers.meter(0), count, is_in);
        }
        let mut seats = lock(self.shard(payer));
        let forgotten = seats.forgotten.as_ref();
        let is_in = forgotten.is_none_or(|forgotten| epoch >= forgotten.since(payer));
        let Seats { table, numbers, .. } = &mut *seats;
        if let Some(index) = table.find(payer.0) {
            change(numbers.meter(payer.tier()), table.count_mut(index), is_in);
        }
    }

    /// Changes the count of this payer, and gives it a seat if there is one.
    pub(crate) fn change_or_seat(
        &self,
        payer: Payer,
        at: u64,
        change: impl FnOnce(&Meter, &mut Count),
    ) {
        let mut payer = payer;
        let seated = payer != Payer::SHARED;
        match self.lock(&mut payer, at) {
            Locked::Seat {
                mut seats, index, ..
            } => {
                let Seats { table, numbers, .. } = &mut *seats;
                change(numbers.meter(payer.tier()), table.count_mut(index));
            }
            Locked::Free {
                mut seats, place, ..
            } => {
                let mut count = Count::UNUSED;
                let Seats { table, numbers, .. } = &mut *seats;
                change(numbers.meter(payer.tier()), &mut count);
                table.insert(payer.0, count);
                place.keep();
            }
            // What one has used is not what all others have.
            Locked::Shared(_) if seated => {}
            Locked::Shared(mut shared) => {
                let Shared { count, numbers, .. } = &mut *shared;
                change(numbers.meter(0), count);
            }
        }
    }

    /// Forgets what this payer has used. `epoch` begins one before it can be counted again.
    pub(crate) fn forget(&self, payer: Payer, epoch: impl FnOnce() -> u64) -> bool {
        if payer == Payer::SHARED {
            let mut shared = lock(&self.shared);
            shared.since = epoch();
            return std::mem::take(&mut shared.count) != Count::default();
        }
        let mut seats = lock(self.shard(payer));
        let Some(index) = seats.table.find(payer.0) else {
            return false;
        };
        let forgotten = seats.forgotten.get_or_insert_default();
        forgotten.note(payer, epoch());
        seats.table.remove(index);
        self.held.fetch_sub(1, Relaxed);
        true
    }

    /// Counts by other numbers from now on: what was used is carried over.
    pub(crate) fn renew(&self, numbers: &Arc<Numbers>, at: u64) {
        // All at once: nobody is counted by the old ones after somebody by the new.
        let mut shards: Vec<_> = self.shards.iter().map(|shard| lock(&shard.0)).collect();
        for seats in &mut shards {
            let Seats {
                table,
                numbers: old,
                ..
            } = &mut **seats;
            for (hash, count) in table.counts() {
                let tier = Payer(hash).tier();
                numbers.meter(tier).carry(old.meter(tier), count, at);
            }
            *old = numbers.clone();
        }
        let Shared {
            count,
            numbers: old,
            ..
        } = &mut *lock(&self.shared);
        numbers.meter(0).carry(old.meter(0), count, at);
        *old = numbers.clone();
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
        shards.fold(shared, Totals::add)
    }

    /// Counts a decision that was made elsewhere.
    pub(crate) fn count(&self, payer: Payer, admitted: bool) {
        self.change_totals(payer, |totals| match admitted {
            true => totals.admitted += 1,
            false => totals.refused += 1,
        });
    }

    /// Counts no longer what this payer was admitted here for and has given back.
    pub(crate) fn uncount(&self, payer: Payer) {
        self.change_totals(payer, |totals| {
            totals.admitted = totals.admitted.saturating_sub(1);
        });
    }

    fn change_totals(&self, payer: Payer, change: impl FnOnce(&mut Totals)) {
        if payer == Payer::SHARED {
            return change(&mut lock(&self.shared).totals);
        }
        change(&mut lock(self.shard(payer)).totals);
    }
}

impl Forgotten {
    /// In each shard.
    const KNOWN: usize = 4;

    fn note(&mut self, payer: Payer, epoch: u64) {
        let known = self.last.iter().position(|(known, _)| *known == payer);
        let index = known.unwrap_or_else(|| {
            self.next = (self.next + 1) % Self::KNOWN;
            self.others = self.others.max(self.last[self.next].1);
            self.next
        });
        self.last[index] = (payer, epoch);
    }

    fn since(&self, payer: Payer) -> u64 {
        let mut last = self.last.iter();
        let known = last.find(|(known, _)| *known == payer);
        known.map_or(self.others, |(_, epoch)| *epoch)
    }
}

/// A count that nobody else can read or change.
#[derive(Debug)]
pub(crate) enum Locked<'a> {
    Seat {
        seats: MutexGuard<'a, Seats>,
        index: usize,
        tier: u8,
    },
    /// Given up again unless it is taken.
    Free {
        seats: MutexGuard<'a, Seats>,
        payer: Payer,
        place: Place<'a>,
    },
    Shared(MutexGuard<'a, Shared>),
}

/// A seat that is counted as held until it is known to stay free.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Locked<'_> {
    /// What the count would be after `cost` more, or how long there is no room for it.
    #[inline]
    pub(crate) fn try_take(&self, cost: u64, at: u64) -> Result<Next, Full> {
        match self {
            Self::Seat { seats, index, tier } => {
                let count = seats.table.count(*index);
                seats.numbers.meter(*tier).take(count, cost, at)
            }
            Self::Free { seats, payer, .. } => {
                let meter = seats.numbers.meter(payer.tier());
                meter.take(&Count::UNUSED, cost, at)
            }
            Self::Shared(shared) => shared.numbers.meter(0).take(&shared.count, cost, at),
        }
    }

    /// Writes down what was found to have room.
    #[inline]
    pub(crate) fn admit(mut self, next: Next, at: u64) {
        self.totals().admitted += 1;
        self.grow(next, at);
    }

    /// Writes down what a request takes besides.
    #[inline]
    pub(crate) fn grow(self, next: Next, at: u64) {
        match self {
            Self::Seat {
                mut seats,
                index,
                tier,
            } => {
                let Seats { table, numbers, .. } = &mut *seats;
                numbers.meter(tier).accept(table.count_mut(index), next, at);
            }
            Self::Free {
                mut seats,
                payer,
                place,
            } => {
                let mut count = Count::UNUSED;
                let meter = seats.numbers.meter(payer.tier());
                meter.accept(&mut count, next, at);
                seats.table.insert(payer.0, count);
                place.keep();
            }
            Self::Shared(mut shared) => {
                let Shared { count, numbers, .. } = &mut *shared;
                numbers.meter(0).accept(count, next, at);
            }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of users runs while it is held, and each step leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
