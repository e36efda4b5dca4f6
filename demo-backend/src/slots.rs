//! Room for some requests, and a queue of bounded length.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many requests are served together, and how many wait in the order in which they came.
#[derive(Debug)]
pub(crate) struct Slots {
    semaphore: Arc<Semaphore>,
    /// 0 when there is no limit.
    total: usize,
    queue: usize,
    queued: AtomicUsize,
}

/// The queue is full.
#[derive(Debug)]
pub(crate) struct Full;

impl Slots {
    pub(crate) fn new(total: usize, queue: usize) -> Self {
        let permits = match total {
            0 => Semaphore::MAX_PERMITS,
            total => total.min(Semaphore::MAX_PERMITS),
        };
        Self {
            semaphore: Arc::new(Semaphore::new(permits)),
            total,
            queue,
            queued: AtomicUsize::new(0),
        }
    }

    /// A slot, as soon as there is one; dropping it, or this future, gives the place back.
    pub(crate) async fn take(&self) -> Result<OwnedSemaphorePermit, Full> {
        // Nobody is overtaken: what is given back goes to those who wait first.
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(self).ok_or(Full)?;
        let permit = Arc::clone(&self.semaphore).acquire_owned().await;
        Ok(permit.expect("never closed"))
    }

    pub(crate) fn active(&self) -> usize {
        let permits = match self.total {
            0 => Semaphore::MAX_PERMITS,
            total => total,
        };
        permits.saturating_sub(self.semaphore.available_permits())
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }
}

/// A place in the queue.
struct Place<'a>(&'a Slots);

impl<'a> Place<'a> {
    fn take(slots: &'a Slots) -> Option<Self> {
        let taken = slots.queued.fetch_update(Relaxed, Relaxed, |queued| {
            (queued < slots.queue).then_some(queued + 1)
        });
        taken.ok().map(|_| Self(slots))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_counted_served_in_order_and_forgotten_when_gone() {
        let slots = Arc::new(Slots::new(1, 2));
        let first = slots.take().await.unwrap();
        let wait = || {
            let slots = Arc::clone(&slots);
            tokio::spawn(async move { slots.take().await.map(drop) })
        };
        let second = wait();
        tokio::task::yield_now().await;
        let third = wait();
        tokio::task::yield_now().await;
        assert_eq!((slots.active(), slots.queued()), (1, 2));
        assert!(slots.take().await.is_err(), "the queue is full");

        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(slots.queued(), 1);
        drop(first);
        third.await.unwrap().unwrap();
        assert_eq!((slots.active(), slots.queued()), (0, 0));
    }

    #[tokio::test]
    async fn no_limit_is_no_queue() {
        let slots = Slots::new(0, 0);
        let all: Vec<_> = [slots.take().await, slots.take().await].into();
        assert!(all.iter().all(Result::is_ok));
        assert_eq!((slots.active(), slots.total()), (2, 0));
    }
}
