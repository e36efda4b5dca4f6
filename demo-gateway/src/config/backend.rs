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

impl Backend {
    /// At this URL, with the defaults for the rest.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            id: None,
            url: url.into(),
            weight: one(),
            max_connections: hundred(),
            api_key_env: None,
        }
    }

    /// The name in answers and metrics.
    pub fn name(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = rest.split('/').next().unwrap_or_default();
        self.id.as_deref().unwrap_or(host)
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
        mistakes
    }
}

/// `[ID=]URL[,weight=W][,max_connections=N]`, as on the command line.
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
                _ => {
                    return Err(format!(
                        "`{part}` is neither `weight=W` nor `max_connections=N`"
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
    let uri: Uri = url.parse().map_err(|error| format!("`{url}`: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("`{url}` does not begin with `http://`"));
    }
    if uri.query().is_some() {
        return Err(format!("`{url}` has a query"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("credentials do not belong into a URL".into())
        }
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(format!("`{url}` has no host")),
    }
}

/// Whether a name can stand in paths, headers and metrics as it is.
pub(super) fn is_label(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}
