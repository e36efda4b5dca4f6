use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{
    attempt::EndpointId,
    gate::{Gate, Outlook},
    time,
};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use crate::{
    Ejected, Finding, Health, LastCheck, LoadReport, Snapshot, Strategy,
    coin::{self, Coin},
    discover::Ledger,
    fleet::{Ended, Fleet, Item},
    metrics::{Meters, SetMeters},
    probe::Demand,
    slot::{Duty, Slot},
    wait::Shortage,
};

mod endpoint;
mod listed;

pub use self::endpoint::Endpoint;
pub(crate) use self::listed::Settings;

/// A set of endpoints and the handle to it. Clones are the same set.
///
/// ```
/// use palisade_balance::{Endpoint, Endpoints, Strategy};
///
/// let endpoints = Endpoints::default();
/// endpoints.insert(Endpoint::new("a", "client of a"));
/// endpoints.insert(Endpoint::new("b", "client of b").weight(2.0).max_in_flight(100));
/// endpoints.set_strategy(Strategy::LeastConnections);
/// assert_eq!(endpoints.snapshot()[1].weight, 2.0);
/// assert!(endpoints.remove("a"));
/// assert_eq!(endpoints.len(), 1);
/// ```
pub struct Endpoints<S, G = ()>(pub(crate) Arc<Shared<S, G>>);

pub(crate) struct Shared<S, G> {
    pub(crate) meters: SetMeters,
    fleet: Mutex<Fleet<Arc<Member<S, G>>>>,
    pub(crate) shortage: Arc<Shortage>,
    /// Called when endpoints have come or gone.
    changed: Arc<Notify>,
    pub(crate) demand: Demand,
    deaf: AtomicBool,
    /// What lists have brought that nobody reconciles any more, by their source.
    left: Mutex<HashMap<Arc<str>, Ledger>>,
}

impl<S, G> Shared<S, G> {
    /// Whether answers are believed in what they say of the load.
    #[inline]
    pub(crate) fn hears_reports(&self) -> bool {
        !self.deaf.load(Relaxed)
    }

    pub(crate) fn hear_reports(&self, hear: bool) {
        self.deaf.store(!hear, Relaxed);
    }
}

impl<S, G> Shared<S, G> {
    /// Listens for endpoints that come or go, and for the end of the set, from now on.
    pub(crate) fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }
}

impl<S, G> Drop for Shared<S, G> {
    fn drop(&mut self) {
        // A checker that has nothing to check has nothing else to wake it.
        self.changed.notify_waiters();
    }
}

pub(crate) struct Member<S, G> {
    pub(crate) id: EndpointId,
    name: Arc<str>,
    /// Of the name.
    hash: u64,
    /// Cloned for each attempt.
    pub(crate) service: S,
    pub(crate) gate: G,
    gated: bool,
    drained: Arc<Notify>,
    pub(crate) meters: Meters,
    last_check: Mutex<Option<Checked>>,
}

struct Checked {
    at: Instant,
    took: Duration,
    finding: Finding,
}

impl<S, G> Member<S, G> {
    fn checked(&self) -> MutexGuard<'_, Option<Checked>> {
        self.last_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn last_check(&self, now: Instant) -> Option<LastCheck> {
        self.checked().as_ref().map(|checked| LastCheck {
            ago: now.saturating_duration_since(checked.at),
            took: checked.took,
            finding: checked.finding.clone(),
        })
    }
}

impl<S, G: Gate> Item for Arc<Member<S, G>> {
    #[inline]
    fn is_gated(&self) -> bool {
        self.gated
    }

    fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn outlook(&self, now: Instant) -> Outlook {
        self.gate.outlook(now)
    }
}

impl<S, G: Gate> Default for Endpoints<S, G> {
    fn default() -> Self {
        Self::named("balance")
    }
}

impl<S, G: Gate> Endpoints<S, G> {
    /// An empty set, called `layer` in metrics.
    pub fn named(layer: impl Into<Arc<str>>) -> Self {
        let now = time::now();
        Self(Arc::new(Shared {
            meters: SetMeters::new(layer.into()),
            fleet: Mutex::new(Fleet::new(now, Coin::random())),
            shortage: Arc::new(Shortage::new(now)),
            changed: Arc::new(Notify::new()),
            demand: Demand::default(),
            deaf: AtomicBool::new(false),
            left: Mutex::default(),
        }))
    }

    /// Adds an endpoint, or puts it in the place of the one of that name, which finishes what it has.
    ///
    /// It gets its share over ten seconds. What health checks have said of the name still holds, and whether it is
    /// [`suspend`](Self::suspend)ed.
    pub fn insert(&self, endpoint: Endpoint<S, G>) -> EndpointId {
        let placed = self.insert_over(endpoint, |_| true);
        placed.expect("whoever holds the name gives way")
    }

    /// [`insert`](Self::insert)s it if `may` says so of the one that holds its name.
    pub(crate) fn insert_over(
        &self,
        endpoint: Endpoint<S, G>,
        may: impl FnOnce(Option<EndpointId>) -> bool,
    ) -> Option<EndpointId> {
        let id = EndpointId::new();
        let name = endpoint.name.clone();
        self.0.meters.register();
        let member = Member {
            id,
            meters: Meters::new(self.0.meters.layer(), &name),
            hash: coin::hash(name.as_bytes()),
            name: endpoint.name,
            service: endpoint.service,
            gate: endpoint.gate,
            gated: endpoint.gated,
            drained: Arc::new(Notify::new()),
            last_check: Mutex::default(),
        };
        let mut fleet = self.lock();
        if !may(fleet.find(named(&name)).map(|slot| slot.item.id)) {
            return None;
        }
        let said = fleet
            .find(named(&name))
            .map(|slot| (slot.health, slot.duty));
        let gone = fleet.remove(named(&name));
        let (weight, most) = (endpoint.weight, endpoint.max_in_flight);
        let slot = fleet.insert(Arc::new(member), weight, most, time::now());
        slot.zone = endpoint.zone;
        slot.priority = endpoint.priority;
        slot.health = endpoint.health;
        if let Some((health, duty)) = said {
            if health == Health::Unhealthy {
                slot.health = health;
            }
            slot.duty = duty;
        }
        drop(fleet);
        // A service may do anything when it is dropped: not under the lock.
        drop(gone);
        self.tell_state(&name);
        self.0.shortage.end();
        self.0.changed.notify_waiters();
        Some(id)
    }

    /// Sends nothing more there; what is in flight goes on to its end. Says whether there was such an endpoint.
    pub fn remove(&self, name: &str) -> bool {
        self.remove_that(named(name))
    }

    fn remove_that(&self, which: impl Fn(&Arc<Member<S, G>>) -> bool) -> bool {
        let left = self.lock().remove(which);
        self.0.changed.notify_waiters();
        let found = left.is_some();
        if let Some(left) = left {
            self.ended(left);
            // With fewer left, those that wait may be sent where they were not, or refused.
            self.0.shortage.end();
        }
        found
    }

    /// [`remove`](Self::remove)s it, and waits until the last body has ended.
    pub async fn drain(&self, name: &str) -> bool {
        let found = self.remove(name);
        while let Some(drained) = self.leaving(name) {
            drained.await;
        }
        found
    }

    /// Sends nothing more there until it is [`resume`](Self::resume)d. Says whether there is such an endpoint.
    pub fn suspend(&self, name: &str) -> bool {
        let found = self
            .lock()
            .find(named(name))
            .map(|slot| slot.duty = Duty::Suspended)
            .is_some();
        self.tell_state(name);
        self.0.shortage.end();
        found
    }

    /// Sends requests there again, slowly at first. Says whether there is such an endpoint.
    pub fn resume(&self, name: &str) -> bool {
        let found = self.lock().resume(named(name), time::now());
        self.tell_state(name);
        self.0.shortage.end();
        found
    }

    /// Changes its share relative to the others. Says whether there is such an endpoint.
    pub fn set_weight(&self, name: &str, weight: f64) -> bool {
        let mut fleet = self.lock();
        let slot = fleet.find(named(name));
        slot.map(|slot| slot.set_weight(sane(weight))).is_some()
    }

    /// Takes it out of choice or puts it back, as health checks do. Says whether there is such an endpoint.
    ///
    /// When a healthy endpoint was ejected, the next request finds out whether it works again.
    pub fn set_health(&self, name: &str, health: Health) -> bool {
        let found = self.lock().set_health(named(name), health, time::now());
        self.tell_state(name);
        self.0.shortage.end();
        found
    }

    /// Hears what an endpoint says of its own load. Says whether there is such an endpoint.
    pub fn report(&self, name: &str, report: &LoadReport) -> bool {
        self.lock().report(named(name), report, time::now())
    }

    /// Changes how the next endpoint is chosen, from the next request on.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.lock().strategy = strategy;
        self.0.demand.look();
    }

    /// How the next endpoint is chosen.
    pub fn strategy(&self) -> Strategy {
        self.lock().strategy
    }

    /// How each endpoint does, those that finish what they have included.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let now = time::now();
        let mut fleet = self.lock();
        let born = fleet.born();
        let states = fleet.states(now);
        let one = |(slot, state, retry_in): (&Slot<Arc<Member<S, G>>>, _, _)| {
            let latency = slot.load.estimate();
            Snapshot {
                name: slot.item.name.clone(),
                id: slot.item.id,
                state,
                in_flight: slot.load.in_flight(),
                max_in_flight: (slot.max_in_flight != u32::MAX).then_some(slot.max_in_flight),
                latency: latency.map(|nanos| Duration::from_nanos(nanos as u64)),
                weight: slot.weight,
                reported: slot.load.told().map(|told| told.report()),
                requests: slot.requests,
                failures: slot.failures,
                zone: slot.zone.clone(),
                priority: slot.priority,
                level: slot.level,
                ejections: slot.machine.ejections,
                shadowed_ejections: slot.machine.shadowed,
                ejected: slot.machine.last().map(|(reason, at)| Ejected {
                    reason,
                    at: born + Duration::from_nanos(at),
                }),
                retry_in,
                health: slot.health,
                last_check: slot.item.last_check(now),
            }
        };
        states.map(one).collect()
    }

    /// The name of an endpoint, until it has left and its last body has ended.
    pub fn name_of(&self, id: EndpointId) -> Option<Arc<str>> {
        let fleet = self.lock();
        let mut slots = fleet.slots();
        slots
            .find(|slot| slot.item.id == id)
            .map(|slot| slot.item.name.clone())
    }

    /// Hands out the gate of an endpoint, to look at it or to force it. `None` if there is no such endpoint.
    pub fn with_gate<R>(&self, name: &str, look: impl FnOnce(&G) -> R) -> Option<R> {
        let member = self.member(name)?;
        let seen = look(&member.gate);
        // It may have been opened, and nobody else would tell those who wait.
        self.0.shortage.end();
        Some(seen)
    }

    /// How many endpoints there are, whatever their state, without those that were removed.
    pub fn len(&self) -> usize {
        let fleet = self.lock();
        let all = fleet.slots();
        all.filter(|slot| slot.duty != Duty::Leaving).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of all that were not removed.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        let fleet = self.lock();
        let all = fleet.slots();
        all.filter(|slot| slot.duty != Duty::Leaving)
            .map(|slot| slot.item.name.clone())
            .collect()
    }

    /// Who has that name, and what is said of it.
    pub(crate) fn health(&self, name: &str) -> Option<(EndpointId, Health)> {
        let mut fleet = self.lock();
        let slot = fleet.find(named(name))?;
        Some((slot.item.id, slot.health))
    }

    /// Keeps what a check has found, if the endpoint has not left.
    pub(crate) fn checked(&self, id: EndpointId, finding: Finding, since: Instant, at: Instant) {
        let member = {
            let mut fleet = self.lock();
            let slot = fleet.find(|member| member.id == id);
            slot.map(|slot| slot.item.clone())
        };
        if let Some(member) = member {
            let took = at.saturating_duration_since(since);
            let checked = Checked { at, took, finding };
            *member.checked() = Some(checked);
        }
    }

    /// The name of the set.
    pub(crate) fn layer(&self) -> &Arc<str> {
        self.0.meters.layer()
    }

    pub(crate) fn member(&self, name: &str) -> Option<Arc<Member<S, G>>> {
        self.lock().find(named(name)).map(|slot| slot.item.clone())
    }

    /// Listens for endpoints that come or go, from now on.
    pub(crate) fn changed(&self) -> OwnedNotified {
        self.0.changed()
    }

    pub(crate) fn downgrade(&self) -> Weak<Shared<S, G>> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Fleet<Arc<Member<S, G>>>> {
        self.0.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last attempt of an endpoint that leaves has ended, or one of another.
    pub(crate) fn ended(&self, ended: Ended<Arc<Member<S, G>>>) {
        match ended {
            Ended::Stays { reopened: true } => self.0.shortage.end(),
            Ended::Stays { reopened: false } => self.0.shortage.end_for_one(),
            Ended::Gone(member) => {
                {
                    // Under the lock: one of that name could come meanwhile.
                    let mut fleet = self.lock();
                    if fleet.find(named(&member.name)).is_none() {
                        member.meters.gone();
                    }
                }
                member.drained.notify_waiters();
            }
        }
    }

    /// Brings the metrics up to date. Called under the lock.
    #[inline]
    pub(crate) fn tell_panic(&self, panics: bool) {
        self.0.meters.panics(panics);
    }

    /// Brings the metrics up to date, for an endpoint that changes while no request ends there.
    pub(crate) fn tell_state(&self, name: &str) {
        if Meters::ON {
            let now = time::now();
            let mut fleet = self.lock();
            if let Some((member, state)) = fleet.state_by(named(name), now) {
                member.meters.state(state);
            }
            let panics = fleet.panics_now(now);
            self.tell_panic(panics);
        }
    }

    /// Listens for the end of one of that name that leaves.
    fn leaving(&self, name: &str) -> Option<OwnedNotified> {
        let fleet = self.lock();
        let mut slots = fleet.slots();
        slots
            .find(|slot| slot.duty == Duty::Leaving && *slot.item.name == *name)
            .map(|slot| slot.item.drained.clone().notified_owned())
    }
}

impl<S, G> Clone for Endpoints<S, G> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, G: Gate> fmt::Debug for Endpoints<S, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        let named = snapshot.iter().map(|endpoint| (&endpoint.name, endpoint));
        f.debug_map().entries(named).finish()
    }
}

pub(crate) fn named<S, G>(name: &str) -> impl Fn(&Arc<Member<S, G>>) -> bool {
    move |member| *member.name == *name
}

fn sane(weight: f64) -> f64 {
    if weight.is_finite() {
        weight.clamp(1e-3, 1e6)
    } else {
        1.0
    }
}
