//! How long most requests took of late.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::ratio::Ratio;

/// The window is forgotten in this many parts.
const SLOTS: usize = 8;
/// Steps of an octave: a value is at most 1/16 above the sample that it stands for.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Octaves above the first [`STEPS`] microseconds, up to 2^32 of them: 71 minutes.
const OCTAVES: usize = 28;
const GROUPS: usize = OCTAVES + 1;
const BINS: usize = GROUPS * STEPS;
const LONGEST: u64 = u32::MAX as u64;

/// A quantile of the durations of a trailing window.
///
/// Takes 17 KB once and allocates nothing later. Recording is one step and one short lock; reading looks at no more
/// than 45 counts. A value is never below the sample of that rank and at most 1/16 and a microsecond above it. Samples over 71
/// minutes count as such. A window is forgotten in eighths, so that it holds between 7/8 and all of its length.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::{quantile::Quantile, ratio::Ratio, time::now};
///
/// let (minute, now) = (Duration::from_secs(60), now());
/// let median = Quantile::new(minute).at_least(3);
/// for millis in [10, 20] {
///     median.record(Duration::from_millis(millis), now);
/// }
/// assert_eq!(median.value(Ratio::HALF, now), None);
/// median.record(Duration::from_millis(900), now);
/// let value = median.value(Ratio::HALF, now).unwrap();
/// assert!(value >= Duration::from_millis(20) && value < Duration::from_millis(22));
/// assert_eq!(median.value(Ratio::HALF, now + minute), None);
/// ```
pub struct Quantile {
    slot: Duration,
    fewest: u64,
    counts: Mutex<Counts>,
}

impl Quantile {
    /// Of nothing yet. A window below eight milliseconds is one of eight milliseconds.
    pub fn new(window: Duration) -> Self {
        Self {
            slot: (window / SLOTS as u32).max(Duration::from_millis(1)),
            fewest: 1,
            counts: Mutex::new(Counts::new()),
        }
    }

    /// Says nothing of fewer samples than this.
    #[must_use]
    pub fn at_least(mut self, samples: u64) -> Self {
        self.fewest = samples.max(1);
        self
    }

    /// The window that is looked at.
    pub fn window(&self) -> Duration {
        self.slot * SLOTS as u32
    }

    /// Counts one sample.
    pub fn record(&self, sample: Duration, now: Instant) {
        let bin = bin(sample);
        let mut counts = self.counts();
        counts.turn(self.slot, now);
        counts.add(bin);
    }

    /// The smallest duration that at least this share of the samples did not exceed; `None` when there are too few.
    pub fn value(&self, share: Ratio, now: Instant) -> Option<Duration> {
        let mut counts = self.counts();
        counts.turn(self.slot, now);
        if counts.total < self.fewest {
            return None;
        }
        counts.value(share)
    }

    /// The samples in the window.
    pub fn count(&self, now: Instant) -> u64 {
        let mut counts = self.counts();
        counts.turn(self.slot, now);
        counts.total
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing in here panics between two writes that belong together.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quantile")
            .field("window", &self.window())
            .field("samples", &self.counts().total)
            .finish_non_exhaustive()
    }
}

struct Counts {
    slots: Box<[[u32; BINS]]>,
    /// The sums over all slots, so that nobody has to add them up: by bin, and by [`STEPS`] bins.
    bins: [u32; BINS],
    groups: [u64; GROUPS],
    total: u64,
    current: usize,
    /// When the current slot began.
    since: Option<Instant>,
}

impl Counts {
    fn new() -> Self {
        Self {
            slots: vec![[0; BINS]; SLOTS].into_boxed_slice(),
            bins: [0; BINS],
            groups: [0; GROUPS],
            total: 0,
            current: 0,
            since: None,
        }
    }

    /// Forgets what is too old. A `now` that another thread has overtaken is as good as the latest.
    fn turn(&mut self, slot: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < slot {
            return;
        }
        let slots = elapsed.as_nanos() / slot.as_nanos();
        let into = elapsed.as_nanos() % slot.as_nanos();
        self.since = Some(now - Duration::from_nanos(into.try_into().unwrap_or(u64::MAX)));
        for _ in 0..slots.min(SLOTS as u128) {
            self.current = (self.current + 1) % SLOTS;
            self.forget_current();
        }
    }

    fn forget_current(&mut self) {
        let slot = &mut self.slots[self.current];
        for (bin, count) in slot.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
            self.bins[bin] -= *count;
            self.groups[bin / STEPS] -= u64::from(*count);
            self.total -= u64::from(*count);
            *count = 0;
        }
    }

    fn add(&mut self, bin: usize) {
        let count = &mut self.slots[self.current][bin];
        // Four thousand million samples in one bin: more would change nothing.
        if self.bins[bin] < u32::MAX {
            *count += 1;
            self.bins[bin] += 1;
            self.groups[bin / STEPS] += 1;
            self.total += 1;
        }
    }

    fn value(&self, share: Ratio) -> Option<Duration> {
        let mut rank = (share.get() * self.total as f64).ceil().max(1.0) as u64;
        let group = self.groups.iter().position(|&count| {
            let here = rank <= count;
            if !here {
                rank -= count;
            }
            here
        })?;
        let bins = &self.bins[group * STEPS..][..STEPS];
        let step = bins.iter().position(|&count| {
            let here = rank <= u64::from(count);
            if !here {
                rank -= u64::from(count);
            }
            here
        })?;
        Some(upper(group, step))
    }
}

fn bin(sample: Duration) -> usize {
    // Rounded up, so that no value is below its sample.
    let micros = sample.as_nanos().div_ceil(1000).min(LONGEST.into()) as u64;
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let shift = micros.ilog2() - STEP_BITS;
    let step = (micros >> shift) as usize % STEPS;
    (shift as usize + 1) * STEPS + step
}

/// The longest duration of a bin.
fn upper(group: usize, step: usize) -> Duration {
    let step = step as u64;
    Duration::from_micros(match group {
        0 => step,
        _ => ((STEPS as u64 + step + 1) << (group - 1)) - 1,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    const WINDOW: Duration = Duration::from_secs(8);
    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);

    fn share(share: f64) -> Ratio {
        Ratio::new(share).unwrap()
    }

    /// Every sample with the slot that it fell into.
    #[derive(Default)]
    struct Model(Vec<(u128, Duration)>);

    impl Model {
        fn value(&self, share: f64, slot: u128) -> Option<Duration> {
            let seen = self.0.iter().filter(|(at, _)| at + 8 > slot);
            let mut seen: Vec<_> = seen.map(|(_, sample)| *sample).collect();
            seen.sort();
            let rank = (share * seen.len() as f64).ceil().max(1.0) as usize;
            seen.get(rank - 1).copied()
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(
            steps in prop::collection::vec((0_u64..3_000, 0_u64..10_000_000_000), 1..200),
            of in 0.001_f64..=1.0,
        ) {
            let (quantile, mut model) = (Quantile::new(WINDOW), Model::default());
            let start = time::now();
            let mut passed = Duration::ZERO;
            for (index, (millis, nanos)) in steps.into_iter().enumerate() {
                if index > 0 {
                    passed += Duration::from_millis(millis);
                }
                let slot = passed.as_nanos() / SECOND.as_nanos();
                let sample = Duration::from_nanos(nanos);
                quantile.record(sample, start + passed);
                model.0.push((slot, sample));
                let value = quantile.value(share(of), start + passed).unwrap();
                let exact = model.value(of, slot).unwrap();
                prop_assert!(value >= exact, "{value:?} for {exact:?}");
                let above = exact.as_secs_f64() * (17.0 / 16.0) + 1e-6;
                prop_assert!(value.as_secs_f64() <= above, "{value:?} for {exact:?}");
            }
        }
    }

    #[test]
    fn the_bins_leave_no_gap_and_do_not_overlap() {
        let mut before = None;
        for group in 0..GROUPS {
            for step in 0..STEPS {
                let last = upper(group, step);
                assert_eq!(bin(last), group * STEPS + step);
                if let Some(before) = before {
                    assert_eq!(bin(before + Duration::from_nanos(1)), group * STEPS + step);
                }
                before = Some(last);
            }
        }
        assert_eq!(before, Some(Duration::from_micros(LONGEST)));
        assert_eq!(bin(Duration::MAX), BINS - 1);
    }

    #[test]
    fn what_is_a_window_old_is_forgotten_and_what_is_younger_by_an_eighth_is_not() {
        let (quantile, start) = (Quantile::new(WINDOW), time::now());
        quantile.record(SECOND, start);
        let last = start + WINDOW - Duration::from_nanos(1);
        assert_eq!(quantile.count(last), 1);
        assert_eq!(quantile.count(start + WINDOW), 0);
        assert_eq!(quantile.value(Ratio::HALF, start + WINDOW), None);

        quantile.record(SECOND, start + WINDOW);
        assert_eq!(quantile.count(start + 100_000 * WINDOW), 0);
    }

    #[test]
    fn too_few_samples_say_nothing() {
        let (quantile, now) = (Quantile::new(WINDOW).at_least(10), time::now());
        for _ in 0..9 {
            quantile.record(MILLI, now);
        }
        assert_eq!(quantile.value(Ratio::HALF, now), None);
        quantile.record(MILLI, now);
        assert!(quantile.value(Ratio::HALF, now).is_some());
    }

    #[test]
    fn a_clock_that_another_thread_has_overtaken_changes_nothing() {
        let (quantile, start) = (Quantile::new(WINDOW), time::now());
        quantile.record(MILLI, start + 3 * WINDOW);
        quantile.record(MILLI, start);
        assert_eq!(quantile.count(start), 2);
        assert_eq!(quantile.count(start + 4 * WINDOW), 0);
    }

    #[test]
    fn threads_lose_no_sample() {
        let (quantile, now) = (Quantile::new(WINDOW), time::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| quantile.record(MILLI, now)));
            }
        });
        assert_eq!(quantile.count(now), 40_000);
    }

    #[test]
    fn a_window_of_nothing_is_a_short_one() {
        let quantile = Quantile::new(Duration::ZERO);
        assert_eq!(quantile.window(), 8 * MILLI);
        quantile.record(SECOND, time::now());
    }
}
