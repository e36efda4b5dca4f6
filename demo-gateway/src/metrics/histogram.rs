//! A histogram that takes its memory once.

use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use metrics::HistogramFn;

/// Threads that record at once rarely meet in one of so many.
const STRIPES: usize = 4;

/// Counts values by their bucket. Recording allocates nothing, locks nothing, and waits for nobody.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Upper bounds, which are part of their bucket, from the lowest to the highest.
    bounds: &'static [f64],
    stripes: [Stripe; STRIPES],
}

/// The bits of the sum, an `f64`, and then the buckets, the last of which is for what is over every bound: close
/// together, as they change together.
#[derive(Debug)]
struct Stripe(Box<[AtomicU64]>);

/// What a histogram holds at one moment.
#[derive(Debug, PartialEq)]
pub(crate) struct Totals {
    /// How many values each bound is not below, and at last how many there are.
    pub(crate) cumulative: Vec<u64>,
    pub(crate) sum: f64,
}

impl Totals {
    pub(crate) fn count(&self) -> u64 {
        self.cumulative.last().copied().unwrap_or(0)
    }
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let cells = 1 + bounds.len() + 1;
        Self {
            bounds,
            stripes: std::array::from_fn(|_| {
                Stripe((0..cells).map(|_| AtomicU64::new(0)).collect())
            }),
        }
    }

    pub(crate) fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// Each bucket only ever grows, so two of these never contradict each other, whatever is recorded meanwhile.
    pub(crate) fn totals(&self) -> Totals {
        let mut below = 0;
        let cumulative = (0..=self.bounds.len()).map(|at| {
            let here = self.stripes.iter().map(|stripe| stripe.count(at));
            below += here.sum::<u64>();
            below
        });
        Totals {
            cumulative: cumulative.collect(),
            sum: self.stripes.iter().map(Stripe::sum).sum(),
        }
    }

    fn add(&self, value: f64, times: u64) {
        // What is no number is below no bound, and would make the sum useless for good.
        let bucket = match value.is_nan() {
            true => self.bounds.len(),
            false => self.bounds.partition_point(|bound| *bound < value),
        };
        let stripe = &self.stripes[number() % STRIPES];
        if value.is_finite() {
            stripe.add(value * times as f64);
        }
        stripe.0[1 + bucket].fetch_add(times, Release);
    }
}

impl HistogramFn for Histogram {
    fn record(&self, value: f64) {
        self.add(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.add(value, count as u64);
    }
}

impl Stripe {
    fn count(&self, bucket: usize) -> u64 {
        self.0[1 + bucket].load(Acquire)
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.0[0].load(Acquire))
    }

    fn add(&self, value: f64) {
        let sum = &self.0[0];
        let mut old = sum.load(Relaxed);
        loop {
            let new = (f64::from_bits(old) + value).to_bits();
            match sum.compare_exchange_weak(old, new, Release, Relaxed) {
                Ok(_) => return,
                Err(meanwhile) => old = meanwhile,
            }
        }
    }
}

/// A number for each thread, so that those that run together have different ones.
fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    // A thread that is about to end has none any more.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const BOUNDS: &[f64] = &[0.5, 1.0, 4.0];

    #[test]
    fn a_value_on_a_bound_counts_within_it() {
        let histogram = Histogram::new(BOUNDS);
        for value in [0.5, 1.0, 1.000_1, 4.0, 4.1] {
            histogram.record(value);
        }
        let totals = histogram.totals();
        assert_eq!(totals.cumulative, [1, 2, 4, 5]);
        assert!((totals.sum - 10.600_1).abs() < 1e-9, "{}", totals.sum);
    }

    #[test]
    fn what_is_no_number_is_counted_and_spoils_no_sum() {
        let histogram = Histogram::new(BOUNDS);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 2.0] {
            histogram.record(value);
        }
        let totals = histogram.totals();
        assert_eq!(totals.cumulative, [1, 1, 2, 4]);
        assert!((totals.sum - 2.0).abs() < 1e-9, "{}", totals.sum);
    }

    #[test]
    fn threads_that_record_at_once_lose_nothing() {
        const EACH: u32 = 20_000;
        let histogram = Arc::new(Histogram::new(BOUNDS));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let histogram = histogram.clone();
                thread::spawn(move || (0..EACH).for_each(|_| histogram.record(2.0)))
            })
            .collect();
        let mut last = 0;
        while !threads.iter().all(thread::JoinHandle::is_finished) {
            let now = histogram.totals();
            assert!(now.count() >= last);
            assert!(now.cumulative.is_sorted());
            last = now.count();
        }
        threads.into_iter().for_each(|it| it.join().unwrap());
        let totals = histogram.totals();
        assert_eq!(totals.cumulative, [0, 0, 160_000, 160_000]);
        assert!((totals.sum - 320_000.0).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn it_counts_as_a_list_would(values in vec((-1.0..8.0_f64, 1..4_usize), 0..200)) {
            let histogram = Histogram::new(BOUNDS);
            let mut list = Vec::new();
            for (value, times) in values {
                histogram.record_many(value, times);
                list.extend(std::iter::repeat_n(value, times));
            }
            let totals = histogram.totals();
            let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
            let expected: Vec<u64> = bounds
                .map(|bound| list.iter().filter(|value| **value <= bound).count() as u64)
                .collect();
            prop_assert_eq!(&totals.cumulative, &expected);
            prop_assert!((totals.sum - list.iter().sum::<f64>()).abs() < 1e-6);
            prop_assert_eq!(totals.count(), list.len() as u64);
        }
    }
}
