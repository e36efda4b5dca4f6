//! Who is told when something breaks, without Prometheus.

use std::time::Duration;

use http::Uri;
use palisade::balance::{Client, InvalidUrl};
use serde::{Deserialize, Serialize};

use super::{Mistake, Secret, duration};

/// A webhook that is told when something breaks, and when it is right again.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notify {
    /// Where messages are posted to: `http://` or `https://`. Who knows it may post there, so it is never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Secret>,
    /// How they are written.
    pub format: NotifyFormat,
    /// What is told from on: an alert that was told is also told to be over.
    pub min_severity: MinSeverity,
    /// What is told of; all of it by default.
    pub kinds: Vec<NotifyKind>,
    /// What messages are signed with, so that the receiver knows who has sent them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// For how long messages are collected, to go out as one.
    #[serde(with = "duration")]
    pub group: Duration,
    /// How long the receiver may take for its answer.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How often a message is sent at most until it is taken.
    pub attempts: u32,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            webhook: None,
            format: NotifyFormat::default(),
            min_severity: MinSeverity::default(),
            kinds: NotifyKind::ALL.to_vec(),
            secret: None,
            group: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            attempts: 6,
        }
    }
}

/// How messages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotifyFormat {
    /// All that is known, with `text` for people.
    #[default]
    Json,
    /// `text` alone, as the incoming webhooks of Slack and Mattermost take it.
    Slack,
}

/// How much something has to matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MinSeverity {
    /// All that changes.
    Info,
    /// What is wrong and nobody has to be woken for.
    #[default]
    Warn,
    /// What is broken.
    Bad,
}

/// What messages are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotifyKind {
    /// Whether requests have anywhere to go.
    Service,
    /// How fast error budgets are spent.
    Burn,
    /// How backends do.
    Endpoint,
    /// Which rules refuse requests.
    Limit,
    /// Whether the store of the limits answers, and the request log is written.
    Store,
}

impl NotifyKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Service,
        Self::Burn,
        Self::Endpoint,
        Self::Limit,
        Self::Store,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Burn => "burn",
            Self::Endpoint => "endpoint",
            Self::Limit => "limit",
            Self::Store => "store",
        }
    }
}

impl Notify {
    /// Tells this webhook, with the defaults for the rest.
    pub fn new(webhook: impl Into<Secret>) -> Self {
        Self {
            webhook: Some(webhook.into()),
            ..Self::default()
        }
    }

    /// Where to connect to, and what to ask there.
    pub(crate) fn target<B>(&self) -> Option<Result<(Client<B>, Uri), InvalidUrl>> {
        let url = self.webhook.as_ref()?.reveal();
        Some(split(url))
    }

    pub(super) fn check(&self, found: &mut Vec<Mistake>) {
        let mut check = |fine: bool, path: &str, message: &str, hint: &str| {
            if !fine {
                found.push(Mistake::new(path, message, hint));
            }
        };
        // The message does not show the URL.
        let webhook = self.target::<http_body_util::Empty<bytes::Bytes>>();
        check(
            matches!(webhook, Some(Ok(_))),
            "notify.webhook",
            "is not a URL that messages can be posted to",
            "for example `https://hooks.example.com/services/T0/B0`",
        );
        check(
            !self.kinds.is_empty(),
            "notify.kinds",
            "is empty, so nothing would be told",
            "leave it out for all of them",
        );
        check(
            self.secret
                .as_ref()
                .is_none_or(|it| it.reveal().len() >= 16),
            "notify.secret",
            "is shorter than 16 bytes",
            "for example the output of `openssl rand -hex 32`",
        );
        check(
            self.group <= Duration::from_secs(300),
            "notify.group",
            "is longer than 5m",
            "\"2s\" is usual",
        );
        check(
            !self.timeout.is_zero() && self.timeout <= Duration::from_secs(60),
            "notify.timeout",
            "is 0 or longer than 1m",
            "\"5s\" is usual",
        );
        check(
            (1..=20).contains(&self.attempts),
            "notify.attempts",
            "is not 1 to 20",
            "6 try for about a minute",
        );
    }

    /// Leaves out what is secret.
    pub(super) fn hide(&mut self) {
        let secrets = self.webhook.iter_mut().chain(&mut self.secret);
        secrets.for_each(Secret::hide);
    }
}

/// A client for where a URL points to, and what is asked for there.
pub(crate) fn split<B>(url: &str) -> Result<(Client<B>, Uri), InvalidUrl> {
    let url: Uri = url.parse().map_err(|_| InvalidUrl::Syntax)?;
    let mut parts = url.into_parts();
    let target = parts.path_and_query.take().map(Uri::from);
    let target = target.unwrap_or_else(|| Uri::from_static("/"));
    parts.path_and_query = Some("/".parse().expect("a path"));
    let base = Uri::from_parts(parts).map_err(|_| InvalidUrl::Syntax)?;
    Ok((Client::new(base)?, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(change: impl FnOnce(&mut Notify)) -> String {
        let mut notify = Notify::new("https://hooks.example.com/services/hunter2");
        change(&mut notify);
        let mut found = Vec::new();
        notify.check(&mut found);
        let shown = format!("{found:?} {notify:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        let paths = found.into_iter().map(|mistake| mistake.path);
        paths.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_what_is_secret() {
        assert_eq!(mistakes(|_| {}), "");
        for url in [
            "hunter2",
            "ftp://hooks.example.com/hunter2",
            "http://me:hunter2@hooks.example.com",
            "http:///hunter2",
        ] {
            let wrong = mistakes(|notify| notify.webhook = Some(url.into()));
            assert_eq!(wrong, "notify.webhook", "{url}");
        }
        assert_eq!(mistakes(|notify| notify.webhook = None), "notify.webhook");
        assert_eq!(mistakes(|notify| notify.kinds.clear()), "notify.kinds");
        let short = mistakes(|notify| notify.secret = Some("hunter2".into()));
        assert_eq!(short, "notify.secret");
        let never = mistakes(|notify| notify.timeout = Duration::ZERO);
        assert_eq!(never, "notify.timeout");
        assert_eq!(mistakes(|notify| notify.attempts = 0), "notify.attempts");
        let slow = mistakes(|notify| notify.group = Duration::from_secs(301));
        assert_eq!(slow, "notify.group");
    }

    #[test]
    fn path_and_query_of_the_webhook_are_asked_for() {
        for (url, target) in [
            ("http://127.0.0.1:1", "/"),
            ("https://a.example/b/c?d=e", "/b/c?d=e"),
        ] {
            let notify = Notify::new(url);
            let found = notify.target::<http_body_util::Empty<bytes::Bytes>>();
            assert_eq!(found.unwrap().unwrap().1, target);
        }
    }
}
