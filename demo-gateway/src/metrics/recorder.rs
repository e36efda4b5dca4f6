//! Where a process keeps what it counts, in memory that does not grow with what is counted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Key, KeyName, Metadata, SetRecorderError, SharedString, Unit};
use metrics_exporter_prometheus::formatting::{sanitize_label_key, sanitize_metric_name};
use palisade::time;
use tokio::time::Instant;

use super::{buckets, histogram::Histogram, text::Writer};

#[cfg(test)]
mod tests;

/// How many label sets a name may have.
const MOST_SERIES: usize = 1000;

/// Longer than anybody waits from one scrape to the next.
const GRACE: Duration = Duration::from_secs(300);

/// What all labels of a series say that stands for those that found no room.
const OTHER: &str = "other";

const DROPPED: &str = "palisade_metrics_dropped_series_total";
const DROPPED_HELP: &str =
    "Registrations that found no room under their name, and count as `other` or not at all.";
const SERIES: &str = "palisade_metrics_series";
const SERIES_HELP: &str = "Label sets that are kept, of all names.";

/// Counts for Prometheus what is reported to the [`metrics`](::metrics) facade. Clones are one recorder.
///
/// A handle is registered once; counting by it allocates nothing and takes no lock. Histograms have fixed buckets. A
/// name has room for 1000 label sets: further ones count together, as a series of which every label says `other`, and
/// `palisade_metrics_dropped_series_total` says how often that was so. A name is of one kind, that of its first series.
///
/// ```
/// use demo_gateway::metrics::Recorder;
///
/// let recorder = Recorder::new();
/// metrics::with_local_recorder(&recorder, || {
///     metrics::describe_counter!("answers_total", "Answers that were given.");
///     metrics::counter!("answers_total", "to" => "\"all\"").increment(42);
/// });
/// let page = recorder.render();
/// assert!(page.contains("# TYPE answers_total counter\nanswers_total{to=\"\\\"all\\\"\"} 42\n"));
/// ```
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    families: RwLock<BTreeMap<String, Family>>,
    most: usize,
    grace: Duration,
    dropped: Arc<AtomicU64>,
    kept: Gauge,
}

/// All series of one name.
#[derive(Debug, Default)]
struct Family {
    help: Option<SharedString>,
    /// By their sorted labels.
    series: BTreeMap<Labels, Series>,
    /// Whether it was said that some found no room.
    is_told: bool,
}

/// As they can stand on a page, each name once.
pub(super) type Labels = Box<[(String, SharedString)]>;

#[derive(Debug)]
struct Series {
    cell: Cell,
    /// In the order in which they were said first.
    said: Labels,
    /// Since when what it is about is gone.
    leaves: Option<Instant>,
}

impl Series {
    fn new(cell: Cell, said: Labels) -> Self {
        Self {
            cell,
            said,
            leaves: None,
        }
    }
}

/// Where a registration has ended up.
enum Placed {
    Here(Cell),
    /// With others, or nowhere.
    Elsewhere {
        cell: Option<Cell>,
        is_first: bool,
    },
}

impl Family {
    fn place(&mut self, said: Labels, made: Cell, most: usize) -> Placed {
        let kind = self.series.values().next().map(|one| one.cell.kind());
        if kind.is_some_and(|kind| kind != made.kind()) {
            // A page has one kind for a name.
            return self.elsewhere(None);
        }
        // The last place is for all the others.
        let is_full = self.series.len() + 1 >= most && !self.series.contains_key(&sorted(&said));
        if !is_full || said.is_empty() {
            return Placed::Here(self.take(said, made));
        }
        let others = said.into_iter().map(|(name, _)| (name, OTHER.into()));
        let cell = self.take(others.collect(), made);
        self.elsewhere(Some(cell))
    }

    fn take(&mut self, said: Labels, made: Cell) -> Cell {
        let series = self.series.entry(sorted(&said));
        let series = series.or_insert_with(|| Series::new(made, said));
        series.leaves = None;
        series.cell.clone()
    }

    fn elsewhere(&mut self, cell: Option<Cell>) -> Placed {
        let is_first = !std::mem::replace(&mut self.is_told, true);
        Placed::Elsewhere { cell, is_first }
    }
}

#[derive(Clone, Debug)]
enum Cell {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Histogram>),
}

impl Cell {
    fn counter(_: &str) -> Self {
        Self::Counter(Arc::default())
    }

    fn gauge(_: &str) -> Self {
        Self::Gauge(Arc::default())
    }

    fn histogram(name: &str) -> Self {
        Self::Histogram(Arc::new(Histogram::new(buckets::of(name))))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }

    /// Whether somebody can still count by it.
    fn is_held(&self) -> bool {
        match self {
            Self::Counter(value) | Self::Gauge(value) => Arc::strong_count(value) > 1,
            Self::Histogram(histogram) => Arc::strong_count(histogram) > 1,
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// An empty one.
    pub fn new() -> Self {
        Self::with(MOST_SERIES, GRACE)
    }

    pub(super) fn with(most: usize, grace: Duration) -> Self {
        let (dropped, kept) = (Arc::default(), Arc::default());
        let own = [
            (DROPPED, DROPPED_HELP, Cell::Counter(Arc::clone(&dropped))),
            (SERIES, SERIES_HELP, Cell::Gauge(Arc::clone(&kept))),
        ];
        let families = own.map(|(name, help, cell)| {
            let family = Family {
                help: Some(help.into()),
                series: [(Labels::default(), Series::new(cell, Labels::default()))].into(),
                is_told: false,
            };
            (name.to_owned(), family)
        });
        Self(Arc::new(Shared {
            families: RwLock::new(families.into()),
            most,
            grace,
            dropped,
            kept: Gauge::from_arc(kept),
        }))
    }

    /// Makes it the one of this process.
    ///
    /// # Errors
    ///
    /// If there is one already, whose users are not disturbed.
    pub fn install(&self) -> Result<(), SetRecorderError<Self>> {
        ::metrics::set_global_recorder(self.clone())
    }

    /// Lets go of the series of which this label has this value: what they are about is gone.
    ///
    /// They are still shown as long as somebody holds a handle of them, and five minutes after, so that everybody who
    /// scrapes has seen their last value. What comes back before that goes on where it was.
    pub fn forget(&self, label: &str, value: &str) {
        let now = time::now();
        let mut families = self.write();
        for family in families.values_mut() {
            for (labels, series) in &mut family.series {
                if labels
                    .iter()
                    .any(|(name, is)| name == label && **is == *value)
                {
                    series.leaves.get_or_insert(now);
                }
            }
        }
    }

    /// What Prometheus reads, in its text format.
    pub fn render(&self) -> String {
        let now = time::now();
        self.sweep(now);
        let families = self.read();
        let kept = families.values().map(|family| family.series.len());
        self.0.kept.set(kept.sum::<usize>() as f64);
        let mut page = Writer::default();
        for (name, family) in &*families {
            let Some(first) = family.series.values().next() else {
                continue;
            };
            page.head(name, family.help.as_deref(), first.cell.kind());
            for series in family.series.values() {
                let labels = &series.said;
                match &series.cell {
                    Cell::Counter(count) => page.value(name, labels, count.load(Relaxed)),
                    Cell::Gauge(bits) => {
                        page.number(name, labels, f64::from_bits(bits.load(Relaxed)));
                    }
                    Cell::Histogram(histogram) => {
                        page.histogram(name, labels, histogram.bounds(), &histogram.totals());
                    }
                }
            }
        }
        page.finish()
    }

    /// Drops what has left for long enough.
    pub(crate) fn sweep(&self, now: Instant) {
        let has_left = |series: &Series| {
            series
                .leaves
                .is_some_and(|since| now.saturating_duration_since(since) >= self.0.grace)
        };
        let due = |family: &Family| family.series.values().any(has_left);
        if !self.read().values().any(due) {
            return;
        }
        for family in self.write().values_mut() {
            family.series.retain(|_, series| {
                if !has_left(series) {
                    return true;
                }
                if series.cell.is_held() {
                    // The grace begins when nobody can count any more.
                    series.leaves = Some(now);
                    return true;
                }
                false
            });
        }
    }

    fn register(&self, key: &Key, make: fn(&str) -> Cell) -> Cell {
        let name = sanitize_metric_name(key.name());
        let made = make(&name);
        let registered =
            self.write()
                .entry(name)
                .or_default()
                .place(said(key), made.clone(), self.0.most);
        match registered {
            Placed::Here(cell) => cell,
            Placed::Elsewhere { cell, is_first } => {
                self.0.dropped.fetch_add(1, Relaxed);
                if is_first {
                    tracing::warn!(
                        metric = key.name(),
                        "more label sets than there is room for, or another kind"
                    );
                }
                cell.unwrap_or(made)
            }
        }
    }

    fn describe(&self, name: &KeyName, help: SharedString) {
        let name = sanitize_metric_name(name.as_str());
        let mut families = self.write();
        families.entry(name).or_default().help.get_or_insert(help);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Family>> {
        let families = self.0.families.read();
        families.unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Family>> {
        let families = self.0.families.write();
        families.unwrap_or_else(PoisonError::into_inner)
    }
}

impl ::metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.register(key, Cell::counter) {
            Cell::Counter(count) => Counter::from_arc(count),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.register(key, Cell::gauge) {
            Cell::Gauge(bits) => Gauge::from_arc(bits),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> ::metrics::Histogram {
        match self.register(key, Cell::histogram) {
            Cell::Histogram(histogram) => ::metrics::Histogram::from_arc(histogram),
            _ => ::metrics::Histogram::noop(),
        }
    }
}

/// The labels as they can stand on a page; of two that have one name there, the later.
fn said(key: &Key) -> Labels {
    let mut labels: Vec<(String, SharedString)> = Vec::new();
    for label in key.labels() {
        let name = sanitize_label_key(label.key());
        labels.retain(|(other, _)| *other != name);
        labels.push((name, label.value().to_owned().into()));
    }
    labels.into()
}

/// The same set of labels is one series, in whatever order it was said.
fn sorted(said: &Labels) -> Labels {
    let mut labels = said.clone();
    labels.sort_unstable();
    labels
}
