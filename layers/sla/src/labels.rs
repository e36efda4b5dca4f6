//! What is counted by route, by model, or by whatever else a user asks for.

mod series;
mod table;

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::head::RequestHead;

use self::{series::Series, table::Table};
use crate::{
    class::Verdicts,
    indicators::Event,
    state::lock,
    summary::{BetweenTokens, Errors, Latency, Throughput, TokenRates},
};

/// So many ways of looking at requests are enough, and their places fit into a guard.
const DIMENSIONS: usize = 8;
/// So many labels a dimension has, unless told otherwise.
const MOST_LABELS: usize = 32;
/// The first and the last place are for none and for all others.
const MOST_PLACES: usize = u8::MAX as usize - 1;
/// The label of all that have no place of their own.
const OTHER: &str = "other";

/// Which label a request has in each dimension: 0 in those that it is not counted in.
pub(crate) type Places = [u8; DIMENSIONS];

/// In no dimension.
pub(crate) const NOWHERE: Places = [0; DIMENSIONS];

/// Reads a label from the head of a request.
pub(crate) type Read = dyn for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync;

/// An event and where it counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labelled {
    pub(crate) at: u64,
    pub(crate) places: Places,
    pub(crate) event: Event,
}

/// All dimensions. Their number and that of their labels are bounded, and nothing is taken away again, so that requests
/// find their label without a lock.
#[derive(Debug)]
pub(crate) struct Dimensions {
    all: [OnceLock<Dimension>; DIMENSIONS],
    /// Held to add a dimension or a label.
    adding: Mutex<Settings>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    most: usize,
    /// The longest window of a summary.
    window: Duration,
    /// When what is counted began, in nanoseconds.
    since: u64,
    stripes: usize,
}

struct Dimension {
    name: Arc<str>,
    read: OnceLock<Box<Read>>,
    table: Table,
    /// By place less one; the last is of all others.
    series: Box<[OnceLock<Series>]>,
    /// By stripe and place: requests that came in less those that ended there.
    in_flight: Box<[Box<[AtomicU64]>]>,
}

impl Dimensions {
    pub(crate) fn new(stripes: usize) -> Self {
        Self {
            all: Default::default(),
            adding: Mutex::new(Settings {
                most: MOST_LABELS,
                window: Duration::ZERO,
                since: 0,
                stripes,
            }),
        }
    }

    /// Gives dimensions that are added from now on so many labels at most.
    pub(crate) fn set_most(&self, most: usize) {
        lock(&self.adding).most = most.clamp(1, MOST_PLACES - 1);
    }

    /// Forgets all that was counted, and keeps so much from now on.
    pub(crate) fn reshape(&self, window: Duration, since: u64) {
        let mut settings = lock(&self.adding);
        (settings.window, settings.since) = (window, since);
        for dimension in self.dimensions() {
            for series in dimension.series.iter().filter_map(OnceLock::get) {
                series.forget(window, since);
            }
        }
    }

    /// Adds a dimension, or finds the one of this name.
    pub(crate) fn add(&self, name: &str) -> Result<usize, InvalidDimension> {
        let settings = lock(&self.adding);
        for (at, place) in self.all.iter().enumerate() {
            // Only added under the lock.
            let known = place.get_or_init(|| Dimension::new(name, &settings));
            if *known.name == *name {
                return Ok(at);
            }
        }
        Err(InvalidDimension(Kind::TooMany, name.into()))
    }

    /// Adds a dimension whose labels are read from the head.
    pub(crate) fn read(&self, name: &str, read: Box<Read>) -> Result<(), InvalidDimension> {
        let at = self.add(name)?;
        let dimension = self.all[at].get().expect("added just now");
        let added = dimension.read.set(read);
        added.map_err(|_| InvalidDimension(Kind::Known, name.into()))
    }

    /// The label of a request in each dimension.
    #[inline]
    pub(crate) fn places(&self, head: &RequestHead<'_>) -> Places {
        let mut places = NOWHERE;
        for (dimension, place) in self.dimensions().zip(&mut places) {
            if let Some(read) = dimension.read.get()
                && let Some(label) = read(head)
            {
                *place = dimension.place(label, &self.adding);
            }
        }
        places
    }

    /// The place of a label that was read further in.
    #[inline]
    pub(crate) fn place_at(&self, at: usize, label: &str) -> u8 {
        let dimension = self.all[at].get().expect("added before it is read");
        dimension.place(label, &self.adding)
    }

    /// One label of one dimension.
    pub(crate) fn place(&self, name: &str, label: &str) -> Result<Places, InvalidDimension> {
        let at = self.add(name)?;
        let dimension = self.all[at].get().expect("added just now");
        let mut places = NOWHERE;
        places[at] = dimension.place(label, &self.adding);
        Ok(places)
    }

    /// Counts a request in flight in this stripe, or one less.
    pub(crate) fn in_flight(&self, places: &Places, stripe: usize, more: bool) {
        for (dimension, place) in self.labelled(places) {
            let count = &dimension.in_flight[stripe][place];
            if more {
                count.fetch_add(1, Relaxed);
            } else {
                count.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Counts events, in runs of those of one label.
    pub(crate) fn count(&self, events: &[Labelled]) {
        for (at, dimension) in self.dimensions().enumerate() {
            for run in events.chunk_by(|one, next| one.places[at] == next.places[at]) {
                let place = usize::from(run[0].places[at]);
                if let Some(series) = place
                    .checked_sub(1)
                    .and_then(|at| dimension.series[at].get())
                {
                    series.count(run);
                }
            }
        }
    }

    /// All labels with what they come to, in the order in which they came.
    pub(crate) fn summaries(&self, now: u64, window: Duration) -> Vec<DimensionSummary> {
        let all = self.dimensions().map(|dimension| DimensionSummary {
            dimension: dimension.name.clone(),
            labels: (dimension.series.iter().enumerate())
                .filter_map(|(at, series)| Some(dimension.summary(at, series.get()?, now, window)))
                .collect(),
        });
        all.collect()
    }

    /// One label with what it comes to.
    pub(crate) fn summary(
        &self,
        name: &str,
        label: &str,
        now: u64,
        window: Duration,
    ) -> Option<LabelSummary> {
        let dimension = self.dimensions().find(|known| *known.name == *name)?;
        let mut all = dimension.series.iter().enumerate();
        all.find_map(|(at, series)| {
            let series = series.get().filter(|series| *series.label == *label)?;
            Some(dimension.summary(at, series, now, window))
        })
    }

    /// Tells of each label: its dimension, itself, the requests in flight and those that have ended since the start.
    #[cfg(feature = "metrics")]
    pub(crate) fn each(&self, mut tell: impl FnMut(&Arc<str>, &Arc<str>, u64, Verdicts)) {
        for dimension in self.dimensions() {
            for (at, series) in dimension.series.iter().enumerate() {
                if let Some(series) = series.get() {
                    let in_flight = dimension.in_flight(at);
                    tell(&dimension.name, &series.label, in_flight, series.verdicts());
                }
            }
        }
    }

    fn dimensions(&self) -> impl Iterator<Item = &Dimension> {
        self.all.iter().map_while(OnceLock::get)
    }

    fn labelled(&self, places: &Places) -> impl Iterator<Item = (&Dimension, usize)> {
        let all = self.dimensions().zip(*places);
        all.filter_map(|(dimension, place)| Some((dimension, usize::from(place.checked_sub(1)?))))
    }
}

impl Dimension {
    fn new(name: &str, settings: &Settings) -> Self {
        let places = settings.most + 1;
        let in_flight = || (0..places).map(|_| AtomicU64::new(0)).collect();
        Self {
            name: name.into(),
            read: OnceLock::new(),
            table: Table::new(settings.most),
            series: (0..places).map(|_| OnceLock::new()).collect(),
            in_flight: (0..settings.stripes).map(|_| in_flight()).collect(),
        }
    }

    /// The place of a label, which it gets if there is one left.
    #[inline]
    fn place(&self, label: &str, adding: &Mutex<Settings>) -> u8 {
        let found = self.table.find(label);
        found.unwrap_or_else(|| self.place_anew(label, adding))
    }

    #[cold]
    fn place_anew(&self, label: &str, adding: &Mutex<Settings>) -> u8 {
        // Once for all others: from then on they need no lock.
        let others = self.series.len();
        if self.table.is_full(label) && self.series[others - 1].get().is_some() {
            // It may have been the last one that was added.
            return self.table.find(label).unwrap_or(others as u8);
        }
        let settings = lock(adding);
        let make = |place: usize, label| {
            self.series[place - 1]
                .get_or_init(|| Series::new(label, settings.window, settings.since));
        };
        let found = self.table.add(label, |place| make(place.into(), label));
        found.unwrap_or_else(|| {
            make(others, OTHER);
            others as u8
        })
    }

    fn in_flight(&self, at: usize) -> u64 {
        let stripes = self.in_flight.iter();
        let sum = stripes.fold(0, |sum: u64, stripe| {
            sum.wrapping_add(stripe[at].load(Relaxed))
        });
        u64::try_from(sum.cast_signed()).unwrap_or(0)
    }

    fn summary(&self, at: usize, series: &Series, now: u64, window: Duration) -> LabelSummary {
        series.summary(now, window, self.in_flight(at))
    }
}

impl fmt::Debug for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dimension")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All labels of a dimension.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DimensionSummary {
    /// What the dimension is called.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_str"))]
    pub dimension: Arc<str>,
    /// Its labels in the order in which they came, `other` last.
    pub labels: Vec<LabelSummary>,
}

/// How it has gone with the requests of one label, over a window.
///
/// The fields are those of a [`Summary`](crate::Summary); percentiles are within 3.2 % above 262 us.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LabelSummary {
    /// What the requests have in common.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_str"))]
    pub label: Arc<str>,
    /// Requests that ended, well or badly.
    pub total_requests: u64,
    /// Those that ended well.
    pub successful_requests: u64,
    /// Those that ended badly.
    pub error_count: u64,
    /// Requests between their admission and the end of their answer, now.
    pub in_flight: u64,
    /// All requests that ended, by how they did.
    pub verdicts: Verdicts,
    /// From admission to the end of the answer.
    pub latency_metrics: Latency,
    /// From admission to the first data of the answer.
    pub first_data_metrics: Latency,
    /// Between the tokens of answers that came one by one.
    pub between_tokens_metrics: BetweenTokens,
    /// How many requests there were for a time.
    pub throughput_metrics: Throughput,
    /// How many of them ended badly.
    pub error_metrics: Errors,
    /// What language models read and wrote.
    pub token_metrics: TokenRates,
}

#[cfg(feature = "serde")]
fn as_str<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// A dimension cannot be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDimension(Kind, Box<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Known,
    TooMany,
}

impl fmt::Display for InvalidDimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kind, name) = self;
        match kind {
            Kind::Known => write!(f, "dimension {name:?} has labels already"),
            Kind::TooMany => write!(f, "dimension {name:?} is one more than {DIMENSIONS}"),
        }
    }
}

impl Error for InvalidDimension {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_is_9_kib_a_stripe() {
        assert!(64 * size_of::<Labelled>() <= 9 * 1024);
    }
}
