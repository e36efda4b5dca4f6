use std::{sync::Arc, time::Duration};

use palisade_core::{
    classify::Usage,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{
    class::Class,
    compliance::Targets,
    handle::Handle,
    indicators::{Ended, Event},
    objective::Objective,
    state::Shared,
};

/// Measures requests against an objective, and lets all of them through.
///
/// For [`gates`](palisade_core::gate::gates), which fuse it with its neighbours; [`SlaLayer`](crate::SlaLayer) is
/// the same by itself. Clones count together.
///
/// ```
/// use palisade_core::gate::gates;
/// use palisade_sla::{Objective, Sla};
///
/// let sla = Sla::new(Objective::success(0.999)?).named("chat");
/// let handle = sla.handle();
/// let layer = gates((sla, ()));
/// # let _ = layer;
/// assert_eq!(handle.snapshot().name, "chat");
/// # Ok::<(), palisade_sla::InvalidObjective>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sla {
    shared: Arc<Shared>,
}

impl Sla {
    /// Measures against this objective, over 30 days, and summarises up to 5 minutes.
    pub fn new(objective: Objective) -> Self {
        Self {
            shared: Arc::new(Shared::new(objective)),
        }
    }

    /// The name in snapshots and metrics instead of `sla`; metrics take it with the first request.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        self.shared.set(|settings| settings.name = name);
        self
    }

    /// Holds summaries against these targets instead of the defaults.
    #[must_use]
    pub fn targets(self, targets: Targets) -> Self {
        self.shared.set(|settings| settings.targets = targets);
        self
    }

    /// Summarises windows of up to this instead of 5 minutes, an hour at most: 7 KiB for each 30th of it or 10 seconds.
    ///
    /// Forgets what was counted so far.
    #[must_use]
    pub fn longest_window(self, window: Duration) -> Self {
        self.shared.reshape(|shape| shape.window = window);
        self
    }

    /// Gives error budgets for this period instead of 30 days. The windows of alerts scale with it, so that 12 hours
    /// show in a minute what 30 days show in an hour.
    ///
    /// Forgets what was counted so far.
    #[must_use]
    pub fn period(self, period: Duration) -> Self {
        self.shared.reshape(|shape| shape.period = period);
        self
    }

    /// Reports what was measured.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }
}

impl Gate for Sla {
    type Guard = InFlight;

    #[inline]
    fn admit(&self, _: &RequestHead<'_>, now: Instant) -> Admit<InFlight> {
        self.shared.enter();
        Admit::Now(Ok(InFlight {
            shared: self.shared.clone(),
            since: now,
            first_data: None,
            told: None,
        }))
    }
}

/// A request in flight, which is counted when it ends.
#[derive(Debug)]
pub struct InFlight {
    shared: Arc<Shared>,
    since: Instant,
    first_data: Option<Duration>,
    /// The verdict, when that was known before the end.
    told: Option<(Class, Option<Usage>)>,
}

impl InFlight {
    fn end(&self, class: Class, usage: Option<Usage>, now: Instant) {
        let ended = Ended {
            class,
            usage,
            first_data: self.first_data,
            total: now.saturating_duration_since(self.since),
        };
        self.shared.record(&Event::End(ended), now);
    }
}

impl Settle for InFlight {
    fn first_data(&mut self, now: Instant) {
        let taken = now.saturating_duration_since(self.since);
        self.first_data = Some(taken);
        self.shared.record(&Event::FirstData(taken), now);
    }

    fn settle(&mut self, end: &End, _: Instant) {
        self.told = Some((Class::of(end.verdict), end.usage));
    }

    #[inline]
    fn finish(&mut self, end: &End, now: Instant) {
        self.end(Class::of(end.verdict), end.usage, now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some((class, usage)) = self.told.take() {
            self.end(class, usage, time::now());
        }
        self.shared.leave();
    }
}
