//! How long the answers are that a key gets from a model.

use std::{
    array,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

/// Keys and models that are kept apart: at most 2 MB, 176 bytes each and the index to find them by.
const CAPACITY: usize = 10_000;

/// A newcomer looks at so many for the one that was not asked for the longest.
const LOOK: usize = 8;

/// Before so many answers were seen, 95 of 100 say nothing: the longest of fewer decides alone.
const ENOUGH: u32 = 20;

/// What is expected before that: between the mean answers of the two traces of vLLM's paper (58 and 338 tokens), in
/// whole steps of a reservation. Streams grow beyond it step by step.
const UNKNOWN: u64 = 256;

/// How long the answers are that each key gets from each model.
///
/// One lock for all, held for some 100 ns twice per request.
#[derive(Debug)]
pub(crate) struct Learner {
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    places: HashMap<u64, usize>,
    seats: Vec<Seat>,
    capacity: usize,
    /// Counts what is asked and learned.
    turn: u64,
    /// The state of a generator of numbers that nobody needs to guess: the key and the model are hashed in secret.
    random: u64,
}

#[derive(Debug)]
struct Seat {
    id: u64,
    touched: u64,
    lengths: Lengths,
}

impl Default for Learner {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Learner {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            table: Mutex::new(Table {
                places: HashMap::new(),
                seats: Vec::new(),
                capacity,
                turn: 0,
                random: 0x9e37_79b9_7f4a_7c15,
            }),
        }
    }

    /// Tokens that 95 of 100 answers stay below, at most `most`. `key` is a hash.
    pub(crate) fn expect(&self, key: u64, model: &str, most: u64) -> u64 {
        let id = self.hasher.hash_one((key, model));
        let expected = self.with(|table| table.find(id).and_then(|lengths| lengths.p95()));
        expected.unwrap_or(UNKNOWN).min(most)
    }

    /// Takes into account how long an answer was that came to its own end.
    pub(crate) fn learn(&self, key: u64, model: &str, completion: u64) {
        let id = self.hasher.hash_one((key, model));
        self.with(|table| table.seat(id).add(completion));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        // Nothing of users runs while it is held.
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Table {
    fn find(&mut self, id: u64) -> Option<&mut Lengths> {
        let place = *self.places.get(&id)?;
        self.turn += 1;
        let seat = &mut self.seats[place];
        seat.touched = self.turn;
        Some(&mut seat.lengths)
    }

    fn seat(&mut self, id: u64) -> &mut Lengths {
        let place = match self.places.get(&id) {
            Some(&place) => place,
            None => {
                let place = self.free();
                self.seats[place].id = id;
                self.places.insert(id, place);
                place
            }
        };
        self.turn += 1;
        let seat = &mut self.seats[place];
        seat.touched = self.turn;
        &mut seat.lengths
    }

    /// A seat that is new, or that somebody had to leave.
    fn free(&mut self) -> usize {
        if self.seats.len() < self.capacity {
            self.seats.push(Seat {
                id: 0,
                touched: 0,
                lengths: Lengths::default(),
            });
            return self.seats.len() - 1;
        }
        let sampled: [usize; LOOK] = array::from_fn(|_| self.random());
        let longest_ago = sampled
            .into_iter()
            .min_by_key(|&place| self.seats[place].touched);
        let place = longest_ago.unwrap_or(0);
        let seat = &mut self.seats[place];
        self.places.remove(&seat.id);
        seat.lengths = Lengths::default();
        place
    }

    /// A seat by Marsaglia's xorshift.
    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % self.seats.len() as u64) as usize
    }
}

/// Below this a length has a bucket of its own.
const EXACT: u64 = 4;

/// Longer answers count as this long: 2^20 - 1 tokens.
const LONGEST: u64 = (1 << 20) - 1;

/// Four for each power of two.
const BUCKETS: usize = bucket(LONGEST) + 1;

/// An answer weighs so much when it is new: so little is lost by halving whole numbers.
const WEIGHT: u16 = 64;

/// After so many answers, all that were before count half.
const HALVED_AFTER: u16 = 256;

/// How long answers were, in buckets of at most a quarter of their length, the older the less.
#[derive(Clone, Debug)]
struct Lengths {
    buckets: [u16; BUCKETS],
    total: u32,
    since_halved: u16,
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            total: 0,
            since_halved: 0,
        }
    }
}

impl Lengths {
    fn add(&mut self, length: u64) {
        if self.since_halved == HALVED_AFTER {
            self.halve();
        }
        self.since_halved += 1;
        // Halved in time, a bucket holds at most 2 * 256 * 64.
        self.buckets[bucket(length)] += WEIGHT;
        self.total += u32::from(WEIGHT);
    }

    fn halve(&mut self) {
        self.since_halved = 0;
        self.total = 0;
        for bucket in &mut self.buckets {
            *bucket /= 2;
            self.total += u32::from(*bucket);
        }
    }

    /// The end of the bucket that the nearest rank falls into: never less than that, and at most a quarter more.
    fn p95(&self) -> Option<u64> {
        if self.total < ENOUGH * u32::from(WEIGHT) {
            return None;
        }
        let mut longer = 0;
        let mut buckets = self.buckets.iter().enumerate().rev();
        let found = buckets.find(|&(_, &weight)| {
            longer += u32::from(weight);
            longer * 20 > self.total
        });
        found.map(|(bucket, _)| last(bucket))
    }
}

/// The bucket of a length: its power of two, and the two binary digits after the first.
const fn bucket(length: u64) -> usize {
    let length = if length < LONGEST { length } else { LONGEST };
    if length < EXACT {
        return length as usize;
    }
    let octave = length.ilog2();
    let quarter = (length >> (octave - 2)) & 3;
    (4 * (octave - 1)) as usize + quarter as usize
}

/// The longest length in a bucket.
const fn last(bucket: usize) -> u64 {
    if bucket < EXACT as usize {
        return bucket as u64;
    }
    let (octave, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    ((4 + quarter + 1) << (octave - 2)) - 1
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const KEY: u64 = 7;

    fn expected(lengths: &[u64]) -> u64 {
        let learner = Learner::default();
        for &length in lengths {
            learner.learn(KEY, "m", length);
        }
        learner.expect(KEY, "m", u64::MAX)
    }

    #[test]
    fn a_bucket_is_at_most_a_quarter_wide_and_the_next_one_begins_where_it_ends() {
        for length in (0..5000)
            .chain((5000..LONGEST).step_by(97))
            .chain([LONGEST])
        {
            let end = last(bucket(length));
            assert!(
                end >= length && end <= length + length / 4,
                "{length} {end}"
            );
            assert_eq!(bucket(end), bucket(length));
            assert_eq!(bucket(end + 1), (bucket(end) + 1).min(BUCKETS - 1), "{end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(last(BUCKETS - 1), LONGEST);
    }

    #[test]
    fn twenty_answers_are_enough_and_nineteen_are_not() {
        assert_eq!(expected(&[1000; 19]), UNKNOWN);
        assert_eq!(expected(&[1000; 20]), 1023);
        assert_eq!(expected(&[3; 20]), 3);
        assert_eq!(expected(&[0; 20]), 0);
    }

    #[test]
    fn no_more_is_expected_than_is_allowed() {
        let learner = Learner::default();
        assert_eq!(learner.expect(KEY, "m", 16), 16);
        for _ in 0..20 {
            learner.learn(KEY, "m", 1000);
        }
        assert_eq!(learner.expect(KEY, "m", 16), 16);
    }

    #[test]
    fn keys_and_models_are_kept_apart() {
        let learner = Learner::default();
        for _ in 0..20 {
            learner.learn(1, "m", 10);
            learner.learn(1, "n", 2000);
            learner.learn(2, "m", 100_000);
        }
        let expected = |key, model| learner.expect(key, model, u64::MAX);
        assert_eq!((expected(1, "m"), expected(1, "n")), (11, 2047));
        assert_eq!((expected(2, "m"), expected(2, "n")), (114_687, UNKNOWN));
    }

    #[test]
    fn after_256_answers_those_before_count_half() {
        let mut lengths = Lengths::default();
        for _ in 0..256 {
            lengths.add(5);
        }
        assert_eq!(lengths.total, 256 * 64);
        lengths.add(5);
        assert_eq!(lengths.total, 129 * 64);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut lengths = vec![100_000; 10_000];
        // Halved six times, 272 old ones weigh 4 of about 400; halved twice, a quarter of all.
        lengths.extend([10; 6 * 256]);
        assert_eq!(expected(&lengths), 11);
        let shorter = &lengths[..10_000 + 512];
        assert!(expected(shorter) >= 100_000);
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_seats_and_puts_out_none_that_is_in_use() {
        let learner = Learner::with_capacity(1000);
        for _ in 0..20 {
            learner.learn(u64::MAX, "m", 1000);
        }
        for key in 0..50_000 {
            learner.learn(key, "m", 1);
            if key % 50 == 0 {
                assert_eq!(learner.expect(u64::MAX, "m", u64::MAX), 1023, "{key}");
            }
        }
        let table = learner.table.lock().unwrap();
        assert_eq!((table.seats.len(), table.places.len()), (1000, 1000));
        for (&id, &place) in &table.places {
            assert_eq!(table.seats[place].id, id);
        }
    }

    #[test]
    fn who_was_put_out_begins_anew() {
        let learner = Learner::with_capacity(1);
        for _ in 0..20 {
            learner.learn(1, "m", 1000);
        }
        learner.learn(2, "m", 1000);
        assert_eq!(learner.expect(1, "m", u64::MAX), UNKNOWN);
        assert_eq!(learner.expect(2, "m", u64::MAX), UNKNOWN);
    }

    #[test]
    fn a_seat_is_as_large_as_is_said() {
        assert_eq!(size_of::<Seat>(), 176);
    }

    /// The nearest rank of so many in a thousand, of lengths that are as old as their weights say.
    fn nearest_rank(weighted: &[(u64, f64)], permille: f64) -> u64 {
        let mut sorted = weighted.to_vec();
        sorted.sort_by_key(|&(length, _)| length);
        let total: f64 = sorted.iter().map(|&(_, weight)| weight).sum();
        let mut below = 0.0;
        for &(length, weight) in &sorted {
            below += weight;
            if below >= total * permille / 1000.0 {
                return length;
            }
        }
        sorted.last().map_or(0, |&(length, _)| length)
    }

    proptest! {
        #[test]
        fn p95_is_that_of_the_sorted_list_or_up_to_a_quarter_more(
            lengths in vec(prop_oneof![0u64..40, 0u64..4000, 0..=LONGEST], 20..=256),
        ) {
            let mut sorted = lengths.clone();
            sorted.sort_unstable();
            let exact = sorted[(sorted.len() * 95).div_ceil(100) - 1];
            let found = expected(&lengths);
            prop_assert!(found >= exact && found <= exact + exact / 4, "{found} {exact}");
        }

        #[test]
        fn p95_of_answers_that_are_forgotten_bit_by_bit_is_within_two_ranks(
            lengths in vec(prop_oneof![0u64..40, 0u64..4000, 0..=LONGEST], 257..1200),
        ) {
            let mut weighted = vec![];
            for (number, &length) in lengths.iter().enumerate() {
                if number > 0 && number % usize::from(HALVED_AFTER) == 0 {
                    weighted.iter_mut().for_each(|(_, weight)| *weight /= 2.0);
                }
                weighted.push((length, 1.0));
            }
            let (low, high) = (nearest_rank(&weighted, 930.0), nearest_rank(&weighted, 970.0));
            let found = expected(&lengths);
            prop_assert!(found >= low && found <= high + high / 4, "{low} {found} {high}");
        }
    }
}
