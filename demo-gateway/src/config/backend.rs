//! Where requests go, as it is configured.

use std::fmt;

use http::Uri;
use serde::{Deserialize, Serialize};

use super::Mistake;

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The name in answers and metrics; `host:port` of the URL when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `http://host[:port][/path]`.
    pub url: String,
    /// Its share relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// The most requests that it gets at once.
    #[serde(default = "hundred")]
    pub max_connections: usize,
    /// Where it is; without one it is near to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Backends of a higher number get requests only when too few of the lower ones are well.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The environment variable that holds the key to send to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
}

fn one() -> f64 {
    1.0
}

fn hundred() -> usize {
    100
}

fn is_zero(priority: &u32) -> bool {
    *priority == 0
}

/// The highest number for a priority: more would be a mistake, and costs in each choice.
pub(crate) const LEAST_PRIORITY: u32 = 100;

impl Backend {
    /// At this URL, with the defaults for the rest.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            id: None,
            url: url.into(),
            weight: one(),
            max_connections: hundred(),
            zone: None,
            priority: 0,
            api_key_env: None,
        }
    }

    /// The name in answers and metrics.
    pub fn name(&self) -> &str {
        let of_url = || {
            let host = authority(self.url.split_once("://")?.1);
            // What is wrong is told by name, and a password must not be.
            Some(host.rsplit_once('@').map_or(host, |(_, host)| host))
        };
        self.id.as_deref().or_else(of_url).unwrap_or_default()
    }

    /// What is wrong with it.
    pub fn check(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if let Err(message) = base_url(&self.url) {
            mistakes.push(Mistake::new("url", message, "write `http://host:port`"));
        }
        if !is_label(self.name()) {
            let message = "must be 1 to 64 letters, digits or `-._:[]`";
            mistakes.push(Mistake::new("id", message, "for example `gpu-1`"));
        }
        if !(self.weight > 0.0 && self.weight <= 1000.0) {
            let message = format!("{} is not above 0 and up to 1000", self.weight);
            mistakes.push(Mistake::new("weight", message, "1 is the usual share"));
        }
        if self.max_connections == 0 {
            let message = "0 would keep all requests away";
            mistakes.push(Mistake::new("max_connections", message, "at least 1"));
        }
        if self.zone.as_deref().is_some_and(|zone| !is_label(zone)) {
            let message = "must be 1 to 64 letters, digits or `-._:[]`";
            mistakes.push(Mistake::new("zone", message, "for example `eu-1a`"));
        }
        if self.priority > LEAST_PRIORITY {
            let message = format!("{} is not 0 to {LEAST_PRIORITY}", self.priority);
            mistakes.push(Mistake::new("priority", message, "0 comes first"));
        }
        mistakes
    }
}

/// `[ID=]URL[,weight=W][,max_connections=N][,zone=Z][,priority=N]`, as on the command line.
impl std::str::FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (id, url) = match first.split_once('=') {
            Some((id, url)) if !id.contains("://") => (Some(id.to_owned()), url),
            _ => (None, first),
        };
        let mut backend = Self {
            id,
            ..Self::new(url)
        };
        for part in parts {
            let number = |error: &dyn fmt::Display| format!("`{part}`: {error}");
            match part.split_once('=') {
                Some(("weight", value)) => {
                    backend.weight = value.parse().map_err(|error| number(&error))?;
                }
                Some(("max_connections", value)) => {
                    backend.max_connections = value.parse().map_err(|error| number(&error))?;
                }
                Some(("zone", value)) => backend.zone = Some(value.into()),
                Some(("priority", value)) => {
                    backend.priority = value.parse().map_err(|error| number(&error))?;
                }
                _ => {
                    return Err(format!(
                        "`{part}` is none of `weight=W`, `max_connections=N`, `zone=Z` and `priority=N`"
                    ));
                }
            }
        }
        match backend.check().first() {
            None => Ok(backend),
            Some(mistake) => Err(format!("{}: {}", mistake.path, mistake.message)),
        }
    }
}

/// A URL that requests can be sent below.
pub(crate) fn base_url(url: &str) -> Result<Uri, String> {
    // First, as what else is wrong is told with the URL.
    if authority(url.split_once("://").map_or(url, |(_, rest)| rest)).contains('@') {
        return Err("credentials do not belong into a URL".into());
    }
    let uri: Uri = url.parse().map_err(|error| format!("`{url}`: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("`{url}` does not begin with `http://`"));
    }
    if uri.query().is_some() {
        return Err(format!("`{url}` has a query"));
    }
    match uri.authority() {
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(format!("`{url}` has no host")),
    }
}

/// Up to the path or what may come instead.
fn authority(after_scheme: &str) -> &str {
    after_scheme
        .split(['/', '?', '#'])
        .next()
        .unwrap_or_default()
}

/// Whether a name can stand in paths, headers and metrics as it is.
pub(crate) fn is_label(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_refused_and_not_told() {
        for url in [
            "http://me:hunter2@host",
            "https://me:hunter2@host:1/path",
            "http://me:hunter2@host?query",
            "http://me:hunter2@host with spaces",
            "me:hunter2@host",
        ] {
            let backend = Backend::new(url);
            let mistakes = backend.check();
            assert!(mistakes[0].message.contains("credentials"), "{mistakes:?}");
            assert!(!format!("{mistakes:?}").contains("hunter2"), "{mistakes:?}");
            assert!(!backend.name().contains("hunter2"));
        }
        let backend = Backend::new("http://host:8000/a@b");
        assert_eq!((backend.check(), backend.name()), (vec![], "host:8000"));
    }
}
