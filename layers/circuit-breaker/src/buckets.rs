//! What has been counted within a span of time.

use std::time::Duration;

use tokio::time::Instant;

/// Calls, and how many of them were what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

impl Sums {
    pub(crate) fn one(failed: bool, slow: bool) -> Self {
        Self {
            calls: 1,
            failures: failed.into(),
            slow: slow.into(),
        }
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.failures += more.failures;
        self.slow += more.slow;
    }

    pub(crate) fn take(&mut self, less: Self) {
        self.calls -= less.calls;
        self.failures -= less.failures;
        self.slow -= less.slow;
    }
}

/// The sums of a span, in buckets of equal length: so many that are over, and the one that runs.
///
/// A count is O(1) whatever the rate, but for the first after a pause: O(buckets).
#[derive(Debug)]
pub(crate) struct Buckets {
    ring: Box<[Sums]>,
    /// Of a bucket, in nanoseconds.
    width: u128,
    /// When the bucket 0 began.
    origin: Option<Instant>,
    /// The bucket that runs.
    newest: u64,
    sums: Sums,
    /// How many buckets were read or written, ever: what a count costs.
    #[cfg(test)]
    pub(crate) touched: u64,
}

impl Buckets {
    /// A span of so many whole buckets, of which none is shorter than a nanosecond.
    pub(crate) fn new(span: Duration, whole: usize) -> Self {
        Self {
            ring: vec![Sums::default(); whole + 1].into(),
            width: (span.as_nanos() / whole as u128).max(1),
            origin: None,
            newest: 0,
            sums: Sums::default(),
            #[cfg(test)]
            touched: 0,
        }
    }

    /// Counts what happens now.
    pub(crate) fn count(&mut self, sums: Sums, now: Instant) {
        self.roll(now);
        self.slot(self.newest).add(sums);
        self.sums.add(sums);
    }

    /// Counts what has happened at `at`, unless that is too long ago.
    pub(crate) fn count_at(&mut self, sums: Sums, at: Instant, now: Instant) {
        self.roll(now);
        let bucket = self.bucket(at).min(self.newest);
        if self.newest - bucket < self.ring.len() as u64 {
            self.slot(bucket).add(sums);
            self.sums.add(sums);
        }
    }

    /// The sums of the buckets that are left.
    pub(crate) fn sums(&mut self, now: Instant) -> Sums {
        self.roll(now);
        self.sums
    }

    /// The sums as they were when something was counted last.
    pub(crate) fn last_sums(&self) -> Sums {
        self.sums
    }

    pub(crate) fn clear(&mut self) {
        self.ring.fill(Sums::default());
        self.sums = Sums::default();
    }

    /// The same counts over another span; each as if it were of the end of its bucket.
    pub(crate) fn over(&mut self, span: Duration, now: Instant) -> Self {
        let mut other = Self::new(span, self.ring.len() - 1);
        let Some(origin) = self.origin else {
            return other;
        };
        self.roll(now);
        other.origin = self.origin;
        let oldest = self.newest.saturating_sub(self.ring.len() as u64 - 1);
        for bucket in oldest..=self.newest {
            let nanos = u64::try_from(u128::from(bucket + 1) * self.width - 1);
            let end = nanos.ok().map(Duration::from_nanos);
            let end = end.and_then(|end| origin.checked_add(end)).unwrap_or(now);
            other.count_at(*self.slot(bucket), end.min(now), now);
        }
        other
    }

    /// Forgets the buckets that are no longer in the span. A clock that is behind changes nothing.
    fn roll(&mut self, now: Instant) {
        let bucket = self.bucket(now);
        let passed = bucket.saturating_sub(self.newest);
        for step in 1..=passed.min(self.ring.len() as u64) {
            let old = std::mem::take(self.slot(self.newest + step));
            self.sums.take(old);
        }
        self.newest += passed;
    }

    fn bucket(&mut self, at: Instant) -> u64 {
        let origin = *self.origin.get_or_insert(at);
        let nanos = at.saturating_duration_since(origin).as_nanos();
        u64::try_from(nanos / self.width).unwrap_or(u64::MAX >> 1)
    }

    fn slot(&mut self, bucket: u64) -> &mut Sums {
        #[cfg(test)]
        {
            self.touched += 1;
        }
        &mut self.ring[(bucket % self.ring.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time::now;
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(10);
    const WHOLE: usize = 10;

    #[test]
    fn a_call_is_counted_for_the_whole_span_and_at_most_a_bucket_longer() {
        let start = now();
        let mut buckets = Buckets::new(SPAN, WHOLE);
        let at = start + Duration::from_millis(500);
        buckets.count(Sums::default(), start);
        buckets.count(Sums::one(true, false), at);
        assert_eq!(buckets.sums(at + SPAN).calls, 1);
        let over = start + SPAN + Duration::from_secs(1);
        assert_eq!(buckets.sums(over - Duration::from_nanos(1)).calls, 1);
        assert_eq!(buckets.sums(over), Sums::default());
    }

    #[test]
    fn a_count_costs_the_same_with_1000_calls_in_the_span_as_with_100_000() {
        let start = now();
        let touched = |calls: u32| {
            let mut buckets = Buckets::new(SPAN, WHOLE);
            for call in 0..calls {
                let at = start + SPAN * call / calls;
                buckets.count(Sums::one(call % 3 == 0, false), at);
            }
            let full = start + SPAN;
            assert_eq!(buckets.sums(full).calls, u64::from(calls));
            let before = buckets.touched;
            for _ in 0..100 {
                buckets.count(Sums::one(true, false), full);
                assert_eq!(buckets.last_sums(), buckets.sums(full));
            }
            buckets.touched - before
        };
        assert_eq!(touched(1_000), 100, "one bucket for each");
        assert_eq!(touched(100_000), 100);
    }

    #[test]
    fn the_first_count_after_a_long_pause_costs_no_more_than_the_buckets() {
        let start = now();
        let mut buckets = Buckets::new(SPAN, WHOLE);
        buckets.count(Sums::one(true, true), start);
        let before = buckets.touched;
        let later = start + Duration::from_secs(30 * 365 * 24 * 3600);
        buckets.count(Sums::one(false, false), later);
        assert_eq!(buckets.last_sums(), Sums::one(false, false));
        assert_eq!(buckets.touched - before, WHOLE as u64 + 2);
    }

    #[test]
    fn another_span_keeps_the_counts_that_are_in_it() {
        let start = now();
        let mut buckets = Buckets::new(SPAN, WHOLE);
        for second in 0..10 {
            let at = start + Duration::from_secs(second);
            buckets.count(Sums::one(true, false), at);
        }
        let at = start + Duration::from_secs(9);
        let mut longer = buckets.over(SPAN * 6, at);
        assert_eq!(longer.sums(at).calls, 10);
        assert_eq!(longer.sums(at + SPAN * 5).calls, 10);
        let mut shorter = buckets.over(SPAN / 2, at);
        // The last 5 s, and a bucket of 1 s that is cut.
        assert!((5..=6).contains(&shorter.sums(at).calls));
        assert_eq!(shorter.sums(at + SPAN).calls, 0);
    }

    #[test]
    fn a_clock_that_is_behind_counts_in_the_bucket_that_runs() {
        let start = now();
        let mut buckets = Buckets::new(SPAN, WHOLE);
        buckets.count(Sums::one(true, false), start);
        let later = start + SPAN * 2;
        buckets.count(Sums::one(true, false), later);
        buckets.count(Sums::one(true, false), start);
        assert_eq!(buckets.sums(start).failures, 2);
        assert_eq!(buckets.sums(later + SPAN).failures, 2);
        assert_eq!(buckets.sums(later + SPAN * 2).failures, 0);
    }

    proptest! {
        #[test]
        fn the_sums_equal_those_of_a_list_filtered_by_bucket(
            whole in 1_usize..20,
            events in prop::collection::vec((0_u64..4_000, any::<bool>(), any::<bool>(), 0_u64..3_000), 1..300),
        ) {
            let start = now();
            let mut buckets = Buckets::new(SPAN, whole);
            let width = (SPAN.as_nanos() / whole as u128) as u64;
            let mut list = Vec::new();
            let (mut at, mut first) = (start, None);
            for (wait, failed, slow, ago) in events {
                at += Duration::from_millis(wait);
                let first = *first.get_or_insert(at);
                let sent = (at - Duration::from_millis(ago)).max(first);
                buckets.count_at(Sums::one(failed, slow), sent, at);
                list.push((sent, failed, slow));
                let tick = |at: Instant| (at - first).as_nanos() as u64 / width;
                let mut expected = Sums::default();
                for (sent, failed, slow) in &list {
                    if tick(at) - tick(*sent) <= whole as u64 {
                        expected.add(Sums::one(*failed, *slow));
                    }
                }
                prop_assert_eq!(buckets.sums(at), expected);
            }
        }
    }
}
