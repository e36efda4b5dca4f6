//! How a line looks.

use std::{borrow::Cow, fmt::Write, net::IpAddr, time::Duration};

use palisade::{classify::Verdict, trace::TraceId};
use serde::Serialize;
use serde_json::Value;

use crate::{
    clock::rfc3339,
    config::Format,
    record::{Part, Record},
    telemetry::spans::short,
};

/// What callers send may be megabytes; a line is to be read.
const LONGEST: usize = 1024;

/// What is told of a request, in this order. What is not known is not told.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    time: String,
    id: &'a str,
    peer: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Cow<'a, str>>,
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    stream: bool,
    #[serde(skip_serializing_if = "is_false")]
    batch: bool,
    status: u16,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// Whether it is told however few are.
pub(super) fn is_failure(record: &Record) -> bool {
    let status = record.status;
    record.verdict != Verdict::Success || status.is_client_error() || status.is_server_error()
}

impl<'a> Line<'a> {
    pub(super) fn new(record: &'a Record, trace: Option<TraceId>) -> Self {
        let usage = record.usage;
        Self {
            time: rfc3339(record.received),
            id: record.id.to_str().unwrap_or("-"),
            peer: record.peer.ip(),
            caller: record.caller.as_deref().map(|caller| caller.shown()),
            method: short(record.method.as_str()),
            path: cut(record.path()),
            operation: record.operation.map(|operation| operation.name()),
            model: record.model.as_deref().map(short),
            stream: record.stream,
            batch: record.part == Part::Batch,
            status: record.status.as_u16(),
            verdict: record.verdict.name(),
            reason: record.reason,
            rule: record.rule.as_deref(),
            why: record.why.as_deref(),
            backend: record.backend.as_deref(),
            // Those of a batch are those of its parts.
            attempts: (record.part != Part::Batch).then_some(record.attempts),
            ms: millis(record.took),
            first_token_ms: record.first_token.map(millis),
            prompt_tokens: usage.map(|usage| usage.prompt),
            completion_tokens: usage.map(|usage| usage.completion),
            trace_id: trace.map(|trace| trace.to_string()),
        }
    }

    /// With the end of the line, and no other in it.
    pub(super) fn print(&self, format: Format) -> Vec<u8> {
        let mut line = match format {
            Format::Json => serde_json::to_vec(self).unwrap_or_default(),
            Format::Text | Format::Off => self.text().into_bytes(),
        };
        line.push(b'\n');
        line
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(256);
        let fields = serde_json::to_value(self).unwrap_or_default();
        let known = fields.as_object();
        for (name, value) in NAMES
            .iter()
            .filter_map(|name| Some((name, known?.get(*name)?)))
        {
            let blank = if text.is_empty() { "" } else { " " };
            let _infallible = match value {
                Value::String(value) if is_plain(value) => write!(text, "{blank}{name}={value}"),
                value => write!(text, "{blank}{name}={value}"),
            };
        }
        text
    }
}

/// The fields of a line as a text, in their order.
const NAMES: [&str; 22] = [
    "time",
    "id",
    "peer",
    "caller",
    "method",
    "path",
    "operation",
    "model",
    "stream",
    "batch",
    "status",
    "verdict",
    "reason",
    "rule",
    "why",
    "backend",
    "attempts",
    "ms",
    "first_token_ms",
    "prompt_tokens",
    "completion_tokens",
    "trace_id",
];

/// Whether a value needs no quotes; with them it is written as in JSON.
fn is_plain(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    !value.is_empty() && value.bytes().all(plain)
}

fn is_false(value: &bool) -> bool {
    !value
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

/// In milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn line() -> Line<'static> {
        Line {
            time: rfc3339(SystemTime::UNIX_EPOCH),
            id: "17",
            peer: [127, 0, 0, 1].into(),
            caller: Some("user:a\"b".into()),
            method: "POST",
            path: "/generate",
            operation: Some("chat"),
            model: Some("gpt\n{\"status\":200}"),
            stream: true,
            batch: true,
            status: 429,
            verdict: "refused",
            reason: Some("rate_limited"),
            rule: Some("per_user"),
            why: Some("too many\u{1b}[2J requests"),
            backend: Some("a"),
            attempts: Some(2),
            ms: 1.5,
            first_token_ms: Some(0.5),
            prompt_tokens: Some(3),
            completion_tokens: Some(5),
            trace_id: Some("4bf9".into()),
        }
    }

    #[test]
    fn nobody_can_write_a_line_of_their_own() {
        for format in [Format::Json, Format::Text] {
            let line = String::from_utf8(line().print(format)).unwrap();
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        }
        let json: Value = serde_json::from_slice(&line().print(Format::Json)).unwrap();
        assert_eq!(json["model"], "gpt\n{\"status\":200}");
        assert_eq!(json["status"], 429);
    }

    #[test]
    fn a_text_has_every_field_in_order() {
        let text = line().text();
        let mut rest = &*text;
        for name in NAMES {
            let at = rest.find(&format!("{name}="));
            let at = at.unwrap_or_else(|| panic!("{name} is not where it should be: {text}"));
            rest = &rest[at + name.len()..];
        }
        let fields = serde_json::to_value(line()).unwrap();
        assert_eq!(fields.as_object().unwrap().len(), NAMES.len());
        assert!(
            text.starts_with("time=1970-01-01T00:00:00.000Z id=17 peer=127.0.0.1"),
            "{text}"
        );
        assert!(text.contains(r#"caller="user:a\"b" method=POST"#), "{text}");
        assert!(
            text.contains("why=\"too many\\u001b[2J requests\""),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let line = Line {
            caller: None,
            operation: None,
            model: None,
            stream: false,
            batch: false,
            reason: None,
            rule: None,
            why: None,
            backend: None,
            first_token_ms: None,
            prompt_tokens: None,
            completion_tokens: None,
            trace_id: None,
            ..line()
        };
        let text = "time=1970-01-01T00:00:00.000Z id=17 peer=127.0.0.1 method=POST path=/generate status=429 verdict=refused attempts=2 ms=1.5";
        assert_eq!(line.text(), text);
    }
}
