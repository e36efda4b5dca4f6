//! The request log.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;

use super::{Mistake, Secret, duration, secret::HIDDEN};

/// The name of the log in `data_dir`.
const FILE: &str = "requests.db";

/// What a URL of PostgreSQL may say after its `?`. Others are refused: the driver would write them to the log.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// The request log: where every request that asked for a model is written down, and for how long.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// `postgres://[user:password@]host[:port]/database`, `sqlite:PATH`, or `off`; without one, a SQLite file in
    /// `data_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Secret>,
    /// How many rows wait at most to be written. More are not logged, but counted.
    pub queue: usize,
    /// How many rows are written at once.
    pub batch: usize,
    /// How long a row waits for others to be written with.
    #[serde(with = "duration")]
    pub every: Duration,
    /// How long rows are kept; 0 for ever.
    #[serde(with = "duration")]
    pub keep: Duration,
    /// How many rows are kept; 0 for all.
    pub max_rows: u64,
    /// How long a stopping gateway takes for what is not written yet.
    #[serde(with = "duration")]
    pub flush_timeout: Duration,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: None,
            queue: 10_000,
            batch: 500,
            every: Duration::from_millis(100),
            keep: Duration::from_secs(7 * 86_400),
            max_rows: 1_000_000,
            flush_timeout: Duration::from_secs(5),
        }
    }
}

/// Which database, by its URL.
#[derive(Clone)]
pub(crate) enum Place {
    /// Nowhere.
    Off,
    /// In this file.
    File(PathBuf),
    /// In a file that goes when the gateway does.
    Temporary,
    /// In PostgreSQL.
    Postgres(Box<PgConnectOptions>),
}

impl Place {
    /// What a URL means, or what is wrong with it, without its password.
    pub(crate) fn of(url: Option<&Secret>, data_dir: Option<&Path>) -> Result<Self, String> {
        let Some(url) = url.map(Secret::reveal) else {
            let file = data_dir.map(|folder| Self::File(folder.join(FILE)));
            return Ok(file.unwrap_or(Self::Temporary));
        };
        if url == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('?') || path == ":memory:" {
                return Err("does not name a file".into());
            }
            return Ok(Self::File(path.into()));
        }
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or("begins neither with `postgres://` nor with `sqlite:`")?;
        let (_, query) = rest.split_once('?').unwrap_or((rest, ""));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let name = pair.split('=').next().unwrap_or_default();
            if !PARAMETERS.contains(&name) && !name.starts_with("options[") {
                if query.contains('@') {
                    return Err(
                        "has a `?` before its `@`: in a password it is written `%3F`".into(),
                    );
                }
                return Err(format!("has an unknown parameter `{name}`"));
            }
        }
        match url.parse::<PgConnectOptions>() {
            Ok(options) => Ok(Self::Postgres(Box::new(options))),
            Err(sqlx::Error::Configuration(source)) => {
                Err(format!("is no URL of PostgreSQL: {source}"))
            }
            Err(_) => Err("is no URL of PostgreSQL".into()),
        }
    }
}

impl Store {
    /// The same with another database.
    pub fn at(url: impl Into<Secret>) -> Self {
        Self {
            url: Some(url.into()),
            ..Self::default()
        }
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        if let Err(message) = Place::of(self.url.as_ref(), None) {
            let forms = "`postgres://[user:password@]host[:port]/database`, `sqlite:PATH` or `off`";
            found.push(Mistake::new("store.url", message, forms));
        }
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        check(
            (1..=1_000_000).contains(&self.queue),
            "store.queue",
            "is not 1 to 1000000",
            "as many rows as come in the longest time that the database may be away; a row takes 300 bytes",
        );
        check(
            (1..=10_000).contains(&self.batch),
            "store.batch",
            "is not 1 to 10000",
            "500 is usual",
        );
        check(
            !self.every.is_zero() && self.every <= Duration::from_secs(10),
            "store.every",
            "is 0 or longer than 10s",
            "\"100ms\" is usual",
        );
        check(
            self.keep.is_zero() || self.keep >= Duration::from_secs(60),
            "store.keep",
            "is less than a minute",
            "for example \"7d\", or \"0s\" for ever",
        );
        check(
            self.max_rows <= i64::MAX as u64,
            "store.max_rows",
            "is more than a database counts to",
            "0 is for all",
        );
    }

    /// Leaves out what is secret.
    pub(super) fn hide(&mut self) {
        if let Some(url) = &mut self.url {
            *url = without_password(url.reveal()).into();
        }
    }
}

/// A URL without its password.
pub(crate) fn without_password(url: &str) -> String {
    let Ok(place) = Place::of(Some(&url.into()), None) else {
        // Of what is none, nobody knows where the password is.
        return HIDDEN.into();
    };
    let parts = url.split_once("://");
    let (Place::Postgres(_), Some((scheme, rest))) = (place, parts) else {
        return url.into();
    };
    let (server, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server = match server.rsplit_once('@') {
        Some((user, server)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{server}"),
            None => format!("{user}@{server}"),
        },
        None => server.to_owned(),
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        Some(("password", _)) => "password=hidden",
        _ => pair,
    });
    let query: Vec<_> = pairs.collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{server}{mark}{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_still_is_one() {
        for (url, shown) in [
            ("off", "off"),
            ("sqlite:/var/log/a.db", "sqlite:/var/log/a.db"),
            ("postgres://db/llm", "postgres://db/llm"),
            ("postgres://me@db:1/llm", "postgres://me@db:1/llm"),
            (
                "postgresql://me:hun%40ter2@db/llm?sslmode=require",
                "postgresql://me:(hidden)@db/llm?sslmode=require",
            ),
            (
                "postgres://db/llm?password=hunter2&user=me",
                "postgres://db/llm?password=hidden&user=me",
            ),
            ("postgres://db/llm?passwort=hunter2", "(hidden)"),
            ("mysql://me:hunter2@db/llm", "(hidden)"),
            ("hunter2", "(hidden)"),
        ] {
            assert_eq!(without_password(url), shown, "{url}");
            let read = Place::of(Some(&shown.into()), None);
            assert_eq!(read.is_err(), shown == HIDDEN, "{shown}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_the_password() {
        for (text, path, says) in [
            ("url = \"mysql://me:hunter2@db\"", "store.url", "begins"),
            (
                "url = \"postgres://me:hunter2@db:x/a\"",
                "store.url",
                "port",
            ),
            (
                "url = \"postgres://me:hunter2@db/a?sslmode=maybe\"",
                "store.url",
                "maybe",
            ),
            (
                "url = \"postgres://db/a?passwort=hunter2\"",
                "store.url",
                "`passwort`",
            ),
            (
                "url = \"postgres://me:x?hunter2=x@db/a\"",
                "store.url",
                "%3F",
            ),
            ("url = \"sqlite:\"", "store.url", "file"),
            ("url = \"sqlite::memory:\"", "store.url", "file"),
            ("queue = 0", "store.queue", ""),
            ("batch = 10001", "store.batch", ""),
            ("every = \"0s\"", "store.every", ""),
            ("keep = \"59s\"", "store.keep", ""),
            ("keep = \"7 days\"", "store.keep", "duration"),
            ("file = \"x\"", "store.file", "unknown"),
        ] {
            let faults = super::super::parse(&format!("[store]\n{text}\n")).unwrap_err();
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            let told = faults[0].to_string();
            assert_eq!(faults[0].mistake.path, path, "{told}");
            assert!(told.contains(says), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn without_a_url_the_log_is_in_the_folder_or_in_one_that_goes() {
        let place = |url: Option<&str>, folder: Option<&str>| {
            let url = url.map(Secret::from);
            match Place::of(url.as_ref(), folder.map(Path::new)).unwrap() {
                Place::Off => "off".into(),
                Place::File(path) => path.display().to_string(),
                Place::Temporary => "temporary".into(),
                Place::Postgres(_) => "postgres".into(),
            }
        };
        assert_eq!(place(None, None), "temporary");
        assert_eq!(place(None, Some("/data")), "/data/requests.db");
        assert_eq!(place(Some("off"), Some("/data")), "off");
        assert_eq!(place(Some("sqlite://a.db"), Some("/data")), "a.db");
        assert_eq!(place(Some("postgres://db/llm"), Some("/data")), "postgres");
    }
}
