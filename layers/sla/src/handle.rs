use std::{sync::Arc, time::Duration};

use palisade_core::{classify::Usage, signal::Signal, time};
use tokio::{sync::watch, time::Instant};

use crate::{
    burn::Burn,
    class::Verdicts,
    compliance::{Compliance, Targets},
    indicators::Event,
    labels::{DimensionSummary, LabelSummary, NOWHERE},
    monitor::{Condition, monitor},
    objective::Objective,
    state::{Scope, Shared, nanos},
    summary::Summary,
};

/// Reports what a layer has measured: when asked, or by a [`monitor`](Self::monitor) that the user spawns.
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

    /// What was counted over a window, to be sent to another process that [adds up](crate::Replicas) several.
    #[cfg(feature = "hdr")]
    pub fn export(&self, window: Duration) -> crate::Export {
        let (gathered, present) = self.shared.gather(window, time::now());
        crate::Export::new(&self.shared.settings().name, &gathered, &present)
    }

    /// The parts of what came in, by [dimension](crate::Sla::by) and label, over a window up to the layer's longest.
    ///
    /// A bucket of a label is a sixth of the longest window.
    pub fn labels(&self, window: Duration) -> Vec<DimensionSummary> {
        self.shared.labels(window, time::now())
    }

    /// One of them; `None` when no request of this label has come yet, or it is among the `other` ones.
    pub fn label(&self, dimension: &str, label: &str, window: Duration) -> Option<LabelSummary> {
        self.shared.label(dimension, label, window, time::now())
    }

    /// How fast the error budgets are spent, and which alerts fire.
    ///
    /// An alert begins when this is asked, or by the [`monitor`](Self::monitor).
    pub fn burn(&self, now: Instant) -> Burn {
        self.shared.burn(now)
    }

    /// What the [`monitor`](Self::monitor) has found last.
    ///
    /// ```
    /// # use palisade_sla::{AlertKind, Objective, Sla};
    /// # async fn doc(handle: palisade_sla::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut burns = handle.watch();
    /// let burn = burns.wait_for(|burn| burn.firing() == Some(AlertKind::Page)).await?;
    /// println!("{} left", burn.availability.error_budget_left);
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> watch::Receiver<Burn> {
        self.shared.burns()
    }

    /// Set by the [`monitor`](Self::monitor) while this holds: for a layer that should do less, such as one that hedges.
    ///
    /// Who asks with the same condition gets the same signal. It is not set any more once the monitor or the layer is
    /// gone.
    pub fn signal(&self, condition: Condition) -> Signal {
        self.shared.signals().get(condition)
    }

    /// Lets alerts begin and end by themselves: looks once in a fine bucket, which is 10 s for a period of 30 days, tells
    /// [watchers](Self::watch), sets [signals](Self::signal) and, with the feature `metrics`, gauges.
    ///
    /// For a task of the user, one for each layer. It ends when the layer, its services and requests, and all handles are
    /// gone. It may be dropped at any time: then signals are no longer set, and another one goes on from where it was.
    pub fn monitor(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        monitor(Arc::downgrade(&self.shared), self.shared.burns())
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
        let scope = Scope {
            whole: true,
            places: NOWHERE,
        };
        let event = Event::Tokens(usage, nanos(taken));
        let now = self.shared.nanos(time::now());
        self.shared.record(&event, now, &scope);
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
        self.shared.publish(&burn);
    }
}
