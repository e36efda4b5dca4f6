//! Counting connections, in a snapshot and in metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::OwnedSemaphorePermit;

/// The connections of one [`Client`](crate::Client).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connections {
    /// Now, idle ones included.
    pub open: usize,
    /// Ever.
    pub opened: u64,
    /// Refused, unreachable, or too late.
    pub failed: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    open: AtomicUsize,
    opened: AtomicU64,
    failed: AtomicU64,
    #[cfg(feature = "metrics")]
    meters: Meters,
}

impl Ledger {
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(super) fn new(endpoint: Arc<str>) -> Self {
        Self {
            open: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            meters: Meters::new(endpoint),
        }
    }

    pub(super) fn read(&self) -> Connections {
        Connections {
            open: self.open.load(Relaxed),
            opened: self.opened.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }

    pub(super) fn opened(self: Arc<Self>, place: Option<OwnedSemaphorePermit>) -> Open {
        self.open.fetch_add(1, Relaxed);
        self.opened.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.meters.opened();
        Open {
            ledger: self,
            _place: place,
        }
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.meters.failed();
    }
}

/// Held by a connection until it is closed.
#[derive(Debug)]
pub(super) struct Open {
    ledger: Arc<Ledger>,
    /// Given back after it was counted, so that never more are open than there are places.
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ledger.open.fetch_sub(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.ledger.meters.closed();
    }
}

#[cfg(feature = "metrics")]
use self::on::Meters;

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::Arc};

    use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

    const OPEN: &str = "palisade_balance_connections";
    const CONNECTS: &str = "palisade_balance_connects_total";

    pub(super) struct Meters {
        open: Gauge,
        opened: Counter,
        failed: Counter,
    }

    impl Meters {
        pub(super) fn new(endpoint: Arc<str>) -> Self {
            describe_gauge!(OPEN, "Connections to the endpoint that are open.");
            describe_counter!(CONNECTS, "Connections to the endpoint that were tried.");
            let connects =
                |result| counter!(CONNECTS, "endpoint" => endpoint.clone(), "result" => result);
            Self {
                opened: connects("opened"),
                failed: connects("failed"),
                open: gauge!(OPEN, "endpoint" => endpoint),
            }
        }

        pub(super) fn opened(&self) {
            self.opened.increment(1);
            self.open.increment(1.0);
        }

        pub(super) fn failed(&self) {
            self.failed.increment(1);
        }

        pub(super) fn closed(&self) {
            self.open.decrement(1.0);
        }
    }

    impl fmt::Debug for Meters {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Meters").finish_non_exhaustive()
        }
    }
}
