//! Looking at a layer and steering it while requests come in.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use palisade_core::time;

use crate::{
    limits::After,
    tally::{Counts, Mode, Tally},
};

/// Looks at a layer and steers it from outside. Clones are about the same layer.
///
/// Of a [`DeadlineLayer`](crate::DeadlineLayer) it sets [`Deadlines`](crate::Deadlines), of an
/// [`AttemptTimeoutLayer`](crate::AttemptTimeoutLayer) [`Timeouts`](crate::Timeouts), of a
/// [`ConnectTimeoutLayer`](crate::ConnectTimeoutLayer) a [`Duration`].
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::{AttemptTimeoutLayer, Mode, Timeouts};
///
/// let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
/// let layer = AttemptTimeoutLayer::first_byte(second).named("inference");
/// let handle = layer.handle();
/// handle.set(handle.get().idle(5 * second).total(minute));
/// handle.set_mode(Mode::Shadow);
/// let seen = handle.snapshot();
/// assert_eq!((seen.first_byte, seen.total), (Some(second), Some(minute)));
/// assert_eq!((seen.mode, seen.ended.first_byte), (Mode::Shadow, 0));
/// ```
pub struct Handle<T: Settings> {
    shared: Arc<Shared<T>>,
}

/// A layer at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether it ends requests.
    pub mode: Mode,
    /// The requests that it has ended.
    pub ended: Counts,
    /// Those that it would have ended, in [`Mode::Shadow`].
    pub shadowed: Counts,
    /// Those that passed although less was left of them than the median, so that a service that has become faster is
    /// found.
    pub let_through: u64,
    /// What half of the requests of late have taken, if anybody asks and it is known.
    pub median: Option<Duration>,
    /// The timeout up to the first data that the next attempt would get.
    pub first_byte: Option<Duration>,
    /// The timeout for all of it that the next attempt would get.
    pub total: Option<Duration>,
}

/// What can be set through a [`Handle`].
pub trait Settings: Clone + Send + Sync + sealed::Settings {}

pub(crate) mod sealed {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Look, Quick};
    use crate::limits::After;

    pub trait Settings: Sized {
        type State: Send + Sync;

        /// Their state, which goes on where that of other settings was.
        fn start(&self, before: Option<&Self::State>) -> Self::State;

        fn of(state: &Self::State) -> Self;

        fn quick(&self) -> Quick;

        fn look(_: &Self::State, _: Instant) -> Look {
            Look::default()
        }
    }

    impl Settings for Duration {
        type State = Self;

        fn start(&self, _: Option<&Self>) -> Self {
            *self
        }

        fn of(state: &Self) -> Self {
            *state
        }

        fn quick(&self) -> Quick {
            Quick {
                spans: [After::new(*self), After::NEVER, After::NEVER],
                more: false,
            }
        }
    }
}

impl Settings for Duration {}

/// What only some layers know.
#[derive(Debug, Default)]
pub struct Look {
    pub(crate) let_through: u64,
    pub(crate) median: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) total: Option<Duration>,
}

/// Settings that are read with each request, without what a pointer that may change costs.
#[derive(Clone, Copy, Debug)]
pub struct Quick {
    pub(crate) spans: [After; 3],
    /// Whether the state says more.
    pub(crate) more: bool,
}

impl<T: Settings> Handle<T> {
    pub(crate) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared }
    }

    /// The name that the layer was given.
    pub fn name(&self) -> &str {
        &self.shared.tally.name
    }

    /// The layer as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let tally = &self.shared.tally;
        let look = T::look(&self.shared.state.load(), time::now());
        Snapshot {
            mode: tally.mode(),
            ended: tally.ended(),
            shadowed: tally.shadowed(),
            let_through: look.let_through,
            median: look.median,
            first_byte: look.first_byte,
            total: look.total,
        }
    }

    /// What is set.
    pub fn get(&self) -> T {
        T::of(&self.shared.state.load())
    }

    /// Holds for requests from now on; those that are under way keep what they began with.
    pub fn set(&self, settings: T) {
        let Shared { state, quick, .. } = &*self.shared;
        // Of two that are set at once one holds, not half of each.
        let _alone = quick.alone.lock().unwrap_or_else(PoisonError::into_inner);
        state.rcu(|before| Arc::new(settings.start(Some(before))));
        quick.set(settings.quick());
    }

    /// Ends requests from now on, or only counts those that it would end. Holds also for those that are under way.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.tally.set_mode(mode);
    }
}

impl<T: Settings> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

impl<T: Settings + fmt::Debug> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("name", &self.name())
            .field("settings", &self.get())
            .finish_non_exhaustive()
    }
}

/// What clones of a layer share.
pub(crate) struct Shared<T: Settings> {
    pub(crate) tally: Arc<Tally>,
    pub(crate) state: ArcSwap<T::State>,
    pub(crate) quick: Quickly,
}

/// [`Quick`] as atomics, under a version that is odd while they change (a sequence lock).
pub(crate) struct Quickly {
    version: AtomicU64,
    spans: [AtomicU64; 3],
    more: AtomicBool,
    /// Held by who sets them.
    alone: Mutex<()>,
}

impl Quickly {
    fn new(quick: Quick) -> Self {
        let this = Self {
            version: AtomicU64::default(),
            spans: Default::default(),
            more: AtomicBool::default(),
            alone: Mutex::default(),
        };
        this.set(quick);
        this
    }

    /// By one at a time, after the state.
    fn set(&self, quick: Quick) {
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Relaxed);
        fence(Release);
        for (atomic, span) in self.spans.iter().zip(quick.spans) {
            atomic.store(span.nanos(), Relaxed);
        }
        self.more.store(quick.more, Relaxed);
        self.version.store(version + 2, Release);
    }

    /// The spans, unless the state has to be asked: because it says more, or because they change right now.
    #[inline]
    pub(crate) fn get(&self) -> Option<[After; 3]> {
        let version = self.version.load(Acquire);
        let spans = self.spans.each_ref();
        let spans = spans.map(|atomic| After::from_nanos(atomic.load(Relaxed)));
        let more = self.more.load(Relaxed);
        fence(Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Relaxed) == version;
        (is_whole && !more).then_some(spans)
    }
}

impl<T: Settings> Shared<T> {
    pub(crate) fn new(settings: &T, tally: Tally) -> Arc<Self> {
        Arc::new(Self {
            tally: Arc::new(tally),
            state: ArcSwap::from_pointee(settings.start(None)),
            quick: Quickly::new(settings.quick()),
        })
    }

    pub(crate) fn get(&self) -> T {
        T::of(&self.state.load())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn of_two_settings_that_are_set_at_once_one_holds_and_is_told() {
        const ROUNDS: u64 = 20_000;

        let shared = Shared::new(&Duration::ZERO, Tally::new("x".into(), Mode::Enforce));
        let barrier = Barrier::new(3);
        thread::scope(|scope| {
            for thread in 1..=2 {
                let (handle, barrier) = (Handle::new(shared.clone()), &barrier);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        barrier.wait();
                        handle.set(Duration::from_nanos(thread));
                        barrier.wait();
                    }
                });
            }
            let mut mixed = 0;
            for _ in 0..ROUNDS {
                barrier.wait();
                barrier.wait();
                // Both wait for the next round.
                mixed += u64::from(
                    shared.quick.get()
                        != Some([After::new(shared.get()), After::NEVER, After::NEVER]),
                );
            }
            assert_eq!(mixed, 0);
        });
    }
}
