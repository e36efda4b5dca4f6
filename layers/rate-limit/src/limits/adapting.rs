//! Rules whose limit follows how requests end.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::settle::End;

use super::{Limit, Limits};
use crate::{
    adaptive::{Adaptive, AdaptiveError, State as AdaptiveState},
    central::{Course, Ends},
    numbers::Following,
};

/// How often the ends of requests are reported to the store.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A limit that follows how requests end.
#[derive(Debug)]
pub(super) struct Adapting {
    course: Course,
    state: Mutex<AdaptiveState>,
    /// For all processes.
    limit: Arc<AtomicU64>,
    /// What this process may use of it without the store.
    share: Arc<AtomicU64>,
    processes: AtomicU64,
    /// Since the last report.
    good: AtomicU64,
    bad: AtomicU64,
    reported: AtomicU64,
}

impl Adapting {
    pub(super) fn new(adaptive: &Adaptive, base: u64) -> Result<Self, AdaptiveError> {
        let course = adaptive.course(base)?;
        Ok(Self {
            course,
            state: Mutex::new(AdaptiveState::new(&course, 0)),
            limit: Arc::new(AtomicU64::new(course.base)),
            share: Arc::new(AtomicU64::new(course.base)),
            processes: AtomicU64::new(1),
            good: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        })
    }

    pub(super) fn following(&self) -> Following<'_> {
        let (course, limit) = (&self.course, &self.limit);
        Following { course, limit }
    }

    /// For what this process may use without the store.
    pub(super) fn following_share(&self) -> Following<'_> {
        let (course, limit) = (&self.course, &self.share);
        Following { course, limit }
    }

    /// It may get there.
    pub(super) fn most(&self) -> u64 {
        self.course.most
    }

    pub(super) fn now(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    pub(super) fn divide_by(&self, processes: u64) {
        let _state = self.lock();
        self.processes.store(processes, Relaxed);
        self.set(self.now());
    }

    /// The store has moved it.
    fn follow(&self, limit: u64) {
        let _state = self.lock();
        self.set(limit);
    }

    fn lock(&self) -> MutexGuard<'_, AdaptiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, or a limit could be set that another has just moved.
    fn set(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
        let share = limit / self.processes.load(Relaxed).max(1);
        self.share.store(share.max(1), Relaxed);
    }

    /// Hears how a request has ended.
    ///
    /// Says whether the limit has moved.
    fn heard(&self, ends: Ends, at: u64) -> bool {
        let mut state = self.lock();
        // Where the store has left it, if there is one.
        state.limit = self.now();
        let now = state.ends(&self.course, ends, at);
        let moved = now != self.now();
        if moved {
            self.set(now);
        }
        moved
    }

    /// What is to be reported to the store, once in a while.
    fn report(&self, ends: Ends, at: u64) -> Option<Ends> {
        self.good.fetch_add(ends.good, Relaxed);
        self.bad.fetch_add(ends.bad, Relaxed);
        let last = self.reported.load(Relaxed);
        let every = REPORT_EVERY.as_nanos() as u64;
        let is_due = at.saturating_sub(last) >= every
            && self
                .reported
                .compare_exchange(last, at, Relaxed, Relaxed)
                .is_ok();
        is_due.then(|| Ends {
            good: self.good.swap(0, Relaxed),
            bad: self.bad.swap(0, Relaxed),
        })
    }
}

impl Limits {
    /// A limit that follows how requests end has moved.
    fn moved(&self, limit: &Limit) {
        // Or who wrote earlier could be heard later.
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.writer.renew(&self.limits);
        drop(changing);
        self.stir_all(limit);
    }
}

impl Limit {
    /// Moves a limit that follows how requests end.
    pub(super) fn follow_end(&self, limits: &Arc<Limits>, end: &End, at: u64) {
        let Some(adapting) = &self.adapting else {
            return;
        };
        let ends = Ends::of(end.verdict);
        if ends == Ends::default() {
            return;
        }
        let Some(central) = limits.central.as_ref().filter(|_| self.away.is_some()) else {
            if adapting.heard(ends, at) {
                limits.moved(self);
            }
            return;
        };
        let Some(ends) = adapting.report(ends, at) else {
            return;
        };
        if !central.is_up() {
            if adapting.heard(ends, at) {
                limits.moved(self);
            }
            return;
        }
        let (store, rule, course) = (central.clone(), self.rule.name.clone(), adapting.course);
        let (limits, index) = (limits.clone(), self.index);
        let _ = central.run(Box::pin(async move {
            let limit = &limits.limits[index];
            if let Ok(now) = store.adapt(rule, ends, course).await
                && let Some(adapting) = &limit.adapting
                && adapting.now() != now
            {
                adapting.follow(now);
                limits.moved(limit);
            }
        }));
    }
}
