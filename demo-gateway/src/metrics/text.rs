//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use metrics::SharedString;
use metrics_exporter_prometheus::formatting::{write_help_line, write_type_line};

use super::histogram::Totals;

/// The media type of what it writes.
pub(crate) const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Label = (String, SharedString);

#[derive(Default)]
pub(super) struct Writer {
    page: String,
    /// The labels of the series that is written, which its buckets repeat.
    labels: String,
}

impl Writer {
    /// Goes on with a page.
    pub(super) fn new(page: String) -> Self {
        Self {
            page,
            labels: String::new(),
        }
    }

    pub(super) fn head(&mut self, name: &str, help: Option<&str>, kind: &str) {
        if let Some(help) = help {
            write_help_line(&mut self.page, name, None, None, help);
        }
        write_type_line(&mut self.page, name, None, None, kind);
    }

    pub(super) fn value(&mut self, name: &str, labels: &[Label], value: impl Display) {
        self.say(labels);
        self.line(name, "", None, value);
    }

    /// A value that may be no number, or beyond all.
    pub(super) fn number(&mut self, name: &str, labels: &[Label], value: f64) {
        match value {
            f64::INFINITY => self.value(name, labels, "+Inf"),
            f64::NEG_INFINITY => self.value(name, labels, "-Inf"),
            value => self.value(name, labels, value),
        }
    }

    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[Label],
        bounds: &[f64],
        totals: &Totals,
    ) {
        self.say(labels);
        let all = totals.count();
        for (bound, count) in bounds.iter().zip(&totals.cumulative) {
            self.line(name, "_bucket", Some(bound), count);
        }
        self.line(name, "_bucket", Some(&"+Inf"), all);
        self.line(name, "_sum", None, totals.sum);
        self.line(name, "_count", None, all);
    }

    pub(super) fn finish(self) -> String {
        self.page
    }

    fn say(&mut self, labels: &[Label]) {
        self.labels.clear();
        for (name, value) in labels {
            if !self.labels.is_empty() {
                self.labels.push(',');
            }
            self.labels.push_str(name);
            self.labels.push_str("=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.labels.push_str("\\\\"),
                    '"' => self.labels.push_str("\\\""),
                    '\n' => self.labels.push_str("\\n"),
                    other => self.labels.push(other),
                }
            }
            self.labels.push('"');
        }
    }

    fn line(&mut self, name: &str, suffix: &str, le: Option<&dyn Display>, value: impl Display) {
        let Self { page, labels } = self;
        let comma = if labels.is_empty() { "" } else { "," };
        // Writing to memory does not fail.
        let _infallible = match le {
            Some(le) => writeln!(page, "{name}{suffix}{{{labels}{comma}le=\"{le}\"}} {value}"),
            None if labels.is_empty() => writeln!(page, "{name}{suffix} {value}"),
            None => writeln!(page, "{name}{suffix}{{{labels}}} {value}"),
        };
    }
}
