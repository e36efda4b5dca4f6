use std::error::Error;

use http::HeaderMap;
use palisade_core::{
    classify::Verdict,
    head::ResponseHead,
    reject::{Reason, Rejected},
};

/// How a service has failed, for conditions and functions.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub(crate) verdict: Verdict,
    pub(crate) answer: Option<ResponseHead<'a>>,
    /// Of an answer that was held back until its end.
    pub(crate) trailers: Option<&'a HeaderMap>,
    pub(crate) error: Option<&'a (dyn Error + 'static)>,
    pub(crate) by: Option<&'a str>,
}

impl<'a> Failure<'a> {
    /// Of a service that is passed over because a handle says so.
    pub(crate) const PASSED_OVER: Failure<'static> = Failure {
        verdict: Verdict::Unsent,
        answer: None,
        trailers: None,
        error: None,
        by: None,
    };

    /// The judgement. [`Verdict::Unsent`] also when the alternative is [forced](crate::Mode::Forced): nothing was asked.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The head of the answer, if there was one.
    pub fn answer(&self) -> Option<&ResponseHead<'a>> {
        self.answer.as_ref()
    }

    /// The error, of the call or of a body that broke before its first data.
    pub fn error(&self) -> Option<&'a (dyn Error + 'static)> {
        self.error
    }

    /// Why a layer of palisade refused the request, if one did.
    pub fn reason(&self) -> Option<Reason> {
        self.error.and_then(Rejected::find).map(Rejected::reason)
    }

    /// The alternative that has failed; `None` for the service itself.
    pub fn by(&self) -> Option<&'a str> {
        self.by
    }

    /// Whether it is one, be it worth an alternative or not.
    pub(crate) fn is_one(&self) -> bool {
        !matches!(self.verdict, Verdict::Success | Verdict::Canceled)
    }
}

/// Whether the service could not serve, and somebody else may: what an alternative is asked after unless a layer is told
/// otherwise.
///
/// A failure, overload, no answer in time, nothing sent; and what a layer further in refused because of the state of the
/// service. Not what it refused because of the caller: a limit that has a way around is none.
///
/// ```
/// use palisade_core::classify::Verdict;
/// use palisade_fallback::{Failure, FallbackLayer, unserved};
///
/// // Also what the service does not know: another one may.
/// let layer = FallbackLayer::<()>::new()
///     .condition(|failure| unserved(failure) || failure.verdict() == Verdict::CallerFault);
/// # let _ = layer;
/// ```
pub fn unserved(failure: &Failure<'_>) -> bool {
    match failure.verdict {
        Verdict::Failure | Verdict::Overload { .. } | Verdict::TimedOut | Verdict::Unsent => true,
        Verdict::Refused(reason) => matches!(
            reason,
            Reason::CircuitOpen
                | Reason::NoEndpoint
                | Reason::Overloaded
                | Reason::StoreUnavailable
                | Reason::TimedOut
                | Reason::DeadlineExceeded
        ),
        _ => false,
    }
}
