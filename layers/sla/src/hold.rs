//! What keeps the counts there.

use std::{fmt, ops::Deref, sync::Arc};

use palisade_core::time;

use crate::{
    labels::{InvalidDimension, NOWHERE, Places},
    state::Shared,
};

/// Held by layers.
///
/// Requests hold a lease of their thread's stripe, so that two threads do not write the same count of references.
#[derive(Clone, Debug)]
pub(crate) struct Hold(Arc<Held>);

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    leases: Box<[Arc<Lease>]>,
}

impl Hold {
    pub(crate) fn new(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let leases = (0..shared.stripes()).map(|_| Arc::new(Lease(shared.clone())));
        Self(Arc::new(Held {
            leases: leases.collect(),
            shared,
        }))
    }

    /// What handles hold.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.0.shared.clone()
    }

    /// What a request of this thread holds.
    #[inline]
    pub(crate) fn lease(&self) -> Arc<Lease> {
        self.0.leases[self.0.shared.turn()].clone()
    }
}

impl Deref for Hold {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.0.shared
    }
}

/// Held by the requests of a stripe, on a cache line of its own.
#[repr(align(128))]
pub(crate) struct Lease(Arc<Shared>);

impl Deref for Lease {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// Holds the place of a label for the gates that count by it.
#[derive(Debug)]
pub(crate) struct Holding {
    shared: Hold,
    at: usize,
    place: u8,
}

impl Holding {
    /// Where this label counts, and what holds that; nothing holds the place of all others.
    pub(crate) fn new(
        shared: &Hold,
        dimension: &str,
        label: &str,
    ) -> Result<(Places, Option<Self>), InvalidDimension> {
        let at = shared.dimensions.add(dimension)?;
        let held = shared.hold(at, label);
        let holding = held.map(|place| Self {
            shared: shared.clone(),
            at,
            place,
        });
        let mut places = NOWHERE;
        places[at] = held.unwrap_or_else(|| shared.dimensions.others(at));
        Ok((places, holding))
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let now = self.shared.nanos(time::now());
        self.shared.dimensions.leave(self.at, self.place, now);
    }
}
