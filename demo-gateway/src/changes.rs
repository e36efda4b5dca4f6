//! What has changed lately, in sentences.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use palisade::time::wall_clock;
use serde::Serialize;
use tokio::sync::broadcast;

/// How many are kept for whoever comes later.
const KEPT: usize = 50;

/// How many a reader may be behind.
const BEHIND: usize = 256;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    Info,
    Ok,
    Warn,
    Bad,
}

impl Severity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// Something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) at: SystemTime,
    pub(crate) severity: Severity,
    /// What it is about: a backend, a rule, an objective.
    pub(crate) subject: Arc<str>,
    pub(crate) text: String,
}

/// Tells everybody who listens what has changed.
#[derive(Debug)]
pub(crate) struct Changes {
    recent: Mutex<VecDeque<Arc<Change>>>,
    feed: broadcast::Sender<Arc<Change>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            feed: broadcast::channel(BEHIND).0,
        }
    }
}

impl Changes {
    pub(crate) fn tell(
        &self,
        severity: Severity,
        subject: impl Into<Arc<str>>,
        text: impl Into<String>,
    ) {
        let change = Arc::new(Change {
            at: wall_clock(),
            severity,
            subject: subject.into(),
            text: text.into(),
        });
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.truncate(KEPT - 1);
        recent.push_front(change.clone());
        // In the same order for all; it only fails when nobody listens.
        let _nobody = self.feed.send(change);
    }

    /// Those from now on. A reader who is more than 256 behind loses the oldest.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Change>> {
        self.feed.subscribe()
    }

    /// The newest 50, newest first.
    pub(crate) fn recent(&self) -> Vec<Arc<Change>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_are_kept_and_told_to_all_in_order() {
        let changes = Changes::default();
        changes.tell(Severity::Ok, "early", "before anybody listened");
        let mut feed = changes.subscribe();
        for number in 0..60 {
            changes.tell(Severity::Warn, "b", format!("{number}"));
        }
        let recent = changes.recent();
        assert_eq!(recent.len(), KEPT);
        assert_eq!((&*recent[0].text, &*recent[49].text), ("59", "10"));
        for number in 0..60 {
            assert_eq!(feed.recv().await.unwrap().text, format!("{number}"));
        }
    }
}
