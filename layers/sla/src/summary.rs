//! How it has gone lately.

use crate::{
    class::{Tally, Verdicts},
    compliance::{Compliance, Targets},
    histogram::Merged,
    indicators::{Indicators, Tokens},
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
    /// How many requests there were for a time.
    pub throughput_metrics: Throughput,
    /// How many of them ended badly.
    pub error_metrics: Errors,
    /// What language models read and wrote.
    pub token_metrics: TokenRates,
    /// What the process takes of the machine, now.
    pub process_metrics: ProcessUsage,
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
}

/// What the process takes of the machine; `None` where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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

/// Buckets put together.
#[derive(Debug)]
pub(crate) struct Gathered {
    tally: Tally,
    total: Merged,
    first_data: Merged,
    tokens: Tokens,
}

impl Gathered {
    pub(crate) fn new<'a>(buckets: impl Iterator<Item = &'a Indicators>) -> Self {
        let mut all = Self {
            tally: Tally::default(),
            total: Merged::new(),
            first_data: Merged::new(),
            tokens: Tokens::default(),
        };
        for bucket in buckets {
            all.tally.add(&bucket.tally);
            all.total.add(&bucket.total);
            all.first_data.add(&bucket.first_data);
            all.tokens.add(&bucket.tokens);
        }
        all
    }

    #[cfg(test)]
    pub(crate) fn verdicts(&self) -> Verdicts {
        self.tally.verdicts()
    }

    /// What it comes to for a window in seconds, of which the buckets cover `covered`.
    pub(crate) fn summary(
        &self,
        (window, covered): (f64, f64),
        in_flight: u64,
        process_metrics: ProcessUsage,
        targets: &Targets,
    ) -> Summary {
        let verdicts = self.tally.verdicts();
        let (good, bad) = (verdicts.good(), verdicts.bad());
        let total = good + bad;
        let per_minute = |count: u64| count as f64 * 60.0 / covered;
        let latency_metrics = latency(&self.total);
        let throughput_metrics = Throughput {
            requests_per_minute: per_minute(total),
            requests_per_second: per_minute(total) / 60.0,
        };
        let error_metrics = Errors {
            error_rate_percent: bad as f64 * 100.0 / total.max(1) as f64,
            errors_per_minute: per_minute(bad),
        };
        Summary {
            time_window_minutes: window / 60.0,
            total_requests: total,
            successful_requests: good,
            error_count: bad,
            in_flight,
            verdicts,
            latency_metrics,
            first_data_metrics: latency(&self.first_data),
            throughput_metrics,
            error_metrics,
            token_metrics: TokenRates {
                avg_tokens_per_second: self.tokens.average(),
                max_tokens_per_second: self.tokens.highest,
                input_tokens: self.tokens.prompt,
                output_tokens: self.tokens.completion,
            },
            process_metrics,
            sla_compliance: Compliance::of(
                &latency_metrics,
                &throughput_metrics,
                &error_metrics,
                &process_metrics,
                targets,
            ),
        }
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
