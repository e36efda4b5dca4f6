//! Refusing what can hardly be done in time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{quantile::Quantile, ratio::Ratio};
use tokio::time::Instant;

use crate::{error::Hopeless, samples::Samples, tally::Tally};

const WINDOW: Duration = Duration::from_secs(60);
/// Enough for a median.
const FEWEST: u64 = 20;
/// One in so many passes all the same, and shows whether the service has become faster.
const ONE_IN: u32 = 10;

/// What has to fit into what is left of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// The first data of the answer: for streams of which the beginning is worth something.
    FirstData,
    /// The whole answer.
    Whole,
}

#[derive(Debug)]
pub(crate) struct Median {
    pub(crate) need: Need,
    samples: Arc<Quantile>,
    hopeless: AtomicU32,
    let_through: AtomicU64,
}

impl Median {
    pub(crate) fn new(need: Need) -> Self {
        Self {
            need,
            samples: Arc::new(Quantile::new(WINDOW).at_least(FEWEST)),
            hopeless: AtomicU32::new(0),
            let_through: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, now: Instant) -> Option<Duration> {
        self.samples.value(Ratio::HALF, now)
    }

    /// How many passed although they were not expected to be done in time.
    pub(crate) fn let_through(&self) -> u64 {
        self.let_through.load(Relaxed)
    }

    pub(crate) fn samples(&self) -> Samples {
        let mut samples = Samples::default();
        match self.need {
            Need::FirstData => samples.first = Some(self.samples.clone()),
            Need::Whole => samples.whole = Some(self.samples.clone()),
        }
        samples
    }

    /// Refuses most requests of which so little is left.
    pub(crate) fn refuses(
        &self,
        remaining: Duration,
        now: Instant,
        tally: &Tally,
    ) -> Option<Hopeless> {
        let median = self.get(now)?;
        tally.median(median);
        if remaining >= median {
            return None;
        }
        if self.hopeless.fetch_add(1, Relaxed) % ONE_IN == ONE_IN - 1 {
            self.let_through.fetch_add(1, Relaxed);
            return None;
        }
        Some(Hopeless { remaining, median })
    }
}
