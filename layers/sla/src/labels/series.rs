//! What is counted of one label.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{LabelSummary, Labelled};
use crate::{
    class::{Tally, Verdicts},
    histogram::Light,
    indicators::{Event, Indicators},
    ring::Ring,
    state::{lock, nanos},
    summary::{Gathered, Spans},
};

/// The buckets of the longest window: five times as long as those of a layer, and as many times fewer.
const BUCKETS: u64 = 6;

/// The requests of the label that has this place, if one has. Its memory never grows.
#[derive(Debug, Default)]
pub(crate) struct Series(Mutex<Option<Counted>>);

#[derive(Debug)]
struct Counted {
    label: Arc<str>,
    /// How many labels had a place before.
    came: u64,
    /// The longest window of a summary.
    window: u64,
    since: u64,
    recent: Ring<Indicators<Light>>,
    /// Requests that have ended since the start.
    all: Tally,
    /// Those that metrics were told of: good, bad and left out.
    #[cfg(feature = "metrics")]
    told: [u64; 3],
}

impl Series {
    /// Begins with this label, unless it has before.
    pub(crate) fn begin(&self, label: &str, came: u64, window: Duration, since: u64) {
        lock(&self.0).get_or_insert_with(|| Counted::new(label.into(), came, window, since));
    }

    /// Has no label any more, and gives its memory back.
    pub(crate) fn end(&self) {
        lock(&self.0).take();
    }

    /// Begins anew, but for the counts of metrics, which never go back.
    pub(crate) fn forget(&self, window: Duration, since: u64) {
        if let Some(counted) = &mut *lock(&self.0) {
            let label = counted.label.clone();
            *counted = Counted {
                all: counted.all,
                #[cfg(feature = "metrics")]
                told: counted.told,
                ..Counted::new(label, counted.came, window, since)
            };
        }
    }

    /// Whether it is of this label.
    pub(crate) fn is_of(&self, label: &str) -> bool {
        lock(&self.0)
            .as_ref()
            .is_some_and(|counted| *counted.label == *label)
    }

    /// Counts events that are all of this label.
    pub(crate) fn count(&self, mut events: &[Labelled]) {
        let mut counted = lock(&self.0);
        let Some(Counted { recent, all, .. }) = &mut *counted else {
            return;
        };
        while let Some(first) = events.first() {
            // Most are of one bucket, which is looked for once.
            let (start, width) = (recent.start(first.at), recent.width());
            let is_here = |event: &Labelled| event.at.wrapping_sub(start) < width;
            let others = events.iter().position(|event| !is_here(event));
            let (here, rest) = events.split_at(others.unwrap_or(events.len()));
            let mut bucket = recent.at(first.at);
            for Labelled { event, .. } in here {
                if let Event::End(ended) = event {
                    all.count(ended.class);
                }
                if let Some(bucket) = &mut bucket {
                    bucket.count(event);
                }
            }
            events = rest;
        }
    }

    /// The label, and how many requests have ended since this was asked last: good, bad and left out.
    #[cfg(feature = "metrics")]
    pub(crate) fn news(&self) -> Option<(Arc<str>, [u64; 3])> {
        let mut counted = lock(&self.0);
        let counted = counted.as_mut()?;
        let all = counted.all.verdicts();
        let all = [all.good(), all.bad(), all.left_out()];
        let before = std::mem::replace(&mut counted.told, all);
        let news = std::array::from_fn(|at| all[at] - before[at]);
        Some((counted.label.clone(), news))
    }

    /// What the label comes to, and how many came before it.
    pub(crate) fn summary(
        &self,
        now: u64,
        window: Duration,
        in_flight: impl FnOnce() -> u64,
    ) -> Option<(u64, LabelSummary)> {
        let (came, label, gathered) = {
            let counted = lock(&self.0);
            let counted = counted.as_ref()?;
            let gathered = counted.gather(now, window);
            (counted.came, counted.label.clone(), gathered)
        };
        let verdicts: Verdicts = gathered.verdicts();
        let (good, bad) = (verdicts.good(), verdicts.bad());
        let summary = LabelSummary {
            label,
            total_requests: good + bad,
            successful_requests: good,
            error_count: bad,
            in_flight: in_flight(),
            verdicts,
            latency_metrics: gathered.latency(),
            first_data_metrics: gathered.first_data(),
            between_tokens_metrics: gathered.between_tokens(),
            throughput_metrics: gathered.throughput(),
            error_metrics: gathered.errors(),
            token_metrics: gathered.token_rates(),
        };
        Some((came, summary))
    }
}

impl Counted {
    fn new(label: Arc<str>, came: u64, window: Duration, since: u64) -> Self {
        let width = series_width(window);
        let window = nanos(window).max(1);
        Self {
            label,
            came,
            window,
            since,
            recent: Ring::new(width, window.div_ceil(width)),
            all: Tally::default(),
            #[cfg(feature = "metrics")]
            told: [0; 3],
        }
    }

    fn gather(&self, now: u64, window: Duration) -> Gathered {
        let width = self.recent.width();
        let window = nanos(window).min(self.window).max(width);
        let buckets = window.div_ceil(width);
        let running = now - self.recent.start(now);
        let covered = (buckets * width + running).min(now.saturating_sub(self.since));
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let spans = Spans {
            window: seconds(window),
            covered: seconds(covered.max(window)),
        };
        Gathered::new(self.recent.window(now, buckets), None, spans)
    }
}

/// The length of a bucket in nanoseconds, when this is the longest window.
pub(crate) fn series_width(window: Duration) -> u64 {
    (nanos(window) / BUCKETS).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{class::Class, indicators::Ended, labels::NOWHERE};

    const SECOND: u64 = 1_000_000_000;
    const WINDOW: Duration = Duration::from_secs(300);

    fn end(at: u64, class: Class) -> Labelled {
        Labelled {
            at,
            places: NOWHERE,
            event: Event::End(Ended {
                class,
                usage: None,
                first_data: None,
                total: 5_000_000,
                gaps: None,
            }),
        }
    }

    #[test]
    fn a_label_takes_40_kib() {
        let slots = BUCKETS as usize + 2;
        assert!(slots * size_of::<(u64, Indicators<Light>)>() <= 40 * 1024);
        let counted = Counted::new("x".into(), 1, Duration::from_secs(3600), 0);
        assert_eq!(counted.recent.window(u64::MAX, 1).count(), 0);
    }

    proptest! {
        #[test]
        fn counts_equal_a_recount_with_the_same_edges(
            steps in vec((0..60 * SECOND, 0..100 * SECOND, prop::sample::select(Class::ALL.to_vec())), 1..100),
            batch in 1_usize..20,
            window in 1_u64..400,
        ) {
            let series = Series::default();
            series.begin("x", 1, WINDOW, 0);
            let (mut now, mut events) = (0, Vec::new());
            for (passed, late, class) in steps {
                now += passed;
                // Up to the longest window late.
                events.push((now.saturating_sub(late), class));
            }
            let all: Vec<_> = events.iter().map(|&(at, class)| end(at, class)).collect();
            all.chunks(batch).for_each(|batch| series.count(batch));
            let width = 50 * SECOND;
            let asked = (window * SECOND).clamp(width, 300 * SECOND);
            let oldest = (now / width).saturating_sub(asked.div_ceil(width)) * width;
            let mut expected = Tally::default();
            let within = events.iter().filter(|(at, _)| *at >= oldest);
            within.for_each(|(_, class)| expected.count(*class));
            let found = series.summary(now, Duration::from_secs(window), || 0);
            let (_, found) = found.unwrap();
            prop_assert_eq!(found.verdicts, expected.verdicts());
        }
    }
}
