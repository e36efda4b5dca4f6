//! What the parts of the gateway tell each other about one request.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade::{
    attempt::Attempts,
    classify::{Usage, Verdict},
    rate_limit::Tokens,
    time,
};
use tokio::time::Instant;

use crate::{backends::Backend, identity::Caller, record::Cause};

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Generate,
    Chat,
    Completion,
    Embeddings,
    Models,
}

impl Operation {
    pub(crate) const ALL: [Self; 5] = [
        Self::Generate,
        Self::Chat,
        Self::Completion,
        Self::Embeddings,
        Self::Models,
    ];

    /// As `gen_ai.operation.name` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate_content",
            Self::Chat => "chat",
            Self::Completion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
        }
    }
}

/// One request on its way through the layers. In its extensions, as an [`Arc`].
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) caller: Arc<Caller>,
    pub(crate) operation: Operation,
    /// When it came, before its body was read: as its [`Entry`](crate::record::Entry) has it.
    pub(crate) since: Instant,
    /// Those for the model that was asked for.
    pub(crate) attempts: Attempts,
    /// Those for models that were asked instead.
    elsewhere: AtomicU32,
    stream: AtomicBool,
    batch: AtomicBool,
    model: OnceLock<Arc<str>>,
    /// As far as that can be told from the request.
    prompt: AtomicU64,
    backend: Mutex<Option<Arc<Backend>>>,
    generated: Mutex<Option<Generated>>,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    waits: Mutex<Waits>,
    end: OnceLock<Ended>,
    cause: Mutex<Option<Cause>>,
}

/// How a request has ended that went through the layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) verdict: Verdict,
    pub(crate) usage: Option<Usage>,
    /// From when it came.
    pub(crate) first_data: Option<Duration>,
}

/// What a backend answered to `/generate`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    pub(crate) response: String,
    pub(crate) tokens_used: u64,
}

impl Exchange {
    pub(crate) fn new(caller: Arc<Caller>, operation: Operation, since: Instant) -> Self {
        Self {
            caller,
            operation,
            since,
            attempts: Attempts::default(),
            elsewhere: AtomicU32::new(0),
            stream: AtomicBool::new(false),
            batch: AtomicBool::new(false),
            model: OnceLock::new(),
            prompt: AtomicU64::new(0),
            backend: Mutex::new(None),
            generated: Mutex::new(None),
            prompt_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
            waits: Mutex::default(),
            end: OnceLock::new(),
            cause: Mutex::default(),
        }
    }

    /// Says what the body has said: what is asked of which model, and whether for a stream of events.
    pub(crate) fn asked_for(&self, tokens: &Tokens, stream: bool) {
        self.prompt.store(tokens.prompt, Relaxed);
        // A request asks once.
        let _first = self.model.set(tokens.model.clone());
        self.stream.store(stream, Relaxed);
    }

    /// How many attempts there were, of whatever model.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.count() + self.elsewhere.load(Relaxed)
    }

    /// Another model was asked, so often.
    pub(crate) fn asked_elsewhere(&self, attempts: u32) {
        self.elsewhere.fetch_add(attempts, Relaxed);
    }

    /// The model that was asked for.
    pub(crate) fn model(&self) -> Option<Arc<str>> {
        self.model.get().cloned()
    }

    /// Many requests came in this one.
    pub(crate) fn becomes_batch(&self) {
        self.batch.store(true, Relaxed);
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.batch.load(Relaxed)
    }

    /// It has ended, as the layers see it.
    pub(crate) fn ended(&self, end: Ended) {
        // Only the first end is one.
        let _first = self.end.set(end);
    }

    pub(crate) fn end(&self) -> Option<Ended> {
        self.end.get().copied()
    }

    /// Says why it is no success.
    pub(crate) fn because(&self, cause: Cause) {
        *lock(&self.cause) = Some(cause);
    }

    pub(crate) fn take_cause(&self) -> Option<Cause> {
        lock(&self.cause).take()
    }

    /// Whether a stream of events was asked for.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.load(Relaxed)
    }

    /// Of so many tokens in all, those that were read and those that were written.
    pub(crate) fn divide(&self, total: u64) -> Usage {
        let prompt = self.prompt.load(Relaxed).min(total);
        Usage {
            prompt,
            completion: total - prompt,
        }
    }

    /// The backend of the newest attempt.
    pub(crate) fn backend(&self) -> Option<Arc<Backend>> {
        lock(&self.backend).clone()
    }

    pub(crate) fn reached(&self, backend: Arc<Backend>) {
        *lock(&self.backend) = Some(backend);
    }

    /// Takes what an attempt has read out of its answer.
    pub(crate) fn take_generated(&self) -> Option<Generated> {
        lock(&self.generated).take()
    }

    pub(crate) fn generated(&self, generated: Generated) {
        *lock(&self.generated) = Some(generated);
    }

    /// The tokens that a plain answer counted.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let usage = Usage {
            prompt: self.prompt_tokens.load(Relaxed),
            completion: self.completion_tokens.load(Relaxed),
        };
        (usage != Usage::default()).then_some(usage)
    }

    pub(crate) fn used(&self, usage: Usage) {
        self.prompt_tokens.store(usage.prompt, Relaxed);
        self.completion_tokens.store(usage.completion, Relaxed);
    }

    /// How long others were waited for until now: backends, and the caller's body.
    pub(crate) fn waited(&self) -> Duration {
        let waits = lock(&self.waits);
        let open = waits
            .since
            .map(|since| time::now().saturating_duration_since(since));
        waits.total + open.unwrap_or_default()
    }
}

/// The time for which at least one other was waited for.
#[derive(Debug, Default)]
struct Waits {
    open: u32,
    since: Option<Instant>,
    total: Duration,
}

/// Counts the time until it is dropped as waiting for others.
#[derive(Debug)]
pub(crate) struct Waiting {
    exchange: Arc<Exchange>,
}

impl Waiting {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        let mut waits = lock(&exchange.waits);
        waits.open += 1;
        if waits.open == 1 {
            waits.since = Some(time::now());
        }
        drop(waits);
        Self { exchange }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = lock(&self.exchange.waits);
        waits.open -= 1;
        if waits.open == 0
            && let Some(since) = waits.since.take()
        {
            waits.total += time::now().saturating_duration_since(since);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
