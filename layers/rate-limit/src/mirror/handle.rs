//! Looking at a mirror, and clearing it, while requests go out.

use std::{fmt, sync::Arc, time::Duration};

use palisade_core::{key::Key, time};

use super::{
    known::{At, QuotaUnit},
    shared::Shared,
};

/// Looks at what a mirror knows, and makes it forget, while requests go out.
#[derive(Clone)]
pub struct MirrorHandle {
    shared: Arc<Shared>,
}

impl MirrorHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What is known of this key: as it is, of a host and port in lower case. `None` if it has no seat.
    pub fn snapshot(&self, key: &Key<'_>) -> Option<Mirrored> {
        self.look(Some(key))
    }

    /// What is known of requests without a key.
    pub fn snapshot_keyless(&self) -> Option<Mirrored> {
        self.look(None)
    }

    /// Forgets what the answers for this key have told, so that requests go as they come until there is another:
    /// whether there was anything to forget.
    pub fn forget(&self, key: &Key<'_>) -> bool {
        let Some(account) = self.shared.known(Some(key)) else {
            return false;
        };
        let mut state = account.lock();
        let any = state.ledger.forget();
        let first = state.queue.first();
        drop(state);
        first.into_iter().for_each(std::task::Waker::wake);
        any
    }

    /// Keys that have a seat.
    pub fn keys(&self) -> usize {
        self.shared.keys()
    }

    fn look(&self, key: Option<&Key<'_>>) -> Option<Mirrored> {
        let account = self.shared.known(key)?;
        let now = self.shared.at(time::now());
        let state = account.lock();
        let quotas = state.ledger.known().iter().map(|known| MirroredQuota {
            policy: known.policy.clone(),
            partition: known.partition.clone(),
            unit: known.unit,
            limit: known.limit(),
            remaining: state.ledger.room(known, now),
            reset_after: after(known.until(), now),
        });
        Some(Mirrored {
            quotas: quotas.collect(),
            in_flight: state.ledger.in_flight(),
            waiting: state.queue.len(),
            retry_after: state.ledger.held_until().map(|until| after(until, now)),
        })
    }
}

fn after(at: At, now: At) -> Duration {
    Duration::from_nanos(u64::try_from(at - now).unwrap_or(0))
}

impl fmt::Debug for MirrorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorHandle")
            .field("keys", &self.keys())
            .finish_non_exhaustive()
    }
}

/// What a mirror knows of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mirrored {
    /// In the order in which the service has told of them first.
    pub quotas: Vec<MirroredQuota>,
    /// Requests whose answers have not begun.
    pub in_flight: u64,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// How long the service still wants to be left alone: zero while that is over and no answer has come since.
    pub retry_after: Option<Duration>,
}

/// A quota of a service, as its answers tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirroredQuota {
    /// The service's name for it, or the one of the headers that tell of it.
    pub policy: Arc<str>,
    /// Which part of it, if the service counts several.
    pub partition: Option<Arc<str>>,
    /// What it counts.
    pub unit: QuotaUnit,
    /// How much in a window: if it was not told, the most that was ever left.
    pub limit: u64,
    /// What is left, less what is on its way; after the reset, what goes before an answer tells.
    pub remaining: u64,
    /// Until the reset; zero after it.
    pub reset_after: Duration,
}
