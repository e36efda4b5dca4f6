//! How it has gone lately.

use crate::{
    class::{Tally, Verdicts},
    compliance::{Compliance, Targets},
    histogram::{Durations, Merged},
    indicators::{Indicators, Tokens},
    trend::{Totals, Trend},
};

/// How it has gone over a window, counted when requests end.
///
/// All fields are always there, and zero when nothing came in. Requests that are left out (the caller's fault, over
/// its rate, canceled) are in [`verdicts`](Self::verdicts) only.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Summary {
    /// The window.
    pub time_window_minutes: f64,
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
    /// From admission to the first data of the answer, also of answers that went on to end badly or not at all.
    pub first_data_metrics: Latency,
    /// Between the tokens of answers that came one by one.
    pub between_tokens_metrics: BetweenTokens,
    /// How many requests there were for a time.
    pub throughput_metrics: Throughput,
    /// How many of them ended badly.
    pub error_metrics: Errors,
    /// What language models read and wrote.
    pub token_metrics: TokenRates,
    /// What waits to be served, now, if the layer was told where to [look](crate::Sla::queue_depth).
    pub queue_depth: Option<u64>,
    /// What the process takes of the machine, now.
    pub process_metrics: ProcessUsage,
    /// The window against the one before; `None` until there was one, which is as long.
    pub trend: Option<Trend>,
    /// The summary against the targets of the layer.
    pub sla_compliance: Compliance,
}

/// Mean and maximum exactly, percentiles within 1.6 % above 66 us.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Latency {
    /// The mean.
    pub avg_seconds: f64,
    /// The median.
    pub p50_seconds: f64,
    /// What 95 % are below.
    pub p95_seconds: f64,
    /// What 99 % are below.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

/// The time between tokens, of answers whose classifier counts [pieces](palisade_core::classify::Judge::streamed) and
/// that had two or more.
///
/// All but the last are of the mean of each answer: the time from its first data to its end by its tokens after the
/// first, as OpenTelemetry's `gen_ai.server.time_per_output_token`. Tokens are those of its usage, or else its pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BetweenTokens {
    /// The mean.
    pub avg_seconds: f64,
    /// The median.
    pub p50_seconds: f64,
    /// What 95 % are below.
    pub p95_seconds: f64,
    /// What 99 % are below.
    pub p99_seconds: f64,
    /// That of the slowest answer.
    pub max_seconds: f64,
    /// The longest time between two pieces of any answer.
    pub longest_gap_seconds: f64,
}

/// Requests for a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Throughput {
    /// For a minute.
    pub requests_per_minute: f64,
    /// For a second.
    pub requests_per_second: f64,
}

/// Bad requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Errors {
    /// In a hundred.
    pub error_rate_percent: f64,
    /// For a minute.
    pub errors_per_minute: f64,
}

/// Tokens, of prompts and completions together where not told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TokenRates {
    /// The mean over the requests that told, each its tokens by its latency.
    pub avg_tokens_per_second: f64,
    /// The fastest of them.
    pub max_tokens_per_second: f64,
    /// Read in the window.
    pub input_tokens: u64,
    /// Written in the window.
    pub output_tokens: u64,
    /// Read for a second of the window.
    pub input_tokens_per_second: f64,
    /// Written for a second of the window.
    pub output_tokens_per_second: f64,
}

/// What the process takes of the machine; `None` where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ProcessUsage {
    /// Of all CPUs that it may use, since an earlier report.
    pub cpu_usage: Option<f64>,
    /// Of the memory of the machine, or of what its control group may use.
    pub memory_usage: Option<f64>,
}

impl Summary {
    /// The same against other targets.
    pub fn compliance(&self, targets: &Targets) -> Compliance {
        Compliance::of(
            &self.latency_metrics,
            &self.throughput_metrics,
            &self.error_metrics,
            &self.process_metrics,
            targets,
        )
    }
}

/// How long a window is in seconds, and how much of the time its buckets cover.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    pub(crate) window: f64,
    pub(crate) covered: f64,
}

/// Buckets put together.
#[derive(Clone, Debug)]
pub(crate) struct Gathered {
    pub(crate) tally: Tally,
    pub(crate) total: Merged,
    pub(crate) first_data: Merged,
    pub(crate) gaps: Merged,
    pub(crate) longest_gap: u64,
    pub(crate) tokens: Tokens,
    /// The window before, and how many seconds that was.
    pub(crate) before: Option<(Totals, f64)>,
    pub(crate) spans: Spans,
}

/// What there is at the moment, and in no bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present {
    pub(crate) in_flight: u64,
    pub(crate) queue_depth: Option<u64>,
    pub(crate) process: ProcessUsage,
}

impl Gathered {
    pub(crate) fn new<'a, H: Durations + 'a>(
        buckets: impl Iterator<Item = &'a Indicators<H>>,
        before: Option<(Totals, f64)>,
        spans: Spans,
    ) -> Self {
        let nothing = Merged::new(H::SCALE);
        let mut all = Self {
            tally: Tally::default(),
            total: nothing.clone(),
            first_data: nothing.clone(),
            gaps: nothing,
            longest_gap: 0,
            tokens: Tokens::default(),
            before,
            spans,
        };
        for bucket in buckets {
            all.tally.add(&bucket.tally);
            all.total.add(&bucket.total);
            all.first_data.add(&bucket.first_data);
            all.gaps.add(&bucket.gaps);
            all.longest_gap = all.longest_gap.max(bucket.longest_gap);
            all.tokens.add(&bucket.tokens);
        }
        all
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        self.tally.verdicts()
    }

    pub(crate) fn latency(&self) -> Latency {
        latency(&self.total)
    }

    pub(crate) fn first_data(&self) -> Latency {
        latency(&self.first_data)
    }

    pub(crate) fn between_tokens(&self) -> BetweenTokens {
        let Latency {
            avg_seconds,
            p50_seconds,
            p95_seconds,
            p99_seconds,
            max_seconds,
        } = latency(&self.gaps);
        BetweenTokens {
            avg_seconds,
            p50_seconds,
            p95_seconds,
            p99_seconds,
            max_seconds,
            longest_gap_seconds: self.longest_gap as f64 / 1e9,
        }
    }

    pub(crate) fn throughput(&self) -> Throughput {
        let verdicts = self.verdicts();
        let per_minute = self.per_minute(verdicts.good() + verdicts.bad());
        Throughput {
            requests_per_minute: per_minute,
            requests_per_second: per_minute / 60.0,
        }
    }

    pub(crate) fn errors(&self) -> Errors {
        let verdicts = self.verdicts();
        let (bad, all) = (verdicts.bad(), verdicts.good() + verdicts.bad());
        Errors {
            error_rate_percent: bad as f64 * 100.0 / all.max(1) as f64,
            errors_per_minute: self.per_minute(bad),
        }
    }

    pub(crate) fn token_rates(&self) -> TokenRates {
        let tokens = &self.tokens;
        TokenRates {
            avg_tokens_per_second: tokens.average(),
            max_tokens_per_second: tokens.highest,
            input_tokens: tokens.prompt,
            output_tokens: tokens.completion,
            input_tokens_per_second: self.per_minute(tokens.prompt) / 60.0,
            output_tokens_per_second: self.per_minute(tokens.completion) / 60.0,
        }
    }

    /// What it comes to.
    pub(crate) fn summary(&self, present: &Present, targets: &Targets) -> Summary {
        let verdicts = self.verdicts();
        let (good, bad) = (verdicts.good(), verdicts.bad());
        let (latency_metrics, throughput_metrics) = (self.latency(), self.throughput());
        let (error_metrics, process_metrics) = (self.errors(), present.process);
        Summary {
            time_window_minutes: self.spans.window / 60.0,
            total_requests: good + bad,
            successful_requests: good,
            error_count: bad,
            in_flight: present.in_flight,
            verdicts,
            latency_metrics,
            first_data_metrics: self.first_data(),
            between_tokens_metrics: self.between_tokens(),
            throughput_metrics,
            error_metrics,
            token_metrics: self.token_rates(),
            queue_depth: present.queue_depth,
            process_metrics,
            trend: self.trend(),
            sla_compliance: Compliance::of(
                &latency_metrics,
                &throughput_metrics,
                &error_metrics,
                &process_metrics,
                targets,
            ),
        }
    }

    /// The window as it is held against the one before.
    pub(crate) fn totals(&self) -> Totals {
        let verdicts = self.verdicts();
        Totals {
            good: verdicts.good(),
            bad: verdicts.bad(),
            nanos: self.total.sum(),
            tokens: self.tokens.completion,
        }
    }

    fn trend(&self) -> Option<Trend> {
        let (before, earlier) = self.before.as_ref()?;
        let now = (&self.totals(), self.spans.covered);
        Some(Trend::new(now, (before, *earlier)))
    }

    fn per_minute(&self, count: u64) -> f64 {
        count as f64 * 60.0 / self.spans.covered
    }
}

fn latency(of: &Merged) -> Latency {
    Latency {
        avg_seconds: of.average(),
        p50_seconds: of.percentile(0.5),
        p95_seconds: of.percentile(0.95),
        p99_seconds: of.percentile(0.99),
        max_seconds: of.max(),
    }
}
