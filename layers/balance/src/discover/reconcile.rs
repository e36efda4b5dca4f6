use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    fmt, mem,
    sync::{Arc, Weak},
};

use palisade_core::{BoxError, attempt::EndpointId, gate::Gate};

use super::{Target, TargetState};
use crate::{
    Endpoint, Endpoints,
    endpoints::{Settings, Shared},
};

/// Brings a set to a list of targets, and knows which endpoints it has brought.
///
/// [`Endpoints::follow`] has one inside.
///
/// ```
/// use palisade_balance::{Endpoint, Endpoints, discover::Target};
///
/// let endpoints = Endpoints::default();
/// endpoints.insert(Endpoint::new("mine", "client of mine"));
/// let client_of = |target: &Target| Endpoint::new(target.name.clone(), "client of it");
/// let mut reconciler = endpoints.reconciler("settings", client_of);
///
/// let changes = reconciler.reconcile(&[Target::new("a:80"), Target::new("b:80")]);
/// assert_eq!(changes.added.len(), 2);
/// let changes = reconciler.reconcile(&[Target::new("b:80").weight(3.0)]);
/// assert_eq!((&*changes.removed[0], &*changes.changed[0]), ("a:80", "b:80"));
/// assert_eq!(endpoints.len(), 2, "what others have inserted stays");
/// ```
pub struct Reconciler<S, G, F> {
    set: Weak<Shared<S, G>>,
    source: Arc<str>,
    make: F,
    known: Ledger,
}

/// The endpoints that came with a list, by name.
pub(crate) type Ledger = BTreeMap<Arc<str>, Known>;

/// An endpoint that came with a list.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(super) id: EndpointId,
    target: Target,
    /// What holds where the target leaves something open.
    made: Settings,
}

impl<S, G: Gate> Endpoints<S, G> {
    /// Brings the set to lists that are at hand. `make` is asked for each new target, and for each that has another
    /// address.
    ///
    /// When it is dropped, its endpoints stay. The next one for this `source` takes them over.
    pub fn reconciler<F, M>(&self, source: impl Into<Arc<str>>, make: F) -> Reconciler<S, G, F>
    where
        F: FnMut(&Target) -> M,
        M: IntoEndpoint<S, G>,
    {
        Reconciler::new(self.downgrade(), source.into(), make)
    }
}

/// What a list has changed, by name.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Changes {
    /// New in the set.
    pub added: Vec<Arc<str>>,
    /// Gone from the set; they finish what they have.
    pub removed: Vec<Arc<str>>,
    /// Changed in place.
    pub changed: Vec<Arc<str>>,
    /// Of another address or with other labels than before: others in the same place.
    pub replaced: Vec<Arc<str>>,
    /// Not added, as an endpoint that came from elsewhere has the name.
    pub taken: Vec<Arc<str>>,
    /// No client could be made for these; what they should have replaced stays. Without a name if a
    /// `tower::discover::Discover` gave it.
    pub failed: Vec<(Arc<str>, Arc<dyn Error + Send + Sync>)>,
}

impl Changes {
    /// Whether the set is as it was.
    pub fn is_empty(&self) -> bool {
        let all = [&self.added, &self.removed, &self.changed, &self.replaced];
        all.into_iter().all(Vec::is_empty)
    }
}

/// What makes an endpoint of a target: one, or an error that says why not.
pub trait IntoEndpoint<S, G> {
    /// The endpoint. Its name is the target's in any case.
    ///
    /// # Errors
    ///
    /// Why there is none.
    fn into_endpoint(self) -> Result<Endpoint<S, G>, BoxError>;
}

impl<S, G> IntoEndpoint<S, G> for Endpoint<S, G> {
    fn into_endpoint(self) -> Result<Endpoint<S, G>, BoxError> {
        Ok(self)
    }
}

impl<S, G, E: Into<BoxError>> IntoEndpoint<S, G> for Result<Endpoint<S, G>, E> {
    fn into_endpoint(self) -> Result<Endpoint<S, G>, BoxError> {
        self.map_err(Into::into)
    }
}

impl<S, G: Gate, F> Reconciler<S, G, F> {
    pub(super) fn new(set: Weak<Shared<S, G>>, source: Arc<str>, make: F) -> Self {
        Self {
            set,
            source,
            make,
            known: Ledger::new(),
        }
    }

    /// Brings the endpoints that came with earlier lists to this one. Of several targets with one name the first
    /// counts. Nothing happens when the set is gone.
    pub fn reconcile<M>(&mut self, targets: &[Target]) -> Changes
    where
        F: FnMut(&Target) -> M,
        M: IntoEndpoint<S, G>,
    {
        let mut changes = Changes::default();
        let Some(endpoints) = self.set.upgrade().map(Endpoints) else {
            return changes;
        };
        for (name, known) in endpoints.0.take_left(&self.source) {
            let ours = self.known.get(&name);
            if !ours.is_some_and(|ours| endpoints.has(ours.id)) {
                self.known.insert(name, known);
            }
        }
        let endpoints = &endpoints;
        let mut listed = HashSet::with_capacity(targets.len());
        let mut stay = HashSet::with_capacity(targets.len());
        for target in targets {
            if listed.insert(&*target.name) && self.take_up(endpoints, target, &mut changes) {
                stay.insert(&*target.name);
            }
        }
        self.known.retain(|name, known| {
            let stays = stay.contains(&**name);
            if !stays && endpoints.remove_listed(known.id) {
                changes.removed.push(name.clone());
            }
            stays
        });
        changes
    }

    /// Whether the last list had no endpoint, that of one before this included.
    pub(super) fn is_empty(&self) -> bool {
        let set = self.set.upgrade();
        self.known.is_empty() && !set.is_some_and(|set| set.has_left(&self.source))
    }

    /// Says whether an endpoint of that name is in the set and ours.
    fn take_up<M>(
        &mut self,
        endpoints: &Endpoints<S, G>,
        target: &Target,
        changes: &mut Changes,
    ) -> bool
    where
        F: FnMut(&Target) -> M,
        M: IntoEndpoint<S, G>,
    {
        let name = &target.name;
        let known = self.known.get_mut(name);
        let known = known.filter(|known| endpoints.has(known.id));
        if let Some(known) = known {
            if known.target.is_reached_like(target) {
                if known.change(endpoints, target) {
                    changes.changed.push(name.clone());
                }
                return true;
            }
            if target.state == TargetState::Draining {
                return false;
            }
            let old = known.id;
            return match self.make(target) {
                Err(error) => {
                    changes.failed.push((name.clone(), error.into()));
                    true
                }
                Ok((endpoint, made)) => {
                    let id = endpoints.insert_over(endpoint, |held| held == Some(old));
                    self.keep(
                        id,
                        target,
                        made,
                        endpoints,
                        &mut changes.replaced,
                        &mut changes.taken,
                    )
                }
            };
        }
        if target.state == TargetState::Draining {
            return false;
        }
        match self.make(target) {
            Err(error) => {
                changes.failed.push((name.clone(), error.into()));
                false
            }
            Ok((endpoint, made)) => {
                let id = endpoints.insert_over(endpoint, |held| held.is_none());
                self.keep(
                    id,
                    target,
                    made,
                    endpoints,
                    &mut changes.added,
                    &mut changes.taken,
                )
            }
        }
    }

    fn make<M>(&mut self, target: &Target) -> Result<(Endpoint<S, G>, Settings), BoxError>
    where
        F: FnMut(&Target) -> M,
        M: IntoEndpoint<S, G>,
    {
        let endpoint = (self.make)(target).into_endpoint()?;
        let made = endpoint.settings();
        let settings = settings(target, &made);
        Ok((endpoint.listed(target.name.clone(), &settings), made))
    }

    fn keep(
        &mut self,
        id: Option<EndpointId>,
        target: &Target,
        made: Settings,
        endpoints: &Endpoints<S, G>,
        done: &mut Vec<Arc<str>>,
        taken: &mut Vec<Arc<str>>,
    ) -> bool {
        let name = target.name.clone();
        let Some(id) = id else {
            taken.push(name);
            return false;
        };
        // The one before it may have been draining, and its successor inherits that.
        endpoints.readmit(id);
        done.push(name.clone());
        let target = target.clone();
        self.known.insert(name, Known { id, target, made });
        true
    }
}

impl Known {
    /// Says whether anything has changed.
    fn change<S, G: Gate>(&mut self, endpoints: &Endpoints<S, G>, target: &Target) -> bool {
        if self.target == *target {
            return false;
        }
        let (before, after) = (
            settings(&self.target, &self.made),
            settings(target, &self.made),
        );
        if before != after {
            endpoints.set_listed(self.id, &before, &after);
        }
        if self.target.state != target.state {
            match target.state {
                TargetState::Serving => endpoints.readmit(self.id),
                TargetState::Draining => endpoints.withdraw(self.id),
            }
        }
        self.target = target.clone();
        true
    }
}

/// What holds for an endpoint: what the target says, else what it was made with.
fn settings(target: &Target, made: &Settings) -> Settings {
    Settings {
        weight: target.weight.unwrap_or(made.weight),
        max_in_flight: target.max_in_flight.unwrap_or(made.max_in_flight),
        zone: target.zone.clone().or_else(|| made.zone.clone()),
        priority: target.priority.unwrap_or(made.priority),
    }
}

impl Known {
    /// Came without a target.
    #[cfg(feature = "discover")]
    pub(super) fn inserted(id: EndpointId, name: &Arc<str>, made: Settings) -> Self {
        let target = Target::new(Arc::clone(name));
        Self { id, target, made }
    }
}

impl<S, G, F> Drop for Reconciler<S, G, F> {
    fn drop(&mut self) {
        if let Some(set) = self.set.upgrade() {
            set.leave(&self.source, mem::take(&mut self.known));
        }
    }
}

impl<S, G, F> fmt::Debug for Reconciler<S, G, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler")
            .field("source", &self.source)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}
