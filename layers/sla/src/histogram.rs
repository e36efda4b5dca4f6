//! Durations in log-linear bins.

use std::fmt;

/// Bins double in width up to 2^42 ns: 73 minutes.
const TOP: u32 = 42;

/// Which durations share a bin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    /// The steps of an octave, as a power of two: with 5 a bin is at most 1/32 (3.125 %) of its lower edge wide.
    steps: u32,
    /// The width of the narrowest bins, as a power of two of nanoseconds.
    unit: u32,
}

impl Scale {
    pub(crate) const fn bins(self) -> usize {
        // The first octave of steps is linear.
        ((TOP - self.unit - self.steps + 1) << self.steps) as usize
    }

    #[inline]
    pub(crate) fn bin(self, nanos: u64) -> usize {
        let units = nanos >> self.unit;
        let shift = (units >> self.steps).checked_ilog2().unwrap_or(0);
        let bin = (u64::from(shift) << self.steps) + (units >> shift);
        bin.min(self.bins() as u64 - 1) as usize
    }

    /// The middle of a bin, in nanoseconds; the last one has none.
    pub(crate) fn middle(self, bin: usize) -> f64 {
        if bin == self.bins() - 1 {
            return f64::INFINITY;
        }
        let steps = 1 << self.steps;
        let (octave, step) = (bin >> self.steps, bin & (steps - 1));
        let (start, width) = match octave {
            0 => (step, 1),
            _ => ((steps + step) << (octave - 1), 1 << (octave - 1)),
        };
        (start as f64 + f64::from(width) / 2.0) * f64::from(1 << self.unit)
    }
}

/// Counts durations in bins.
pub(crate) trait Durations: Clone + Default + fmt::Debug {
    const SCALE: Scale;

    /// Counts one of so many nanoseconds.
    fn record(&mut self, nanos: u64);

    fn add(&mut self, other: &Self);

    fn bins(&self) -> &[u32];

    /// Of all, in nanoseconds.
    fn sum(&self) -> u64;

    fn max(&self) -> u64;
}

/// Of a whole layer: 32 steps an octave above 66 us, 3.4 KiB whatever is counted.
pub(crate) type Whole = Histogram<5, 11, { Scale { steps: 5, unit: 11 }.bins() }>;

/// Of one label: 16 steps an octave above 262 us, 1.6 KiB.
pub(crate) type Light = Histogram<4, 14, { Scale { steps: 4, unit: 14 }.bins() }>;

/// How many durations there were of each size. Its memory never grows.
#[derive(Clone, Debug)]
pub(crate) struct Histogram<const STEPS: u32, const UNIT: u32, const BINS: usize> {
    bins: [u32; BINS],
    sum: u64,
    max: u64,
}

impl<const STEPS: u32, const UNIT: u32, const BINS: usize> Durations
    for Histogram<STEPS, UNIT, BINS>
{
    const SCALE: Scale = Scale {
        steps: STEPS,
        unit: UNIT,
    };

    #[inline]
    fn record(&mut self, nanos: u64) {
        let bin = &mut self.bins[Self::SCALE.bin(nanos)];
        *bin = bin.saturating_add(1);
        // 584 years: what ends in one time bucket has not taken that long.
        self.sum = self.sum.saturating_add(nanos);
        self.max = self.max.max(nanos);
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.bins.iter_mut().zip(other.bins) {
            *mine = mine.saturating_add(theirs);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    fn bins(&self) -> &[u32] {
        &self.bins
    }

    fn sum(&self) -> u64 {
        self.sum
    }

    fn max(&self) -> u64 {
        self.max
    }
}

impl<const STEPS: u32, const UNIT: u32, const BINS: usize> Default
    for Histogram<STEPS, UNIT, BINS>
{
    fn default() -> Self {
        Self {
            bins: [0; BINS],
            sum: 0,
            max: 0,
        }
    }
}

/// Many histograms as one, to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Merged {
    scale: Scale,
    bins: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Merged {
    pub(crate) fn new(scale: Scale) -> Self {
        Self {
            scale,
            bins: vec![0; scale.bins()],
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    pub(crate) fn add<H: Durations>(&mut self, part: &H) {
        debug_assert_eq!(self.scale, H::SCALE);
        for (mine, &theirs) in self.bins.iter_mut().zip(part.bins()) {
            *mine += u64::from(theirs);
            self.count += u64::from(theirs);
        }
        self.sum += u128::from(part.sum());
        self.max = self.max.max(part.max());
    }

    /// Of all, in nanoseconds.
    pub(crate) fn sum(&self) -> u64 {
        u64::try_from(self.sum).unwrap_or(u64::MAX)
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
        found.map_or(max, |bin| self.scale.middle(bin).min(max))
    }
}

#[cfg(feature = "hdr")]
impl Merged {
    /// How many there are of about so many nanoseconds each, shortest first.
    pub(crate) fn recorded(&self) -> impl Iterator<Item = (u64, u64)> {
        let bins = self.bins.iter().enumerate();
        bins.filter(|(_, count)| **count > 0)
            .map(|(bin, &count)| match self.scale.middle(bin) {
                middle if middle.is_finite() => (middle as u64, count),
                _ => (1 << TOP, count),
            })
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.scale, other.scale);
        for (mine, theirs) in self.bins.iter_mut().zip(&other.bins) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count = self.count.saturating_add(other.count);
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// So many more of about so many nanoseconds.
    pub(crate) fn insert(&mut self, nanos: u64, count: u64) {
        let bin = &mut self.bins[self.scale.bin(nanos)];
        *bin = bin.saturating_add(count);
        self.count = self.count.saturating_add(count);
    }

    /// What those that were inserted came to, and the longest.
    pub(crate) fn exactly(&mut self, sum: u64, max: u64) {
        self.sum += u128::from(sum);
        self.max = self.max.max(max);
    }

    pub(crate) fn max_nanos(&self) -> u64 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn merged<H: Durations>(parts: &[&[u64]]) -> Merged {
        let mut merged = Merged::new(H::SCALE);
        for part in parts {
            let mut histogram = H::default();
            for &nanos in *part {
                histogram.record(nanos);
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
        for scale in [Whole::SCALE, Light::SCALE] {
            let mut last = 0;
            for octave in 0..42 {
                for step in 0..64 {
                    let nanos = (1_u64 << octave) + (step << octave) / 64;
                    let at = scale.bin(nanos);
                    assert!(
                        at == last || at == last + 1,
                        "{nanos} ns: from {last} to {at}"
                    );
                    last = at;
                }
            }
            assert_eq!(last, scale.bins() - 1);
        }
    }

    #[test]
    fn each_bin_holds_its_middle() {
        for scale in [Whole::SCALE, Light::SCALE] {
            for at in 0..scale.bins() - 1 {
                assert_eq!(scale.bin(scale.middle(at) as u64), at);
            }
        }
    }

    #[test]
    fn what_a_histogram_takes_is_fixed() {
        assert!(size_of::<Whole>() <= 3500);
        assert!(size_of::<Light>() <= 1700);
    }

    #[test]
    fn nothing_is_zero() {
        let nothing = merged::<Whole>(&[]);
        let all = [nothing.average(), nothing.max(), nothing.percentile(0.5)];
        assert_eq!(all, [0.0; 3]);
    }

    #[test]
    fn what_is_longer_than_the_last_bin_is_its_maximum() {
        let day = 86_400_000_000_000;
        let long = merged::<Light>(&[&[day, day]]);
        assert_eq!((long.percentile(0.5), long.max()), (86_400.0, 86_400.0));
        let forever = merged::<Whole>(&[&[u64::MAX], &[u64::MAX]]);
        assert!(forever.percentile(0.99) > 1e10);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_3_2_percent_of_a_sorted_list(
            mut list in durations(),
            share in 0.0..=1.0,
        ) {
            let halves = [&list[..list.len() / 2], &list[list.len() / 2..]];
            let (whole, light) = (merged::<Whole>(&halves), merged::<Light>(&halves));
            list.sort_unstable();
            for share in [0.5, 0.95, 0.99, share] {
                let expected = exact(&list, share);
                // Half a bin; the narrowest ones of a label are 16 us wide.
                for (merged, part, least) in [(&whole, 0.016, 0.0), (&light, 0.032, 8.2e-6)] {
                    let found = merged.percentile(share);
                    let off = (found - expected).abs();
                    prop_assert!(off <= (part * expected).max(least), "{found} {expected}");
                    prop_assert!(found <= merged.max());
                }
            }
            let mean = list.iter().sum::<u64>() as f64 / list.len() as f64 / 1e9;
            for merged in [whole, light] {
                prop_assert!((merged.average() - mean).abs() <= 1e-9 * mean);
                prop_assert_eq!(merged.max(), list[list.len() - 1] as f64 / 1e9);
            }
        }

        #[test]
        fn adding_is_recording_both(one in durations(), other in durations()) {
            let histogram = |list: &[u64]| {
                let mut histogram = Whole::default();
                list.iter().for_each(|&nanos| histogram.record(nanos));
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
