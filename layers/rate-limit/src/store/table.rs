//! A hash table whose entries are already hashed, which can be walked a few seats at a time.
//!
//! The standard map cannot say where a walk over it stopped, so that keeping it clean would now and then cost one
//! request a walk over all of it.

use crate::meter::Count;

/// Linear probing; removal moves later entries up, so that no tombstones fill it.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// A power of two, or none yet.
    seats: Box<[Seat]>,
    taken: usize,
    /// Where the walk goes on.
    cursor: usize,
}

#[derive(Clone, Debug, Default)]
struct Seat {
    /// Zero when it is free.
    hash: u64,
    count: Count,
}

const FEWEST: usize = 8;

impl Table {
    #[inline]
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        if self.seats.is_empty() {
            return None;
        }
        let mut index = self.home(hash);
        loop {
            match self.seats[index].hash {
                found if found == hash => return Some(index),
                0 => return None,
                _ => index = self.next(index),
            }
        }
    }

    #[inline]
    pub(super) fn count(&self, index: usize) -> &Count {
        &self.seats[index].count
    }

    #[inline]
    pub(super) fn count_mut(&mut self, index: usize) -> &mut Count {
        &mut self.seats[index].count
    }

    /// For a hash that is not here yet and not zero.
    pub(super) fn insert(&mut self, hash: u64, count: Count) {
        // At most four of five are taken: beyond, finding that one is not here takes too many steps.
        if (self.taken + 1) * 5 > self.seats.len() * 4 {
            self.resize((self.seats.len() * 2).max(FEWEST));
        }
        self.place(Seat { hash, count });
        self.taken += 1;
    }

    pub(super) fn remove(&mut self, index: usize) {
        let (mut free, mut index) = (index, index);
        loop {
            index = self.next(index);
            let hash = self.seats[index].hash;
            if hash == 0 {
                break;
            }
            // What is at home after the free seat must stay behind it.
            let mask = self.seats.len() - 1;
            let from_home = index.wrapping_sub(self.home(hash)) & mask;
            let from_free = index.wrapping_sub(free) & mask;
            if from_home >= from_free {
                self.seats.swap(free, index);
                free = index;
            }
        }
        self.seats[free] = Seat::default();
        self.taken -= 1;
    }

    /// Looks at the next few seats and frees those that are idle: how many. Shrinks when few are left.
    pub(super) fn sweep(&mut self, look: usize, idle: impl Fn(u64, &Count) -> bool) -> usize {
        let before = self.taken;
        for _ in 0..look.min(self.seats.len()) {
            let Seat { hash, count } = &self.seats[self.cursor];
            if *hash != 0 && idle(*hash, count) {
                // Another may have moved here.
                self.remove(self.cursor);
            } else {
                self.cursor = self.next(self.cursor);
            }
        }
        if self.seats.len() > FEWEST && self.taken * 8 < self.seats.len() {
            self.resize(self.seats.len() / 2);
        }
        before - self.taken
    }

    /// All that are held, to be changed.
    pub(super) fn counts(&mut self) -> impl Iterator<Item = (u64, &mut Count)> {
        let seats = self.seats.iter_mut().filter(|seat| seat.hash != 0);
        seats.map(|seat| (seat.hash, &mut seat.count))
    }

    /// Of all seats and of what they own.
    pub(super) fn bytes(&self) -> usize {
        let owned = self.seats.iter().map(|seat| seat.count.owned_bytes());
        size_of_val(&*self.seats) + owned.sum::<usize>()
    }

    fn resize(&mut self, seats: usize) {
        let seats: Box<[Seat]> = (0..seats).map(|_| Seat::default()).collect();
        let old = std::mem::replace(&mut self.seats, seats);
        self.cursor = 0;
        for seat in old {
            if seat.hash != 0 {
                self.place(seat);
            }
        }
    }

    fn place(&mut self, seat: Seat) {
        let mut index = self.home(seat.hash);
        while self.seats[index].hash != 0 {
            index = self.next(index);
        }
        self.seats[index] = seat;
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.seats.len() - 1)
    }

    #[inline]
    fn next(&self, index: usize) -> usize {
        (index + 1) & (self.seats.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn counted(used: u64) -> Count {
        Count::used(used)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(u64),
        Sweep,
    }

    fn step() -> impl proptest::strategy::Strategy<Value = Step> {
        // All at home in the last seats, so that they are pushed around the end.
        let hash = (0..8_u64, 0xfd..=0xff_u64).prop_map(|(high, low)| high << 32 | low);
        prop_oneof![
            4 => hash.clone().prop_map(Step::Insert),
            2 => hash.prop_map(Step::Remove),
            1 => Just(Step::Sweep),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in proptest::collection::vec(step(), 0..200)) {
            let (mut table, mut map) = (Table::default(), HashMap::new());
            for (used, step) in steps.into_iter().enumerate() {
                let used = used as u64;
                match step {
                    Step::Insert(hash) => match table.find(hash) {
                        Some(index) => {
                            *table.count_mut(index) = counted(used);
                            prop_assert!(map.insert(hash, used).is_some());
                        }
                        None => {
                            table.insert(hash, counted(used));
                            prop_assert_eq!(map.insert(hash, used), None);
                        }
                    },
                    Step::Remove(hash) => {
                        let index = table.find(hash);
                        prop_assert_eq!(index.is_some(), map.remove(&hash).is_some());
                        index.into_iter().for_each(|index| table.remove(index));
                    }
                    Step::Sweep => {
                        // A walk over all of it, and once more for what moved.
                        let all = 2 * table.seats.len();
                        let gone = (0..2).map(|_| table.sweep(all, |_, count| *count < counted(used / 2))).sum::<usize>();
                        let before = map.len();
                        map.retain(|_, at| *at >= used / 2);
                        prop_assert_eq!(gone, before - map.len());
                    }
                }
                prop_assert_eq!(table.taken, map.len());
                for (&hash, &used) in &map {
                    let index = table.find(hash).expect("it is in the map");
                    prop_assert_eq!(table.count(index), &counted(used));
                }
            }
        }
    }

    #[test]
    fn it_shrinks_when_what_filled_it_is_idle() {
        let mut table = Table::default();
        for hash in 1..=10_000 {
            table.insert(hash, counted(hash));
        }
        let full = table.bytes();
        let mut looked = 0;
        while table.taken > 0 {
            table.sweep(8, |_, _| true);
            looked += 8;
        }
        // Smaller by half each time, the last time from the fewest that it ever has.
        (0..20).for_each(|_| {
            table.sweep(8, |_, _| true);
        });
        assert_eq!(table.bytes(), FEWEST * size_of::<Seat>());
        assert!(looked < 2 * full / size_of::<Seat>(), "{looked}");
    }
}
