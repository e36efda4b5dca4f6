//! One backend instance, before it is in a set.

use std::sync::Arc;

use palisade_core::gate::Gate;

use crate::Health;

/// One backend instance: a name, the service that reaches it, and its gate.
#[derive(Clone, Debug)]
pub struct Endpoint<S, G = ()> {
    pub(super) name: Arc<str>,
    pub(super) service: S,
    pub(super) gate: G,
    pub(super) gated: bool,
    pub(super) weight: f64,
    pub(super) max_in_flight: u32,
    pub(super) zone: Option<Arc<str>>,
    pub(super) priority: u32,
    pub(super) health: Health,
}

impl<S> Endpoint<S> {
    /// Is reached through `service`, which may have layers of its own. Ejected when it fails, as
    /// [`Ejection`](crate::Ejection) says.
    pub fn new(name: impl Into<Arc<str>>, service: S) -> Self {
        Self {
            name: name.into(),
            service,
            gate: (),
            gated: false,
            weight: 1.0,
            max_in_flight: u32::MAX,
            zone: None,
            priority: 0,
            health: Health::Healthy,
        }
    }

    /// Leaves it to `gate` when the endpoint is out of choice; the set does not eject it by itself any more.
    ///
    /// One gate value for each endpoint: clones of a gate share their state.
    #[must_use]
    pub fn gate<G: Gate>(self, gate: G) -> Endpoint<S, G> {
        Endpoint {
            name: self.name,
            service: self.service,
            gate,
            gated: true,
            weight: self.weight,
            max_in_flight: self.max_in_flight,
            zone: self.zone,
            priority: self.priority,
            health: self.health,
        }
    }
}

impl<S, G> Endpoint<S, G> {
    /// Its share relative to the others, 1 unless said otherwise, and at least a thousandth.
    #[must_use]
    pub fn weight(mut self, weight: f64) -> Self {
        self.weight = super::sane(weight);
        self
    }

    /// Never has more than `most` requests in flight, and at least one.
    #[must_use]
    pub fn max_in_flight(mut self, most: u32) -> Self {
        self.max_in_flight = most.max(1);
        self
    }

    /// Where it is. Of a set that has a [zone](crate::Endpoints::set_zone) of its own, endpoints of other zones get what those
    /// of its own, and those without a zone, cannot carry.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Endpoints of priority 0, which is the default, come first; those of a higher number get what they cannot carry.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Is in this health until checks find out. One that is unhealthy at first gets requests once a check has passed.
    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }
}
