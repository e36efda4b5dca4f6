use std::{sync::Arc, time::Duration};

use palisade_core::attempt::EndpointId;

use crate::{Ejected, LastCheck, LoadReport};

/// What one endpoint looks like now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name it was inserted with.
    pub name: Arc<str>,
    /// What [`Attempts`](palisade_core::attempt::Attempts) calls it.
    pub id: EndpointId,
    /// Whether it may be picked.
    pub state: EndpointState,
    /// From the choice to the end of the body.
    pub in_flight: u32,
    /// At most so many, if there is a bound.
    pub max_in_flight: Option<u32>,
    /// The estimate of the time to the first data, penalties for failures included; `None` before the first answer.
    pub latency: Option<Duration>,
    /// Its share relative to the others.
    pub weight: f64,
    /// What it said of its own load last, however long ago.
    pub reported: Option<LoadReport>,
    /// Where it is, if it was said.
    pub zone: Option<Arc<str>>,
    /// Endpoints of a higher number only get what the others cannot carry.
    pub priority: u32,
    /// Which level that makes from here, 0 the first: by priority, and on each priority near ones before far ones.
    pub level: u32,
    /// Attempts that went there.
    pub requests: u64,
    /// Attempts that it is to blame for: failures, overload, timeouts, those that did not reach it, and those that a
    /// layer in front of it refused because it was open, full or had no endpoint itself.
    pub failures: u64,
    /// How often the set has ejected it. What its gate does is the gate's to count.
    pub ejections: u64,
    /// How often it would have, in [shadow](crate::Ejection::shadow).
    pub shadowed_ejections: u64,
    /// Why it was taken out last, by the set or by its gate, and when; also when it is back.
    pub ejected: Option<Ejected>,
    /// Until a probe may pass, if that only takes time.
    pub retry_in: Option<Duration>,
    /// What health checks say.
    pub health: Health,
    /// The last of its health checks, if there was one.
    pub last_check: Option<LastCheck>,
}

/// Whether an endpoint may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndpointState {
    /// It gets its share.
    Serving,
    /// It is new or back, and gets less than its share for ten seconds.
    SlowStart,
    /// It failed too often, or its gate refuses.
    Ejected,
    /// One request finds out whether it works again.
    Probing,
    /// Its health checks fail.
    Unhealthy,
    /// It only finishes what it has.
    Draining,
}

impl EndpointState {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Serving,
        Self::SlowStart,
        Self::Ejected,
        Self::Probing,
        Self::Unhealthy,
        Self::Draining,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::SlowStart => "slow_start",
            Self::Ejected => "ejected",
            Self::Probing => "probing",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

/// What health checks say of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// It may be picked.
    #[default]
    Healthy,
    /// It may not, whatever else speaks for it.
    Unhealthy,
}
