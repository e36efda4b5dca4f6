//! The messages of the feed, as `FEED.md` describes them.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::history::Columns;
use crate::{
    changes::{Change, Severity},
    clock::unix_ms,
    config::Unit,
    record::Record,
    verdict::{self, Verdict},
};

/// The longest sentence, in characters.
const SENTENCE: usize = 160;

/// A number with so many digits after the point as somebody reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Num(f64);

impl Num {
    pub(super) fn new(number: f64, digits: i32) -> Self {
        let scale = 10_f64.powi(digits);
        Self((number * scale).round() / scale)
    }

    pub(super) fn whole(number: f64) -> Self {
        Self::new(number, 0)
    }

    pub(super) fn get(self) -> f64 {
        self.0
    }

    fn is_one(&self) -> bool {
        self.0 == 1.0
    }
}

impl Serialize for Num {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // `1` instead of `1.0`; what is no number is unknown.
        let whole = self.0 as i64;
        if whole as f64 == self.0 {
            serializer.serialize_i64(whole)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Snapshot<'a> {
    pub(super) gateway: About,
    pub(super) endpoints: &'a [Fixed],
    pub(super) objectives: &'a [Objective],
    pub(super) alerts: &'a [Alert],
    pub(super) history: Columns,
    pub(super) requests: Vec<Request<'a>>,
    pub(super) events: Vec<Event<'a>>,
    pub(super) tick: Tick<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) started_ms: u64,
    pub(super) strategies: &'static [&'static str],
    /// How many rules limit callers.
    pub(super) rules: usize,
}

/// What of an endpoint does not move.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fixed {
    pub(super) id: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_in_flight: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Objective {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) text: String,
    pub(super) period_s: Num,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_ms: Option<Num>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Alert {
    pub(super) kind: palisade::sla::AlertKind,
    pub(super) above: Num,
    pub(super) long_s: Num,
    pub(super) short_s: Num,
}

#[derive(Debug, Serialize)]
pub(super) struct Tick<'a> {
    pub(super) seq: u64,
    /// The second of the plots that it is.
    pub(super) at: u64,
    pub(super) at_ms: u64,
    pub(super) verdict: Told<'a>,
    pub(super) rate: Rate,
    pub(super) latency_ms: Latency,
    pub(super) first_token_ms: FirstToken,
    pub(super) gateway: Own,
    pub(super) strategy: &'static str,
    pub(super) endpoints: &'a [Moving],
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) endpoints_more: usize,
    pub(super) limits: &'a [Limit],
    pub(super) slo: &'a [Slo],
    pub(super) requests: Vec<Request<'a>>,
    pub(super) requests_skipped: u64,
    pub(super) total_requests: u64,
    pub(super) events: Vec<Event<'a>>,
}

/// How it is as a whole, without what the rest of the tick says.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Told<'a> {
    state: verdict::State,
    since_ms: u64,
    text: &'a str,
}

impl<'a> From<&'a Verdict> for Told<'a> {
    fn from(verdict: &'a Verdict) -> Self {
        Self {
            state: verdict.state,
            since_ms: unix_ms(verdict.since),
            text: &verdict.text,
        }
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Rate {
    pub(super) requests: Num,
    pub(super) rejected: Num,
    pub(super) failed: Num,
    pub(super) tokens_out: Num,
    pub(super) tokens_in: Num,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p95: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99: Option<Num>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct FirstToken {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p95: Option<Num>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Overhead {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99: Option<Num>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Own {
    pub(super) in_flight: u64,
    pub(super) queued: usize,
    pub(super) overhead_us: Overhead,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attempts_per_request: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retries_left: Option<u32>,
    /// Rows of the request log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log_dropped: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Moving {
    pub(super) id: Arc<str>,
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) breaker: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) forced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry_in_ms: Option<u64>,
    pub(super) in_flight: u32,
    pub(super) share: Num,
    pub(super) rps: Num,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_ms: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p95_ms: Option<Num>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_ratio: Option<Num>,
    #[serde(skip_serializing_if = "Num::is_one")]
    pub(super) weight: Num,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Limit {
    pub(super) rule: Arc<str>,
    pub(super) key: String,
    pub(super) used: Num,
    pub(super) limit: Num,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<Unit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window_ms: Option<u64>,
    pub(super) rejected: Num,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Slo {
    pub(super) id: &'static str,
    pub(super) budget_left: Num,
    pub(super) burn: [[Num; 2]; 4],
    pub(super) firing: [bool; 4],
}

/// A request that has ended.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    id: &'a str,
    at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    verdict: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<Num>,
    total_ms: Num,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u64>,
}

/// Characters of a name that somebody else has chosen.
const NAME: usize = 40;

impl<'a> Request<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        use palisade::classify::Verdict as Judged;

        let ms = |time: std::time::Duration| Num::new(time.as_secs_f64() * 1e3, 1);
        let ended = record.received + record.took;
        let caller = record.caller.as_ref().map(|caller| caller.shown());
        Self {
            id: shortened(record.id.to_str().unwrap_or_default(), NAME),
            at_ms: unix_ms(ended),
            caller: caller.map(|caller| match shortened(&caller, NAME) {
                whole if whole.len() == caller.len() => caller,
                part => format!("{part}…").into(),
            }),
            model: record.model.as_ref().map(|model| shortened(model, NAME)),
            verdict: match record.verdict {
                Judged::Success => "success",
                Judged::Refused(_) => "rejected",
                Judged::Overload { .. } => "overload",
                Judged::CallerFault => "caller_fault",
                Judged::Canceled => "canceled",
                _ => "failure",
            },
            status: record.status.as_u16(),
            reason: record.reason,
            why: record.why.as_ref().map(|why| sentence(why)),
            endpoint: record.backend.as_deref(),
            attempts: record.attempts,
            first_token_ms: record.first_token.map(ms),
            total_ms: ms(record.took),
            tokens: record
                .usage
                .map(|usage| usage.prompt.saturating_add(usage.completion)),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    at_ms: u64,
    severity: Severity,
    subject: &'a str,
    text: &'a str,
}

impl<'a> From<&'a Arc<Change>> for Event<'a> {
    fn from(change: &'a Arc<Change>) -> Self {
        Self {
            at_ms: unix_ms(change.at),
            severity: change.severity,
            subject: &change.subject,
            text: sentence(&change.text),
        }
    }
}

/// As much of it as a row shows.
pub(super) fn sentence(text: &str) -> &str {
    shortened(text, SENTENCE)
}

fn shortened(text: &str, most: usize) -> &str {
    match text.char_indices().nth(most) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}
