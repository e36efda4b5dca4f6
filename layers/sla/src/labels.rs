//! What is counted by route, by model, or by whatever else a user asks for.

mod invalid;
mod owners;
mod series;
mod table;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::head::RequestHead;

pub use self::invalid::InvalidDimension;
use self::{
    invalid::Kind,
    owners::{Owners, Turn, fits},
    series::Series,
    table::Table,
};
use crate::{
    class::Verdicts,
    indicators::Event,
    state::{lock, nanos},
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

/// All dimensions. Their number and that of their labels are bounded. Nothing that heads may name is taken away again, so
/// that requests find their label without a lock; a label that gates hold is let go of when they are gone.
#[derive(Debug)]
pub(crate) struct Dimensions {
    all: [OnceLock<Dimension>; DIMENSIONS],
    /// Held to add a dimension or a label, or to let go of one.
    adding: Mutex<Adding>,
}

#[derive(Debug)]
struct Adding {
    settings: Settings,
    owners: [Owners; DIMENSIONS],
}

/// A label that nobody can count by any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    at: usize,
    turn: Turn,
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
    /// Its place among all.
    at: usize,
    name: Arc<str>,
    read: OnceLock<Box<Read>>,
    /// The labels that heads may name.
    table: Table,
    /// By place less one; the last is of all others.
    series: Box<[Series]>,
    has_others: AtomicBool,
    /// By stripe and place: requests that came in less those that ended there.
    in_flight: Box<[Box<[AtomicU64]>]>,
}

impl Dimensions {
    pub(crate) fn new(stripes: usize) -> Self {
        Self {
            all: Default::default(),
            adding: Mutex::new(Adding {
                settings: Settings {
                    most: MOST_LABELS,
                    window: Duration::ZERO,
                    since: 0,
                    stripes,
                },
                owners: Default::default(),
            }),
        }
    }

    /// Gives dimensions that are added from now on so many labels at most.
    pub(crate) fn set_most(&self, most: usize) {
        lock(&self.adding).settings.most = most.clamp(1, MOST_PLACES - 1);
    }

    /// Forgets all that was counted, and keeps so much from now on.
    pub(crate) fn reshape(&self, window: Duration, since: u64) {
        let settings = &mut lock(&self.adding).settings;
        (settings.window, settings.since) = (window, since);
        for dimension in self.dimensions() {
            for series in &dimension.series {
                series.forget(window, since);
            }
        }
    }

    /// Adds a dimension, or finds the one of this name.
    pub(crate) fn add(&self, name: &str) -> Result<usize, InvalidDimension> {
        let Adding { settings, owners } = &mut *lock(&self.adding);
        for (at, place) in self.all.iter().enumerate() {
            // Only added under the lock.
            let known = place.get_or_init(|| {
                owners[at] = Owners::new(settings.most);
                Dimension::new(at, name, settings)
            });
            if *known.name == *name {
                return Ok(at);
            }
        }
        Err(InvalidDimension(Kind::TooMany, name.into()))
    }

    /// Adds a dimension whose labels heads may name, which stay from now on.
    pub(crate) fn add_named(&self, name: &str) -> Result<usize, InvalidDimension> {
        let at = self.add(name)?;
        let adding = &mut *lock(&self.adding);
        for (label, place) in adding.owners[at].stay() {
            self.dimension(at).table.add(label, place);
        }
        Ok(at)
    }

    /// Adds a dimension whose labels are read from the head.
    pub(crate) fn read(&self, name: &str, read: Box<Read>) -> Result<(), InvalidDimension> {
        let at = self.add_named(name)?;
        let added = self.dimension(at).read.set(read);
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
        self.dimension(at).place(label, &self.adding)
    }

    /// The place of a label that [`leave`](Self::leave) is told of, or the one to let go of first to make room for it.
    pub(crate) fn hold(&self, at: usize, label: &str) -> Result<u8, Option<Gone>> {
        let adding = &mut *lock(&self.adding);
        let (dimension, owners) = (self.dimension(at), &mut adding.owners[at]);
        if let Some(turn) = owners.hold(label) {
            let stays = owners.stays();
            let place = dimension.begin(turn, label, adding);
            if stays {
                dimension.table.add(label, place);
            }
            return Ok(place);
        }
        if !fits(label) {
            return Err(None);
        }
        let oldest = owners.oldest(|place| dimension.is_busy(place));
        Err(oldest.map(|turn| Gone { at, turn }))
    }

    /// The place of all labels that have none.
    pub(crate) fn others(&self, at: usize) -> u8 {
        let settings = lock(&self.adding).settings;
        self.dimension(at).begin_others(&settings)
    }

    pub(crate) fn leave(&self, at: usize, place: u8, now: u64) {
        lock(&self.adding).owners[at].leave(place, now);
    }

    /// Labels that nobody has held for the longest window, or counted by.
    pub(crate) fn gone(&self, now: u64) -> Vec<Gone> {
        let Adding { settings, owners } = &mut *lock(&self.adding);
        let Some(by) = now.checked_sub(nanos(settings.window)) else {
            return Vec::new();
        };
        let all = self.dimensions().zip(owners).enumerate();
        let gone = all.flat_map(|(at, (dimension, owners))| {
            let gone = owners.gone(by, now, |place| dimension.is_busy(place));
            gone.into_iter().map(move |turn| Gone { at, turn })
        });
        gone.collect()
    }

    /// Lets go of labels, but for those that somebody holds again. All that was put aside of them has been counted.
    pub(crate) fn free(&self, gone: &[Gone]) {
        let adding = &mut *lock(&self.adding);
        for Gone { at, turn } in gone {
            if adding.owners[*at].free(*turn) {
                self.dimension(*at).series[usize::from(turn.place) - 1].end();
            }
        }
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
                if let Some(at) = place.checked_sub(1) {
                    dimension.series[at].count(run);
                }
            }
        }
    }

    /// All labels with what they come to, in the order in which they came.
    pub(crate) fn summaries(&self, now: u64, window: Duration) -> Vec<DimensionSummary> {
        let all = self.dimensions().map(|dimension| {
            let series = dimension.series.iter().enumerate();
            let mut labels: Vec<_> = series
                .filter_map(|(at, series)| series.summary(now, window, || dimension.in_flight(at)))
                .collect();
            labels.sort_unstable_by_key(|(came, _)| *came);
            DimensionSummary {
                dimension: dimension.name.clone(),
                labels: labels.into_iter().map(|(_, summary)| summary).collect(),
            }
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
        let (at, series) = all.find(|(_, series)| series.is_of(label))?;
        let (_, summary) = series.summary(now, window, || dimension.in_flight(at))?;
        Some(summary)
    }

    /// Tells of each label: its dimension, itself, the requests in flight and those that have ended since it was told of
    /// last: good, bad and left out.
    #[cfg(feature = "metrics")]
    pub(crate) fn each(&self, mut tell: impl FnMut(&Arc<str>, &Arc<str>, u64, [u64; 3])) {
        for dimension in self.dimensions() {
            for (at, series) in dimension.series.iter().enumerate() {
                if let Some((label, news)) = series.news() {
                    tell(&dimension.name, &label, dimension.in_flight(at), news);
                }
            }
        }
    }

    fn dimension(&self, at: usize) -> &Dimension {
        self.all[at].get().expect("added before it is asked for")
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
    fn new(at: usize, name: &str, settings: &Settings) -> Self {
        let places = settings.most + 1;
        let in_flight = || (0..places).map(|_| AtomicU64::new(0)).collect();
        Self {
            at,
            name: name.into(),
            read: OnceLock::new(),
            table: Table::new(settings.most),
            series: (0..places).map(|_| Series::default()).collect(),
            has_others: AtomicBool::new(false),
            in_flight: (0..settings.stripes).map(|_| in_flight()).collect(),
        }
    }

    /// The place of a label, which it gets if there is one left.
    #[inline]
    fn place(&self, label: &str, adding: &Mutex<Adding>) -> u8 {
        let found = self.table.find(label);
        found.unwrap_or_else(|| self.place_anew(label, adding))
    }

    #[cold]
    fn place_anew(&self, label: &str, adding: &Mutex<Adding>) -> u8 {
        // Once for all others: from then on they need no lock.
        if self.table.is_full(label) && self.has_others.load(Relaxed) {
            // It may have been the last one that was added.
            return self.table.find(label).unwrap_or(self.others());
        }
        let adding = &mut *lock(adding);
        let Some(turn) = adding.owners[self.at].place(label) else {
            return self.begin_others(&adding.settings);
        };
        let place = self.begin(turn, label, adding);
        self.table.add(label, place);
        place
    }

    /// Counts by this label from now on. Before anybody can find it.
    fn begin(&self, turn: Turn, label: &str, adding: &Adding) -> u8 {
        let Settings { window, since, .. } = adding.settings;
        let series = &self.series[usize::from(turn.place) - 1];
        series.begin(label, turn.number(), window, since);
        turn.place
    }

    fn begin_others(&self, settings: &Settings) -> u8 {
        let others = self.others();
        let Settings { window, since, .. } = *settings;
        self.series[usize::from(others) - 1].begin(OTHER, u64::MAX, window, since);
        self.has_others.store(true, Relaxed);
        others
    }

    /// The last place.
    fn others(&self) -> u8 {
        // Of 254 at most.
        self.series.len() as u8
    }

    /// Whether a request that is counted at this place is in flight. Of a label that has been left it is not again once
    /// it was not: the counts only go down, so that a sum of zero has seen them all.
    fn is_busy(&self, place: u8) -> bool {
        self.sum(usize::from(place) - 1) != 0
    }

    fn in_flight(&self, at: usize) -> u64 {
        u64::try_from(self.sum(at).cast_signed()).unwrap_or(0)
    }

    fn sum(&self, at: usize) -> u64 {
        let stripes = self.in_flight.iter();
        stripes.fold(0, |sum: u64, stripe| {
            sum.wrapping_add(stripe[at].load(Relaxed))
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_is_held_is_found_without_a_lock_where_heads_may_name_it() {
        let dimensions = Dimensions::new(1);
        let at = dimensions.add("model").unwrap();
        let early = dimensions.hold(at, "a").unwrap();
        assert_eq!(dimensions.dimension(at).table.find("a"), None);
        dimensions.add_named("model").unwrap();
        let late = dimensions.hold(at, "b").unwrap();
        for (label, place) in [("a", early), ("b", late)] {
            assert_eq!(dimensions.dimension(at).table.find(label), Some(place));
        }
    }

    #[test]
    fn what_is_put_aside_is_9_kib_a_stripe() {
        assert!(64 * size_of::<Labelled>() <= 9 * 1024);
    }
}
