//! The state of one backend, which all its connections share.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode};
use palisade_core::time;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, watch},
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{
    api::Load,
    chaos::Chaos,
    errors::Failure,
    fault::Fault,
    forward::Forward,
    meters::{Gauges, Meters},
    reply::Reply,
    rng::{hash, mix},
    seen::Record,
    simulation::{Lengths, Pace, PrefixCache, Sharing, prompt_tokens},
    slots::Slots,
};

/// What a backend is made of.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) id: Option<String>,
    pub(crate) seed: u64,
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    /// Not above 0: no limit.
    pub(crate) tokens_per_second: f64,
    pub(crate) first_token: Duration,
    pub(crate) prompt_token: Duration,
    pub(crate) prefix_cache: usize,
    pub(crate) lengths: Lengths,
    pub(crate) faults: Vec<Fault>,
    pub(crate) script: VecDeque<Reply>,
    pub(crate) recording: usize,
    pub(crate) grace: Duration,
    pub(crate) forward: Option<Forward>,
}

/// Whether it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Takes nothing new, and ends what it has.
    Draining,
    /// Ended with all that it had.
    Down,
}

pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) id_header: HeaderValue,
    /// A number for the id.
    name: u64,
    pub(crate) seed: u64,
    pub(crate) lengths: Lengths,
    pub(crate) forward: Option<Forward>,
    pub(crate) meters: Meters,
    pub(crate) record: Record,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) chaos_changed: Notify,
    slots: Slots,
    first_token: Duration,
    prompt_token: Duration,
    chaos: ArcSwap<Chaos>,
    floor: Mutex<Floor>,
    /// Whether a look at the script is worth a lock.
    scripted: AtomicBool,
    script: Mutex<VecDeque<Reply>>,
    requests: AtomicU64,
    others: AtomicU64,
    connections: AtomicU64,
    in_flight: AtomicUsize,
}

/// What the mechanisms of the simulation share.
#[derive(Debug)]
struct Floor {
    sharing: Option<Sharing>,
    prefixes: PrefixCache,
    pace: Pace,
    errors: Pace,
}

impl Instance {
    /// `settings.id` was filled in.
    pub(crate) fn new(settings: Settings, id: String, now: Instant) -> Self {
        let rate = settings.tokens_per_second;
        let id_header = HeaderValue::from_str(&id);
        Self {
            id_header: id_header.unwrap_or_else(|_| HeaderValue::from_static("backend")),
            name: hash(id.as_bytes()),
            id,
            seed: settings.seed,
            lengths: settings.lengths,
            forward: settings.forward,
            meters: Meters::default(),
            record: Record::new(settings.recording),
            phase: watch::Sender::new(Phase::Running),
            chaos_changed: Notify::new(),
            slots: Slots::new(settings.slots, settings.queue),
            first_token: settings.first_token,
            prompt_token: settings.prompt_token,
            chaos: ArcSwap::from_pointee(Chaos::new(settings.faults, now, settings.seed)),
            floor: Mutex::new(Floor {
                sharing: (rate > 0.0 && rate.is_finite()).then(|| Sharing::new(rate, now)),
                prefixes: PrefixCache::new(settings.prefix_cache),
                pace: Pace::new(now),
                errors: Pace::new(now),
            }),
            scripted: AtomicBool::new(!settings.script.is_empty()),
            script: Mutex::new(settings.script),
            requests: AtomicU64::new(0),
            others: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
        }
    }

    pub(crate) fn chaos(&self) -> Arc<Chaos> {
        self.chaos.load_full()
    }

    pub(crate) fn set_chaos(&self, faults: Vec<Fault>) {
        let chaos = Chaos::new(faults, time::now(), self.seed);
        self.chaos.store(Arc::new(chaos));
        self.chaos_changed.notify_one();
    }

    pub(crate) fn extend_script(&self, replies: impl IntoIterator<Item = Reply>) {
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script.extend(replies);
        self.scripted.store(!script.is_empty(), Relaxed);
    }

    pub(crate) fn next_reply(&self) -> Option<Reply> {
        if !self.scripted.load(Relaxed) {
            return None;
        }
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = script.pop_front();
        self.scripted.store(!script.is_empty(), Relaxed);
        reply
    }

    pub(crate) fn next_request(&self, now: Instant) -> u64 {
        self.meters.request();
        self.floor().pace.event(now);
        self.requests.fetch_add(1, Relaxed)
    }

    /// A request got an error of the server's, or less than a whole answer.
    pub(crate) fn failed(&self, now: Instant) {
        self.floor().errors.event(now);
    }

    /// Requests and failures in a second.
    fn rates(&self) -> (f64, f64) {
        let (floor, now) = (self.floor(), time::now());
        (floor.pace.per_second(now), floor.errors.per_second(now))
    }

    pub(crate) fn next_other(&self) -> u64 {
        self.others.fetch_add(1, Relaxed)
    }

    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Relaxed)
    }

    pub(crate) fn enter(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn exit(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub(crate) fn crash(&self) {
        self.phase.send_replace(Phase::Down);
    }

    pub(crate) fn is_down(&self) -> bool {
        *self.phase.borrow() == Phase::Down
    }

    /// 16 hexadecimal digits that no other request of this backend has.
    pub(crate) fn unique(&self, nth: u64) -> String {
        format!("{:016x}", mix(nth ^ self.name))
    }

    /// Waits for a slot, and until the prompt is processed.
    pub(crate) async fn serve(self: &Arc<Self>, prompts: &[Prompt]) -> Result<Serving, Failure> {
        let permit = self.slots.take().await.map_err(|_| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Failure::new(
                status,
                "queue_full",
                "all slots are taken and the queue is full",
            )
            .retry_after(Some(self.wait()))
        })?;
        let mut serving = Serving {
            instance: Arc::clone(self),
            _permit: permit,
            mark: None,
            sleep: None,
            cached: 0,
        };
        let tokens = prompts.iter().map(|prompt| prompt.tokens);
        let tokens = tokens.fold(0, u32::saturating_add);
        let mut delay = self.first_token;
        if !self.prompt_token.is_zero() {
            let mut floor = self.floor();
            for prompt in prompts {
                let cached = floor.prefixes.look_up(&prompt.text).min(prompt.tokens);
                serving.cached = serving.cached.saturating_add(cached);
            }
            drop(floor);
            let unknown = tokens.saturating_sub(serving.cached);
            delay = delay.saturating_add(self.prompt_token.saturating_mul(unknown));
        }
        self.meters.prompt(tokens, serving.cached);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if let Some(sharing) = &mut self.floor().sharing {
            serving.mark = Some(sharing.join(time::now()));
        }
        Ok(serving)
    }

    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            in_flight: self.in_flight(),
            active: self.slots.active(),
            queued: self.slots.queued(),
            slots: self.slots.total(),
        }
    }

    pub(crate) fn load(&self) -> Load {
        let gauges = self.gauges();
        let free = gauges.slots == 0 || gauges.active < gauges.slots;
        let wait = if free { Duration::ZERO } else { self.wait() };
        let (requests_per_second, errors_per_second) = self.rates();
        Load {
            instance_id: self.id.clone(),
            active: gauges.active,
            queued: gauges.queued,
            slots: gauges.slots,
            requests_per_second,
            errors_per_second,
            simulated_load_seconds: wait.as_secs_f64(),
            cpu_simulation: 100.0 * share(gauges.active, gauges.slots),
        }
    }

    /// The load in the text form of ORCA's `endpoint-load-metrics`.
    ///
    /// `cpu_utilization` is the share of slots in use; `application_utilization` counts the queue as well, so that it
    /// goes beyond 1. `in_flight` counts both. `eps` are errors in a second, of `rps_fractional` requests.
    pub(crate) fn orca(&self) -> HeaderValue {
        let gauges = self.gauges();
        let cpu = share(gauges.active, gauges.slots);
        let application = share(gauges.active + gauges.queued, gauges.slots);
        let (rate, errors) = self.rates();
        let text = format!(
            "TEXT cpu_utilization={cpu:.3}, rps_fractional={rate:.1}, eps={errors:.1}, application_utilization={application:.3}, \
             named_metrics.queue_depth={}, named_metrics.in_flight={}",
            gauges.queued,
            gauges.active + gauges.queued,
        );
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("visible ASCII")
    }

    /// About how long one who comes now waits for a slot, when all are taken.
    fn wait(&self) -> Duration {
        let ahead = self.slots.queued() as f64 + 1.0;
        let tokens = self.floor().sharing.as_ref().map(Sharing::rate);
        // The rate is shared: it finishes this many answers per second, however many are served together.
        let each = tokens.map_or(0.0, |rate| self.lengths.mean() / rate);
        let first = self.first_token.as_secs_f64() / self.slots.total().max(1) as f64;
        Duration::try_from_secs_f64(ahead * (each + first)).unwrap_or(Duration::MAX)
    }

    fn floor(&self) -> MutexGuard<'_, Floor> {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 / whole as f64,
    }
}

/// What is to be answered.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) tokens: u32,
}

impl Prompt {
    pub(crate) fn new(text: String) -> Self {
        let tokens = prompt_tokens(&text);
        Self { text, tokens }
    }
}

/// A request that has a slot: its share of the rate is taken as long as this lives.
pub(crate) struct Serving {
    instance: Arc<Instance>,
    _permit: OwnedSemaphorePermit,
    /// Where its tokens are counted from, once the prompt is processed; none without a limit.
    mark: Option<f64>,
    sleep: Option<Pin<Box<Sleep>>>,
    cached: u32,
}

impl Serving {
    /// How many tokens of the prompt were known.
    pub(crate) fn cached(&self) -> u32 {
        self.cached
    }

    /// Ready when this many tokens are due.
    pub(crate) fn poll_due(&mut self, tokens: u32, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mark) = self.mark else {
            return Poll::Ready(());
        };
        loop {
            let next = {
                let mut floor = self.instance.floor();
                let sharing = floor.sharing.as_mut().expect("a mark is of a sharing");
                let due = sharing.due(mark, time::now());
                if due >= u64::from(tokens) {
                    return Poll::Ready(());
                }
                // One token and no further: by then others may have come or gone.
                sharing.due_at(mark, due + 1)
            };
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(next)));
            if sleep.deadline() != next {
                sleep.as_mut().reset(next);
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.mark.is_some()
            && let Some(sharing) = &mut self.instance.floor().sharing
        {
            sharing.leave(time::now());
        }
    }
}
