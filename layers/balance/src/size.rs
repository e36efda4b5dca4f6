//! How much work requests are, beside each other.

/// So much more or less than usual a request can be: a wrong cost must not decide alone.
const RANGE: f64 = 100.0;
const ONE: f64 = 65536.0;
/// So many requests are remembered.
const MEMORY: f64 = 64.0;
/// No answer lasts longer than this, in nanoseconds: a stream without an end says little of the others.
const LASTS_AT_MOST: f64 = 30e9;

/// An endpoint keeps a place for as long as an answer streams, and this part of that counts as latency: where the first
/// data come at once the time to them says little of what is to come. Simulated with answers of language models, p99
/// of it is 2 % to 10 % less.
const PLACE: f64 = 0.3;

/// The work of one request, in usual ones. In whole parts of one, so that sums come back to exactly zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(u32);

impl Size {
    pub(crate) const ONE: Self = Self(ONE as u32);

    #[inline]
    pub(crate) fn usual(self) -> f64 {
        f64::from(self.0) * (1.0 / ONE)
    }
}

/// The work of all requests under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work(u64);

impl Work {
    pub(crate) fn add(&mut self, size: Size) {
        self.0 += u64::from(size.0);
    }

    pub(crate) fn take(&mut self, size: Size) {
        self.0 -= u64::from(size.0);
    }

    /// In usual requests.
    #[inline]
    pub(crate) fn usual(self) -> f64 {
        // From what is signed it takes one instruction.
        self.0 as i64 as f64 * (1.0 / ONE)
    }
}

/// What requests usually are like.
///
/// One without a cost counts for the usual one. Sizes are relative to that, so that nothing jumps when costs begin to be
/// known, or to be counted in another unit.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    mean: f64,
    known: f64,
    lasts: f64,
    streams: f64,
    ended: f64,
}

impl Usual {
    /// How much a request of this cost is.
    #[inline]
    pub(crate) fn size(&self, cost: Option<f64>) -> Size {
        match cost.filter(|_| self.known > 0.0).and_then(sane) {
            Some(cost) => {
                let size = (cost / self.mean).clamp(1.0 / RANGE, RANGE);
                Size((size * ONE) as u32)
            }
            None => Size::ONE,
        }
    }

    /// Another request of this cost.
    #[inline]
    pub(crate) fn note(&mut self, cost: Option<f64>) {
        let Some(cost) = cost.and_then(sane) else {
            return;
        };
        self.known = (self.known + 1.0).min(MEMORY);
        if self.known > 1.0 {
            let cost = cost.clamp(self.mean / RANGE, self.mean * RANGE);
            self.mean += (cost - self.mean) / self.known;
        } else {
            self.mean = cost;
        }
    }

    /// An answer began after so long, and was over after so long. Nanoseconds.
    #[inline]
    pub(crate) fn lasted(&mut self, waited: f64, whole: f64) {
        self.ended = (self.ended + 1.0).min(MEMORY);
        let streamed = if whole > 0.0 {
            1.0 - (waited / whole).min(1.0)
        } else {
            0.0
        };
        let share = 1.0 / self.ended;
        self.lasts += (whole.min(LASTS_AT_MOST) - self.lasts) * share;
        self.streams += (streamed - self.streams) * share;
    }

    /// How long an answer lasts, in nanoseconds, to its end.
    #[inline]
    pub(crate) fn lasts(&self) -> f64 {
        self.lasts
    }

    /// How much of that comes after it has begun, from 0 to 1.
    #[inline]
    pub(crate) fn streams(&self) -> f64 {
        self.streams
    }

    /// What the place costs, in nanoseconds of latency, that an answer keeps after it has begun.
    #[inline]
    pub(crate) fn place(&self) -> f64 {
        PLACE * self.lasts * self.streams
    }
}

/// Within what can be counted with.
fn sane(cost: f64) -> Option<f64> {
    (cost > 0.0 && cost.is_finite()).then(|| cost.clamp(1e-12, 1e12))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(costs: &[f64]) -> Usual {
        let mut usual = Usual::default();
        costs.iter().for_each(|&cost| usual.note(Some(cost)));
        usual
    }

    #[test]
    fn without_costs_all_are_one() {
        assert_eq!(Usual::default().size(None).usual(), 1.0);
        assert_eq!(Usual::default().size(Some(1200.0)).usual(), 1.0);
        assert_eq!(after(&[1200.0]).size(None).usual(), 1.0);
    }

    #[test]
    fn sizes_are_relative_to_the_mean() {
        let usual = after(&[100.0, 300.0, 200.0]);
        assert_eq!(usual.size(Some(200.0)).usual(), 1.0);
        assert_eq!(usual.size(Some(500.0)).usual(), 2.5);
        assert_eq!(usual.size(Some(1e300)).usual(), RANGE);
        assert!((usual.size(Some(1e-300)).usual() - 1.0 / RANGE).abs() < 1e-4);
    }

    #[test]
    fn no_cost_is_too_odd() {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, -7.0] {
            let mut usual = after(&[100.0]);
            usual.note(Some(odd));
            assert_eq!(usual.size(Some(100.0)).usual(), 1.0, "{odd}");
            assert_eq!(usual.size(Some(odd)).usual(), 1.0, "{odd}");
        }
    }

    #[test]
    fn a_first_cost_that_is_absurd_is_overcome() {
        let mut usual = after(&[f64::MAX]);
        (0..2000).for_each(|_| usual.note(Some(100.0)));
        let size = usual.size(Some(100.0)).usual();
        assert!((0.9..=1.0).contains(&size), "{size}");
    }

    #[test]
    fn a_few_streams_without_an_end_do_not_change_what_is_usual() {
        let mut usual = Usual::default();
        for at in 0..1000 {
            match at % 100 {
                50 => usual.lasted(1e6, 1e15),
                _ => usual.lasted(20e6, 20e6),
            }
        }
        assert!(usual.lasts() < 1e9, "{usual:?}");
        assert!(usual.streams() < 0.05, "{usual:?}");
        (0..1000).for_each(|_| usual.lasted(0.0, 0.0));
        assert!(usual.lasts() < 1e6 && usual.streams() < 0.01, "{usual:?}");
    }

    #[test]
    fn work_comes_back_to_exactly_zero() {
        let usual = after(&[100.0]);
        let sizes: Vec<_> = (1..1000)
            .map(|cost| usual.size(Some(f64::from(cost) / 3.0)))
            .collect();
        let mut work = Work::default();
        sizes.iter().for_each(|&size| work.add(size));
        sizes.iter().rev().for_each(|&size| work.take(size));
        assert_eq!(work.usual(), 0.0);
    }
}
