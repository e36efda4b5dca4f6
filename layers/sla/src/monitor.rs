//! Alerts that begin and end by themselves, and what heeds them.

use std::sync::{Mutex, Weak};

use palisade_core::{signal::Signal, time};
use tokio::{sync::watch, time::timeout_at};

use crate::{
    burn::{AlertKind, Burn},
    state::{Shared, lock},
};

/// When a [signal](crate::Handle::signal) is set.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Condition {
    /// While an alert as urgent as this fires, of any objective.
    Fires(AlertKind),
    /// From when less than `below` of an error budget is left until at least `until` of each is. A share, such as 0.1.
    BudgetLeft {
        /// Sets it.
        below: f64,
        /// Ends it; taken as `below` if that is more.
        until: f64,
    },
}

impl Condition {
    fn holds(self, burn: &Burn, held: bool) -> bool {
        match self {
            Self::Fires(kind) => burn.firing() >= Some(kind),
            Self::BudgetLeft { below, until } => {
                let left = burn.error_budgets().map(|(_, budget)| budget);
                let left = left.map(|budget| budget.error_budget_left);
                let least = left.fold(f64::INFINITY, f64::min);
                least < below || held && least < until
            }
        }
    }
}

/// The signals that were asked for, each by its condition.
#[derive(Debug, Default)]
pub(crate) struct Signals(Mutex<Vec<(Condition, Signal)>>);

impl Signals {
    pub(crate) fn get(&self, condition: Condition) -> Signal {
        let mut all = lock(&self.0);
        if let Some((_, signal)) = all.iter().find(|(known, _)| *known == condition) {
            return signal.clone();
        }
        let signal = Signal::new();
        all.push((condition, signal.clone()));
        signal
    }

    pub(crate) fn set(&self, burn: &Burn) {
        for (condition, signal) in lock(&self.0).iter() {
            signal.set(condition.holds(burn, signal.is_set()));
        }
    }

    /// Lets go of all that heed them.
    pub(crate) fn release(&self) {
        for (_, signal) in lock(&self.0).iter() {
            signal.set(false);
        }
    }
}

/// Looks once in a bucket until nobody holds the layer.
pub(crate) async fn monitor(shared: Weak<Shared>, mut burns: watch::Receiver<Burn>) {
    let looks = Looks(shared);
    while let Some(shared) = looks.0.upgrade() {
        let next = shared.watch(time::now());
        // Not held while it waits, or it would wait for itself.
        drop(shared);
        let gone = async { while burns.changed().await.is_ok() {} };
        if timeout_at(next, gone).await.is_ok() {
            return;
        }
    }
}

/// Dropped, nobody says any more that an alert is over.
struct Looks(Weak<Shared>);

impl Drop for Looks {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.signals().release();
        }
    }
}
