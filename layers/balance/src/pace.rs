//! How fast one endpoint is once an answer has begun.

/// What is known of the others speaks for as many answers ...
const PRIOR: f64 = 8.0;
/// ... beside so many of its own, by size, that are remembered: lengths of answers spread by nearly twice their mean.
const MEMORY: f64 = 64.0;
/// No answer counts for longer than this, in nanoseconds and in usual sizes: what others count for.
const STREAMS_AT_MOST: f64 = 30e9;

/// How long answers stream, beside those of all endpoints.
///
/// Where they stream, the time until they begin hardly says how fast an endpoint is: at a third of the speed it is
/// three times as long that each keeps its place. Half of that is believed, by the root: with answers of language
/// models on uneven endpoints and twenty gateways, p99 is 1.90 of the oracle's, 1.94 with all of it, and 2.04 with none.
#[derive(Debug)]
pub(crate) struct Pace {
    factor: f64,
    /// Of an answer of usual size, in nanoseconds.
    mean: f64,
    known: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            factor: 1.0,
            mean: 0.0,
            known: 0.0,
        }
    }
}

impl Pace {
    /// 1 is as fast as all, and more is slower.
    #[inline]
    pub(crate) fn factor(&self) -> f64 {
        self.factor
    }

    /// An answer of this size streamed for so long, where all stream for `usual` nanoseconds on average.
    pub(crate) fn note(&mut self, streamed: f64, size: f64, usual: f64) {
        let streamed = streamed.clamp(0.0, STREAMS_AT_MOST * size.max(1.0));
        self.known = (self.known + size).min(MEMORY);
        self.mean += (streamed / size - self.mean) * (size / self.known).min(1.0);
        if usual > 0.0 {
            let own = self.mean / usual;
            self.factor = ((PRIOR + self.known * own) / (PRIOR + self.known)).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answers: usize, streamed: f64, size: f64) -> f64 {
        let mut pace = Pace::default();
        (0..answers).for_each(|_| pace.note(streamed, size, 10e9));
        pace.factor()
    }

    #[test]
    fn who_streams_four_times_as_long_is_twice_as_dear_when_enough_is_known() {
        assert_eq!(after(0, 40e9, 1.0), 1.0);
        assert_eq!(after(8, 20e9, 1.0), 1.5f64.sqrt());
        let known = after(1000, 2.5e9, 1.0);
        assert!((0.5..0.6).contains(&known), "{known}");
    }

    #[test]
    fn large_answers_may_take_as_much_longer() {
        assert!((after(50, 20e9, 2.0) - 1.0).abs() < 1e-12);
        assert!(after(50, 10e9, 2.0) < 0.8);
    }

    #[test]
    fn where_nothing_streams_all_are_alike() {
        let mut pace = Pace::default();
        for streamed in [0.0, -1.0, 1e300] {
            pace.note(streamed, 1.0, 0.0);
            assert_eq!(pace.factor(), 1.0);
        }
        pace.note(1e300, 1.0 / 65536.0, 1.0);
        assert!(pace.factor().is_finite());
    }
}
