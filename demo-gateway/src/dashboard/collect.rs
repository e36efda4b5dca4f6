//! Counts requests as they end, on their own threads.

use std::{
    hash::RandomState,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::second::Second;
use crate::record::{Observe, Part, Record};

/// Threads that count at once rarely share one.
const STRIPES: usize = 8;

/// Counts requests as they end: additions under a lock that is hardly ever shared, and held for no longer.
#[derive(Debug)]
pub(super) struct Collector {
    stripes: [Stripe; STRIPES],
    /// `None` when there are no limits that anybody could be near.
    hasher: Option<RandomState>,
}

/// On cache lines of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Stripe(Mutex<Second>);

impl Collector {
    pub(super) fn new(watches_callers: bool) -> Self {
        Self {
            stripes: Default::default(),
            hasher: watches_callers.then(RandomState::new),
        }
    }

    /// Adds all that ended since the last time.
    pub(super) fn collect(&self, second: &mut Second) {
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock().unwrap_or_else(PoisonError::into_inner);
            second.take(&mut stripe);
        }
    }
}

impl Observe for Collector {
    fn ended(&self, record: &Record) {
        // The items of a batch are told one by one.
        if record.operation.is_none() || record.part == Part::Batch {
            return;
        }
        let stripe = &self.stripes[stripe()].0;
        let mut second = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        second.count(record, self.hasher.as_ref());
    }
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Relaxed) % STRIPES);
    // A thread that ends has none any more.
    MINE.try_with(|mine| *mine).unwrap_or(0)
}
