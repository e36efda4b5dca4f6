//! Requests that wait in line for their quota, instead of being refused.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{self, Notify, OwnedMutexGuard};

use crate::store::Payer;

/// Where a request waits: at a rule, for what one payer has.
pub(crate) type Spot = (usize, Payer);

/// Lines of requests, each of which moves on in the order they came.
#[derive(Debug)]
pub(crate) struct Pacer {
    pub(crate) longest: Duration,
    pub(crate) most: usize,
    /// In all lines; also says without a lock that there is none.
    waiting: AtomicUsize,
    lines: Mutex<HashMap<Spot, Line>>,
}

#[derive(Debug, Default)]
struct Line {
    /// Who holds it is first in line.
    turn: Arc<sync::Mutex<()>>,
    /// Tells who is first that there may be room before its time.
    stirred: Arc<Notify>,
    waiting: usize,
    cost: u64,
}

/// A place in a line, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct InLine<'a> {
    pacer: &'a Pacer,
    pub(crate) spot: Spot,
    cost: u64,
    /// What those before it will take.
    pub(crate) before: u64,
    /// Not the first of a request that stands in several lines.
    is_further: bool,
    turn: Arc<sync::Mutex<()>>,
    stirred: Arc<Notify>,
    first: Option<OwnedMutexGuard<()>>,
}

impl Pacer {
    pub(crate) fn new(longest: Duration, most: usize) -> Self {
        Self {
            longest,
            most,
            waiting: AtomicUsize::new(0),
            lines: Mutex::default(),
        }
    }

    /// Whether others wait there, so that going ahead would be jumping the line.
    #[inline]
    pub(crate) fn has_line(&self, spot: Spot) -> bool {
        self.waiting.load(Relaxed) > 0 && self.lines().contains_key(&spot)
    }

    /// `None` when too many wait already; a request that does so elsewhere is one of them.
    pub(crate) fn join(&self, spot: Spot, cost: u64, is_further: bool) -> Option<InLine<'_>> {
        let one_more = |waiting| (waiting < self.most).then_some(waiting + 1);
        if !is_further {
            let joined = self.waiting.fetch_update(Relaxed, Relaxed, one_more);
            joined.ok()?;
        }
        let mut lines = self.lines();
        let line = lines.entry(spot).or_default();
        let before = line.cost;
        line.waiting += 1;
        line.cost = before.saturating_add(cost);
        Some(InLine {
            pacer: self,
            spot,
            cost,
            before,
            is_further,
            turn: line.turn.clone(),
            stirred: line.stirred.clone(),
            first: None,
        })
    }

    /// What those who wait there will take.
    pub(crate) fn before(&self, spot: Spot) -> u64 {
        self.lines().get(&spot).map_or(0, |line| line.cost)
    }

    /// Something has come back there, or has changed: who is first tries again.
    #[inline]
    pub(crate) fn stir(&self, spot: Spot) {
        if self.waiting() > 0
            && let Some(line) = self.lines().get(&spot)
        {
            line.stirred.notify_one();
        }
    }

    /// All lines of a rule.
    pub(crate) fn stir_all(&self, rule: usize) {
        for ((of, _), line) in &*self.lines() {
            if *of == rule {
                line.stirred.notify_one();
            }
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, HashMap<Spot, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InLine<'_> {
    /// Waits until it is first.
    pub(crate) async fn advance(&mut self) {
        self.first = Some(self.turn.clone().lock_owned().await);
    }

    pub(crate) fn is_first(&self) -> bool {
        self.first.is_some()
    }

    /// Waits until there may be room, for who is first.
    pub(crate) async fn stirred(&self) {
        self.stirred.notified().await;
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut lines = self.pacer.lines();
        if let Some(line) = lines.get_mut(&self.spot) {
            line.waiting -= 1;
            line.cost = line.cost.saturating_sub(self.cost);
            if line.waiting == 0 {
                lines.remove(&self.spot);
            }
        }
        if !self.is_further {
            self.pacer.waiting.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_there_for_as_long_as_somebody_stands_in_it() {
        let pacer = Pacer::new(Duration::from_secs(1), 2);
        let (here, there) = ((0, Payer::SHARED), (1, Payer::SHARED));
        let first = pacer.join(here, 3, false).unwrap();
        let second = pacer.join(here, 4, false).unwrap();
        assert_eq!((first.before, second.before), (0, 3));
        assert!(pacer.has_line(here) && !pacer.has_line(there));
        let third = pacer.join(there, 1, false);
        assert!(third.is_none(), "two wait, and no more may");
        let further = pacer.join(there, 1, true).unwrap();
        assert_eq!((further.before, pacer.waiting()), (0, 2));
        drop((first, further));
        let third = pacer.join(here, 1, false);
        assert_eq!(third.map(|third| third.before), Some(4));
        drop(second);
        assert!(!pacer.has_line(here));
        assert_eq!((pacer.waiting(), pacer.lines().len()), (0, 0));
    }

    #[tokio::test]
    async fn who_is_first_hears_what_was_stirred_before_it_listens() {
        let pacer = Pacer::new(Duration::from_secs(1), 9);
        let (here, there) = ((0, Payer::SHARED), (1, Payer::SHARED));
        pacer.stir(here);
        let mut first = pacer.join(here, 1, false).unwrap();
        let mut other = pacer.join(there, 1, false).unwrap();
        first.advance().await;
        other.advance().await;
        assert!(first.is_first());
        pacer.stir(here);
        first.stirred().await;
        pacer.stir_all(1);
        other.stirred().await;
        let mut second = pacer.join(here, 1, false).unwrap();
        let advance = tokio::time::timeout(Duration::ZERO, second.advance());
        assert!(advance.await.is_err());
        drop(first);
        second.advance().await;
        assert!(second.is_first());
    }
}
