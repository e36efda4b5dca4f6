//! Where backends are found that nobody has named, as it is configured.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Mistake;

/// Where backends are found that nobody has named: one of `file`, `dns` and `srv`.
///
/// They come to those of `backends` and of `/admin/add-backend`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// A file of them, which is looked at again as soon as it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// `HOST:PORT`: each address of the host, asked for again when its time to live is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// The name of SRV records, which tell ports, priorities and weights as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srv: Option<String>,
}

/// The one source that a [`Discovery`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    File(&'a Path),
    Dns(&'a str, u16),
    Srv(&'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Dns(host, port) => write!(f, "dns:{host}:{port}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

impl Discovery {
    /// `None` where the configuration has mistakes.
    pub(crate) fn source(&self) -> Option<Source<'_>> {
        match (&self.file, &self.dns, &self.srv) {
            (Some(path), None, None) => Some(Source::File(path)),
            (None, Some(dns), None) => {
                let (host, port) = host_and_port(dns)?;
                Some(Source::Dns(host, port))
            }
            (None, None, Some(name)) if is_name(name) => Some(Source::Srv(name)),
            _ => None,
        }
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        let named = [self.file.is_some(), self.dns.is_some(), self.srv.is_some()];
        match named.into_iter().filter(|named| *named).count() {
            1 => {}
            0 => {
                let message = "has none of `file`, `dns` and `srv`";
                let hint = "for example `file = \"backends.toml\"`";
                found.push(Mistake::new("discovery", message, hint));
                return;
            }
            _ => {
                let message = "has more than one of `file`, `dns` and `srv`";
                found.push(Mistake::new("discovery", message, "leave one of them"));
                return;
            }
        }
        if self.source().is_some() {
            return;
        }
        let (path, message, hint) = match self.dns {
            Some(_) => (
                "discovery.dns",
                "is not a host and a port",
                "for example `llm.internal:8000`",
            ),
            None => (
                "discovery.srv",
                "is not a name",
                "for example `_llm._tcp.internal`",
            ),
        };
        found.push(Mistake::new(path, message, hint));
    }
}

/// `file:PATH`, `dns:HOST:PORT` or `srv:NAME`, as on the command line.
impl FromStr for Discovery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut discovery = Self::default();
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => discovery.file = Some(path.into()),
            Some(("dns", host)) => discovery.dns = Some(host.into()),
            Some(("srv", name)) => discovery.srv = Some(name.into()),
            _ => return Err("is none of `file:PATH`, `dns:HOST:PORT` and `srv:NAME`".into()),
        }
        let mut found = Vec::new();
        discovery.check(&mut found);
        match found.pop() {
            None => Ok(discovery),
            Some(Mistake { message, hint, .. }) => Err(format!("{message}: {hint}")),
        }
    }
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    is_name(host).then_some((host, port))
}

/// Whether this can be asked for in DNS.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(fits)
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_from_one_argument() {
        for (text, source) in [
            (
                "file:backends.toml",
                Source::File(Path::new("backends.toml")),
            ),
            ("dns:llm.internal:8000", Source::Dns("llm.internal", 8000)),
            (
                "srv:_llm._tcp.internal.",
                Source::Srv("_llm._tcp.internal."),
            ),
        ] {
            let discovery: Discovery = text.parse().unwrap();
            assert_eq!(discovery.source(), Some(source));
            assert_eq!(discovery.source().unwrap().to_string(), text);
        }
        for (text, says) in [
            ("backends.toml", "file:PATH"),
            ("file:", "file:PATH"),
            ("dns:llm.internal", "llm.internal:8000"),
            ("dns:llm.internal:0", "llm.internal:8000"),
            ("dns:http://llm.internal:80", "llm.internal:8000"),
            ("srv:", "_llm._tcp"),
            ("srv:a..b", "_llm._tcp"),
        ] {
            let error = text.parse::<Discovery>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
