//! What the layers of one request tell each other about its attempts.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

/// Names one endpoint in this process; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(NonZeroU64);

impl EndpointId {
    /// The next free one.
    #[allow(clippy::new_without_default, reason = "a default would not be new")]
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Relaxed) + 1;
        Self(NonZeroU64::new(id).expect("counts up from one"))
    }
}

/// Which endpoints the attempts of a request went to, and how many there were.
///
/// In the extensions of a request it is read and written by balancers, put there by whatever sends a request more
/// than once or wants to know. Clones share what they know, so every attempt sees where the others went, also while
/// they run. The last four endpoints are remembered.
///
/// ```
/// use palisade_core::attempt::{Attempts, EndpointId};
///
/// let (attempts, a) = (Attempts::default(), EndpointId::new());
/// attempts.clone().note(a);
/// assert!(attempts.went_to(a));
/// assert_eq!((attempts.count(), attempts.last()), (1, Some(a)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attempts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU32,
    endpoints: [AtomicU64; 4],
    gave_up: AtomicBool,
}

impl Attempts {
    /// Counts an attempt that goes to this endpoint.
    pub fn note(&self, id: EndpointId) {
        let at = self.0.count.fetch_add(1, Relaxed) as usize;
        self.0.endpoints[at % self.0.endpoints.len()].store(id.0.get(), Relaxed);
    }

    /// Whether one of the last four attempts went to this endpoint.
    pub fn went_to(&self, id: EndpointId) -> bool {
        let mut endpoints = self.0.endpoints.iter();
        endpoints.any(|endpoint| endpoint.load(Relaxed) == id.0.get())
    }

    /// Says that trying again was tried: whatever sent the request leaves it at that.
    ///
    /// For errors of any type; an answer and a [`Rejected`](crate::reject::Rejected) say so themselves.
    pub fn give_up(&self) {
        self.0.gave_up.store(true, Relaxed);
    }

    /// Whether a layer has spent its attempts on the request.
    pub fn gave_up(&self) -> bool {
        self.0.gave_up.load(Relaxed)
    }

    /// How many attempts have reached for an endpoint.
    pub fn count(&self) -> u32 {
        self.0.count.load(Relaxed)
    }

    /// Where the newest attempt went.
    pub fn last(&self) -> Option<EndpointId> {
        let at = self.count().checked_sub(1)? as usize;
        let id = self.0.endpoints[at % self.0.endpoints.len()].load(Relaxed);
        NonZeroU64::new(id).map(EndpointId)
    }
}
