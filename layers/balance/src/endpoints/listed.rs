//! What lists of targets do to a set: only to the endpoints that they brought.

use std::sync::{Arc, PoisonError};

use palisade_core::{attempt::EndpointId, gate::Gate, time};

use super::{Endpoint, Endpoints, Member, Shared};
use crate::{discover::Ledger, slot::Duty};

/// What may change while the endpoint stays.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) weight: f64,
    pub(crate) max_in_flight: u32,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) priority: u32,
}

impl<S, G> Endpoint<S, G> {
    #[cfg(feature = "discover")]
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            weight: self.weight,
            max_in_flight: self.max_in_flight,
            zone: self.zone.clone(),
            priority: self.priority,
        }
    }

    pub(crate) fn listed(mut self, name: Arc<str>, settings: &Settings) -> Self {
        self.name = name;
        self.zone = settings.zone.clone();
        self.priority = settings.priority;
        self.weight(settings.weight)
            .max_in_flight(settings.max_in_flight)
    }
}

impl<S, G> Shared<S, G> {
    /// Keeps what a source has brought for whoever reconciles it next.
    pub(crate) fn leave(&self, source: &Arc<str>, known: Ledger) {
        if !known.is_empty() {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.entry(source.clone()).or_default().extend(known);
        }
    }

    pub(crate) fn has_left(&self, source: &str) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.contains_key(source)
    }

    pub(crate) fn take_left(&self, source: &str) -> Ledger {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.remove(source).unwrap_or_default()
    }
}

impl<S, G: Gate> Endpoints<S, G> {
    pub(crate) fn has(&self, id: EndpointId) -> bool {
        self.lock().find(is(id)).is_some()
    }

    pub(crate) fn remove_listed(&self, id: EndpointId) -> bool {
        self.remove_that(is(id))
    }

    /// Changes in place what the lists say differently: what it has learnt stays, and what was set by hand, too.
    pub(crate) fn set_listed(&self, id: EndpointId, before: &Settings, after: &Settings) {
        self.lock().place(is(id), |slot| {
            if before.weight != after.weight {
                slot.set_weight(super::sane(after.weight));
            }
            if before.max_in_flight != after.max_in_flight {
                slot.max_in_flight = after.max_in_flight.max(1);
            }
            if before.zone != after.zone {
                slot.zone = after.zone.clone();
            }
            if before.priority != after.priority {
                slot.priority = after.priority;
            }
        });
        self.0.shortage.end();
    }

    /// Takes it out of choice, unless a hand has done so before.
    pub(crate) fn withdraw(&self, id: EndpointId) {
        let mut fleet = self.lock();
        let serves = fleet.find(is(id)).filter(|slot| slot.duty == Duty::Serving);
        let Some(slot) = serves else {
            return;
        };
        slot.duty = Duty::Withdrawn;
        let name = slot.item.name.clone();
        drop(fleet);
        self.tell_state(&name);
        self.0.shortage.end();
    }

    /// Ends what [`withdraw`](Self::withdraw) has begun, and nothing else.
    pub(crate) fn readmit(&self, id: EndpointId) {
        let mut fleet = self.lock();
        let withdrawn = fleet
            .find(is(id))
            .filter(|slot| slot.duty == Duty::Withdrawn);
        let Some(name) = withdrawn.map(|slot| slot.item.name.clone()) else {
            return;
        };
        fleet.resume(is(id), time::now());
        drop(fleet);
        self.tell_state(&name);
        self.0.shortage.end();
    }
}

fn is<S, G>(id: EndpointId) -> impl Fn(&Arc<Member<S, G>>) -> bool {
    move |member| member.id == id
}
