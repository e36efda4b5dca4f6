//! The last calls.

use crate::buckets::Sums;

/// Bits for one call: whether it failed, and whether it was slow.
const BITS: u32 = 2;
const PER_WORD: u32 = u64::BITS / BITS;
const FAILED: u64 = 1;
const SLOW: u64 = 2;

/// The last calls, two bits each, oldest overwritten first.
#[derive(Debug)]
pub(crate) struct Calls {
    words: Box<[u64]>,
    size: u32,
    next: u32,
    sums: Sums,
}

impl Calls {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            words: vec![0; size.div_ceil(PER_WORD) as usize].into(),
            size,
            next: 0,
            sums: Sums::default(),
        }
    }

    pub(crate) fn push(&mut self, failed: bool, slow: bool) {
        if self.sums.calls == u64::from(self.size) {
            let oldest = self.read(self.next);
            self.sums.take(oldest);
        }
        self.sums.add(Sums::one(failed, slow));
        let (word, shift) = self.place(self.next);
        let bits = (u64::from(failed) * FAILED) | (u64::from(slow) * SLOW);
        let others = self.words[word] & !((FAILED | SLOW) << shift);
        self.words[word] = others | (bits << shift);
        self.next = (self.next + 1) % self.size;
    }

    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    /// What was pushed is left where it is: nothing older than the calls counted is read.
    pub(crate) fn clear(&mut self) {
        self.sums = Sums::default();
    }

    /// The same calls, as many of the last as fit.
    pub(crate) fn of_size(&self, size: u32) -> Self {
        let mut other = Self::new(size);
        let count = self.sums.calls.min(size.into()) as u32;
        for back in (1..=count).rev() {
            let call = self.read((self.next + self.size - back) % self.size);
            other.push(call.failures == 1, call.slow == 1);
        }
        other
    }

    /// Counts calls of which some have failed and some were slow, evenly spread; in proportion, if they do not all fit.
    pub(crate) fn fill(&mut self, sums: Sums) {
        let size = u128::from(sums.calls.min(self.size.into()));
        let scaled = |part: u64| u128::from(part) * size / u128::from(sums.calls);
        for call in 0..size {
            // Whether one more of them is among the calls up to this one.
            let is_one = |part| (call + 1) * scaled(part) / size > call * scaled(part) / size;
            self.push(is_one(sums.failures), is_one(sums.slow));
        }
    }

    fn read(&self, index: u32) -> Sums {
        let (word, shift) = self.place(index);
        let bits = self.words[word] >> shift;
        Sums::one(bits & FAILED != 0, bits & SLOW != 0)
    }

    fn place(&self, index: u32) -> (usize, u32) {
        ((index / PER_WORD) as usize, index % PER_WORD * BITS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(list: &[(bool, bool)]) -> Sums {
        let mut sums = Sums::default();
        for (failed, slow) in list {
            sums.add(Sums::one(*failed, *slow));
        }
        sums
    }

    proptest! {
        #[test]
        fn it_is_filled_with_as_many_as_it_is_told_and_in_proportion_if_they_do_not_fit(
            size in 1_u32..100,
            calls in 0_u64..200,
            failures in 0_u64..200,
            slow in 0_u64..200,
        ) {
            let told = Sums { calls, failures: failures.min(calls), slow: slow.min(calls) };
            let mut window = Calls::new(size);
            window.fill(told);
            let sums = window.sums();
            if calls <= u64::from(size) {
                prop_assert_eq!(sums, told);
            } else {
                prop_assert_eq!(sums.calls, u64::from(size));
                prop_assert_eq!(sums.failures, told.failures * u64::from(size) / calls);
                prop_assert_eq!(sums.slow, told.slow * u64::from(size) / calls);
            }
        }

        #[test]
        fn a_window_equals_a_list_of_its_last_calls_also_when_it_is_cleared_and_resized(
            sizes in prop::collection::vec(1_u32..200, 1..4),
            calls in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u8..100), 0..400),
        ) {
            let mut size = sizes[0];
            let mut window = Calls::new(size);
            let mut list = Vec::new();
            for (turn, (failed, slow, dice)) in calls.into_iter().enumerate() {
                match dice {
                    0 => {
                        window.clear();
                        list.clear();
                    }
                    1..=3 => {
                        let gone = list.len().saturating_sub(size as usize);
                        list.drain(..gone);
                        size = sizes[turn % sizes.len()];
                        window = window.of_size(size);
                        let gone = list.len().saturating_sub(size as usize);
                        list.drain(..gone);
                    }
                    _ => {
                        window.push(failed, slow);
                        list.push((failed, slow));
                    }
                }
                let last = &list[list.len().saturating_sub(size as usize)..];
                prop_assert_eq!(window.sums(), of(last));
            }
        }
    }
}
