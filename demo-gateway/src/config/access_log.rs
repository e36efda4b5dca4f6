//! One line for each request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Mistake;

/// One line for each request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// How a line looks.
    pub format: Format,
    /// Where lines go: `stderr`, `stdout`, or the path of a file, to which they are added.
    pub target: String,
    /// The share of requests that are told; those that were no success always are.
    pub sample: f64,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: Format::default(),
            target: "stderr".into(),
            sample: 1.0,
        }
    }
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// There are none.
    #[default]
    Off,
    /// An object of JSON.
    Json,
    /// `name=value` with blanks between.
    Text,
}

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Stderr,
    Stdout,
    File(PathBuf),
}

impl AccessLog {
    pub(crate) fn target(&self) -> Target {
        match &*self.target {
            "stderr" => Target::Stderr,
            "stdout" => Target::Stdout,
            path => Target::File(path.into()),
        }
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        if self.target.is_empty() || self.target.ends_with('/') {
            let hint = "`stderr`, `stdout`, or for example `/var/log/gateway/access.log`";
            found.push(Mistake::new("access_log.target", "names no file", hint));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            let hint = "0.1 tells of one success in ten, and of all that were none";
            found.push(Mistake::new("access_log.sample", "is not a share", hint));
        }
    }
}
