//! What the parts of the gateway tell each other about one request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade::{attempt::Attempts, classify::Usage, time};
use tokio::time::Instant;

use crate::{backends::Backend, identity::Caller};

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
    /// Those for the model that was asked for.
    pub(crate) attempts: Attempts,
    /// Those for models that were asked instead.
    elsewhere: AtomicU32,
    stream: AtomicBool,
    /// As far as that can be told from the request.
    prompt: AtomicU64,
    backend: Mutex<Option<Arc<Backend>>>,
    generated: Mutex<Option<Generated>>,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    waits: Mutex<Waits>,
}

/// What a backend answered to `/generate`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    pub(crate) response: String,
    pub(crate) tokens_used: u64,
}

impl Exchange {
    pub(crate) fn new(caller: Arc<Caller>, operation: Operation) -> Self {
        Self {
            caller,
            operation,
            attempts: Attempts::default(),
            elsewhere: AtomicU32::new(0),
            stream: AtomicBool::new(false),
            prompt: AtomicU64::new(0),
            backend: Mutex::new(None),
            generated: Mutex::new(None),
            prompt_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
            waits: Mutex::default(),
        }
    }

    /// Says what the body has said: how many tokens its prompt may have, and whether a stream of events is asked for.
    pub(crate) fn asked_for(&self, prompt: u64, stream: bool) {
        self.prompt.store(prompt, Relaxed);
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

    /// How long backends were waited for.
    pub(crate) fn waited(&self) -> Duration {
        lock(&self.waits).total
    }
}

/// The time for which at least one backend was waited for.
#[derive(Debug, Default)]
struct Waits {
    open: u32,
    since: Option<Instant>,
    total: Duration,
}

/// Counts the time until it is dropped as waiting for a backend.
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
