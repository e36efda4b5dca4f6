//! Which circuits there are, and which of them are forgotten when there is no room for another.

use std::{
    borrow::Borrow,
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use palisade_core::key::Key;
use tokio::time::Instant;

use crate::{common::Common, settings::Settings, shared::Shared};

/// When a key is asked for again within this time, the time is not noted anew.
const GRAIN: u64 = 100_000_000;

/// Seats that a newcomer looks at for one that has been idle for too long: more than it takes itself.
const LOOK: usize = 2;

/// Circuits by key.
pub(crate) struct Table {
    seats: HashSet<Entry, RandomState>,
    /// The same, in the order in which they are looked at.
    queue: VecDeque<Arc<Seat>>,
    pub(crate) capacity: usize,
    pub(crate) idle: Duration,
    pub(crate) settings: Settings,
    pub(crate) evicted: u64,
    common: Arc<Common>,
    origin: Instant,
    seed: u64,
}

/// A key and its circuit.
pub(crate) struct Seat {
    pub(crate) key: Key<'static>,
    pub(crate) shared: Arc<Shared>,
    /// In nanoseconds.
    asked: AtomicU64,
    /// Since it was looked at last. The time does not tell: it is too coarse where many newcomers come at once.
    used: AtomicBool,
}

impl Table {
    pub(crate) fn new(settings: Settings, common: Arc<Common>, origin: Instant) -> Self {
        let hasher = RandomState::new();
        Self {
            seed: hasher.hash_one(0),
            seats: HashSet::with_hasher(hasher),
            queue: VecDeque::new(),
            capacity: 1024,
            idle: Duration::from_secs(600),
            settings: settings.reasonable(),
            evicted: 0,
            common,
            origin,
        }
    }

    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    pub(crate) fn find(&self, key: &Key<'_>) -> Option<&Arc<Seat>> {
        let entry = self.seats.get(key as &dyn AsKey);
        entry.map(|entry| &entry.0)
    }

    /// The circuit of a key that is asked for now.
    pub(crate) fn ask(&self, key: &Key<'_>, now: Instant) -> Option<&Arc<Shared>> {
        let seat = self.find(key)?;
        let at = self.nanos(now);
        // Mostly read, so that threads do not take the line from each other.
        if !seat.used.load(Ordering::Relaxed) {
            seat.used.store(true, Ordering::Relaxed);
        }
        if at.saturating_sub(seat.asked.load(Ordering::Relaxed)) > GRAIN {
            seat.asked.store(at, Ordering::Relaxed);
        }
        Some(&seat.shared)
    }

    /// The same of a key that may be new. None if each seat is held by somebody's order.
    pub(crate) fn seat(&mut self, key: &Key<'_>, now: Instant) -> Option<Arc<Shared>> {
        if let Some(shared) = self.ask(key, now) {
            return Some(shared.clone());
        }
        self.sweep(now);
        while self.queue.len() >= self.capacity {
            if !self.evict(now) {
                return None;
            }
        }
        let at = self.nanos(now);
        let (settings, common) = (self.settings.clone(), self.common.clone());
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let shared = Arc::new(Shared::new(settings, self.seed, common, self.origin));
        let seat = Arc::new(Seat {
            key: owned(key),
            shared: shared.clone(),
            asked: AtomicU64::new(at),
            used: AtomicBool::new(false),
        });
        self.queue.push_back(seat.clone());
        self.seats.insert(Entry(seat));
        Some(shared)
    }

    pub(crate) fn forget(&mut self, key: &Key<'_>) -> bool {
        let Some(entry) = self.seats.take(key as &dyn AsKey) else {
            return false;
        };
        self.queue.retain(|seat| !Arc::ptr_eq(seat, &entry.0));
        entry.0.shared.leave();
        true
    }

    pub(crate) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.queue.iter()
    }

    /// Forgets a few that nobody has asked for in a long time.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..LOOK.min(self.queue.len()) {
            let Some(seat) = self.queue.pop_front() else {
                return;
            };
            let idle = self.is_idle(&seat, now);
            match idle && seat.shared.rests(idle, now) {
                true => self.remove(&seat),
                false => self.queue.push_back(seat),
            }
        }
    }

    /// Forgets one: a circuit at rest that was not asked for since it was looked at, then any at rest, then the one
    /// that was asked for the longest ago. None that somebody has forced. Looks at two or three as a rule, and at all of
    /// them if none rests.
    fn evict(&mut self, now: Instant) -> bool {
        let mut one_rests = false;
        for turn in 0..2 * self.queue.len() {
            // Once around, all have been looked at, and one that rests was not asked for since.
            if turn == self.queue.len() && !one_rests {
                break;
            }
            let Some(seat) = self.queue.pop_front() else {
                return false;
            };
            let used = seat.used.swap(false, Ordering::Relaxed);
            let rests = seat.shared.rests(self.is_idle(&seat, now), now);
            if !used && rests {
                self.remove(&seat);
                return true;
            }
            one_rests |= rests;
            self.queue.push_back(seat);
        }
        let seats = self.queue.iter().enumerate();
        let unforced = seats.filter(|(_, seat)| !seat.shared.is_forced());
        let oldest = unforced.min_by_key(|(_, seat)| seat.asked.load(Ordering::Relaxed));
        let Some((oldest, _)) = oldest else {
            return false;
        };
        if let Some(seat) = self.queue.remove(oldest) {
            self.remove(&seat);
        }
        true
    }

    /// One that is no longer in the queue.
    fn remove(&mut self, seat: &Arc<Seat>) {
        self.seats.remove(&seat.key as &dyn AsKey);
        seat.shared.leave();
        self.common.meters.evict();
        self.evicted += 1;
    }

    fn is_idle(&self, seat: &Seat, now: Instant) -> bool {
        let asked = Duration::from_nanos(seat.asked.load(Ordering::Relaxed));
        now.saturating_duration_since(self.origin + asked) >= self.idle
    }

    fn nanos(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

fn owned(key: &Key<'_>) -> Key<'static> {
    match key {
        Key::Bytes(bytes) => Key::Bytes(bytes.to_vec().into()),
        Key::Address(address) => Key::Address(*address),
    }
}

/// Found by a key that is only borrowed.
struct Entry(Arc<Seat>);

trait AsKey {
    fn as_key(&self) -> &Key<'_>;
}

impl AsKey for Key<'_> {
    fn as_key(&self) -> &Key<'_> {
        self
    }
}

impl AsKey for Entry {
    fn as_key(&self) -> &Key<'_> {
        &self.0.key
    }
}

impl<'a> Borrow<dyn AsKey + 'a> for Entry {
    fn borrow(&self) -> &(dyn AsKey + 'a) {
        self
    }
}

impl Hash for dyn AsKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl PartialEq for dyn AsKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for dyn AsKey + '_ {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests;
