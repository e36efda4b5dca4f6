//! The one error shape that every layer refuses a request with.

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};

use crate::BoxError;

/// Why a layer refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The key is over its rate.
    RateLimited,
    /// The key has used up what it was given for a longer time: a day, a month.
    QuotaExhausted,
    /// The request costs more than the quota can ever hold.
    CostExceedsQuota,
    /// There is no room for the request.
    Overloaded,
    /// The breaker is open.
    CircuitOpen,
    /// No endpoint may be picked.
    NoEndpoint,
    /// The store that keeps the counts cannot be asked, and the rule says to refuse then.
    StoreUnavailable,
    /// The deadline had passed before the service was called.
    DeadlineExceeded,
    /// The service was called and did not answer in time.
    TimedOut,
}

impl Reason {
    /// The HTTP status that says the same.
    pub fn status(self) -> StatusCode {
        match self {
            Self::RateLimited | Self::QuotaExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::CostExceedsQuota => StatusCode::BAD_REQUEST,
            Self::Overloaded | Self::CircuitOpen | Self::NoEndpoint | Self::StoreUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::DeadlineExceeded | Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The gRPC status code that says the same.
    pub fn grpc(self) -> u8 {
        match self {
            Self::CostExceedsQuota => 3,
            Self::DeadlineExceeded | Self::TimedOut => 4,
            Self::RateLimited | Self::QuotaExhausted => 8,
            Self::Overloaded | Self::CircuitOpen | Self::NoEndpoint | Self::StoreUnavailable => 14,
        }
    }

    /// The name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::CostExceedsQuota => "cost_exceeds_quota",
            Self::Overloaded => "overloaded",
            Self::CircuitOpen => "circuit_open",
            Self::NoEndpoint => "no_endpoint",
            Self::StoreUnavailable => "store_unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::TimedOut => "timed_out",
        }
    }

    /// The problem type registered for it, if there is one (draft-ietf-httpapi-ratelimit-headers).
    pub fn problem_type(self) -> Option<&'static str> {
        match self {
            Self::RateLimited | Self::QuotaExhausted => {
                Some("https://iana.org/assignments/http-problem-types#quota-exceeded")
            }
            Self::Overloaded | Self::StoreUnavailable => {
                Some("https://iana.org/assignments/http-problem-types#temporary-reduced-capacity")
            }
            _ => None,
        }
    }

    /// Whether the same request can never pass.
    pub fn is_final(self) -> bool {
        self == Self::CostExceedsQuota
    }
}

/// A request that a layer refused. [`source`](Error::source) is the layer's own typed error.
///
/// As a [`BoxError`] it costs two allocations: itself and its source.
#[derive(Debug)]
pub struct Rejected {
    reason: Reason,
    delay: Option<Duration>,
    gave_up: bool,
    policy: Option<Arc<str>>,
    headers: Option<Box<HeaderMap>>,
    source: BoxError,
}

impl Rejected {
    /// Wraps a layer's own error.
    pub fn new(reason: Reason, source: impl Into<BoxError>) -> Self {
        Self {
            reason,
            delay: None,
            gave_up: false,
            policy: None,
            headers: None,
            source: source.into(),
        }
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Names the policy that the request would have violated: a rule of a rate limit.
    #[must_use]
    pub fn violates(mut self, policy: Arc<str>) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The policy that the request would have violated, if the layer has several.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// Says that trying again was tried: the answer asks the caller not to.
    pub fn give_up(&mut self) {
        self.gave_up = true;
    }

    /// Whether the caller should not send the same request again.
    pub fn is_final(&self) -> bool {
        self.gave_up || self.reason.is_final()
    }

    /// Headers that the answer to this refusal carries. Allocates.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers.get_or_insert_default()
    }

    /// Headers that the answer to this refusal carries, if any layer has added one.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.headers.as_deref()
    }

    /// Finds the rejection in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|error| error.downcast_ref())
    }

    /// Why the request was refused.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// When trying again makes sense, if the layer knows.
    pub fn delay(&self) -> Option<Duration> {
        self.delay
    }
}

/// An error and its causes. What `io::Error` wraps is a cause too, which its own `source` skips.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|error| error as _),
            None => error.source(),
        }
    })
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("request rejected")
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
