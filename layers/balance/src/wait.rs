//! Waiting until an endpoint may be picked again.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use pin_project::{pin_project, pinned_drop};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::sync::{AtomicU64, AtomicUsize, Notify, OwnedNotified};

#[cfg(all(test, loom))]
mod interleavings;

/// Says that nothing may be picked and until when that is known to hold, and wakes those who wait for its end.
#[derive(Debug)]
pub(crate) struct Shortage {
    born: Instant,
    /// Nanoseconds since `born`; 0 = there is something to pick, as far as anybody knows.
    until: AtomicU64,
    /// Requests that wait; woken one by one, as places become free.
    waiting: AtomicUsize,
    /// Counts the places that became free.
    places: AtomicU64,
    requests: Arc<Notify>,
    /// Clones of the service that wait to be ready.
    clones: Arc<Notify>,
}

impl Shortage {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            born: now,
            until: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            places: AtomicU64::new(1),
            requests: Arc::new(Notify::new()),
            clones: Arc::new(Notify::new()),
        }
    }

    #[inline]
    pub(crate) fn until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        (until != 0).then(|| self.born + Duration::from_nanos(until))
    }

    pub(crate) fn declare(&self, now: Instant, until: Instant) {
        let (now, until) = (self.nanos(now), self.nanos(until).max(1));
        // The earliest time that is still to come stands: the one who said it may have left.
        let sooner = |said: u64| (said <= now || said > until).then_some(until);
        let _ = self
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, sooner);
    }

    /// Something has changed for all who wait.
    pub(crate) fn end(&self) {
        self.requests.notify_waiters();
        self.relieve();
    }

    /// There is room for one request.
    #[inline]
    pub(crate) fn end_for_one(&self) {
        if self.waiting.load(Ordering::Acquire) != 0 {
            self.places.fetch_add(1, Ordering::AcqRel);
            self.requests.notify_one();
        }
        self.relieve();
    }

    /// Requests are worth sending again; those that wait hear of it by themselves.
    #[inline]
    pub(crate) fn relieve(&self) {
        if self.until.load(Ordering::Acquire) != 0 {
            self.until.store(0, Ordering::Release);
            self.clones.notify_waiters();
        }
    }

    /// Somebody has no use for a place. Each says so once per place: who wakes each other must not do so for ever.
    pub(crate) fn pass_on(&self, passed: &mut u64) {
        let places = self.places.load(Ordering::Acquire);
        if *passed != places {
            *passed = places;
            self.requests.notify_one();
        }
    }

    /// A request listens from now on, before the first poll.
    pub(crate) fn wait(self: &Arc<Self>, until: Instant) -> Pin<Box<Wait>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Wait::new(&self.requests, until, Some(self.clone()))
    }

    /// A clone of the service listens from now on, before the first poll.
    pub(crate) fn wait_to_be_ready(&self, until: Instant) -> Pin<Box<Wait>> {
        Wait::new(&self.clones, until, None)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.born).as_nanos() as u64
    }
}

#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub(crate) struct Wait {
    #[pin]
    over: OwnedNotified,
    #[pin]
    timer: Sleep,
    counted: Option<Arc<Shortage>>,
}

impl Wait {
    fn new(by: &Arc<Notify>, until: Instant, counted: Option<Arc<Shortage>>) -> Pin<Box<Self>> {
        let mut wait = Box::pin(Self {
            over: by.clone().notified_owned(),
            timer: sleep_until(until),
            counted,
        });
        wait.as_mut().project().over.enable();
        wait
    }

    /// Ready when the shortage is over, or at `until`.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let mut this = self.project();
        if this.timer.deadline() != until {
            this.timer.as_mut().reset(until);
        }
        if this.over.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.timer.poll(cx)
    }
}

#[pinned_drop]
impl PinnedDrop for Wait {
    fn drop(self: Pin<&mut Self>) {
        if let Some(shortage) = self.project().counted.take() {
            shortage.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
