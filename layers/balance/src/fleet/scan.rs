//! What looks over the endpoints have found.

use std::hint::select_unpredictable;

use crate::{
    eject::Ejection,
    panic::Panic,
    slot::{Doubtful, Duty, Standing},
};

use super::ENOUGH;

/// How many there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    of: u32,
    able: u32,
    out: u32,
}

/// How far what speaks against endpoints is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// So many are out as may be.
    Full,
    /// It is advice: the fault may be elsewhere, and the rest cannot carry it all.
    Advice,
    /// Too many are out to send anything but probes.
    Despair,
}

impl Tally {
    #[inline]
    pub(super) fn count(&mut self, duty: Duty, standing: Standing) {
        self.of += u32::from(duty == Duty::Serving);
        match standing {
            Standing::Able | Standing::Due => self.able += 1,
            Standing::Out { .. } => self.out += 1,
            Standing::Barred => {}
        }
    }

    /// Counts one that serves and is able.
    #[inline]
    pub(super) fn count_able(&mut self) {
        self.of += 1;
        self.able += 1;
    }

    /// Whether fewer than half may be picked.
    #[inline]
    pub(super) fn panics(&self) -> bool {
        self.of >= ENOUGH && self.able * 2 < self.of
    }

    /// Whether there were more once, and nobody of those that are left may be picked.
    pub(super) fn is_too_few_and_all_out(&self) -> bool {
        self.of < ENOUGH && self.out > 0 && self.able == 0
    }

    #[inline]
    pub(super) fn belief(&self, rules: &Ejection, panic: Panic) -> Belief {
        if self.panics() {
            return match panic {
                Panic::UseAll => Belief::Advice,
                Panic::Refuse => Belief::Despair,
            };
        }
        if self.of >= ENOUGH && self.out > rules.allowed(self.of) {
            Belief::Advice
        } else {
            Belief::Full
        }
    }
}

/// The cheapest of each kind, and when looking again may help.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) tally: Tally,
    /// Wanted, and wanted last.
    due: [Best; 2],
    able: [Best; 2],
    doubtful: [Best; 2],
    pub(super) until: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Best {
    at: usize,
    price: f64,
}

impl Best {
    const NONE: Self = Self {
        at: usize::MAX,
        price: f64::INFINITY,
    };

    #[inline]
    pub(super) fn offer(&mut self, at: usize, price: f64) {
        // Nobody can guess which is cheaper: two moves cost less than a wrong guess.
        let cheaper = price < self.price;
        self.at = select_unpredictable(cheaper, at, self.at);
        self.price = select_unpredictable(cheaper, price, self.price);
    }

    fn is_some(&self) -> bool {
        self.price < f64::INFINITY
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            tally: Tally::default(),
            due: [Best::NONE; 2],
            able: [Best::NONE; 2],
            doubtful: [Best::NONE; 2],
            until: u64::MAX,
        }
    }
}

impl Scan {
    /// The cheapest of those that are able and not wanted last.
    #[inline]
    pub(super) fn able(&self) -> Best {
        self.able[0]
    }

    /// Takes over how these two have gone on.
    #[inline]
    pub(super) fn put_back(&mut self, tally: Tally, able: Best) {
        self.tally = tally;
        self.able[0] = able;
    }

    #[inline]
    pub(super) fn note(&mut self, standing: Standing) {
        if let Standing::Out { until: Some(until) } = standing {
            self.until = self.until.min(until);
        }
    }

    #[inline]
    pub(super) fn offer(&mut self, at: usize, price: f64, standing: Standing, last: bool) {
        let best = match standing {
            Standing::Due => &mut self.due,
            Standing::Out { .. } => &mut self.doubtful,
            Standing::Able | Standing::Barred => &mut self.able,
        };
        best[usize::from(last)].offer(at, price);
    }

    /// Takes over the probes that another look has found.
    pub(super) fn take_due(&mut self, other: &Self) {
        self.due = other.due;
    }

    pub(super) fn best(&self, belief: Belief) -> Option<(usize, Doubtful)> {
        (0..2).find_map(|row| self.best_of(row, belief))
    }

    /// The best of those that are not wanted last.
    pub(super) fn best_wanted(&self, belief: Belief) -> Option<(usize, Doubtful)> {
        self.best_of(0, belief)
    }

    #[inline]
    fn best_of(&self, row: usize, belief: Belief) -> Option<(usize, Doubtful)> {
        let (due, able, doubtful) = (self.due[row], self.able[row], self.doubtful[row]);
        if due.is_some() {
            return Some((due.at, Doubtful::No));
        }
        match belief {
            Belief::Despair => None,
            Belief::Advice if doubtful.price < able.price => Some((doubtful.at, Doubtful::Yes)),
            Belief::Advice | Belief::Full => able.is_some().then_some((able.at, Doubtful::No)),
        }
    }
}
