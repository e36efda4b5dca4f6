//! What is counted in a bucket of time.

use palisade_core::classify::Usage;

use crate::{
    burn::Counts,
    class::{Class, Standing, Tally},
    histogram::Durations,
    objective::Objective,
};

/// Something that happens to a request. All durations are in nanoseconds, which takes less than to go back and forth.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The first data of its answer, so long after it was admitted.
    FirstData(u64),
    /// Its end.
    End(Ended),
    /// Tokens that its answer did not tell, and how long they took.
    Tokens(Usage, u64),
}

/// The time between the tokens of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gaps {
    pub(crate) mean: u64,
    /// Between two pieces of it that came one after the other.
    pub(crate) longest: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) class: Class,
    pub(crate) usage: Option<Usage>,
    pub(crate) first_data: Option<u64>,
    pub(crate) total: u64,
    /// Of an answer that came token by token.
    pub(crate) gaps: Option<Gaps>,
}

impl Ended {
    /// What the objectives make of it; all zeros when it is left out.
    pub(crate) fn counts(&self, objective: &Objective) -> Counts {
        let mut counts = Counts::default();
        match self.class.standing() {
            Standing::Good => {
                counts.availability.count(false);
                if let Some(slow) = objective.is_slow(self.first_data, self.total) {
                    counts.latency.count(slow);
                }
            }
            Standing::Bad => counts.availability.count(true),
            Standing::LeftOut => {}
        }
        counts
    }
}

/// What happened in a bucket of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Indicators<H> {
    pub(crate) tally: Tally,
    pub(crate) total: H,
    pub(crate) first_data: H,
    /// The mean gap of each answer.
    pub(crate) gaps: H,
    pub(crate) longest_gap: u64,
    pub(crate) tokens: Tokens,
}

impl<H: Durations> Indicators<H> {
    #[inline]
    pub(crate) fn count(&mut self, event: &Event) {
        match *event {
            Event::FirstData(taken) => self.first_data.record(taken),
            Event::End(ended) => {
                self.tally.count(ended.class);
                if ended.class.standing() != Standing::LeftOut {
                    self.total.record(ended.total);
                    if let Some(gaps) = ended.gaps {
                        self.gaps.record(gaps.mean);
                        self.longest_gap = self.longest_gap.max(gaps.longest);
                    }
                }
                if let Some(usage) = ended.usage {
                    self.tokens.count(usage, ended.total);
                }
            }
            Event::Tokens(usage, taken) => self.tokens.count(usage, taken),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.total.add(&other.total);
        self.first_data.add(&other.first_data);
        self.gaps.add(&other.gaps);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.tokens.add(&other.tokens);
    }
}

/// Tokens, and how fast they came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
    /// Of the requests with a rate: their number, and the sum and the highest of their tokens per second.
    pub(crate) requests: u64,
    pub(crate) rates: f64,
    pub(crate) highest: f64,
}

impl Tokens {
    fn count(&mut self, usage: Usage, taken: u64) {
        self.prompt = self.prompt.saturating_add(usage.prompt);
        self.completion = self.completion.saturating_add(usage.completion);
        let tokens = usage.prompt.saturating_add(usage.completion);
        if tokens == 0 || taken == 0 {
            return;
        }
        let rate = tokens as f64 * 1e9 / taken as f64;
        self.requests += 1;
        self.rates += rate;
        self.highest = self.highest.max(rate);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.completion = self.completion.saturating_add(other.completion);
        self.requests += other.requests;
        self.rates += other.rates;
        self.highest = self.highest.max(other.highest);
    }

    /// The mean of the rates of the requests; 0 without any.
    pub(crate) fn average(&self) -> f64 {
        if self.requests == 0 {
            return 0.0;
        }
        self.rates / self.requests as f64
    }
}
