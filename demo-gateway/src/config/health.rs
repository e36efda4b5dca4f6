//! How backends are asked for their health, as it is configured.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use http::uri::PathAndQuery;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Mistake, duration};

/// How backends are asked for their health; how often is `health_interval`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// Where, with `http`: below the URL of the backend.
    pub path: String,
    /// The statuses that are well, with `http`: a number such as 204 or a range such as "200-299".
    pub statuses: Statuses,
    /// Of which service, with `grpc`; empty for the server as a whole.
    pub service: String,
    /// How long an answer may take, and no longer than `health_interval`.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Checks in a row that have to pass before a backend is back.
    pub rise: u32,
    /// Checks in a row that have to fail before a backend is out.
    pub fall: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::default(),
            path: "/health".into(),
            statuses: Statuses(200..=299),
            service: String::new(),
            timeout: Duration::from_secs(5),
            rise: 2,
            fall: 3,
        }
    }
}

/// What a backend is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// `GET` of a path, over HTTP/1.1.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check`, over HTTP/2 without TLS.
    Grpc,
    /// Whether it takes a connection.
    Tcp,
}

/// A status, or all from one to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(pub RangeInclusive<u16>);

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| {
            let number = text.trim().parse::<u16>().ok();
            number.filter(|number| (100..=599).contains(number))
        };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!(
                "`{text}` is neither a status such as 204 nor a range such as \"200-299\""
            )),
        }
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.start() == self.0.end() {
            serializer.serialize_u16(*self.0.start())
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Statuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 204 or a range such as \"200-299\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Statuses, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Statuses, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Statuses, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl HealthCheck {
    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        check(
            self.path.starts_with('/') && self.path.parse::<PathAndQuery>().is_ok(),
            "health_check.path",
            "is no path",
            "for example `/health`",
        );
        check(
            !self.timeout.is_zero(),
            "health_check.timeout",
            "is 0",
            "for example \"5s\"",
        );
        check(self.rise > 0, "health_check.rise", "is 0", "2 is usual");
        check(self.fall > 0, "health_check.fall", "is 0", "3 is usual");
        check(
            self.service.is_empty() || self.kind == CheckKind::Grpc,
            "health_check.service",
            "is only asked for with `kind = \"grpc\"`",
            "",
        );
    }
}
