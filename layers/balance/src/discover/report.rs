use std::{error::Error, fmt, sync::Arc};

use palisade_core::{BoxError, time};
use tokio::{sync::watch, time::Instant};

use super::{Changes, metrics::Meters};

/// What has come of a source so far.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Discovery {
    /// What it is called in metrics.
    pub source: Arc<str>,
    /// How many targets the last list had.
    pub targets: usize,
    /// Lists that were applied.
    pub lists: u64,
    /// What the last of them has changed.
    pub changes: Changes,
    /// When that was.
    pub listed_at: Option<Instant>,
    /// How often the source, or a client for one of its targets, has failed.
    pub errors: u64,
    /// How often the source has failed since the last list.
    pub failing: u32,
    /// When something failed last.
    pub failed_at: Option<Instant>,
    /// What failed since the last list or while it was applied.
    pub error: Option<Arc<dyn Error + Send + Sync>>,
}

/// Tells what comes of a source.
pub(super) struct Reporter {
    sender: watch::Sender<Discovery>,
    meters: Meters,
}

impl Reporter {
    pub(super) fn new(
        sender: watch::Sender<Discovery>,
        layer: &Arc<str>,
        source: &Arc<str>,
    ) -> Self {
        Self {
            sender,
            meters: Meters::new(layer, source),
        }
    }

    pub(super) fn listed(&self, targets: usize, changes: Changes) {
        let now = time::now();
        self.meters.listed(targets, changes.failed.len());
        self.sender.send_modify(|seen| {
            let failed = changes.failed.last();
            if let Some((_, error)) = failed {
                seen.errors += changes.failed.len() as u64;
                seen.failed_at = Some(now);
                seen.error = Some(error.clone());
            } else {
                seen.error = None;
            }
            seen.targets = targets;
            seen.lists += 1;
            seen.listed_at = Some(now);
            seen.failing = 0;
            seen.changes = changes;
        });
    }

    /// Says how often in a row that was.
    pub(super) fn failed(&self, error: BoxError) -> u32 {
        self.meters.failed();
        let mut failing = 0;
        self.sender.send_modify(|seen| {
            seen.errors += 1;
            seen.failing = seen.failing.saturating_add(1);
            seen.failed_at = Some(time::now());
            seen.error = Some(error.into());
            failing = seen.failing;
        });
        failing
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sender.borrow().fmt(f)
    }
}
