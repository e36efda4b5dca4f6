//! What a layer, its clones and its handles share.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use palisade_core::time;
use tokio::{sync::watch, time::Instant};

#[cfg(feature = "metrics")]
use std::sync::atomic::AtomicBool;

#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::{
    burn::Burn,
    class::Verdicts,
    compliance::Targets,
    indicators::Event,
    kept::{Kept, Running, Shape},
    labels::{DimensionSummary, Dimensions, Gone, LabelSummary, Labelled, NOWHERE, Places},
    monitor::Signals,
    objective::Objective,
    process::Process,
    summary::{Gathered, Present, ProcessUsage, Summary},
};

/// More threads than this share stripes, which are 10 KiB each, and 9 KiB more with labels.
const MOST_STRIPES: usize = 16;
/// Events of labelled requests that are put aside before they are counted.
const PUT_ASIDE: usize = 64;
/// More often than this nobody can look.
const LEAST_TICK: Duration = Duration::from_millis(10);

/// Where a request counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// With all others of the layer.
    pub(crate) whole: bool,
    /// With those of its labels.
    pub(crate) places: Places,
}

/// Counts under locks that are short and seldom shared.
///
/// One event is a handful of plain additions under the lock of a stripe that other threads do not take: less than the
/// same number of atomic additions, and nothing is lost at the edge of a bucket. Once in a bucket each stripe is
/// handed over under the one lock of what is kept. What is labelled is put aside in the stripe, and counted with what
/// else there is of a label: its lock is taken once for many. Locks are taken in that order.
///
/// Aligned, so that the count of references, which each request writes, is not on the cache line of what each reads.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shared {
    origin: Instant,
    stripes: Box<[Stripe]>,
    pub(crate) dimensions: Dimensions,
    kept: Mutex<Kept>,
    settings: Mutex<Settings>,
    process: Process,
    signals: Signals,
    burns: watch::Sender<Burn>,
    #[cfg(feature = "metrics")]
    metrics: std::sync::OnceLock<Metrics>,
    /// Whether gauges have told of a promise of latency.
    #[cfg(feature = "metrics")]
    told_latency: AtomicBool,
}

/// What the threads of one stripe count, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe {
    own: Mutex<Own>,
    /// Requests that came in here, less those that were dropped here before they were counted.
    entered: AtomicU64,
}

#[derive(Debug)]
struct Own {
    running: Running,
    /// Requests that ended here: only the sum over all stripes is less than that of those which entered.
    ended: u64,
    /// Of no allocation as long as there are no labels.
    labelled: Vec<Labelled>,
}

impl Own {
    fn label(&mut self, labelled: Labelled, dimensions: &Dimensions) {
        if self.labelled.len() == PUT_ASIDE {
            self.count_labelled(dimensions);
        }
        self.labelled.push(labelled);
    }

    fn count_labelled(&mut self, dimensions: &Dimensions) {
        dimensions.count(&self.labelled);
        self.labelled.clear();
    }
}

/// What reports need.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) objective: Objective,
    pub(crate) targets: Targets,
    /// Tells what waits to be served.
    pub(crate) queue: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    #[cfg(feature = "metrics")]
    pub(crate) publishes_labels: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("objective", &self.objective)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(objective: Objective) -> Self {
        let origin = time::now();
        let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
        let count = threads.min(MOST_STRIPES).next_power_of_two();
        let stripes = (0..count).map(|_| Stripe {
            own: Mutex::new(Own {
                running: Running::new(objective),
                ended: 0,
                labelled: Vec::new(),
            }),
            entered: AtomicU64::new(0),
        });
        let mut kept = Kept::new(Shape::default(), 0);
        let dimensions = Dimensions::new(count);
        dimensions.reshape(kept.shape().window, 0);
        Self {
            origin,
            stripes: stripes.collect(),
            dimensions,
            burns: watch::Sender::new(kept.burn(0, &objective)),
            kept: Mutex::new(kept),
            settings: Mutex::new(Settings {
                name: Arc::from("sla"),
                objective,
                targets: Targets::default(),
                queue: None,
                #[cfg(feature = "metrics")]
                publishes_labels: false,
            }),
            process: Process::new(origin),
            signals: Signals::default(),
            #[cfg(feature = "metrics")]
            metrics: std::sync::OnceLock::new(),
            #[cfg(feature = "metrics")]
            told_latency: AtomicBool::new(false),
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
            lock(&stripe.own).running.objective = objective;
        }
    }

    /// Makes room for what is labelled, so that no request has to.
    pub(crate) fn reserve(&self) {
        for stripe in &self.stripes {
            let mut own = lock(&stripe.own);
            let more = PUT_ASIDE - own.labelled.len();
            own.labelled.reserve_exact(more);
        }
    }

    /// Forgets all that was counted, and keeps so much from now on.
    pub(crate) fn reshape(&self, change: impl FnOnce(&mut Shape)) {
        // All at once, so that nothing is kept in buckets of two shapes.
        let mut stripes: Vec<_> = self
            .stripes
            .iter()
            .map(|stripe| lock(&stripe.own))
            .collect();
        let mut kept = lock(&self.kept);
        let mut shape = kept.shape();
        change(&mut shape);
        let now = self.nanos(time::now());
        *kept = Kept::new(shape, now);
        self.dimensions.reshape(kept.shape().window, now);
        for own in &mut stripes {
            own.running.forget();
            own.labelled.clear();
        }
    }

    #[inline]
    pub(crate) fn enter(&self, scope: &Scope) {
        let (at, stripe) = self.stripe();
        if scope.whole {
            stripe.entered.fetch_add(1, Relaxed);
            #[cfg(feature = "metrics")]
            self.metrics().entered();
        }
        if scope.places != NOWHERE {
            self.dimensions.in_flight(&scope.places, at, true);
        }
    }

    /// A guard was dropped, and nobody has said how its request ended.
    #[cold]
    pub(crate) fn leave(&self, scope: &Scope) {
        let (at, stripe) = self.stripe();
        if scope.whole {
            stripe.entered.fetch_sub(1, Relaxed);
            #[cfg(feature = "metrics")]
            self.metrics().left();
        }
        self.dimensions.in_flight(&scope.places, at, false);
    }

    /// Off by no more than the requests that move between threads while this looks at one after the other.
    pub(crate) fn in_flight(&self) -> u64 {
        let sum = self.stripes.iter().fold(0, |sum: u64, stripe| {
            let ended = lock(&stripe.own).ended;
            sum.wrapping_add(stripe.entered.load(Relaxed))
                .wrapping_sub(ended)
        });
        u64::try_from(sum.cast_signed()).unwrap_or(0)
    }

    /// Counts an event of a request that goes on.
    #[inline]
    pub(crate) fn record(&self, event: &Event, now: u64, scope: &Scope) {
        self.count(event, now, scope, false);
    }

    /// Counts the end of a request, which is no longer in flight.
    #[inline]
    pub(crate) fn end(&self, event: &Event, now: u64, scope: &Scope) {
        self.count(event, now, scope, true);
    }

    #[inline]
    fn count(&self, event: &Event, now: u64, scope: &Scope, ends: bool) {
        let (at, stripe) = self.stripe();
        let mut own = lock(&stripe.own);
        if scope.whole {
            if !own.running.count(now, event) {
                own.running.turn(now, event, &mut lock(&self.kept));
            }
            own.ended += u64::from(ends);
        }
        if scope.places != NOWHERE {
            let labelled = Labelled {
                at: now,
                places: scope.places,
                event: *event,
            };
            own.label(labelled, &self.dimensions);
        }
        drop(own);
        if ends && scope.places != NOWHERE {
            self.dimensions.in_flight(&scope.places, at, false);
        }
        #[cfg(feature = "metrics")]
        if scope.whole {
            self.metrics().happened(event);
            if ends {
                self.metrics().left();
            }
        }
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

    /// Decides which alerts fire and tells everybody. Returns when that is due again.
    pub(crate) fn watch(&self, now: Instant) -> Instant {
        self.let_go(now);
        let burn = self.burn(now);
        self.signals.set(&burn);
        self.burns.send_replace(burn);
        #[cfg(feature = "metrics")]
        self.publish(&burn);
        let tick = lock(&self.kept).tick();
        let next = (self.nanos(now) / nanos(tick)).saturating_add(1);
        let next = Duration::from_nanos(next.saturating_mul(nanos(tick)));
        self.origin
            .checked_add(next)
            .map_or(now + tick, |next| next.max(now + LEAST_TICK))
    }

    pub(crate) fn burns(&self) -> watch::Receiver<Burn> {
        self.burns.subscribe()
    }

    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    pub(crate) fn summary(&self, window: Duration, now: Instant) -> Summary {
        let (gathered, present) = self.gather(window, now);
        gathered.summary(&present, &self.settings().targets)
    }

    /// What was counted in a window, and what there is now.
    pub(crate) fn gather(&self, window: Duration, now: Instant) -> (Gathered, Present) {
        // Somebody else's code, which runs under no lock.
        let queue_depth = self.settings().queue.map(|depth| depth());
        let process = ProcessUsage {
            cpu_usage: self.process.cpu(now),
            memory_usage: self.process.memory(),
        };
        let gathered = self.drained().gather(self.nanos(now), window);
        let present = Present {
            in_flight: self.in_flight(),
            queue_depth,
            process,
        };
        (gathered, present)
    }

    pub(crate) fn labels(&self, window: Duration, now: Instant) -> Vec<DimensionSummary> {
        self.let_go(now);
        drop(self.drained());
        self.dimensions.summaries(self.nanos(now), window)
    }

    pub(crate) fn label(
        &self,
        dimension: &str,
        label: &str,
        window: Duration,
        now: Instant,
    ) -> Option<LabelSummary> {
        self.let_go(now);
        drop(self.drained());
        let now = self.nanos(now);
        self.dimensions.summary(dimension, label, now, window)
    }

    /// The place of a label that is to be told when it is left, if there is one.
    pub(crate) fn hold(&self, at: usize, label: &str) -> Option<u8> {
        self.let_go(time::now());
        loop {
            match self.dimensions.hold(at, label) {
                Ok(place) => return Some(place),
                // Somebody else may take what is freed.
                Err(Some(gone)) => self.free(&[gone]),
                Err(None) => return None,
            }
        }
    }

    /// Lets go of labels that nobody counts by any more, and that are in no window.
    fn let_go(&self, now: Instant) {
        let gone = self.dimensions.gone(self.nanos(now));
        if !gone.is_empty() {
            self.free(&gone);
        }
    }

    fn free(&self, gone: &[Gone]) {
        // Their last requests put aside what they were before they were no longer in flight.
        drop(self.drained());
        #[cfg(feature = "metrics")]
        self.publish_labels(&self.settings());
        self.dimensions.free(gone);
    }

    /// Sets the gauges of what is only known when asked.
    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self, burn: &Burn) {
        let settings = self.settings();
        crate::metrics::publish(&settings.name, burn);
        if burn.latency.is_some() {
            self.told_latency.store(true, Relaxed);
        } else if self.told_latency.load(Relaxed) {
            // Each time: somebody else may be about to tell what was true before.
            crate::metrics::withdraw_latency(&settings.name, burn);
        }
        self.publish_labels(&settings);
    }

    #[cfg(feature = "metrics")]
    fn publish_labels(&self, settings: &Settings) {
        if settings.publishes_labels {
            drop(self.drained());
            crate::metrics::publish_labels(&settings.name, &self.dimensions);
        }
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
            let mut own = lock(&stripe.own);
            own.running.drain(&mut lock(&self.kept));
            own.count_labelled(&self.dimensions);
        }
        lock(&self.kept)
    }

    #[inline]
    fn stripe(&self) -> (usize, &Stripe) {
        let at = self.turn();
        (at, &self.stripes[at])
    }

    /// Which stripe this thread has.
    #[inline]
    pub(crate) fn turn(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static TURN: usize = NEXT.fetch_add(1, Relaxed));

        TURN.with(|turn| turn & (self.stripes.len() - 1))
    }

    /// How many stripes there are.
    pub(crate) fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// A time in nanoseconds, as all that is counted has it.
    #[inline]
    pub(crate) fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin))
    }
}

/// Nobody will say any more that it is over.
impl Drop for Shared {
    fn drop(&mut self) {
        self.signals.release();
    }
}

/// As many as fit: 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// No user code runs under these locks, so what a panic leaves behind is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
