//! Where spans go.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Mistake, Secret};

/// What says how a message is to be read, which is no matter of taste.
const OURS: [&str; 6] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

/// Spans of requests and attempts, for a collector of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// The collector, as `http://HOST:PORT` or, unless it speaks gRPC, `https://HOST`; without one nothing is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The share of traces that are kept, of those that begin here; others are kept if the caller keeps them.
    pub sample: f64,
    /// The name of the gateway in its spans.
    pub service_name: String,
    /// Headers that a collector wants to see, such as a key; never shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            otlp: None,
            protocol: Protocol::default(),
            sample: 1.0,
            service_name: "demo-gateway".into(),
            headers: BTreeMap::new(),
        }
    }
}

/// How spans are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// As protobuf over HTTP, to `/v1/traces` below the address: usually port 4318.
    #[default]
    Http,
    /// Over gRPC: usually port 4317.
    Grpc,
}

impl Trace {
    /// Takes what is not set from OpenTelemetry's environment variables: the endpoint, its protocol, headers, the name and
    /// the share.
    #[must_use]
    pub fn or_environment(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let is_disabled = variable("OTEL_SDK_DISABLED");
        if is_disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            self.otlp = None;
            return self;
        }
        let default = Self::default();
        if self.otlp.is_none() {
            let whole = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
            // That one is taken as it is, path and all.
            let whole = whole.map(|url| url.trim_end_matches("/v1/traces").to_owned());
            self.otlp = whole.or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
            let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
                .or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
            if self.protocol == default.protocol && protocol.as_deref() == Some("grpc") {
                self.protocol = Protocol::Grpc;
            }
        }
        let headers = variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS"));
        for (name, value) in headers.iter().flat_map(|text| read_headers(text)) {
            self.headers.entry(name).or_insert(value);
        }
        if self.service_name == default.service_name {
            self.service_name = variable("OTEL_SERVICE_NAME").unwrap_or(default.service_name);
        }
        let share = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|share| share.parse().ok());
        if self.sample == default.sample {
            self.sample = match variable("OTEL_TRACES_SAMPLER").as_deref() {
                Some("traceidratio" | "parentbased_traceidratio") => {
                    share.unwrap_or(default.sample)
                }
                Some("always_off" | "parentbased_always_off") => 0.0,
                _ => default.sample,
            };
        }
        self
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        let url = self.otlp.as_deref().unwrap_or_default();
        let is_tls = url
            .parse::<Uri>()
            .is_ok_and(|url| url.scheme_str() == Some("https"));
        check(
            !(is_tls && self.protocol == Protocol::Grpc),
            "trace.otlp",
            "is gRPC over TLS, which the gateway does not speak to a collector",
            "`protocol = \"http\"`, usually at another port: 4318 instead of 4317",
        );
        check(
            self.otlp.as_deref().is_none_or(is_collector),
            "trace.otlp",
            "is not the address of a collector",
            "for example `http://127.0.0.1:4318`, or `https://otlp.example.com`",
        );
        // The message does not show them.
        check(
            self.to_headers().is_some(),
            "trace.headers",
            "has a name or a value that is none of a header, or one that says how a message is to be read",
            "for example `headers = { x-api-key = \"...\" }`; `OTEL_EXPORTER_OTLP_HEADERS` is `name=value`, with commas between and values percent-encoded",
        );
        check(
            (0.0..=1.0).contains(&self.sample),
            "trace.sample",
            "is not a share",
            "0.1 keeps one trace in ten",
        );
        check(
            !self.service_name.is_empty() && self.service_name.len() <= 255,
            "trace.service_name",
            "must be 1 to 255 bytes",
            "for example `demo-gateway`",
        );
    }
}

impl Trace {
    /// Headers that go with spans; `None` if one of them is none.
    pub(crate) fn to_headers(&self) -> Option<HeaderMap> {
        let all = self.headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().ok()?;
            let mut value = HeaderValue::from_str(value.reveal()).ok()?;
            value.set_sensitive(true);
            (!OURS.contains(&name.as_str())).then_some((name, value))
        });
        all.collect()
    }

    /// Leaves nothing of what nobody should see.
    pub(super) fn hide(&mut self) {
        self.headers.values_mut().for_each(Secret::hide);
    }
}

/// Headers as OpenTelemetry writes them. What is none has no name, so that it is told with all that is wrong.
fn read_headers(text: &str) -> Vec<(String, Secret)> {
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    let headers = items.map(|item| {
        let (name, value) = item.split_once('=').unwrap_or_default();
        match percent_decode_str(value.trim()).decode_utf8() {
            Ok(value) => (name.trim().to_ascii_lowercase(), Secret::from(&*value)),
            Err(_) => (String::new(), Secret::from("")),
        }
    });
    headers.collect()
}

fn is_collector(url: &str) -> bool {
    let url = url.parse::<Uri>();
    url.is_ok_and(|url| {
        let host = url.authority().map(http::uri::Authority::as_str);
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        is_http && url.query().is_none() && host.is_some_and(|host| !host.contains('@'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(trace: &Trace) -> Vec<String> {
        let mut found = Vec::new();
        trace.check(&mut found);
        found.into_iter().map(|mistake| mistake.path).collect()
    }

    #[test]
    fn only_what_can_be_sent_to_is_a_collector() {
        let at = |otlp: &str| Trace {
            otlp: Some(otlp.into()),
            ..Trace::default()
        };
        for fine in [
            "http://127.0.0.1:4318",
            "http://collector/otel/",
            "http://[::1]:1",
            "https://otlp.example.com/otel",
        ] {
            assert!(check(&at(fine)).is_empty(), "{fine}");
        }
        for wrong in [
            "",
            "127.0.0.1:4318",
            "ftp://a",
            "http://u:p@a",
            "http://a?b=c",
            "http://",
        ] {
            assert_eq!(check(&at(wrong)), ["trace.otlp"], "{wrong}");
        }
        let wrong = Trace {
            sample: 1.5,
            service_name: String::new(),
            ..Trace::default()
        };
        assert_eq!(check(&wrong), ["trace.sample", "trace.service_name"]);
        assert_eq!(
            check(&Trace {
                sample: f64::NAN,
                ..Trace::default()
            }),
            ["trace.sample"]
        );
    }

    #[test]
    fn the_environment_says_what_the_file_does_not() {
        let said = |trace: Trace, variables: &[(&str, &str)]| {
            trace.or_environment(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(said(Trace::default(), &[]), Trace::default());
        let all = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let read = said(Trace::default(), &all);
        let expected = Trace {
            otlp: Some("http://a:1".into()),
            protocol: Protocol::Grpc,
            sample: 0.25,
            service_name: "shop".into(),
            headers: BTreeMap::new(),
        };
        assert_eq!(read, expected);
        let own = Trace {
            otlp: Some("http://b:2".into()),
            sample: 0.5,
            service_name: "own".into(),
            ..Trace::default()
        };
        assert_eq!(said(own.clone(), &all), own);
        for (sampler, share) in [
            ("always_on", 1.0),
            ("always_off", 0.0),
            ("parentbased_always_off", 0.0),
            ("traceidratio", 0.25),
        ] {
            let variables = [
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ];
            let read = said(Trace::default(), &variables);
            assert_eq!(read.sample, share, "{sampler}");
        }
        let whole = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:3/v1/traces")];
        assert_eq!(
            said(Trace::default(), &whole).otlp.as_deref(),
            Some("http://c:3")
        );
        assert_eq!(said(own, &[("OTEL_SDK_DISABLED", "True")]).otlp, None);
    }

    #[test]
    fn grpc_over_tls_is_a_mistake_that_says_so() {
        for url in ["https://otlp.example.com", "HTTPS://otlp.example.com"] {
            let trace = Trace {
                otlp: Some(url.into()),
                protocol: Protocol::Grpc,
                ..Trace::default()
            };
            let mut found = Vec::new();
            trace.check(&mut found);
            let told = found.iter().map(ToString::to_string).collect::<String>();
            assert!(found.len() == 1 && told.contains("gRPC over TLS"), "{told}");
        }
    }

    #[test]
    fn headers_come_from_the_file_and_from_the_environment_and_are_never_shown() {
        let said = |name: &'static str, value: &'static str| {
            let mut trace = Trace::default();
            trace.headers.insert("x-team".into(), "own".into());
            trace.or_environment(|asked| (asked == name).then(|| value.to_owned()))
        };
        let read = said(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Authorization=Bearer%20hunter2 , x-team=theirs,,x-empty=",
        );
        let headers = read.to_headers().unwrap();
        assert_eq!(headers["authorization"], "Bearer hunter2");
        assert_eq!(headers["x-team"], "own");
        assert_eq!(headers["x-empty"], "");
        assert_eq!(check(&read), [""; 0]);
        assert!(!format!("{read:?}{headers:?}").contains("hunter2"));
        let of_traces = said("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b");
        assert_eq!(of_traces.to_headers().unwrap()["a"], "b");
        for wrong in [
            "hunter2",
            "a=b,hunter2",
            "two words=x",
            "a=%ff",
            "a=line%0abreak",
            "content-type=text/plain",
            "=x",
        ] {
            let read = said("OTEL_EXPORTER_OTLP_HEADERS", wrong);
            let mut found = Vec::new();
            read.check(&mut found);
            assert_eq!(found.len(), 1, "{wrong}");
            assert_eq!(found[0].path, "trace.headers");
            assert!(!format!("{found:?}").contains("hunter2"));
        }
    }
}
