//! What the parts of the gateway tell each other about one request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
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
    pub(crate) attempts: Attempts,
    stream: AtomicBool,
    /// As far as that can be told from the request.
    prompt: AtomicU64,
    backend: Mutex<Option<Arc<Backend>>>,
    generated: Mutex<Option<Generated>>,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    /// Nanoseconds.
    waited: AtomicU64,
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
            stream: AtomicBool::new(false),
            prompt: AtomicU64::new(0),
            backend: Mutex::new(None),
            generated: Mutex::new(None),
            prompt_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    /// Says what the body has said: how many tokens its prompt may have, and whether a stream of events is asked for.
    pub(crate) fn asked_for(&self, prompt: u64, stream: bool) {
        self.prompt.store(prompt, Relaxed);
        self.stream.store(stream, Relaxed);
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
        Duration::from_nanos(self.waited.load(Relaxed))
    }
}

/// Counts the time until it is dropped as waiting for a backend.
#[derive(Debug)]
pub(crate) struct Waiting {
    exchange: Arc<Exchange>,
    since: Instant,
}

impl Waiting {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        let since = time::now();
        Self { exchange, since }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = time::now().saturating_duration_since(self.since);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.exchange.waited.fetch_add(nanos, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
