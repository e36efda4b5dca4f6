//! Time in buckets, the oldest overwritten first.

/// Room for the running bucket, and for one more that a reader with an older reading of the clock does not see.
const SLACK: u64 = 2;

/// The last buckets of time, each as long as any other. Its memory never grows.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    width: u64,
    slots: Box<[Slot<T>]>,
}

#[derive(Clone, Debug, Default)]
struct Slot<T> {
    epoch: Option<u64>,
    content: T,
}

impl<T: Clone + Default> Ring<T> {
    /// Buckets of `width` nanoseconds, for windows of up to `buckets` whole ones.
    pub(crate) fn new(width: u64, buckets: u64) -> Self {
        let slots = usize::try_from(buckets + SLACK).expect("rings are small");
        Self {
            width: width.max(1),
            slots: vec![Slot::default(); slots].into(),
        }
    }

    /// The length of a bucket in nanoseconds.
    pub(crate) fn width(&self) -> u64 {
        self.width
    }

    /// The number of the bucket of this time.
    pub(crate) fn epoch(&self, nanos: u64) -> u64 {
        nanos / self.width
    }

    /// The bucket of this number, if anything is in there.
    pub(crate) fn get(&self, epoch: u64) -> Option<&T> {
        let slot = &self.slots[(epoch % self.slots.len() as u64) as usize];
        (slot.epoch == Some(epoch)).then_some(&slot.content)
    }

    /// When the bucket of this time began.
    pub(crate) fn start(&self, nanos: u64) -> u64 {
        nanos - nanos % self.width
    }

    /// The bucket of this time, or `None` when that is too long ago.
    pub(crate) fn at(&mut self, nanos: u64) -> Option<&mut T> {
        let epoch = nanos / self.width;
        let at = (epoch % self.slots.len() as u64) as usize;
        let slot = &mut self.slots[at];
        match slot.epoch {
            Some(held) if held > epoch => return None,
            Some(held) if held == epoch => {}
            _ => {
                *slot = Slot {
                    epoch: Some(epoch),
                    content: T::default(),
                }
            }
        }
        Some(&mut slot.content)
    }

    /// This many whole buckets and the running one.
    pub(crate) fn window(&self, nanos: u64, buckets: u64) -> impl Iterator<Item = &T> {
        let running = self.epoch(nanos);
        let oldest = running.saturating_sub(buckets);
        (oldest..=running).filter_map(|epoch| self.get(epoch))
    }

    /// As many whole buckets before those.
    pub(crate) fn before(&self, nanos: u64, buckets: u64) -> impl Iterator<Item = &T> {
        let end = self.epoch(nanos).saturating_sub(buckets);
        (end.saturating_sub(buckets)..end).filter_map(|epoch| self.get(epoch))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_window_counts_what_a_filtered_list_does(
            width in 1_u64..50,
            buckets in 1_u64..12,
            events in vec((0_u64..200, 0_u64..30), 1..200),
        ) {
            let mut ring = Ring::<u64>::new(width, buckets);
            let mut list = Vec::new();
            let mut now = 0;
            for (passed, late) in events {
                now += passed;
                // Threads may be late with what they read from the clock.
                let at = now - late.min(now).min(width * buckets);
                let slot = ring.at(at);
                *slot.unwrap() += 1;
                list.push(at);
                for window in 1..=buckets {
                    let found: u64 = ring.window(now, window).sum();
                    let oldest = (now / width).saturating_sub(window) * width;
                    let expected = list.iter().filter(|&&at| at >= oldest).count() as u64;
                    prop_assert_eq!(found, expected);
                    let end = oldest;
                    let oldest = (now / width).saturating_sub(2 * window) * width;
                    let earlier = list.iter().filter(|&&at| at >= oldest && at < end).count() as u64;
                    if 2 * window <= buckets {
                        prop_assert_eq!(ring.before(now, window).sum::<u64>(), earlier);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_too_old_is_not_mixed_into_what_is_new() {
        let mut ring = Ring::<u64>::new(10, 3);
        *ring.at(105).unwrap() += 1;
        assert_eq!(ring.at(55), None);
        assert_eq!(ring.window(105, 3).sum::<u64>(), 1);
    }

    #[test]
    fn a_reader_that_is_late_by_a_bucket_loses_nothing() {
        let mut ring = Ring::<u64>::new(10, 3);
        for at in [65, 75, 85, 95, 105] {
            *ring.at(at).unwrap() += 1;
        }
        assert_eq!(ring.window(99, 3).sum::<u64>(), 4);
    }
}
