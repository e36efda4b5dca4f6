//! What a message says.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;

use crate::{
    clock::rfc3339,
    config::NotifyFormat,
    watcher::{Event, State},
};

/// A message, as it is posted.
#[derive(Serialize)]
struct Payload<'a> {
    /// Of this form.
    version: u8,
    /// Which message this is: the same when it is sent again.
    id: &'a str,
    /// Where the gateway is that has sent it.
    gateway: &'a str,
    /// `firing` if any alert does, else `resolved` if any is, else `told`.
    status: &'static str,
    /// The worst of its alerts.
    severity: &'static str,
    /// All of it for people.
    text: String,
    alerts: Vec<Alert<'a>>,
}

#[derive(Serialize)]
struct Alert<'a> {
    /// The same while it fires and when it is over.
    key: String,
    kind: &'static str,
    status: &'static str,
    severity: &'static str,
    subject: &'a str,
    text: &'a str,
    at: String,
}

/// The body of a message about these events, of which there is one at least.
pub(super) fn body(format: NotifyFormat, id: &str, gateway: &str, events: &[Event]) -> Vec<u8> {
    let written = match format {
        NotifyFormat::Slack => {
            #[derive(Serialize)]
            struct Slack {
                text: String,
            }
            let text = text(gateway, events);
            // What Slack would take for its own.
            let text = text.replace('&', "&amp;");
            let text = text.replace('<', "&lt;").replace('>', "&gt;");
            serde_json::to_vec(&Slack { text })
        }
        NotifyFormat::Json => serde_json::to_vec(&payload(id, gateway, events)),
    };
    written.expect("texts and numbers are JSON")
}

fn payload<'a>(id: &'a str, gateway: &'a str, events: &'a [Event]) -> Payload<'a> {
    let any = |state| events.iter().any(|event| event.state == state);
    let status = [State::Firing, State::Resolved]
        .into_iter()
        .find(|it| any(*it));
    let worst = events.iter().map(|event| event.severity).max();
    let alerts = events.iter().map(|event| Alert {
        key: format!("{}/{}", event.kind.name(), event.subject),
        kind: event.kind.name(),
        status: event.state.name(),
        severity: event.severity.name(),
        subject: &event.subject,
        text: &event.text,
        at: rfc3339(event.at),
    });
    Payload {
        version: 1,
        id,
        gateway,
        status: status.unwrap_or(State::Told).name(),
        severity: worst.map_or("info", |severity| severity.name()),
        text: text(gateway, events),
        alerts: alerts.collect(),
    }
}

/// One line for the gateway, and one for each event.
fn text(gateway: &str, events: &[Event]) -> String {
    let mut text = format!("demo-gateway at {gateway}");
    for event in events {
        let word = match event.state {
            State::Firing => "FIRING",
            State::Resolved => "RESOLVED",
            State::Told => "INFO",
        };
        // A `String` takes all that is written into it.
        let _written = write!(text, "\n{word} {}", event.text);
    }
    text
}

/// What the receiver can hold a message against: when it was sent, and a HMAC-SHA-256 of that and the body.
pub(super) fn signature(secret: &str, at: u64, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = mac.expect("a key of any length will do");
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    let mut text = format!("t={at},v1=");
    for byte in mac.finalize().into_bytes() {
        let _written = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};

    use super::*;
    use crate::{changes::Severity, watcher::Kind};

    fn event(state: State, severity: Severity, text: &str) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            kind: Kind::Endpoint,
            state,
            severity,
            subject: "gpu-3".into(),
            text: text.into(),
        }
    }

    fn json_of(events: &[Event]) -> Value {
        let body = body(NotifyFormat::Json, "7", "http://10.0.0.1:8000", events);
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn a_message_has_all_that_is_known_and_a_text_for_people() {
        let events = [
            event(State::Firing, Severity::Bad, "gpu-3 ejected"),
            event(State::Resolved, Severity::Ok, "gpu-3 reinstated"),
        ];
        assert_eq!(
            json_of(&events),
            json!({
                "version": 1,
                "id": "7",
                "gateway": "http://10.0.0.1:8000",
                "status": "firing",
                "severity": "bad",
                "text": "demo-gateway at http://10.0.0.1:8000\nFIRING gpu-3 ejected\nRESOLVED gpu-3 reinstated",
                "alerts": [
                    {
                        "key": "endpoint/gpu-3",
                        "kind": "endpoint",
                        "status": "firing",
                        "severity": "bad",
                        "subject": "gpu-3",
                        "text": "gpu-3 ejected",
                        "at": "1970-01-01T00:00:01.500Z",
                    },
                    {
                        "key": "endpoint/gpu-3",
                        "kind": "endpoint",
                        "status": "resolved",
                        "severity": "ok",
                        "subject": "gpu-3",
                        "text": "gpu-3 reinstated",
                        "at": "1970-01-01T00:00:01.500Z",
                    },
                ],
            })
        );
        assert_eq!(json_of(&events[1..])["status"], "resolved");
        let told = [event(State::Told, Severity::Info, "gpu-4 is new")];
        assert_eq!(json_of(&told)["status"], "told");
    }

    #[test]
    fn slack_gets_nothing_that_it_would_take_for_its_own() {
        let events = [event(State::Firing, Severity::Bad, "<!channel> a & b")];
        let body = body(NotifyFormat::Slack, "7", "http://a", &events);
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            value,
            json!({"text": "demo-gateway at http://a\nFIRING &lt;!channel&gt; a &amp; b"})
        );
    }

    #[test]
    fn a_signature_is_that_of_the_time_and_the_body() {
        // printf '1500.{}' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            signature("0123456789abcdef", 1500, b"{}"),
            "t=1500,v1=48f6f6f322ef6dd0857dbd20dd85046b05bc594039ccb375488f24115b3c28f7"
        );
    }
}
