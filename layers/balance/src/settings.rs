//! What can be changed of a set while requests come, apart from who is in it.

use std::sync::Arc;

use palisade_core::{gate::Gate, time};

use crate::{Ejection, Endpoints, Panic, endpoints::named, metrics::Meters, slot::Duty};

impl<S, G: Gate> Endpoints<S, G> {
    /// Changes when endpoints are ejected, from the next end of a request on.
    ///
    /// What is out stays out, unless ejection is [`off`](Ejection::off) from now on or only a
    /// [`shadow`](Ejection::shadow): then it is back, slowly.
    pub fn set_ejection(&self, ejection: Ejection) {
        self.lock().obey(ejection, time::now());
        // More may pass where nobody is ejected any more, and where a lower ceiling makes advice of what speaks against
        // them.
        self.0.shortage.end();
        self.tell_states();
    }

    /// When endpoints are ejected.
    pub fn ejection(&self) -> Ejection {
        self.lock().rules()
    }

    /// Changes what happens while most endpoints are out, from the next request on.
    pub fn set_panic(&self, panic: Panic) {
        self.lock().panic = panic;
        // Those that wait are to be refused, or picked for.
        self.0.shortage.end();
    }

    /// What happens while most endpoints are out.
    pub fn panic(&self) -> Panic {
        self.lock().panic
    }

    /// Whether, of three endpoints and more, fewer than half may be picked now.
    pub fn is_panicking(&self) -> bool {
        self.lock().panics_now(time::now())
    }

    /// Says where this set is used: endpoints of other zones get what those of this one, and those without a zone,
    /// cannot carry. `None`, the default, is near to all.
    ///
    /// On each priority, near endpoints are one level and far ones the next. A level gets all that comes as long as
    /// 71 % of it, by weight, may be picked, and 1.4 x that part below that; the next level gets the rest. When all
    /// levels together are short, each gets its part of what there is. Being full is no failure, but a request never
    /// waits for a place on one level while there is one on another.
    pub fn set_zone<'a>(&self, zone: impl Into<Option<&'a str>>) {
        self.lock().set_zone(zone.into().map(Arc::from));
        self.0.shortage.end();
    }

    /// Changes where an endpoint is. Says whether there is such an endpoint.
    pub fn set_zone_of<'a>(&self, name: &str, zone: impl Into<Option<&'a str>>) -> bool {
        let zone = zone.into().map(Arc::from);
        self.lock().place(named(name), |slot| slot.zone = zone)
    }

    /// Changes its [priority](crate::Endpoint::priority). Says whether there is such an endpoint.
    pub fn set_priority(&self, name: &str, priority: u32) -> bool {
        self.lock()
            .place(named(name), |slot| slot.priority = priority)
    }

    /// Brings the metrics of all endpoints up to date at once.
    fn tell_states(&self) {
        if !Meters::ON {
            return;
        }
        let now = time::now();
        let mut fleet = self.lock();
        for (slot, state, _) in fleet.states(now) {
            if slot.duty != Duty::Leaving {
                slot.item.meters.state(state);
            }
        }
        let panics = fleet.panics_now(now);
        self.tell_panic(panics);
    }
}
