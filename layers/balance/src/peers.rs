//! What is usual among the endpoints of a set.

use std::mem;

use crate::{
    load::Load,
    told::{Told, Usually},
};

/// How often the median is looked up.
const EVERY: u64 = 10_000_000;
/// A failure costs as much as this many usual answers, so that failing fast attracts nobody.
const PENALTY: f64 = 20.0;
const PENALTY_AT_MOST: f64 = 5e9;

/// The medians of all.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Of the typical latencies, in nanoseconds.
    median: f64,
    /// Of what endpoints report, if any does.
    usually: Option<Usually>,
    /// The shortest turn of all.
    shortest: f64,
    due: u64,
    scratch: Vec<f64>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self {
            // Nobody knows: one second for all, which only means that all are alike.
            median: 1e9,
            usually: None,
            shortest: 0.0,
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

    pub(crate) fn usually(&self) -> Option<Usually> {
        self.usually
    }

    /// How short the turns of the heaviest are.
    pub(crate) fn shortest(&self) -> f64 {
        self.shortest
    }

    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Looks at all, and how long their turns are.
    pub(crate) fn refresh<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a Load, f64)> + Clone,
        now: u64,
    ) {
        self.due = now + EVERY;
        let turns = all.clone().map(|(_, stride)| stride);
        self.shortest = turns.fold(f64::INFINITY, f64::min);
        let loads = all.map(|(load, _)| load);
        match self.median_of(loads.clone().filter_map(Load::typical)) {
            Some(median) => self.median = median,
            // Nobody has answered: the next choice may know more.
            None => self.due = now,
        }
        let told = loads.filter_map(|load| load.told().filter(|told| told.worth(now) > 0.0));
        let usually = Usually {
            others: self.median_of(told.clone().filter_map(Told::others)),
            utilization: self.median_of(told.clone().filter_map(Told::utilization)),
            latency: self.median_of(told.filter_map(Told::latency)),
        };
        self.usually = (usually != Usually::default()).then_some(usually);
    }

    /// Room to sort in, empty, for as many as there are. To be given back.
    pub(crate) fn take_scratch(&mut self) -> Vec<f64> {
        self.scratch.clear();
        mem::take(&mut self.scratch)
    }

    pub(crate) fn give_scratch(&mut self, scratch: Vec<f64>) {
        self.scratch = scratch;
    }

    fn median_of(&mut self, values: impl Iterator<Item = f64>) -> Option<f64> {
        self.scratch.clear();
        self.scratch.extend(values);
        let middle = self.scratch.len().checked_sub(1)? / 2;
        let (_, median, _) = self.scratch.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }
}
