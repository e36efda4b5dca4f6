//! What loom has to see, in this crate's own tests only: a user's loom tests get the real ones.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, atomic::AtomicU64};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, atomic::AtomicU64};
