use std::{borrow::Cow, fmt, io, sync::Arc, time::Duration};

use http::StatusCode;
use palisade_core::{BoxError, head::RequestHead, ratio::Ratio};

use crate::{delay::Delay, error::Injected};

/// Something that goes wrong on purpose: what, how often, for whom and when.
///
/// ```
/// use std::time::Duration;
/// use http::StatusCode;
/// use palisade_chaos::{After, Delay, Fault, Ratio};
///
/// let tenth = Ratio::new(0.1)?;
/// let faults = [
///     Fault::latency(Delay::constant(Duration::from_millis(200))).share(tenth),
///     // From the tenth second on, for half a minute, and on one path only.
///     Fault::status(StatusCode::SERVICE_UNAVAILABLE)
///         .named("outage")
///         .during(Duration::from_secs(10), Duration::from_secs(30))
///         .when(|head| head.uri.path() == "/pay"),
///     Fault::abort(After::Bytes(1024)).share(tenth),
/// ];
/// assert_eq!(faults[1].name(), "outage");
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone)]
pub struct Fault {
    name: Cow<'static, str>,
    pub(crate) kind: Kind,
    share: Option<Ratio>,
    condition: Option<Arc<Condition>>,
    during: Option<(Duration, Duration)>,
    on_demand: bool,
}

type Condition = dyn Fn(&RequestHead<'_>) -> bool + Send + Sync;

#[derive(Clone)]
pub(crate) enum Kind {
    Latency(Delay),
    Ends(Ends),
    Cuts(Cuts),
}

/// How a request ends before the service is called.
#[derive(Clone)]
pub(crate) enum Ends {
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    Grpc {
        code: u8,
        retry_after: Option<Duration>,
    },
    Error(Arc<dyn Fn(Injected) -> BoxError + Send + Sync>),
    Hang,
}

/// What happens to the body of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cuts {
    Abort(After),
    Stall(After, Option<Duration>),
    Drip(usize, Duration),
}

/// How much of a body passes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// This many bytes; a frame that goes beyond is cut there.
    Bytes(u64),
    /// This many frames of data.
    Frames(u64),
}

impl Fault {
    /// Holds a request up before the service is called. Several of them add up.
    pub fn latency(delay: Delay) -> Self {
        Self::new("latency", Kind::Latency(delay))
    }

    /// Answers with this status, and the service is not called. Requests of gRPC get the code that gRPC's rules for
    /// answers in HTTP make of it.
    pub fn status(status: StatusCode) -> Self {
        let retry_after = None;
        let ends = Ends::Status {
            status,
            retry_after,
        };
        Self::new("status", Kind::Ends(ends))
    }

    /// Ends a call of gRPC with this code, trailers-only, and the service is not called. Other requests pass.
    pub fn grpc_status(code: u8) -> Self {
        let retry_after = None;
        let ends = Ends::Grpc { code, retry_after };
        Self::new("grpc_status", Kind::Ends(ends))
    }

    /// Fails as if the connection was refused: no byte was sent.
    pub fn refuse() -> Self {
        Self::error(|injected| io::Error::new(io::ErrorKind::ConnectionRefused, injected).into())
            .named("refuse")
    }

    /// Fails as if the connection broke before the head of the answer.
    pub fn reset() -> Self {
        Self::error(|injected| reset(injected).into()).named("reset")
    }

    /// Fails with an error of one's own: with [`Injected`] among its causes, it can be told from a real one.
    pub fn error<F>(error: F) -> Self
    where
        F: Fn(Injected) -> BoxError + Send + Sync + 'static,
    {
        Self::new("error", Kind::Ends(Ends::Error(Arc::new(error))))
    }

    /// Never answers, and the service is not called. Only a timeout or the caller ends it.
    pub fn hang() -> Self {
        Self::new("hang", Kind::Ends(Ends::Hang))
    }

    /// Breaks the body of the answer off with an error once so much of it has passed, be it all of it. A shorter one
    /// passes.
    pub fn abort(after: After) -> Self {
        Self::new("abort", Kind::Cuts(Cuts::Abort(after)))
    }

    /// Stops the body of the answer once so much of it has passed. Nothing goes on: only a timeout or the caller ends it.
    pub fn stall(after: After) -> Self {
        Self::new("stall", Kind::Cuts(Cuts::Stall(after, None)))
    }

    /// Stops the body of the answer once so much of it has passed, and goes on after a while.
    pub fn pause(after: After, length: Duration) -> Self {
        Self::new("pause", Kind::Cuts(Cuts::Stall(after, Some(length))))
    }

    /// Passes the body of the answer on in pieces of so many bytes, at least one, with a pause between them.
    pub fn drip(bytes: usize, every: Duration) -> Self {
        Self::new("drip", Kind::Cuts(Cuts::Drip(bytes.max(1), every)))
    }

    /// Says when to come back: `Retry-After` in seconds or `grpc-retry-pushback-ms`, rounded up. For those that answer
    /// with a status.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        if let Kind::Ends(Ends::Status { retry_after, .. } | Ends::Grpc { retry_after, .. }) =
            &mut self.kind
        {
            *retry_after = Some(delay);
        }
        self
    }

    /// The label `fault` in metrics, the name for a handle and for requests that ask for it; its kind otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Strikes this share of requests, drawn for each; all otherwise.
    #[must_use]
    pub fn share(mut self, share: Ratio) -> Self {
        self.share = Some(share);
        self
    }

    /// Strikes only these requests.
    #[must_use]
    pub fn when<F>(mut self, condition: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    {
        self.condition = Some(Arc::new(condition));
        self
    }

    /// Strikes only during `length`, which begins `from` after the faults were switched on.
    #[must_use]
    pub fn during(mut self, from: Duration, length: Duration) -> Self {
        self.during = Some((from, length));
        self
    }

    /// Strikes only requests that [ask for it](crate::ChaosLayer::on_demand).
    #[must_use]
    pub fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            share: None,
            condition: None,
            during: None,
            on_demand: false,
        }
    }

    /// Whether it concerns a request that does not ask for it, by what was drawn and how long faults have been on.
    pub(crate) fn strikes(
        &self,
        share: impl FnOnce() -> f64,
        on: impl FnOnce() -> Duration,
    ) -> bool {
        !self.on_demand
            && self.share.is_none_or(|limit| share() < limit.get())
            && self.during.is_none_or(|(from, length)| {
                let since = on().checked_sub(from);
                since.is_some_and(|since| since < length)
            })
    }

    /// Whether it may concern such a request at all.
    pub(crate) fn allows(&self, head: &RequestHead<'_>, is_grpc: bool) -> bool {
        let fits = is_grpc || !matches!(self.kind, Kind::Ends(Ends::Grpc { .. }));
        fits && self
            .condition
            .as_ref()
            .is_none_or(|condition| condition(head))
    }
}

pub(crate) fn reset(injected: Injected) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, injected)
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status { .. } => "Status",
            Self::Grpc { .. } => "Grpc",
            Self::Error(_) => "Error",
            Self::Hang => "Hang",
        })
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("name", &self.name)
            .field("share", &self.share)
            .field("during", &self.during)
            .field("on_demand", &self.on_demand)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_has_its_first_instant_and_not_its_last() {
        let fault = Fault::hang().during(SECOND, 2 * SECOND);
        let strikes = |at| fault.strikes(|| 0.0, || at);
        let nano = Duration::from_nanos(1);
        assert!(!strikes(SECOND - nano) && strikes(SECOND));
        assert!(strikes(3 * SECOND - nano) && !strikes(3 * SECOND));
    }

    #[test]
    fn a_share_strikes_what_is_drawn_below_it() {
        let fault = Fault::hang().share(Ratio::HALF);
        let strikes = |share| fault.strikes(|| share, || Duration::ZERO);
        assert!(strikes(0.0) && strikes(0.499) && !strikes(0.5) && !strikes(0.9));
        let all = Fault::hang().share(Ratio::new(1.0).unwrap());
        assert!(all.strikes(|| 1.0 - f64::EPSILON, || Duration::ZERO));
    }

    #[test]
    fn neither_clock_nor_chance_is_asked_without_need() {
        let strikes = Fault::hang().strikes(|| unreachable!(), || unreachable!());
        assert!(strikes);
    }
}
