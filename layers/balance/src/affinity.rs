//! What keeps requests that belong together at one endpoint.

use crate::coin;

/// In the extensions of a request: what it has in common with others that should go to the same endpoint.
///
/// Read by [`Strategy::ConsistentHash`](crate::Strategy::ConsistentHash). The same key leads to the same endpoint from
/// all processes that have the same set.
///
/// ```
/// use palisade_balance::Affinity;
///
/// assert_eq!(Affinity::of("session 7"), Affinity::of("session 7"));
/// assert_ne!(Affinity::of("session 7"), Affinity::of("session 8"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Affinity(pub(crate) u64);

impl Affinity {
    /// Of a user, a session or a prompt.
    pub fn of(key: impl AsRef<[u8]>) -> Self {
        Self(coin::hash(key.as_ref()))
    }
}
