use std::{sync::Arc, time::Duration};

use palisade_core::{classify::Usage, time};
use tokio::time::Instant;

use crate::{
    burn::Burn,
    class::Verdicts,
    compliance::{Compliance, Targets},
    indicators::Event,
    objective::Objective,
    state::Shared,
    summary::Summary,
};

/// Reports what a layer has measured, when asked: no task runs in between.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// A layer at one moment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// What the layer is called.
    pub name: String,
    /// Requests between their admission and the end of their answer.
    pub in_flight: u64,
    /// Requests that have ended since the start, by how they did.
    pub verdicts: Verdicts,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How it went over the last `window`, which is no longer than the layer's longest.
    ///
    /// A window is its whole buckets and the running one; a bucket is a 30th of the longest and 10 s at most.
    pub fn summary(&self, window: Duration) -> Summary {
        self.shared.summary(window, time::now())
    }

    /// The summary of the longest window against these targets.
    pub fn compliance(&self, targets: &Targets) -> Compliance {
        self.summary(self.shared.longest_window())
            .compliance(targets)
    }

    /// How fast the error budgets are spent, and which alerts fire.
    ///
    /// Alerts begin and end only when this is asked, so ask once in a bucket: 10 s for a period of 30 days.
    pub fn burn(&self, now: Instant) -> Burn {
        self.shared.burn(now)
    }

    /// Requests between their admission and the end of their answer.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight()
    }

    /// The layer as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            name: self.shared.settings().name.as_ref().into(),
            in_flight: self.in_flight(),
            verdicts: self.shared.verdicts(),
        }
    }

    /// Adds tokens that `taken` was spent on, for answers whose classifier does not find them.
    pub fn add_usage(&self, usage: Usage, taken: Duration) {
        self.shared
            .record(&Event::Tokens(usage, taken), time::now());
    }

    /// Judges requests that end from now on by another objective. What was counted stays, judged as it was.
    pub fn update(&self, objective: Objective) {
        self.shared.update(objective);
    }

    /// Forgets all that was counted, and ends all alerts. Requests in flight stay in flight.
    pub fn reset(&self) {
        self.shared.reshape(|_| {});
    }

    /// Sets the gauges of error budgets, burn rates and alerts. To be called before a scrape.
    #[cfg(feature = "metrics")]
    pub fn publish(&self) {
        let burn = self.burn(time::now());
        crate::metrics::publish(&self.shared.settings().name, &burn);
    }
}
