//! Health checks: made-up requests that find out what no real request should have to.

mod ask;
mod checker;
mod grpc;
mod http;
mod metrics;
mod tally;
#[cfg(feature = "tcp")]
mod tcp;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use palisade_core::{BoxError, gate::Gate};

#[cfg(any(test, feature = "simulation"))]
pub(crate) use self::tally::Tally;
#[cfg(feature = "tcp")]
pub use self::tcp::TcpCheck;
pub use self::{checker::HealthChecker, grpc::GrpcCheck, http::HttpCheck};
use crate::Endpoints;

/// How often to check, and how many checks decide.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::HealthChecks;
///
/// let checks = HealthChecks::every(Duration::from_secs(10))
///     .timeout(Duration::from_secs(1))
///     .rise(3);
/// # let _ = checks;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    every: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

/// Intervals and timeouts are no longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Default for HealthChecks {
    /// Every 30 s.
    fn default() -> Self {
        Self::every(Duration::from_secs(30))
    }
}

impl HealthChecks {
    /// Checks each endpoint at this interval, with a jitter of a fifth, and four times as often while its checks
    /// disagree with what is believed of it.
    pub fn every(interval: Duration) -> Self {
        Self {
            every: interval.clamp(Duration::from_millis(1), LONGEST),
            timeout: interval.min(Duration::from_secs(5)),
            rise: 2,
            fall: 3,
        }
    }

    /// A check that takes longer has failed: 5 s, or the interval if that is shorter, unless said otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// So many checks in a row bring an endpoint back: 2 unless said otherwise, and at least 1.
    #[must_use]
    pub fn rise(mut self, passed: u32) -> Self {
        self.rise = passed.max(1);
        self
    }

    /// So many failed checks in a row take an endpoint out: 3 unless said otherwise, and at least 1.
    #[must_use]
    pub fn fall(mut self, failed: u32) -> Self {
        self.fall = failed.max(1);
        self
    }
}

/// What one check has found: `true`, or an `Ok(())`, is good health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The endpoint is healthy.
    Passed,
    /// It is not, for this reason.
    Failed(Arc<str>),
}

impl From<bool> for Finding {
    fn from(passed: bool) -> Self {
        if passed {
            Self::Passed
        } else {
            Self::Failed("the check has failed".into())
        }
    }
}

impl<E: Into<BoxError>> From<Result<(), E>> for Finding {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Passed,
            Err(error) => Self::Failed(reason(&*error.into()).into()),
        }
    }
}

/// An error and all that caused it, as one line.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say their causes themselves.
        if !said.ends_with(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    said
}

/// The last check of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastCheck {
    /// How long ago it ended.
    pub ago: Duration,
    /// How long it took.
    pub took: Duration,
    /// What it found.
    pub finding: Finding,
}

/// The future of a check that is ready-made.
pub type Checkup = Pin<Box<dyn Future<Output = Finding> + Send>>;

impl<S, G: Gate> Endpoints<S, G> {
    /// Checks the health of all endpoints, those that come later included, as long as the future is polled: spawn it.
    /// Dropped, it leaves the checks that run, and what was found holds.
    ///
    /// `check` gets the name of an endpoint and a clone of its service, and says whether it is healthy: a `bool`, a
    /// `Result<(), _>` or a [`Finding`]. [`HttpCheck`], [`GrpcCheck`] and `TcpCheck` (feature `tcp`) make it. Checks of
    /// different endpoints run side by side, and go past the balancer: they are not in flight, and no verdict counts.
    ///
    /// An endpoint whose checks fail is [`Unhealthy`](crate::Health::Unhealthy) until they pass again; when they pass
    /// after they have failed, an ejected endpoint is probed at once. What the checks have said of a name still holds
    /// when another endpoint takes its place. Until it is first checked an endpoint is healthy, unless
    /// [`Endpoint::health`](crate::Endpoint::health) says otherwise.
    ///
    /// The future ends when the last handle of the set is gone.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use palisade_balance::{Endpoint, Endpoints, HealthChecks, HttpCheck};
    /// use palisade_core::testing::Answers;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), http::uri::InvalidUri> {
    /// let client = Answers(|| Response::new(Full::<Bytes>::from("ready")));
    /// let endpoints = Endpoints::default();
    /// endpoints.insert(Endpoint::new("a", client));
    ///
    /// let check = HttpCheck::new("/health")?.contains("ready");
    /// let check = check.through_endpoint::<_, Full<Bytes>, _>();
    /// tokio::spawn(endpoints.health_checks(HealthChecks::default(), check));
    ///
    /// // The first comes within a second.
    /// # tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    /// assert!(endpoints.snapshot()[0].last_check.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn health_checks<F, A>(&self, checks: HealthChecks, check: F) -> HealthChecker<S, G, F, A>
    where
        F: FnMut(Arc<str>, S) -> A,
        A: Future<Output: Into<Finding>>,
        S: Clone,
    {
        HealthChecker::new(self, checks, check)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reason_names_all_causes_once() {
        #[derive(Debug)]
        struct Outer(io::Error, bool);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")?;
                if self.1 {
                    write!(f, ": {}", self.0)
                } else {
                    Ok(())
                }
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        for says_it_itself in [true, false] {
            let error = Outer(io::Error::other("inner"), says_it_itself);
            assert_eq!(reason(&error), "outer: inner");
        }
    }

    #[test]
    fn findings_are_made_of_what_checks_return() {
        assert_eq!(Finding::from(true), Finding::Passed);
        assert_eq!(Finding::from(Ok::<(), BoxError>(())), Finding::Passed);
        let failed = Finding::from(Err::<(), _>("no disk"));
        assert_eq!(failed, Finding::Failed("no disk".into()));
        assert_eq!(failed.to_string(), "no disk");
        assert_ne!(Finding::from(false), Finding::Passed);
    }
}
