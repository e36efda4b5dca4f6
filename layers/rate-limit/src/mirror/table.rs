//! What is known of which key: bounded, and only of keys that it still matters for.

use std::{collections::HashMap, sync::Arc};

/// Seats that a newcomer inspects for one that is idle.
const LOOK: usize = 8;

/// Keys by their hashes. What a key has is handed out as an `Arc`, and stays while anybody holds it.
#[derive(Debug)]
pub(super) struct Table<T> {
    index: HashMap<u64, usize>,
    seats: Vec<(u64, Arc<T>)>,
    cursor: usize,
    capacity: usize,
}

impl<T: Default> Table<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::new(),
            seats: Vec::new(),
            cursor: 0,
            capacity,
        }
    }

    pub(super) fn get(&self, hash: u64) -> Option<&Arc<T>> {
        self.index.get(&hash).map(|seat| &self.seats[*seat].1)
    }

    /// A seat for a newcomer, unless all are taken by keys that are not idle.
    pub(super) fn get_or_insert(
        &mut self,
        hash: u64,
        idle: impl Fn(&T) -> bool,
    ) -> Option<&Arc<T>> {
        if !self.index.contains_key(&hash) {
            if self.seats.len() >= self.capacity && !self.make_room(idle) {
                return None;
            }
            self.index.insert(hash, self.seats.len());
            self.seats.push((hash, Arc::default()));
        }
        self.get(hash)
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    fn make_room(&mut self, idle: impl Fn(&T) -> bool) -> bool {
        for _ in 0..LOOK.min(self.seats.len()) {
            self.cursor = (self.cursor + 1) % self.seats.len();
            let (hash, value) = &self.seats[self.cursor];
            // Who holds another is about to use it; with `&mut self` nobody new does.
            if Arc::strong_count(value) == 1 && idle(value) {
                self.index.remove(hash);
                self.seats.swap_remove(self.cursor);
                if let Some((moved, _)) = self.seats.get(self.cursor) {
                    self.index.insert(*moved, self.cursor);
                }
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;

    fn idle(busy: &AtomicBool) -> bool {
        !busy.load(Relaxed)
    }

    proptest! {
        #[test]
        fn it_holds_all_that_are_busy_and_no_more_than_it_may(
            steps in proptest::collection::vec((0..60_u64, any::<bool>()), 0..300),
        ) {
            let mut table = Table::<AtomicBool>::new(20);
            let mut busy = std::collections::HashSet::new();
            for (hash, works) in steps {
                match table.get_or_insert(hash, idle) {
                    Some(seat) => {
                        seat.store(works, Relaxed);
                        if works { busy.insert(hash); } else { busy.remove(&hash); }
                    }
                    None => prop_assert!(!busy.contains(&hash) && busy.len() >= LOOK),
                }
                prop_assert!(table.len() <= 20);
                prop_assert_eq!(table.index.len(), table.seats.len());
                for hash in &busy {
                    prop_assert!(table.get(*hash).is_some_and(|seat| !idle(seat)));
                }
            }
        }
    }

    #[test]
    fn what_somebody_holds_keeps_its_seat() {
        let mut table = Table::<AtomicBool>::new(1);
        let held = table.get_or_insert(1, idle).unwrap().clone();
        assert!(table.get_or_insert(2, idle).is_none());
        drop(held);
        assert!(table.get_or_insert(2, idle).is_some() && table.get(1).is_none());
    }
}
