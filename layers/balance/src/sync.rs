//! What loom has to see, in this crate's own tests only: a user's loom tests get the real ones.

#[cfg(all(test, loom))]
mod notify;

#[cfg(all(test, loom))]
pub(crate) use self::notify::{Notify, OwnedNotified};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize};
#[cfg(not(all(test, loom)))]
pub(crate) use tokio::sync::{Notify, futures::OwnedNotified};
