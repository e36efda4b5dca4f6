//! What is retried, and when no more.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, Method, StatusCode};
use palisade_core::{
    classify::Verdict,
    head::{RequestHead, ResponseHead},
    reject::Rejected,
    retry_after::{Pushback, pushback, retry_after},
    time::wall_clock,
};

use crate::{
    backoff::Backoff,
    budget::Budget,
    handle::{Mode, ModeCell, Stats},
    limits::Limits,
    metrics::Metrics,
};

pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
pub(crate) const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Which requests may be sent more than once.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Repeatable {
    /// GET, HEAD, OPTIONS, TRACE, PUT and DELETE, and any request with an `Idempotency-Key`.
    #[default]
    Idempotent,
    /// These, and any other of which no byte was sent. Then every request pays for being kept.
    IdempotentOrUnsent,
    /// All: for services where doing a thing twice does no harm, as with gRPC methods that only read, or a completion
    /// of a language model up to its first byte.
    All,
    /// Those of which a function says so.
    When(Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>),
}

impl Repeatable {
    /// Those of which `may_repeat` says so.
    ///
    /// ```
    /// use palisade_retry::Repeatable;
    ///
    /// let searches = Repeatable::when(|head| head.uri.path() == "/search");
    /// # assert!(format!("{searches:?}").contains("When"));
    /// ```
    pub fn when(may_repeat: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::When(Arc::new(may_repeat))
    }

    /// GET and the like, and POST to where completions, embeddings and messages of language models are asked for: paths
    /// as those of OpenAI, Anthropic and Gemini.
    ///
    /// A completion changes nothing, so that it may be asked for again until its first byte. What is lost with an attempt
    /// that has already begun is tokens, for which a [budget](crate::Budget::weighted) can count them.
    ///
    /// ```
    /// use palisade_retry::Repeatable;
    ///
    /// # assert!(format!("{:?}", Repeatable::completions()).contains("When"));
    /// let layer = palisade_retry::RetryLayer::default().repeat(Repeatable::completions());
    /// ```
    pub fn completions() -> Self {
        const ENDS: [&str; 7] = [
            "/completions",
            "/v1/messages",
            "/responses",
            "/embeddings",
            "/rerank",
            ":generateContent",
            ":streamGenerateContent",
        ];
        Self::when(|head| {
            let path = head.uri.path();
            let asks = || ENDS.iter().any(|end| path.ends_with(end));
            idempotent(head) || (head.method == Method::POST && asks())
        })
    }

    pub(crate) fn allows(&self, head: &RequestHead<'_>) -> Repeat {
        let all = match self {
            Self::Idempotent => idempotent(head),
            Self::IdempotentOrUnsent if idempotent(head) => true,
            Self::IdempotentOrUnsent => return Repeat::Unsent,
            Self::All => true,
            Self::When(may_repeat) => may_repeat(head),
        };
        if all { Repeat::Always } else { Repeat::Never }
    }
}

fn idempotent(head: &RequestHead<'_>) -> bool {
    head.method.is_idempotent() || head.headers.contains_key(IDEMPOTENCY_KEY)
}

impl fmt::Debug for Repeatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idempotent => "Idempotent",
            Self::IdempotentOrUnsent => "IdempotentOrUnsent",
            Self::All => "All",
            Self::When(_) => "When",
        })
    }
}

/// After which verdicts one request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Never,
    Unsent,
    Always,
}

/// Whether an attempt that ended like this may well do better: what is retried unless a layer is told otherwise.
///
/// Nothing was sent; no answer in time; overload that says for how long, or a 503; and failures, but not 501 and 505,
/// which stay, and of answers in gRPC only UNAVAILABLE.
///
/// ```
/// use palisade_core::classify::Verdict;
/// use palisade_retry::transient;
///
/// assert!(transient(Verdict::TimedOut, None));
/// assert!(!transient(Verdict::CallerFault, None));
/// ```
pub fn transient(verdict: Verdict, answer: Option<&ResponseHead<'_>>) -> bool {
    const UNAVAILABLE: &[u8] = b"14";

    let status = answer.map(|head| head.status);
    let grpc = answer.and_then(|head| head.headers.get(GRPC_STATUS));
    let lasting = grpc.is_some_and(|status| status.as_bytes() != UNAVAILABLE);
    match verdict {
        Verdict::Unsent => true,
        Verdict::Overload { retry_after } => {
            retry_after.is_some() || status == Some(StatusCode::SERVICE_UNAVAILABLE)
        }
        Verdict::TimedOut => !lasting,
        Verdict::Failure => {
            let never = [
                StatusCode::NOT_IMPLEMENTED,
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            ];
            !lasting && status.is_none_or(|status| !never.contains(&status))
        }
        _ => false,
    }
}

type Condition = dyn Fn(Verdict, Option<&ResponseHead<'_>>) -> bool + Send + Sync;

/// What a layer and its services share.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) attempts: u32,
    pub(crate) backoff: Backoff,
    pub(crate) budget: Budget,
    pub(crate) repeatable: Repeatable,
    pub(crate) condition: Option<Arc<Condition>>,
    pub(crate) replay_up_to: usize,
    pub(crate) wait_up_to: Duration,
    pub(crate) limits: Limits,
    pub(crate) mode: Arc<ModeCell>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) metrics: Metrics,
}

impl Policy {
    /// Limits on time, unless nothing may be cut off.
    pub(crate) fn limits(&self) -> Limits {
        match self.mode.get() {
            Mode::Enforce | Mode::Off => self.limits,
            Mode::Shadow => Limits::default(),
        }
    }

    pub(crate) fn repeat(&self, head: &RequestHead<'_>) -> Repeat {
        if self.attempts < 2 || self.mode.get() == Mode::Off {
            return Repeat::Never;
        }
        self.repeatable.allows(head)
    }

    /// Shows what is left, when that was looked up.
    pub(crate) fn paid(&self, left: Option<f64>) {
        if let Some(left) = left {
            self.metrics.budget_left(left);
        }
    }

    /// Whether this is something to retry at all, be it possible or not.
    pub(crate) fn wants(&self, repeat: Repeat, outcome: &Outcome<'_>) -> bool {
        let allowed = match outcome.verdict {
            Verdict::Success | Verdict::Canceled | Verdict::Refused(_) => false,
            Verdict::Unsent => repeat != Repeat::Never,
            _ => repeat == Repeat::Always,
        };
        let condition = self.condition.as_ref();
        allowed
            && !outcome.forbids()
            && condition.map_or_else(
                || transient(outcome.verdict, outcome.answer),
                |condition| condition(outcome.verdict, outcome.answer),
            )
    }
}

/// How an attempt ended.
pub(crate) struct Outcome<'a> {
    pub(crate) verdict: Verdict,
    pub(crate) answer: Option<&'a ResponseHead<'a>>,
    pub(crate) error: Option<&'a (dyn std::error::Error + 'static)>,
}

impl Outcome<'_> {
    /// Whether somebody further on asks not to be asked again.
    fn forbids(&self) -> bool {
        let rejected = self.error.and_then(Rejected::find);
        rejected.is_some_and(Rejected::is_final)
            || self.answer.is_some_and(|head| {
                let should_retry = head.headers.get(SHOULD_RETRY);
                should_retry.is_some_and(|value| value.as_bytes() == b"false")
                    || pushback(head.headers) == Some(Pushback::Never)
            })
    }

    /// How long the service asks to be left alone.
    pub(crate) fn hint(&self) -> Option<Duration> {
        if let Verdict::Overload {
            retry_after: Some(delay),
        } = self.verdict
        {
            return Some(delay);
        }
        let headers = self.answer?.headers;
        let pushback = pushback(headers).and_then(Pushback::delay);
        pushback.or_else(|| retry_after(headers, wall_clock()))
    }
}

/// Why something that is to be retried is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    Attempts,
    Budget,
    /// The next attempt would begin too late.
    Deadline,
    /// The service asks for more time than anybody has.
    Delay,
    /// The request's body is gone.
    Body,
}

impl Exhausted {
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; 5] = [
        Self::Attempts,
        Self::Budget,
        Self::Deadline,
        Self::Delay,
        Self::Body,
    ];

    #[cfg(feature = "metrics")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Delay => "delay",
            Self::Body => "body",
        }
    }

    /// Whether the caller should not try either: it would be one more on top of all those that were made.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Attempts | Self::Budget)
    }
}
