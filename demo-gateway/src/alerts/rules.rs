//! The objective of a configuration as rules for Prometheus.
//!
//! They are those of the SLA layer, over what all gateways of a job have counted together: four alerts on how fast an
//! error budget is spent, each over two windows that scale with the period of the objective.

use std::{error::Error, fmt, fmt::Write, time::Duration};

use crate::{
    config::{Config, Objective},
    metrics::buckets,
};

/// The period for which windows are what they are called.
pub const PERIOD: Duration = Duration::from_secs(30 * DAY);

const DAY: u64 = 24 * 3600;

/// With a shorter period the shortest window is less than a second, which no scrape fills.
const SHORTEST: Duration = Duration::from_secs(8640);

/// With fewer requests in the longer window no alert fires.
const ENOUGH: u32 = 50;

/// How often long windows are summed up, for a period of 30 days.
const SLOW: Duration = Duration::from_secs(120);

/// All windows, by what they are for a period of 30 days.
const WINDOWS: [(&str, u64); 7] = [
    ("5m", 300),
    ("30m", 1800),
    ("1h", 3600),
    ("2h", 7200),
    ("6h", 6 * 3600),
    ("1d", DAY),
    ("3d", 3 * DAY),
];

/// Those from this one on are summed up less often.
const FIRST_SLOW: usize = 4;

struct Burn {
    severity: &'static str,
    above: f64,
    long: &'static str,
    short: &'static str,
}

/// As in the SLA layer.
const BURNS: [Burn; 4] = [
    Burn {
        severity: "page",
        above: 14.4,
        long: "1h",
        short: "5m",
    },
    Burn {
        severity: "page",
        above: 6.0,
        long: "6h",
        short: "30m",
    },
    Burn {
        severity: "ticket",
        above: 3.0,
        long: "1d",
        short: "2h",
    },
    Burn {
        severity: "ticket",
        above: 1.0,
        long: "3d",
        short: "6h",
    },
];

/// What latency is read from.
const FIRST_DATA: &str = "palisade_sla_first_data_seconds";

/// Requests that an objective is about, by their verdict.
const COUNTED: &str = "success|failure|overload|timed_out|unsent|refused";

/// Those among them that break the promise.
const BAD: &str = "failure|overload|timed_out|unsent|refused";

/// Why there are no rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoRules {
    /// The period is so short that its windows would be shorter than what a scrape can tell.
    Period(Duration),
}

impl fmt::Display for NoRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Period(period) = self;
        let (period, shortest) = (short(*period), short(SHORTEST));
        write!(
            f,
            "a period of {period} has windows below a second: {shortest} is the shortest"
        )
    }
}

impl Error for NoRules {}

/// The rules for the objective of this configuration, as a file that Prometheus reads.
///
/// ```
/// use demo_gateway::{Config, alerts::rules::rules};
///
/// let file = rules(&Config::default())?;
/// assert!(file.contains("alert: ErrorBudgetBurn"));
/// # Ok::<(), demo_gateway::alerts::rules::NoRules>(())
/// ```
///
/// # Errors
///
/// If the period of the objective is shorter than 144 minutes.
pub fn rules(config: &Config) -> Result<String, NoRules> {
    let objective = &config.objective;
    if objective.period < SHORTEST {
        return Err(NoRules::Period(objective.period));
    }
    let file = File {
        objective,
        edge: edge(objective.latency),
        text: String::new(),
    };
    // A `String` takes all that is written into it.
    Ok(file.written().unwrap_or_default())
}

/// The end of the bucket that `latency` is in: what a histogram can tell.
fn edge(latency: Duration) -> f64 {
    let latency = latency.as_secs_f64();
    let mut edges = buckets::of(FIRST_DATA).iter().copied();
    edges.find(|edge| *edge >= latency).unwrap_or(f64::INFINITY)
}

struct File<'a> {
    objective: &'a Objective,
    edge: f64,
    text: String,
}

impl File<'_> {
    fn written(mut self) -> Result<String, fmt::Error> {
        self.head()?;
        self.indicators("palisade-slo-fast", 0..FIRST_SLOW, None)?;
        let slow = self.scaled(SLOW.as_secs());
        self.indicators("palisade-slo-slow", FIRST_SLOW..WINDOWS.len(), Some(slow))?;
        self.period()?;
        self.text
            .push_str("  - name: palisade-slo-alerts\n    rules:\n");
        for burn in &BURNS {
            self.alert(burn)?;
        }
        Ok(self.text)
    }

    fn head(&mut self) -> fmt::Result {
        let Objective {
            success,
            latency,
            within,
            period,
        } = self.objective;
        let (latency, period) = (short(*latency), short(*period));
        writeln!(
            self.text,
            "# Written by `demo-gateway rules`, from `[objective]`: over {period}, {} % of requests succeed, and {} % of\n\
             # answers begin within {latency}. Windows are called what they are for a period of 30 days.",
            percent(*success),
            percent(*within),
        )?;
        if self.edge != self.objective.latency.as_secs_f64() {
            writeln!(
                self.text,
                "# Of {latency} a histogram cannot tell: it is held against {}, the next end of a bucket.",
                self.edge_text()
            )?;
        }
        self.text.push_str("groups:\n");
        Ok(())
    }

    fn edge_text(&self) -> String {
        match self.edge.is_finite() {
            true => format!("{} s", self.edge),
            false => "none".into(),
        }
    }

    /// A duration that scales with the period.
    fn scaled(&self, seconds: u64) -> Duration {
        let share = self.objective.period.as_secs_f64() / PERIOD.as_secs_f64();
        Duration::from_millis((share * seconds as f64 * 1e3).round() as u64)
    }

    fn indicators(
        &mut self,
        group: &str,
        windows: std::ops::Range<usize>,
        interval: Option<Duration>,
    ) -> fmt::Result {
        writeln!(self.text, "  - name: {group}")?;
        if let Some(interval) = interval {
            writeln!(self.text, "    interval: {}", short(interval))?;
        }
        self.text.push_str("    rules:\n");
        for (name, seconds) in &WINDOWS[windows] {
            let over = short(self.scaled(*seconds));
            for (rule, share, target) in self.promises(&over) {
                writeln!(
                    self.text,
                    "      - record: palisade:slo_burn_rate:ratio\n        \
                           expr: >-\n          \
                             ({share})\n          / (1 - {target})\n        \
                           labels: {{rule: {rule}, window: {name}}}"
                )?;
            }
            if BURNS.iter().any(|burn| burn.long == *name) {
                for (rule, events) in self.events(&over) {
                    writeln!(
                        self.text,
                        "      - record: palisade:slo_events:increase\n        \
                               expr: {events}\n        \
                               labels: {{rule: {rule}, window: {name}}}"
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Each promise: its name, the share of requests that broke it, and what was promised.
    fn promises(&self, over: &str) -> [(&'static str, String, f64); 2] {
        let Objective {
            success, within, ..
        } = self.objective;
        let requests = |verdict: &str| {
            format!(
                "sum by (job) (rate(palisade_sla_requests_total{{layer=\"gateway\",verdict=~\"{verdict}\"}}[{over}]))"
            )
        };
        let first = |what: &str| {
            format!("sum by (job) (rate(palisade_sla_first_data_seconds_{what}[{over}]))")
        };
        let count = first("count{layer=\"gateway\"}");
        let share = |bad: &str, all: &str| format!("{bad}\n            / ({all} > 0)");
        // Versions of Prometheus differ in how they write a whole number here.
        let late = match self.edge.is_finite() {
            true => {
                let edge = self.edge.to_string().replace('.', r"\\.");
                let point = if self.edge.fract() == 0.0 {
                    r"(\\.0)?"
                } else {
                    ""
                };
                let bucket = format!("bucket{{layer=\"gateway\",le=~\"{edge}{point}\"}}");
                format!("({count} - {})", first(&bucket))
            }
            false => format!("0 * {count}"),
        };
        [
            (
                "availability",
                share(&requests(BAD), &requests(COUNTED)),
                *success,
            ),
            ("latency", share(&late, &count), *within),
        ]
    }

    /// How many requests each promise was about.
    fn events(&self, over: &str) -> [(&'static str, String); 2] {
        [
            (
                "availability",
                format!(
                    "sum by (job) (increase(palisade_sla_requests_total{{layer=\"gateway\",verdict=~\"{COUNTED}\"}}[{over}]))"
                ),
            ),
            (
                "latency",
                format!(
                    "sum by (job) (increase(palisade_sla_first_data_seconds_count{{layer=\"gateway\"}}[{over}]))"
                ),
            ),
        ]
    }

    fn period(&mut self) -> fmt::Result {
        let over = short(self.objective.period);
        let interval = short(self.scaled(SLOW.as_secs()));
        writeln!(
            self.text,
            "  - name: palisade-slo-period\n    interval: {interval}\n    rules:"
        )?;
        for (rule, share, target) in self.promises(&over) {
            writeln!(
                self.text,
                "      - record: palisade:slo_objective:ratio\n        \
                       expr: vector({target})\n        \
                       labels: {{rule: {rule}}}\n      \
                     - record: palisade:slo_error_budget_left:ratio\n        \
                       expr: >-\n          \
                         1 - ({share})\n          / (1 - {target})\n        \
                       labels: {{rule: {rule}}}"
            )?;
        }
        Ok(())
    }

    fn alert(&mut self, burn: &Burn) -> fmt::Result {
        let Burn {
            severity,
            above,
            long,
            short: brief,
        } = burn;
        let seconds = |name: &str| {
            let found = WINDOWS.iter().find(|(window, _)| *window == name);
            found.map_or(0, |(_, seconds)| *seconds)
        };
        let spoken = |name: &str| short(self.scaled(seconds(name)));
        let (over, and) = (spoken(long), spoken(brief));
        let period = short(self.objective.period);
        writeln!(
            self.text,
            r#"      - alert: ErrorBudgetBurn
        expr: >-
          palisade:slo_burn_rate:ratio{{window="{long}"}} >= {above}
          and ignoring (window) palisade:slo_burn_rate:ratio{{window="{brief}"}} >= {above}
          and palisade:slo_events:increase{{window="{long}"}} >= {ENOUGH}
        labels: {{severity: {severity}, above: "{above}"}}
        annotations:
          summary: >-
            {{{{ $labels.job }}}}: the error budget of {{{{ $labels.rule }}}} is spent {{{{ $value | printf "%.1f" }}}} times as fast as it is earned
          description: >-
            Over the last {over}, and the last {and}, the promise of {{{{ $labels.rule }}}} was broken at
            {{{{ $value | printf "%.1f" }}}} times the rate that the error budget of {period} allows; this alert fires from {above} on.
            {{{{ with printf `palisade:slo_error_budget_left:ratio{{job="%s",rule="%s"}}` $labels.job $labels.rule | query }}}}{{{{ . | first | value | humanizePercentage }}}} of the error budget is left.{{{{ end }}}}
          runbook: deploy/README.md#errorbudgetburn"#
        )
    }
}

/// A share in percent, without what floating point adds.
fn percent(share: f64) -> f64 {
    (share * 1e9).round() / 1e7
}

/// A duration as Prometheus reads it, in one unit.
fn short(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    let whole = units.iter().find(|(unit, _)| millis.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) if millis > 0 => format!("{}{name}", millis / unit),
        _ => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Objective)) -> String {
        let mut config = Config::default();
        change(&mut config.objective);
        rules(&config).unwrap()
    }

    #[test]
    fn windows_scale_with_the_period_and_keep_their_names() {
        let file = of(|objective| objective.period = Duration::from_secs(6 * 3600));
        // 5 minutes of 30 days are 2.5 seconds of 6 hours.
        for text in [
            "[2500ms]",
            "[30s]",
            "[6h]",
            "window: 5m}",
            "interval: 1s",
            "Over the last 30s, and the last 2500ms",
            "error budget of 6h allows",
        ] {
            assert!(file.contains(text), "{text}: {file}");
        }
        assert!(!file.contains("[5m]"), "{file}");
    }

    #[test]
    fn the_numbers_are_those_of_the_sla_layer() {
        let sla = palisade::sla::Sla::new(palisade::sla::Objective::success(0.99).unwrap());
        let burn = sla.handle().burn(palisade::time::now());
        let alerts = burn.availability.alerts;
        assert_eq!(alerts.len(), BURNS.len());
        for (theirs, ours) in alerts.iter().zip(&BURNS) {
            let seconds = |name| WINDOWS.iter().find(|(window, _)| *window == name);
            let seconds = |name| seconds(name).unwrap().1 as f64;
            assert_eq!(format!("{:?}", theirs.kind).to_lowercase(), ours.severity);
            assert_eq!(theirs.above, ours.above);
            assert_eq!(
                (theirs.long.window, theirs.short.window),
                (ours.long, ours.short)
            );
            assert_eq!(theirs.long.window_seconds, seconds(ours.long));
            assert_eq!(theirs.short.window_seconds, seconds(ours.short));
        }
    }

    #[test]
    fn latency_is_held_against_an_edge_of_the_histogram() {
        let exact = of(|objective| objective.latency = Duration::from_millis(500));
        assert!(exact.contains(r#"le=~"0\\.5"}"#), "{exact}");
        assert!(!exact.contains("cannot tell"), "{exact}");
        let whole = of(|objective| objective.latency = Duration::from_secs(5));
        assert!(whole.contains(r#"le=~"5(\\.0)?"}"#), "{whole}");
        let between = of(|objective| objective.latency = Duration::from_millis(600));
        assert!(between.contains(r#"le=~"0\\.75"}"#), "{between}");
        assert!(between.contains("held against 0.75 s"), "{between}");
        // Nothing is late that no bucket ends above.
        let longest = of(|objective| objective.latency = Duration::from_secs(3600));
        assert!(!longest.contains("_bucket"), "{longest}");
    }

    #[test]
    fn targets_are_written_without_what_floating_point_adds() {
        let file = of(|objective| objective.success = 0.9995);
        assert!(file.contains("/ (1 - 0.9995)"), "{file}");
        assert!(file.contains("99.95 % of requests succeed"), "{file}");
    }

    #[test]
    fn a_period_too_short_to_be_scraped_is_an_error() {
        let mut config = Config::default();
        config.objective.period = SHORTEST - Duration::from_secs(1);
        let error = rules(&config).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a period of 8639s has windows below a second: 144m is the shortest"
        );
        config.objective.period = SHORTEST;
        assert!(rules(&config).unwrap().contains("[1s]"));
    }

    #[test]
    fn durations_are_whole_numbers_of_their_unit() {
        for (millis, text) in [
            (2500, "2500ms"),
            (30_000, "30s"),
            (5_400_000, "90m"),
            (2_592_000_000, "30d"),
            (0, "0ms"),
        ] {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }
}
