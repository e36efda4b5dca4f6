//! What the layers of one request tell each other about its attempts.

use std::{
    cell::RefCell,
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
#[derive(Clone, Debug)]
pub struct Attempts(
    /// There until the drop.
    Option<Arc<Shared>>,
);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU32,
    endpoints: [AtomicU64; 4],
    gave_up: AtomicBool,
}

/// What requests that are over have left to those that come, for each thread.
type Shelf = RefCell<Vec<Arc<Shared>>>;

thread_local!(static SHELF: Shelf = const { RefCell::new(Vec::new()) });

/// A thread keeps no more than this.
const MOST: usize = 64;

impl Default for Attempts {
    fn default() -> Self {
        // Without a shelf while the thread ends.
        let left = SHELF.try_with(|shelf| shelf.borrow_mut().pop());
        Self(Some(left.ok().flatten().unwrap_or_default()))
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let Some(mut shared) = self.0.take() else {
            return;
        };
        // Asked first, as it is the cheaper question: the other keeps other threads from answering it.
        if Arc::strong_count(&shared) != 1 {
            return;
        }
        let Some(last) = Arc::get_mut(&mut shared) else {
            return;
        };
        *last = Shared::default();
        let _ = SHELF.try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            if shelf.len() < MOST {
                shelf.push(shared);
            }
        });
    }
}

impl Attempts {
    fn shared(&self) -> &Shared {
        self.0.as_ref().expect("there until the drop")
    }

    /// Counts an attempt that goes to this endpoint.
    pub fn note(&self, id: EndpointId) {
        let shared = self.shared();
        let at = shared.count.fetch_add(1, Relaxed) as usize;
        shared.endpoints[at % shared.endpoints.len()].store(id.0.get(), Relaxed);
    }

    /// Whether one of the last four attempts went to this endpoint.
    pub fn went_to(&self, id: EndpointId) -> bool {
        let mut endpoints = self.shared().endpoints.iter();
        endpoints.any(|endpoint| endpoint.load(Relaxed) == id.0.get())
    }

    /// Says that trying again was tried: whatever sent the request leaves it at that.
    ///
    /// For errors of any type; an answer and a [`Rejected`](crate::reject::Rejected) say so themselves.
    pub fn give_up(&self) {
        self.shared().gave_up.store(true, Relaxed);
    }

    /// Whether a layer has spent its attempts on the request.
    pub fn gave_up(&self) -> bool {
        self.shared().gave_up.load(Relaxed)
    }

    /// How many attempts have reached for an endpoint.
    pub fn count(&self) -> u32 {
        self.shared().count.load(Relaxed)
    }

    /// Where the newest attempt went.
    pub fn last(&self) -> Option<EndpointId> {
        let at = self.count().checked_sub(1)? as usize;
        let endpoints = &self.shared().endpoints;
        let id = endpoints[at % endpoints.len()].load(Relaxed);
        NonZeroU64::new(id).map(EndpointId)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn kept() -> usize {
        SHELF.with(|shelf| shelf.borrow().len())
    }

    #[test]
    fn the_next_request_knows_nothing_of_the_one_before() {
        let (attempts, endpoint) = (Attempts::default(), EndpointId::new());
        let at = std::ptr::from_ref(attempts.shared());
        let other = attempts.clone();
        other.note(endpoint);
        other.give_up();
        drop(attempts);
        assert_eq!(kept(), 0);
        assert!(other.went_to(endpoint));
        drop(other);
        let next = Attempts::default();
        assert_eq!(std::ptr::from_ref(next.shared()), at);
        let seen = (next.count(), next.last(), next.gave_up());
        assert_eq!(seen, (0, None, false));
        assert!(!next.went_to(endpoint));
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may() {
        let burst: Vec<_> = (0..2 * MOST).map(|_| Attempts::default()).collect();
        drop(burst);
        assert_eq!(kept(), MOST);
    }

    #[test]
    fn of_two_that_are_dropped_at_once_no_one_leaves_what_the_other_has() {
        for _ in 0..1000 {
            let attempts = Attempts::default();
            let others = [attempts.clone(), attempts.clone()];
            thread::scope(|scope| {
                for other in others {
                    scope.spawn(move || {
                        other.note(EndpointId::new());
                        drop(other);
                    });
                }
            });
            assert_eq!(attempts.count(), 2);
            drop(attempts);
            assert_eq!(Attempts::default().count(), 0);
        }
    }
}
