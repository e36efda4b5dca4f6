//! What one layer tells others to heed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// Set by one layer while something holds, and heeded by others: clones share it, and to look at it is one relaxed load.
///
/// It carries no data, and whoever looks may be a moment late. Keeping it from flickering is the matter of who sets it.
///
/// ```
/// use palisade_core::signal::Signal;
///
/// let burning = Signal::new();
/// let heeded = burning.clone();
/// assert!(!heeded.is_set());
/// assert!(!burning.set(true), "it was not set before");
/// assert!(heeded.is_set());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<AtomicBool>);

impl Signal {
    /// One that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Says whether it holds. Returns whether it did.
    pub fn set(&self, holds: bool) -> bool {
        self.0.swap(holds, Relaxed)
    }
}
