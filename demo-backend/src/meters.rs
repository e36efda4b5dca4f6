//! What Prometheus reads.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::fault;

/// Upper bounds in seconds: from an immediate answer to a long stream.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    requests: AtomicU64,
    errors: AtomicU64,
    clients_left: AtomicU64,
    tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    faults: [AtomicU64; fault::WORDS.len()],
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// What is so now.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) in_flight: usize,
    pub(crate) active: usize,
    pub(crate) queued: usize,
    pub(crate) slots: usize,
}

impl Meters {
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn fault(&self, index: usize) {
        self.faults[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn tokens(&self, count: u32) {
        self.tokens.fetch_add(count.into(), Relaxed);
    }

    pub(crate) fn prompt(&self, tokens: u32, cached: u32) {
        self.prompt_tokens.fetch_add(tokens.into(), Relaxed);
        self.cached_tokens.fetch_add(cached.into(), Relaxed);
    }

    pub(crate) fn client_left(&self) {
        self.clients_left.fetch_add(1, Relaxed);
    }

    pub(crate) fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn duration(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    /// In Prometheus' text format.
    pub(crate) fn render(&self, gauges: &Gauges) -> String {
        let mut text = String::with_capacity(4096);
        let out = &mut text;
        let counters = [
            (
                "requests_total",
                "Requests to /generate and /v1.",
                &self.requests,
            ),
            (
                "errors_total",
                "Of these, answered with a status from 400 or broken off.",
                &self.errors,
            ),
            (
                "clients_left_total",
                "Of these, left by the client before their end.",
                &self.clients_left,
            ),
            (
                "tokens_total",
                "Tokens of answers that were handed to a connection.",
                &self.tokens,
            ),
            (
                "prompt_tokens_total",
                "Tokens of prompts.",
                &self.prompt_tokens,
            ),
            (
                "prompt_tokens_cached_total",
                "Of these, known from earlier prompts.",
                &self.cached_tokens,
            ),
        ];
        for (name, help, counter) in counters {
            head(out, name, help, "counter");
            line(out, name, "", counter.load(Relaxed));
        }
        head(
            out,
            "faults_total",
            "Faults on purpose that struck.",
            "counter",
        );
        for (word, counter) in fault::WORDS.iter().zip(&self.faults) {
            let label = format!("{{fault=\"{word}\"}}");
            line(out, "faults_total", &label, counter.load(Relaxed));
        }
        let gauges = [
            (
                "in_flight",
                "Requests between their head and the end of their answer.",
                gauges.in_flight,
            ),
            ("active_slots", "Requests that have a slot.", gauges.active),
            (
                "queue_depth",
                "Requests that wait for a slot.",
                gauges.queued,
            ),
            (
                "slots",
                "Requests that are served together; 0 when there is no limit.",
                gauges.slots,
            ),
        ];
        for (name, help, value) in gauges {
            head(out, name, help, "gauge");
            line(out, name, "", value as u64);
        }
        self.histogram(out);
        text
    }

    fn histogram(&self, out: &mut String) {
        let help = "From the head of a request to the end of its answer.";
        head(out, "duration_seconds", help, "histogram");
        let mut count = 0;
        let bounds = BOUNDS
            .iter()
            .map(ToString::to_string)
            .chain(["+Inf".to_owned()]);
        for (bound, bucket) in bounds.zip(&self.buckets) {
            count += bucket.load(Relaxed);
            line(
                out,
                "duration_seconds_bucket",
                &format!("{{le=\"{bound}\"}}"),
                count,
            );
        }
        let seconds = Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64();
        line(out, "duration_seconds_sum", "", seconds);
        line(out, "duration_seconds_count", "", count);
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _infallible = writeln!(
        out,
        "# HELP llm_instance_{name} {help}\n# TYPE llm_instance_{name} {kind}"
    );
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _infallible = writeln!(out, "llm_instance_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_counts_within_it() {
        let meters = Meters::default();
        meters.duration(Duration::from_millis(10));
        meters.duration(Duration::from_secs(500));
        let text = meters.render(&Gauges {
            in_flight: 3,
            active: 2,
            queued: 1,
            slots: 2,
        });
        for line in [
            r#"llm_instance_duration_seconds_bucket{le="0.005"} 0"#,
            r#"llm_instance_duration_seconds_bucket{le="0.01"} 1"#,
            r#"llm_instance_duration_seconds_bucket{le="120"} 1"#,
            r#"llm_instance_duration_seconds_bucket{le="+Inf"} 2"#,
            "llm_instance_duration_seconds_count 2",
            "llm_instance_duration_seconds_sum 500.01",
            "llm_instance_in_flight 3",
            "llm_instance_queue_depth 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
