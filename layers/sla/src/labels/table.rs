//! The labels of a dimension and their places.

use std::sync::{
    OnceLock,
    atomic::{
        AtomicUsize,
        Ordering::{Acquire, Release},
    },
};

use super::owners::fits;

/// A label and its place.
type Slot = OnceLock<(Box<str>, u8)>;

/// A hash table that only grows, up to a number of labels, and is read without a lock.
#[derive(Debug)]
pub(crate) struct Table {
    /// A power of two, and twice as many as labels, so that a search soon meets a free one.
    slots: Box<[Slot]>,
    most: usize,
    count: AtomicUsize,
}

impl Table {
    pub(crate) fn new(most: usize) -> Self {
        let slots = (2 * most).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            most,
            count: AtomicUsize::new(0),
        }
    }

    /// The place of a label, from 1.
    #[inline]
    pub(crate) fn find(&self, label: &str) -> Option<u8> {
        self.search(label).ok()
    }

    /// Whether a label that is not found from now on never will be.
    pub(crate) fn is_full(&self, label: &str) -> bool {
        !fits(label) || self.count.load(Acquire) >= self.most
    }

    /// Lets a label be found, whose place was made before. Calls are made one after the other.
    pub(crate) fn add(&self, label: &str, place: u8) {
        let Err(free) = self.search(label) else {
            return;
        };
        let set = self.slots[free].set((label.into(), place));
        debug_assert!(set.is_ok(), "only set under the lock of those who add");
        self.count.fetch_add(1, Release);
    }

    /// The place of a label, or the slot that it would be in.
    #[inline]
    fn search(&self, label: &str) -> Result<u8, usize> {
        let last = self.slots.len() - 1;
        let mut at = hash(label.as_bytes()) as usize & last;
        loop {
            match self.slots[at].get() {
                Some((held, place)) if **held == *label => return Ok(*place),
                Some(_) => at = (at + 1) & last,
                None => return Err(at),
            }
        }
    }
}

/// Quick, and not safe from those who choose labels: the table is small, so that the longest search is, too.
#[inline]
fn hash(label: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(ODD);
    let (words, rest) = label.as_chunks::<8>();
    let hash = words.iter().fold(label.len() as u64, |hash, word| {
        mix(hash, u64::from_le_bytes(*word))
    });
    let rest = rest
        .iter()
        .fold(0, |word, byte| word << 8 | u64::from(*byte));
    mix(hash, rest) >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_that_takes_so_many_and_no_more(
            most in 1_usize..20,
            labels in vec("[a-c]{0,3}|[a-z]{20}", 1..100),
        ) {
            let (table, mut map) = (Table::new(most), HashMap::new());
            for label in labels {
                prop_assert_eq!(table.find(&label), map.get(&label).copied());
                prop_assert_eq!(table.is_full(&label), map.len() >= most);
                if map.len() < most {
                    let place = map.len() as u8 + 1;
                    let place = *map.entry(label.clone()).or_insert(place);
                    table.add(&label, place);
                    prop_assert_eq!(table.find(&label), Some(place));
                }
            }
        }
    }
}
