//! What is usual among the endpoints of a set.

/// How often the median is looked up.
const EVERY: u64 = 10_000_000;
/// A failure costs as much as this many usual answers, so that failing fast attracts nobody.
const PENALTY: f64 = 20.0;
const PENALTY_AT_MOST: f64 = 5e9;

/// The median of the typical latencies, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Peers {
    median: f64,
    due: u64,
    scratch: Vec<f64>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self {
            // Nobody knows: one second for all, which only means that all are alike.
            median: 1e9,
            due: 0,
            scratch: Vec::new(),
        }
    }

    /// Makes room for so many endpoints, so that looking the median up never allocates.
    pub(crate) fn reserve(&mut self, endpoints: usize) {
        self.scratch.clear();
        self.scratch.reserve(endpoints);
    }

    pub(crate) fn median(&self) -> f64 {
        self.median
    }

    /// What a failure costs at least.
    pub(crate) fn penalty(&self) -> f64 {
        (PENALTY * self.median).min(PENALTY_AT_MOST)
    }

    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    pub(crate) fn refresh(&mut self, latencies: impl Iterator<Item = f64>, now: u64) {
        self.scratch.clear();
        self.scratch.extend(latencies);
        if self.scratch.is_empty() {
            return;
        }
        self.due = now + EVERY;
        let middle = (self.scratch.len() - 1) / 2;
        let (_, median, _) = self.scratch.select_nth_unstable_by(middle, f64::total_cmp);
        self.median = *median;
    }
}
