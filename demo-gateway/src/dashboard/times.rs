//! How long requests took, in a fixed number of bins.

use std::time::Duration;

/// Steps for each doubling: a bin is at most 1/16 wide, so its middle is within 3.2 % of what it stands for.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// Microseconds up to 71 minutes.
const BINS: usize = (32 - STEP_BITS as usize + 1) * STEPS;

/// How long requests took, in a fixed number of bins.
#[derive(Clone, Debug)]
pub(super) struct Times {
    bins: Box<[u32; BINS]>,
    count: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            bins: Box::new([0; BINS]),
            count: 0,
        }
    }
}

impl Times {
    pub(super) fn record(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let bin = &mut self.bins[index(micros)];
        *bin = bin.saturating_add(1);
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn add(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        for (bin, more) in self.bins.iter_mut().zip(other.bins.iter()) {
            *bin = bin.saturating_add(*more);
        }
        self.count = self.count.saturating_add(other.count);
    }

    pub(super) fn clear(&mut self) {
        if self.count > 0 {
            self.bins.fill(0);
            self.count = 0;
        }
    }

    /// Milliseconds that this share of the requests took at most; `None` without any.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (f64::from(self.count) * share).ceil().max(1.0) as u32;
        let mut seen = 0_u32;
        let found = self.bins.iter().position(|bin| {
            seen = seen.saturating_add(*bin);
            seen >= rank
        });
        (self.count > 0).then(|| middle(found.unwrap_or(BINS - 1)) / 1e3)
    }
}

fn index(micros: u32) -> usize {
    if micros < STEPS as u32 {
        return micros as usize;
    }
    let shift = micros.ilog2() - STEP_BITS;
    let step = (micros >> shift) as usize - STEPS;
    (shift as usize + 1) * STEPS + step
}

/// What a bin stands for, in microseconds.
fn middle(index: usize) -> f64 {
    if index < STEPS {
        return index as f64;
    }
    let (shift, step) = (index / STEPS - 1, index % STEPS);
    let width = (1_u64 << shift) as f64;
    ((STEPS + step) as f64 + 0.5) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bin_of_those_of_a_sorted_list() {
        let mut seed = 7_u64;
        for size in [1, 2, 10, 1000] {
            let (mut times, mut list) = (Times::default(), Vec::new());
            for _ in 0..size {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // From a microsecond to an hour.
                let micros = 2_f64.powf((seed >> 40) as f64 / f64::from(1 << 24) * 31.7);
                list.push(micros.trunc());
                times.record(Duration::from_micros(micros as u64));
            }
            list.sort_by(f64::total_cmp);
            for share in [0.5, 0.95, 0.99, 1.0] {
                let rank = (list.len() as f64 * share).ceil() as usize;
                let (exact, found) = (list[rank - 1], times.quantile(share).unwrap() * 1e3);
                assert!(
                    (found - exact).abs() <= exact * 0.032 + 0.5,
                    "{exact} {found}"
                );
            }
        }
    }

    #[test]
    fn nothing_took_nothing_and_the_longest_is_still_counted() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        times.record(Duration::MAX);
        assert!(times.quantile(0.5).unwrap() > 4e6);
        let mut both = times.clone();
        both.add(&times);
        assert_eq!(both.count, 2);
        both.clear();
        assert_eq!(both.quantile(1.0), None);
    }
}
