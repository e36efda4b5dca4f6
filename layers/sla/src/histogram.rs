//! Durations in log-linear bins.

use std::time::Duration;

/// The steps of an octave, as a power of two: a bin is at most 1/32 (3.125 %) of its lower edge wide.
const STEPS: u32 = 5;
/// The width of the narrowest bins, as a power of two of nanoseconds: 2 us.
const UNIT: u32 = 11;
/// Bins double in width from here to 2^42 ns: 73 minutes.
const OCTAVES: u32 = 42 - UNIT - STEPS;
/// The first 32 bins are all of the narrowest width, up to 66 us.
const BINS: usize = ((OCTAVES + 1) << STEPS) as usize;

/// How many durations there were of each size. 3.4 KiB whatever their number.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    bins: [u32; BINS],
    sum: u64,
    max: u64,
}

impl Histogram {
    #[inline]
    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = nanos(duration);
        let bin = &mut self.bins[bin(nanos)];
        *bin = bin.saturating_add(1);
        // 584 years: what ends in one time bucket has not taken that long.
        self.sum = self.sum.saturating_add(nanos);
        self.max = self.max.max(nanos);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.bins.iter_mut().zip(other.bins) {
            *mine = mine.saturating_add(theirs);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            bins: [0; BINS],
            sum: 0,
            max: 0,
        }
    }
}

/// Many histograms as one, to be asked.
#[derive(Debug)]
pub(crate) struct Merged {
    bins: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Merged {
    pub(crate) fn new() -> Self {
        Self {
            bins: vec![0; BINS],
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    pub(crate) fn add(&mut self, part: &Histogram) {
        for (mine, &theirs) in self.bins.iter_mut().zip(&part.bins) {
            *mine += u64::from(theirs);
            self.count += u64::from(theirs);
        }
        self.sum += u128::from(part.sum);
        self.max = self.max.max(part.max);
    }

    /// The mean in seconds, exactly; 0 of nothing.
    pub(crate) fn average(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        self.sum as f64 / self.count as f64 / 1e9
    }

    /// The longest in seconds, exactly; 0 of nothing.
    pub(crate) fn max(&self) -> f64 {
        self.max as f64 / 1e9
    }

    /// What this share is below, in seconds, interpolated between the two nearest; 0 of nothing.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let Some(last) = self.count.checked_sub(1) else {
            return 0.0;
        };
        let rank = share * last as f64;
        let (low, part) = (rank as u64, rank.fract());
        let below = self.ranked(low);
        let above = self.ranked(last.min(low + 1));
        (below + (above - below) * part) / 1e9
    }

    /// The one before which there are `rank` shorter ones, in nanoseconds.
    fn ranked(&self, rank: u64) -> f64 {
        let mut before = 0;
        let found = self.bins.iter().position(|count| {
            before += count;
            before > rank
        });
        let max = self.max as f64;
        found.map_or(max, |bin| middle(bin).min(max))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn bin(nanos: u64) -> usize {
    let units = nanos >> UNIT;
    let shift = (units >> STEPS).checked_ilog2().unwrap_or(0);
    let bin = (u64::from(shift) << STEPS) + (units >> shift);
    bin.min(BINS as u64 - 1) as usize
}

/// The middle of a bin, in nanoseconds; the last one has none.
fn middle(bin: usize) -> f64 {
    let (octave, step) = (bin >> STEPS, bin & ((1 << STEPS) - 1));
    if bin == BINS - 1 {
        return f64::INFINITY;
    }
    let (start, width) = match octave {
        0 => (step, 1),
        _ => (((1 << STEPS) + step) << (octave - 1), 1 << (octave - 1)),
    };
    (start as f64 + f64::from(width) / 2.0) * f64::from(1 << UNIT)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn merged(parts: &[&[u64]]) -> Merged {
        let mut merged = Merged::new();
        for part in parts {
            let mut histogram = Histogram::default();
            for &nanos in *part {
                histogram.record(Duration::from_nanos(nanos));
            }
            merged.add(&histogram);
        }
        merged
    }

    /// The percentile of a sorted list in seconds, interpolated between the two nearest.
    fn exact(sorted: &[u64], share: f64) -> f64 {
        let rank = share * (sorted.len() - 1) as f64;
        let low = sorted[rank as usize] as f64;
        let high = sorted[(rank as usize + 1).min(sorted.len() - 1)] as f64;
        (low + (high - low) * rank.fract()) / 1e9
    }

    /// From 100 us to an hour, each octave as likely as any other.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        let one = (100e3_f64.ln()..3600e9_f64.ln()).prop_map(|log| log.exp() as u64);
        vec(one, 1..300)
    }

    #[test]
    fn bins_follow_each_other_without_a_gap() {
        let mut last = 0;
        for octave in 0..42 {
            for step in 0..64 {
                let nanos = (1_u64 << octave) + (step << octave) / 64;
                let at = bin(nanos);
                assert!(
                    at == last || at == last + 1,
                    "{nanos} ns: from {last} to {at}"
                );
                last = at;
            }
        }
        assert_eq!(last, BINS - 1);
    }

    #[test]
    fn each_bin_holds_its_middle() {
        for at in 0..BINS - 1 {
            assert_eq!(bin(middle(at) as u64), at);
        }
    }

    #[test]
    fn nothing_is_zero() {
        let nothing = merged(&[]);
        let all = [nothing.average(), nothing.max(), nothing.percentile(0.5)];
        assert_eq!(all, [0.0; 3]);
    }

    #[test]
    fn what_is_longer_than_the_last_bin_is_its_maximum() {
        let day = 86_400_000_000_000;
        let long = merged(&[&[day, day]]);
        assert_eq!((long.percentile(0.5), long.max()), (86_400.0, 86_400.0));
        let forever = merged(&[&[u64::MAX], &[u64::MAX]]);
        assert!(forever.percentile(0.99) > 1e10);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_3_2_percent_of_a_sorted_list(
            mut list in durations(),
            share in 0.0..=1.0,
        ) {
            let merged = merged(&[&list[..list.len() / 2], &list[list.len() / 2..]]);
            list.sort_unstable();
            for share in [0.5, 0.95, 0.99, share] {
                let (found, expected) = (merged.percentile(share), exact(&list, share));
                prop_assert!((found - expected).abs() <= 0.032 * expected, "{found} {expected}");
                prop_assert!(found <= merged.max());
            }
            let mean = list.iter().sum::<u64>() as f64 / list.len() as f64 / 1e9;
            prop_assert!((merged.average() - mean).abs() <= 1e-9 * mean);
            prop_assert_eq!(merged.max(), list[list.len() - 1] as f64 / 1e9);
        }

        #[test]
        fn adding_is_recording_both(one in durations(), other in durations()) {
            let histogram = |list: &[u64]| {
                let mut histogram = Histogram::default();
                list.iter().for_each(|&nanos| histogram.record(Duration::from_nanos(nanos)));
                histogram
            };
            let mut sum = histogram(&one);
            sum.add(&histogram(&other));
            let both = histogram(&[one, other].concat());
            prop_assert_eq!(sum.bins, both.bins);
            prop_assert_eq!((sum.sum, sum.max), (both.sum, both.max));
        }
    }
}
