//! What is done about backends that fail or are slow.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderName, header};
use palisade::deadline::TimeoutHeader;
use serde::{Deserialize, Serialize};

use super::{Config, Mistake, duration};

/// How long a request may take.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the request to the end of an answer that is not a stream, all attempts together.
    #[serde(with = "duration")]
    pub request: Duration,
    /// The same for a stream, to its last event.
    #[serde(with = "duration")]
    pub stream: Duration,
    /// From one attempt to the first data of its answer.
    #[serde(with = "duration")]
    pub first_byte: Duration,
    /// From one piece of an answer to the next.
    #[serde(with = "duration")]
    pub idle: Duration,
    /// The header in which callers say how long they wait, in seconds; what is left of it is told to backends.
    pub header: String,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(60),
            stream: Duration::from_secs(600),
            first_byte: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            header: "x-request-timeout".into(),
        }
    }
}

impl Timeouts {
    /// The header as it is read and written. Expects a configuration without mistakes.
    pub(crate) fn told(&self) -> TimeoutHeader {
        let name = HeaderName::try_from(&self.header);
        name.map_or_else(|_| TimeoutHeader::from("x-request-timeout"), Into::into)
    }
}

/// Attempts beyond the first.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, the first included.
    pub attempts: u32,
    /// Attempts beyond the first, in percent of the requests.
    pub budget_percent: u32,
    /// The longest first pause; each further one may be twice as long.
    #[serde(with = "duration")]
    pub min_backoff: Duration,
    /// The longest pause.
    #[serde(with = "duration")]
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget_percent: 20,
            min_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
        }
    }
}

/// A second attempt, at another backend, while the first still runs. Off, as long as neither is set.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// After this long without data.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub after: Option<Duration>,
    /// After as long as this share of the requests take at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<f64>,
    /// For this many percent of the requests at most.
    pub percent: u32,
    /// What becomes of second attempts while an alert of the objective pages.
    pub while_burning: WhileBurning,
}

/// Whether requests are asked twice while the error budget burns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhileBurning {
    /// Only once, until it is over.
    #[default]
    Pause,
    /// As always.
    GoOn,
}

impl Default for Hedge {
    fn default() -> Self {
        Self {
            after: None,
            quantile: None,
            percent: 5,
            while_burning: WhileBurning::default(),
        }
    }
}

/// What a circuit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// Failures in a row.
    #[default]
    Consecutive,
    /// The last calls.
    Count,
    /// The calls of the last while.
    Time,
}

/// When a backend is left alone.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// What is counted.
    pub window: Window,
    /// Failures in a row that open the circuit of a backend, with `window = "consecutive"`.
    pub failures: u32,
    /// The share of failures that opens it, with the other windows.
    pub share: f64,
    /// How many calls the window holds, with `window = "count"`.
    pub calls: u32,
    /// How long the window is, with `window = "time"`.
    #[serde(with = "duration")]
    pub span: Duration,
    /// With fewer calls than this in the window it stays closed.
    pub minimum_calls: u32,
    /// Calls whose first data take longer than this are slow; 0 for none.
    #[serde(with = "duration")]
    pub slow_after: Duration,
    /// The share of slow calls that opens the circuit.
    pub slow_share: f64,
    /// How long it stays open the first time; a probe that fails doubles it.
    #[serde(with = "duration")]
    pub cooldown: Duration,
    /// The longest that it stays open.
    #[serde(with = "duration")]
    pub longest_cooldown: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            window: Window::default(),
            failures: 5,
            share: 0.5,
            calls: 100,
            span: Duration::from_secs(60),
            minimum_calls: 10,
            slow_after: Duration::ZERO,
            slow_share: 0.8,
            cooldown: Duration::from_secs(1),
            longest_cooldown: Duration::from_secs(30),
        }
    }
}

/// What a timeout must not be written over.
const RESERVED: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
];

impl Config {
    /// What is wrong with what is done about failures.
    pub(super) fn check_failing(&self, found: &mut Vec<Mistake>) {
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        let (timeouts, breaker) = (&self.timeouts, &self.circuit_breaker);
        let durations = [
            ("timeouts.request", timeouts.request),
            ("timeouts.stream", timeouts.stream),
            ("timeouts.first_byte", timeouts.first_byte),
            ("timeouts.idle", timeouts.idle),
            ("circuit_breaker.cooldown", breaker.cooldown),
            ("circuit_breaker.span", breaker.span),
            ("hedge.after", self.hedge.after.unwrap_or(Duration::MAX)),
        ];
        for (path, duration) in durations {
            check(!duration.is_zero(), path, "is 0", "for example \"10s\"");
        }
        check(
            timeouts.request <= timeouts.stream,
            "timeouts.stream",
            "is shorter than `timeouts.request`",
            "streams take longer than plain answers",
        );
        let header = HeaderName::try_from(&timeouts.header);
        check(
            header.is_ok_and(|name| !RESERVED.contains(&name)),
            "timeouts.header",
            "is not the name of a header, or of one that means something else",
            "for example `x-request-timeout`",
        );
        check(
            (1..=10).contains(&self.retry.attempts),
            "retry.attempts",
            "is not 1 to 10",
            "3 is usual, 1 never retries",
        );
        check(
            (1..=100).contains(&self.retry.budget_percent),
            "retry.budget_percent",
            "is not 1 to 100",
            "20 keeps an outage from becoming a storm",
        );
        check(
            !self.retry.min_backoff.is_zero() && self.retry.min_backoff <= self.retry.max_backoff,
            "retry.min_backoff",
            "is 0 or longer than `retry.max_backoff`",
            "for example \"25ms\" and \"1s\"",
        );
        check(
            self.hedge.after.is_none() || self.hedge.quantile.is_none(),
            "hedge.quantile",
            "stands beside `hedge.after`",
            "the delay is set or learned",
        );
        let share = |share: f64| share > 0.0 && share < 1.0;
        check(
            self.hedge.quantile.is_none_or(share),
            "hedge.quantile",
            "is not between 0 and 1",
            "0.95 asks again for the slowest twentieth",
        );
        check(
            (1..=20).contains(&self.hedge.percent),
            "hedge.percent",
            "is not 1 to 20",
            "5 is usual",
        );
        check(
            breaker.failures > 0,
            "circuit_breaker.failures",
            "0 would never close the circuit",
            "at least 1",
        );
        for (path, count) in [
            ("circuit_breaker.calls", breaker.calls),
            ("circuit_breaker.minimum_calls", breaker.minimum_calls),
        ] {
            check(
                (1..=1_000_000).contains(&count),
                path,
                "is not 1 to 1000000",
                "100 calls, and 10 of them at least, are usual",
            );
        }
        for (path, at) in [
            ("circuit_breaker.share", breaker.share),
            ("circuit_breaker.slow_share", breaker.slow_share),
        ] {
            check(
                at > 0.0 && at <= 1.0,
                path,
                "is not above 0 and up to 1",
                "0.5 is half",
            );
        }
        check(
            breaker.slow_after.is_zero() || breaker.window != Window::Consecutive,
            "circuit_breaker.slow_after",
            "needs a window in which slow calls have a share",
            "`window = \"count\"` or `\"time\"`",
        );
        check(
            breaker.cooldown <= breaker.longest_cooldown,
            "circuit_breaker.longest_cooldown",
            "is shorter than `circuit_breaker.cooldown`",
            "",
        );
        check_fallbacks(&self.fallbacks, found);
    }
}

/// More than anybody waits for, one after the other.
const MOST_FALLBACKS: usize = 8;

fn check_fallbacks(fallbacks: &BTreeMap<String, Vec<String>>, found: &mut Vec<Mistake>) {
    for (model, instead) in fallbacks {
        let path = format!("fallbacks.{model}");
        if instead.is_empty() || instead.len() > MOST_FALLBACKS {
            let message = format!("names {} models", instead.len());
            let hint = format!("1 to {MOST_FALLBACKS}, the first of them first");
            found.push(Mistake::new(&path, message, hint));
        }
        for (at, other) in instead.iter().enumerate() {
            let path = format!("{path}[{at}]");
            if other.is_empty() {
                found.push(Mistake::new(path, "is empty", ""));
            } else if other == model || instead[..at].contains(other) {
                let message = format!("`{other}` has been asked by then");
                found.push(Mistake::new(path, message, ""));
            }
        }
    }
}
