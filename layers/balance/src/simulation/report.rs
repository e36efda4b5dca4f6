//! What a run has shown.

use super::{
    Policy, Scenario,
    jobs::SECOND,
    record::{Entry, Fate, Record},
    workload::{Fault, Score},
};

/// In the second view an error counts as if it had taken so long, in seconds: else failing fast would flatter.
const ERROR_COUNTS_AS: f64 = 5.0;
/// It is found that an endpoint is in trouble when it gets at most two of the next hundred requests.
const DETECTED: (usize, usize) = (100, 2);
/// It is back when it gets this part of its fair share of the next three hundred.
const RECOVERED: (usize, f64) = (300, 0.8);
const MOMENTS: usize = 60;

/// What one run of one policy has shown. Times are seconds.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "simulation", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// The name of the workload.
    pub workload: String,
    /// Who decided where requests go.
    pub policy: Policy,
    /// How many of those there were.
    pub gateways: usize,
    /// Relative to what the endpoints can do.
    pub load: f64,
    /// Where chance began.
    pub seed: u64,
    /// Requests that were counted; those of the warm-up are not.
    pub requests: usize,
    /// Of these, those that were answered.
    pub answered: usize,
    /// Those that an endpoint failed or refused.
    pub failed: usize,
    /// Those whose caller did not wait any longer.
    pub given_up: usize,
    /// Those that found no endpoint.
    pub unplaced: usize,
    /// From the moment at which they came; those that were errors, too.
    pub latency: Quantiles,
    /// The same, where an error counts as five seconds, or as long as it took.
    pub with_errors: Quantiles,
    /// Of the requests, the part that each endpoint got.
    pub shares: Vec<f64>,
    /// How long after its trouble began the first endpoint that has one in the middle of the run was left alone.
    pub detected: Option<f64>,
    /// How long after the trouble had passed it had 80 % of its fair share again.
    pub recovered: Option<f64>,
    /// Probes for each request.
    pub probes: f64,
    /// The course of the run.
    pub timeline: Vec<Moment>,
}

/// How long requests took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "simulation", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Quantiles {
    /// On average.
    pub mean: f64,
    /// Half of them took no longer.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// Ninety-nine of a hundred.
    pub p99: f64,
    /// All but one of a thousand.
    pub p999: f64,
}

/// A sixtieth of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "simulation", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Moment {
    /// When it begins, in seconds.
    pub at: f64,
    /// How long requests took that came then, on average, in seconds.
    pub mean: f64,
    /// The part of them that were errors.
    pub errors: f64,
    /// The part that went to the first endpoint that has troubles.
    pub to_troubled: f64,
}

impl Report {
    /// Of the requests, the part that was not answered.
    pub fn errors(&self) -> f64 {
        (self.requests - self.answered) as f64 / self.requests.max(1) as f64
    }

    pub(super) fn new(scenario: &Scenario, policy: Policy, record: &Record) -> Self {
        let workload = &scenario.workload;
        let (from, to) = workload.counted;
        let whole = record.whole;
        // What comes later than planned still belongs to the end.
        let to = if to >= 1.0 { f64::INFINITY } else { to };
        let counted = |entry: &&Entry| {
            let moment = entry.arrives as f64 / whole;
            from <= moment && moment < to
        };
        let entries = || record.entries.iter().filter(counted);
        let requests = entries().count();
        let fates = |fate| entries().filter(|entry| entry.fate == fate).count();
        let score = |entry: &Entry| took(workload.score, entry);
        let harsh = |entry: &Entry| match entry.fate {
            Fate::Answered => score(entry),
            _ => score(entry).max(ERROR_COUNTS_AS),
        };
        let mut shares = vec![0.0; record.endpoints];
        for entry in entries() {
            if let Some(share) = shares.get_mut(entry.endpoint as usize) {
                *share += 1.0 / requests as f64;
            }
        }
        let trouble = Trouble::of(scenario);
        let middle = trouble.as_ref().filter(|trouble| trouble.is_middle);
        Self {
            workload: workload.name.to_string(),
            policy,
            gateways: scenario.gateways,
            load: scenario.load,
            seed: scenario.seed,
            requests,
            answered: fates(Fate::Answered),
            failed: fates(Fate::Failed),
            given_up: fates(Fate::GivenUp),
            unplaced: fates(Fate::Unplaced),
            latency: Quantiles::of(entries().map(score).collect()),
            with_errors: Quantiles::of(entries().map(harsh).collect()),
            shares,
            detected: middle.and_then(|trouble| trouble.detected(record)),
            recovered: middle.and_then(|trouble| trouble.recovered(scenario, record)),
            probes: record.probes as f64 / record.entries.len().max(1) as f64,
            timeline: timeline(record, score, trouble.map(|trouble| trouble.endpoint)),
        }
    }
}

/// In seconds.
fn took(score: Score, entry: &Entry) -> f64 {
    let nanos = match (score, entry.fate) {
        (Score::FirstData, Fate::Answered) => entry.first,
        _ => entry.end,
    };
    nanos as f64 / SECOND
}

impl Quantiles {
    fn of(mut all: Vec<f64>) -> Self {
        all.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let last = all.len().checked_sub(1);
            last.map_or(0.0, |last| all[((last as f64 * part) as usize).min(last)])
        };
        Self {
            mean: all.iter().sum::<f64>() / all.len().max(1) as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}

/// The first endpoint that has a trouble.
struct Trouble {
    endpoint: u32,
    fault: Fault,
    from: f64,
    to: f64,
    /// Its beginning or its end can be seen.
    is_middle: bool,
}

impl Trouble {
    fn of(scenario: &Scenario) -> Option<Self> {
        let mut endpoint = 0;
        for group in &scenario.workload.endpoints {
            if let (Some(trouble), true) = (group.troubles.first(), group.count > 0) {
                let flips = matches!(trouble.fault, Fault::Flips { .. });
                return Some(Self {
                    endpoint: endpoint as u32,
                    fault: trouble.fault,
                    from: trouble.from,
                    to: trouble.to,
                    is_middle: !flips && (trouble.from > 0.0 || trouble.to < 1.0),
                });
            }
            endpoint += group.count;
        }
        None
    }

    /// Seconds since the trouble began.
    fn detected(&self, record: &Record) -> Option<f64> {
        if self.from <= 0.0 || self.fault == Fault::Absent {
            return None;
        }
        let (window, most) = DETECTED;
        self.first(record, window, (self.from, self.to), |its| its <= most)
    }

    /// Seconds since the trouble ended.
    fn recovered(&self, scenario: &Scenario, record: &Record) -> Option<f64> {
        if self.to >= 1.0 {
            return None;
        }
        let (window, part) = RECOVERED;
        let fair = scenario.workload.fair_shares(self.to)[self.endpoint as usize];
        let least = fair * part * window as f64;
        self.first(record, window, (self.to, 1.0), |its| its as f64 >= least)
    }

    /// When the number that it gets of the next so many requests is as it should be for the first time.
    fn first(
        &self,
        record: &Record,
        window: usize,
        (from, to): (f64, f64),
        enough: impl Fn(usize) -> bool,
    ) -> Option<f64> {
        let from = from * record.whole;
        let entries = &record.entries;
        let start = entries.partition_point(|entry| (entry.arrives as f64) < from);
        let its = |entry: &Entry| usize::from(entry.endpoint == self.endpoint);
        let mut now: usize = entries[start..].iter().take(window).map(its).sum();
        for at in start..entries.len().saturating_sub(window) {
            let arrives = entries[at].arrives as f64;
            if arrives >= to * record.whole {
                return None;
            }
            if enough(now) {
                return Some((arrives - from) / SECOND);
            }
            now = now + its(&entries[at + window]) - its(&entries[at]);
        }
        None
    }
}

fn timeline(record: &Record, score: impl Fn(&Entry) -> f64, troubled: Option<u32>) -> Vec<Moment> {
    let length = record.whole / MOMENTS as f64;
    let mut moments = vec![Moment::default(); MOMENTS];
    let mut counts = [0usize; MOMENTS];
    for entry in &record.entries {
        let at = ((entry.arrives as f64 / length) as usize).min(MOMENTS - 1);
        let moment = &mut moments[at];
        counts[at] += 1;
        moment.mean += score(entry);
        moment.errors += f64::from(u8::from(entry.fate != Fate::Answered));
        moment.to_troubled += f64::from(u8::from(Some(entry.endpoint) == troubled));
    }
    for (number, (moment, count)) in moments.iter_mut().zip(counts).enumerate() {
        moment.at = number as f64 * length / SECOND;
        let all = count.max(1) as f64;
        moment.mean /= all;
        moment.errors /= all;
        moment.to_troubled /= all;
    }
    moments
}
