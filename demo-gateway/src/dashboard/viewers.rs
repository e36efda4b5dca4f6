//! Who looks at the dashboard, and who only holds a place.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::server::Hangup;

/// Who may look at once.
pub(super) const VIEWERS: usize = 64;

/// Who has taken nothing of so many looks, one a second, is not there any more.
pub(super) const SILENT: u32 = 30;

/// Everybody who looks.
#[derive(Debug)]
pub(super) struct Viewers {
    places: Arc<Semaphore>,
    /// As many again are still there without a place: over HTTP/2 what they have not taken stays, and so do they.
    silent: Arc<Semaphore>,
    all: Mutex<Vec<Weak<Viewer>>>,
}

/// Somebody who looks. Dropped, its place is free again.
#[derive(Debug)]
pub(super) struct Viewer {
    place: Mutex<Place>,
    /// Looks since it has taken something.
    missed: AtomicU32,
    connection: Option<Hangup>,
}

/// Held until the viewer is gone.
#[derive(Debug)]
enum Place {
    Taken { _place: OwnedSemaphorePermit },
    Lost { _silent: OwnedSemaphorePermit },
}

impl Viewers {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(VIEWERS)),
            silent: Arc::new(Semaphore::new(VIEWERS)),
            all: Mutex::default(),
        }
    }

    /// A place for somebody on this connection, if there is one.
    pub(super) fn enter(&self, connection: Option<Hangup>) -> Option<Arc<Viewer>> {
        let _place = self.places.clone().try_acquire_owned().ok()?;
        let viewer = Arc::new(Viewer {
            place: Mutex::new(Place::Taken { _place }),
            missed: AtomicU32::new(0),
            connection,
        });
        lock(&self.all).push(Arc::downgrade(&viewer));
        Some(viewer)
    }

    /// There is something to take. Whoever has not taken anything for too long loses its place and its connection, which
    /// holds what it did not take.
    ///
    /// Counted in looks and not in time, so that nobody is late because the gateway was.
    pub(super) fn look(&self) {
        let mut silent = Vec::new();
        lock(&self.all).retain(|viewer| {
            let Some(viewer) = viewer.upgrade() else {
                return false;
            };
            if viewer.missed.fetch_add(1, Relaxed) < SILENT {
                return true;
            }
            let Ok(_silent) = self.silent.clone().try_acquire_owned() else {
                return true;
            };
            silent.push((viewer, Place::Lost { _silent }));
            false
        });
        if !silent.is_empty() {
            let viewers = silent.len();
            tracing::info!(
                viewers,
                "who looks at the dashboard takes nothing: gave up on it"
            );
        }
        for (viewer, lost) in silent {
            *lock(&viewer.place) = lost;
            if let Some(connection) = &viewer.connection {
                connection.hang_up();
            }
        }
    }
}

impl Viewer {
    /// It takes what there is.
    pub(super) fn takes(&self) {
        self.missed.store(0, Relaxed);
    }

    /// Whether its place has been given to others.
    pub(super) fn is_lost(&self) -> bool {
        matches!(*lock(&self.place), Place::Lost { .. })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_nothing_loses_its_place_and_who_does_once_in_a_while_keeps_it() {
        let viewers = Viewers::new();
        let all: Vec<_> = (0..VIEWERS).map(|_| viewers.enter(None).unwrap()).collect();
        for look in 0..4 * SILENT {
            assert_eq!(viewers.enter(None).is_some(), look > SILENT, "{look}");
            if look % SILENT == 0 {
                all[..VIEWERS - 1].iter().for_each(|viewer| viewer.takes());
            }
            viewers.look();
        }
        let lost = all.iter().filter(|viewer| viewer.is_lost()).count();
        assert_eq!(lost, 1);
        drop(all);
        assert_eq!(viewers.places.available_permits(), VIEWERS);
        viewers.look();
        assert!(lock(&viewers.all).is_empty());
    }

    #[test]
    fn who_is_silent_and_stays_is_one_of_so_many_whatever_comes_after() {
        let viewers = Viewers::new();
        let fill = || {
            let all = std::iter::from_fn(|| viewers.enter(None)).collect::<Vec<_>>();
            (0..=SILENT).for_each(|_| viewers.look());
            all
        };
        let (first, second) = (fill(), fill());
        assert_eq!((first.len(), second.len()), (VIEWERS, VIEWERS));
        assert!(fill().is_empty());
        assert!(second.iter().all(|viewer| !viewer.is_lost()));
        drop(first);
        viewers.look();
        assert!(second.iter().all(|viewer| viewer.is_lost()));
        assert_eq!(fill().len(), VIEWERS);
    }
}
