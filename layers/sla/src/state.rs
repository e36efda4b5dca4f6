//! What a layer, its clones and its handles share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use palisade_core::time;
use tokio::time::Instant;

#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::{
    burn::Burn,
    class::Verdicts,
    compliance::Targets,
    indicators::Event,
    kept::{Kept, Running, Shape},
    objective::Objective,
    process::Process,
    summary::{ProcessUsage, Summary},
};

/// More threads than this share stripes, which are 7 KiB each.
const MOST_STRIPES: usize = 16;

/// Counts under locks that are short and seldom shared.
///
/// One event is a handful of plain additions under the lock of a stripe that other threads do not take: less than the
/// same number of atomic additions, and nothing is lost at the edge of a bucket. Once in a bucket each stripe is
/// handed over under the one lock of what is kept. Locks are taken in that order.
///
/// Aligned, so that the count of references, which each request writes, is not on the cache line of what each reads.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shared {
    origin: Instant,
    stripes: Box<[Stripe]>,
    kept: Mutex<Kept>,
    settings: Mutex<Settings>,
    process: Process,
    #[cfg(feature = "metrics")]
    metrics: std::sync::OnceLock<Metrics>,
}

/// What the threads of one stripe count, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe {
    running: Mutex<Running>,
    /// Requests that came in here less those that ended here: only the sum over all stripes is a number of requests.
    in_flight: AtomicU64,
}

/// What reports need.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) objective: Objective,
    pub(crate) targets: Targets,
}

impl Shared {
    pub(crate) fn new(objective: Objective) -> Self {
        let origin = time::now();
        let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
        let stripes = threads.min(MOST_STRIPES).next_power_of_two();
        let stripes = (0..stripes).map(|_| Stripe {
            running: Mutex::new(Running::new(objective)),
            in_flight: AtomicU64::new(0),
        });
        Self {
            origin,
            stripes: stripes.collect(),
            kept: Mutex::new(Kept::new(Shape::default(), 0)),
            settings: Mutex::new(Settings {
                name: Arc::from("sla"),
                objective,
                targets: Targets::default(),
            }),
            process: Process::new(origin),
            #[cfg(feature = "metrics")]
            metrics: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.settings));
    }

    /// Judges what ends from now on by another objective.
    pub(crate) fn update(&self, objective: Objective) {
        let mut settings = lock(&self.settings);
        settings.objective = objective;
        for stripe in &self.stripes {
            lock(&stripe.running).objective = objective;
        }
    }

    /// Forgets all that was counted, and keeps so much from now on.
    pub(crate) fn reshape(&self, change: impl FnOnce(&mut Shape)) {
        // All at once, so that nothing is kept in buckets of two shapes.
        let mut stripes: Vec<_> = self
            .stripes
            .iter()
            .map(|stripe| lock(&stripe.running))
            .collect();
        let mut kept = lock(&self.kept);
        let mut shape = kept.shape();
        change(&mut shape);
        *kept = Kept::new(shape, self.nanos(time::now()));
        stripes.iter_mut().for_each(|running| running.forget());
    }

    pub(crate) fn enter(&self) {
        self.stripe().in_flight.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.metrics().entered();
    }

    pub(crate) fn leave(&self) {
        self.stripe().in_flight.fetch_sub(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.metrics().left();
    }

    /// Off by no more than the requests that move between threads while this looks at one after the other.
    pub(crate) fn in_flight(&self) -> u64 {
        let stripes = self.stripes.iter();
        let sum = stripes.fold(0, |sum: u64, stripe| {
            sum.wrapping_add(stripe.in_flight.load(Relaxed))
        });
        u64::try_from(sum.cast_signed()).unwrap_or(0)
    }

    #[inline]
    pub(crate) fn record(&self, event: &Event, now: Instant) {
        let at = self.nanos(now);
        let mut running = lock(&self.stripe().running);
        if !running.count(at, event) {
            running.turn(at, event, &mut lock(&self.kept));
        }
        drop(running);
        #[cfg(feature = "metrics")]
        self.metrics().happened(event);
    }

    pub(crate) fn longest_window(&self) -> Duration {
        lock(&self.kept).shape().window
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        self.drained().verdicts()
    }

    pub(crate) fn burn(&self, now: Instant) -> Burn {
        let objective = self.settings().objective;
        self.drained().burn(self.nanos(now), &objective)
    }

    pub(crate) fn summary(&self, window: Duration, now: Instant) -> Summary {
        let targets = self.settings().targets;
        let process = ProcessUsage {
            cpu_usage: self.process.cpu(now),
            memory_usage: self.process.memory(),
        };
        let (gathered, spans) = self.drained().gather(self.nanos(now), window);
        gathered.summary(spans, self.in_flight(), process, &targets)
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn metrics(&self) -> &Metrics {
        // Not when the layer is made, which may be before a recorder is installed.
        self.metrics
            .get_or_init(|| Metrics::new(&self.settings().name))
    }

    /// What is kept, with all that was counted up to now.
    fn drained(&self) -> MutexGuard<'_, Kept> {
        for stripe in &self.stripes {
            let mut running = lock(&stripe.running);
            running.drain(&mut lock(&self.kept));
        }
        lock(&self.kept)
    }

    fn stripe(&self) -> &Stripe {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static TURN: usize = NEXT.fetch_add(1, Relaxed));

        &self.stripes[TURN.with(|turn| turn & (self.stripes.len() - 1))]
    }

    fn nanos(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// No user code runs under these locks, so what a panic leaves behind is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
