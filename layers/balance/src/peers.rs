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

    /// Looks at all, and how long their turns are: for ever, of those that get no requests.
    pub(crate) fn refresh<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a Load, f64)> + Clone,
        now: u64,
    ) {
        self.due = now + EVERY;
        let plays = all.clone().filter(|(_, stride)| stride.is_finite());
        // Who is not asked has no errors, and would have all others look as if they had them for themselves.
        let errors = plays.filter_map(|(load, _)| told(load, now).map(Told::errors));
        let errors = errors.reduce(f64::min);
        let turns = all.clone().map(|(_, stride)| stride);
        self.shortest = turns.fold(f64::INFINITY, f64::min);
        let loads = all.map(|(load, _)| load);
        match self.median_of(loads.clone().filter_map(Load::typical)) {
            Some(median) => self.median = median,
            // Nobody has answered: the next choice may know more.
            None => self.due = now,
        }
        let told = loads.filter_map(|load| told(load, now));
        let usually = Usually {
            others: self.median_of(told.clone().filter_map(Told::others)),
            utilization: self.median_of(told.clone().filter_map(Told::utilization)),
            latency: self.median_of(told.clone().filter_map(Told::latency)),
            errors,
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

/// What one has said, as long as that is worth anything.
fn told(load: &Load, now: u64) -> Option<&Told> {
    load.told().filter(|told| told.worth(now) > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadReport;

    #[test]
    fn who_is_out_and_has_no_errors_makes_nobody_of_those_that_are_asked_a_risk() {
        let says = |errors| {
            let mut load = Load::new(0);
            let report = LoadReport {
                errors: Some(errors),
                ..LoadReport::default()
            };
            load.report(report, 0);
            load
        };
        let (out, bad, worse) = (says(0.0), says(0.5), says(0.75));
        let usual = |strides: [f64; 3]| {
            let mut peers = Peers::new();
            peers.reserve(3);
            peers.refresh([&out, &bad, &worse].into_iter().zip(strides), 0);
            peers.usually().and_then(|usually| usually.errors)
        };
        assert_eq!(usual([1.0; 3]), Some(0.0));
        assert_eq!(usual([f64::INFINITY, 1.0, 1.0]), Some(0.5));
        assert_eq!(usual([f64::INFINITY; 3]), None, "nobody is compared");
    }
}
