//! What one process has counted, for others to add to theirs.

use std::{error::Error, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use serde::{Deserialize, Serialize};

use crate::{
    class::{Tally, Verdicts},
    compliance::Targets,
    histogram::{Durations, Merged, Whole},
    indicators::Tokens,
    summary::{Gathered, Present, ProcessUsage, Spans, Summary},
    trend::Totals,
};

/// Grows when an older reader would misunderstand.
const VERSION: u32 = 1;
/// In nanoseconds, to three digits: 2.4 hours.
const HIGHEST: u64 = 1 << 43;
const DIGITS: u8 = 3;
/// Up to the counts in HdrHistogram's second format.
const HEADER: usize = 40;
/// More than all bins of a histogram take.
const LONGEST: usize = 256 * 1024;
/// Numbers up to this are exact in JSON, and far from an overflow when replicas are added up.
const MOST: u64 = 1 << 53;

/// What one process has counted over a window, as it goes over the wire.
///
/// Histograms are in [HdrHistogram](http://hdrhistogram.org)'s second format in base64, in nanoseconds to three digits,
/// which its tools read: each bin is where its middle is. Fields that a reader does not know are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Export {
    /// Of this format: 1.
    pub version: u32,
    /// What the layer is called.
    pub name: String,
    /// The window.
    pub window_seconds: f64,
    /// The time that was counted, up to a bucket more.
    pub covered_seconds: f64,
    /// Requests between their admission and the end of their answer, now.
    pub in_flight: u64,
    /// What waits to be served, where that is known.
    pub queue_depth: Option<u64>,
    /// Requests that ended, by how they did.
    pub verdicts: Verdicts,
    /// From admission to the end of the answer.
    pub latency: Exported,
    /// From admission to the first data of the answer.
    pub first_data: Exported,
    /// The mean time between the tokens of each answer.
    pub between_tokens: Exported,
    /// The longest time between two pieces of an answer.
    pub longest_gap_nanos: u64,
    /// What language models read and wrote.
    pub tokens: ExportedTokens,
    /// The window before, where there was one.
    pub before: Option<ExportedBefore>,
    /// What the process takes of its machine.
    pub process: ProcessUsage,
}

/// Durations of an [`Export`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Exported {
    /// How many there were of each length.
    pub hdr: String,
    /// What they come to, exactly.
    pub sum_nanos: u64,
    /// The longest, exactly.
    pub max_nanos: u64,
}

/// Tokens of an [`Export`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExportedTokens {
    /// Read.
    pub input: u64,
    /// Written.
    pub output: u64,
    /// Requests of which it is known how fast that was.
    pub requests: u64,
    /// The sum of their tokens per second.
    pub rates: f64,
    /// The highest of these.
    pub highest_rate: f64,
}

/// The window before that of an [`Export`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExportedBefore {
    /// How long it was.
    pub seconds: f64,
    /// Requests that ended well.
    pub good: u64,
    /// Requests that ended badly.
    pub bad: u64,
    /// What their latencies come to.
    pub sum_nanos: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

impl Export {
    pub(crate) fn new(name: &str, gathered: &Gathered, present: &Present) -> Self {
        let tokens = &gathered.tokens;
        Self {
            version: VERSION,
            name: name.into(),
            window_seconds: gathered.spans.window,
            covered_seconds: gathered.spans.covered,
            in_flight: present.in_flight,
            queue_depth: present.queue_depth,
            verdicts: gathered.verdicts(),
            latency: Exported::new(&gathered.total),
            first_data: Exported::new(&gathered.first_data),
            between_tokens: Exported::new(&gathered.gaps),
            longest_gap_nanos: gathered.longest_gap,
            tokens: ExportedTokens {
                input: tokens.prompt,
                output: tokens.completion,
                requests: tokens.requests,
                rates: tokens.rates,
                highest_rate: tokens.highest,
            },
            before: gathered.before.map(|(totals, seconds)| ExportedBefore {
                seconds,
                good: totals.good,
                bad: totals.bad,
                sum_nanos: totals.nanos,
                output_tokens: totals.tokens,
            }),
            process: present.process,
        }
    }

    fn gathered(&self) -> Result<Gathered, InvalidExport> {
        if self.version != VERSION {
            return Err(InvalidExport("version"));
        }
        let is_time = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        if !is_time(self.window_seconds) {
            return Err(InvalidExport("window_seconds"));
        }
        if !is_time(self.covered_seconds) || self.covered_seconds < self.window_seconds {
            return Err(InvalidExport("covered_seconds"));
        }
        let tokens = self.tokens;
        let counts = [self.in_flight, tokens.input, tokens.output, tokens.requests];
        let verdicts = Tally::from(self.verdicts);
        if counts
            .iter()
            .chain(verdicts.counts())
            .any(|count| *count > MOST)
        {
            return Err(InvalidExport("verdicts"));
        }
        let is_rate = |rate: f64| rate.is_finite() && rate >= 0.0;
        if !is_rate(tokens.rates) || !is_rate(tokens.highest_rate) {
            return Err(InvalidExport("tokens"));
        }
        let before = match self.before {
            None => None,
            Some(before) if is_time(before.seconds) && before.good.max(before.bad) <= MOST => {
                let totals = Totals {
                    good: before.good,
                    bad: before.bad,
                    nanos: before.sum_nanos,
                    tokens: before.output_tokens,
                };
                Some((totals, before.seconds))
            }
            Some(_) => return Err(InvalidExport("before")),
        };
        let read = |exported: &Exported, name| exported.merged().ok_or(InvalidExport(name));
        Ok(Gathered {
            tally: verdicts,
            total: read(&self.latency, "latency")?,
            first_data: read(&self.first_data, "first_data")?,
            gaps: read(&self.between_tokens, "between_tokens")?,
            longest_gap: self.longest_gap_nanos,
            tokens: Tokens {
                prompt: tokens.input,
                completion: tokens.output,
                requests: tokens.requests,
                rates: tokens.rates,
                highest: tokens.highest_rate,
            },
            before,
            spans: Spans {
                window: self.window_seconds,
                covered: self.covered_seconds,
            },
        })
    }
}

impl Exported {
    fn new(merged: &Merged) -> Self {
        let mut hdr = empty();
        for (nanos, count) in merged.recorded() {
            hdr.saturating_record_n(nanos, count);
        }
        let mut bytes = Vec::new();
        let written = V2Serializer::new().serialize(&hdr, &mut bytes);
        written.expect("memory takes what is written, and counts are far from their limit");
        Self {
            hdr: STANDARD.encode(bytes),
            sum_nanos: merged.sum(),
            max_nanos: merged.max_nanos(),
        }
    }

    fn merged(&self) -> Option<Merged> {
        if self.hdr.len() > LONGEST {
            return None;
        }
        let bytes = STANDARD.decode(&self.hdr).ok()?;
        // The header says how much memory the rest will take, so it is not believed.
        let (header, counts) = bytes.split_at_checked(HEADER)?;
        let field = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from(field(at)?) << 32 | u64::from(field(at + 4)?));
        let is_ours = field(4)? as usize == counts.len()
            && field(12)? == u32::from(DIGITS)
            && long(16)? == 1
            && long(24)? == HIGHEST;
        if !is_ours {
            return None;
        }
        let hdr: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).ok()?;
        let mut merged = Merged::new(Whole::SCALE);
        let mut left = MOST;
        for bin in hdr.iter_recorded() {
            left = left.checked_sub(bin.count_at_value())?;
            merged.insert(bin.value_iterated_to(), bin.count_at_value());
        }
        merged.exactly(self.sum_nanos, self.max_nanos);
        Some(merged)
    }
}

/// What several processes have counted, as if one had counted it all.
///
/// ```
/// use std::time::Duration;
/// use palisade_sla::{Export, Objective, Replicas, Sla, Targets};
///
/// let [one, other] = [(); 2].map(|()| Sla::new(Objective::success(0.999).unwrap()));
/// let window = Duration::from_secs(60);
/// let mut replicas = Replicas::new();
/// for sla in [one, other] {
///     let sent = serde_json::to_string(&sla.handle().export(window))?;
///     replicas.add(&serde_json::from_str(&sent)?)?;
/// }
/// let summary = replicas.summary(&Targets::default()).expect("two were added");
/// assert_eq!((replicas.count(), summary.total_requests), (2, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Replicas {
    count: usize,
    all: Option<(Gathered, Present)>,
}

impl Replicas {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what one of them has counted; nothing of it, when that fails.
    ///
    /// # Errors
    ///
    /// Fails when it is of another version or another window than the others, or says what cannot be.
    pub fn add(&mut self, export: &Export) -> Result<(), InvalidExport> {
        let gathered = export.gathered()?;
        let present = Present {
            in_flight: export.in_flight,
            queue_depth: export.queue_depth,
            process: export.process,
        };
        match &mut self.all {
            None => self.all = Some((gathered, present)),
            Some((all, now)) => {
                if all.spans.window != gathered.spans.window {
                    return Err(InvalidExport("window_seconds"));
                }
                all.merge(&gathered);
                now.merge(&present);
            }
        }
        self.count += 1;
        Ok(())
    }

    /// How many were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How it has gone with all of them; `None` without any.
    ///
    /// What processes take of their machines is that of the one that takes most.
    pub fn summary(&self, targets: &Targets) -> Option<Summary> {
        let (gathered, present) = self.all.as_ref()?;
        Some(gathered.summary(present, targets))
    }
}

impl Gathered {
    fn merge(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.total.merge(&other.total);
        self.first_data.merge(&other.first_data);
        self.gaps.merge(&other.gaps);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.tokens.add(&other.tokens);
        let before = self.before.take().zip(other.before);
        self.before = before.map(|((mut totals, seconds), (more, as_long))| {
            totals.add(&more);
            (totals, seconds.max(as_long))
        });
        // One that began later has counted nothing before.
        self.spans.covered = self.spans.covered.max(other.spans.covered);
    }
}

impl Present {
    fn merge(&mut self, other: &Self) {
        fn most(one: Option<f64>, other: Option<f64>) -> Option<f64> {
            one.into_iter().chain(other).reduce(f64::max)
        }
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        let queues = self.queue_depth.into_iter().chain(other.queue_depth);
        self.queue_depth = queues.reduce(u64::saturating_add);
        self.process = ProcessUsage {
            cpu_usage: most(self.process.cpu_usage, other.process.cpu_usage),
            memory_usage: most(self.process.memory_usage, other.process.memory_usage),
        };
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST, DIGITS).expect("the bounds are in order")
}

/// An export that cannot be added, and the field that stands against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidExport(&'static str);

impl InvalidExport {
    /// The name of the field.
    pub fn field(&self) -> &'static str {
        self.0
    }
}

impl fmt::Display for InvalidExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the export cannot be added for its {}", self.0)
    }
}

impl Error for InvalidExport {}

#[cfg(test)]
mod tests;
