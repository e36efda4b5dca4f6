//! Whose turn it is to be asked.

use std::sync::Arc;

use tokio::time::Instant;

use crate::coin::Coin;

/// Who has been silent so many times in a row is left in peace: one probe that is lost says nothing, and what was told is
/// soon stale.
const SILENT: u32 = 3;

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Report,
    Silence,
}

/// Whom to ask, in rounds of random order: nobody is asked twice before all others were, and gateways do not ask in
/// step.
#[derive(Debug)]
pub(super) struct Targets {
    all: Vec<Target>,
    /// Those before this had their turn in this round.
    dealt: usize,
    /// So many of the last are new, and come first.
    fresh: usize,
    coin: Coin,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    pub(super) rests_until: Instant,
    /// Probes in a row that it did not answer.
    silent: u32,
}

impl Targets {
    pub(super) fn new(coin: Coin) -> Self {
        Self {
            all: Vec::new(),
            dealt: 0,
            fresh: 0,
            coin,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Has those that are there and no others; returns how many are new.
    pub(super) fn follow(&mut self, names: &[Arc<str>], now: Instant) -> usize {
        self.all.retain(|target| names.contains(&target.name));
        let kept = self.all.len();
        for name in names {
            if !self.all[..kept].iter().any(|target| target.name == *name) {
                self.all.push(Target {
                    name: name.clone(),
                    rests_until: now,
                    silent: 0,
                });
            }
        }
        self.dealt = 0;
        self.fresh = self.all.len() - kept;
        self.fresh
    }

    /// Leaves one that is silent in peace until then.
    pub(super) fn heard(&mut self, name: &str, answer: Answer, until: Instant) {
        let Some(target) = self.all.iter_mut().find(|target| *target.name == *name) else {
            return;
        };
        target.silent = match answer {
            Answer::Report => 0,
            Answer::Silence => target.silent.saturating_add(1),
        };
        if target.silent >= SILENT {
            target.rests_until = target.rests_until.max(until);
        }
    }

    /// Begins a round.
    pub(super) fn deal(&mut self) {
        self.dealt = 0;
    }

    /// There is one.
    pub(super) fn next(&mut self) -> &mut Target {
        if self.dealt >= self.all.len() {
            self.deal();
        }
        let drawn = if self.fresh > 0 {
            self.fresh -= 1;
            self.all.len() - 1 - self.fresh
        } else {
            let left = self.all.len() - self.dealt;
            self.dealt + self.coin.toss() as usize % left
        };
        self.all.swap(self.dealt, drawn);
        self.dealt += 1;
        &mut self.all[self.dealt - 1]
    }
}
