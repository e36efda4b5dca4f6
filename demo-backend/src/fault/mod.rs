//! What can go wrong, said in one line or in JSON.

use std::{num::NonZero, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

mod words;

pub use words::InvalidFault;
pub(crate) use words::{LATENCY, WORDS};
use words::{Name, Spec, checked_share};

/// Something that goes wrong on purpose: what, for which share of the requests, and when.
///
/// Written as one line, as `--fault` takes it, or as a JSON object with the same keys, as `POST /chaos` takes it:
///
/// | fault | what happens | keys of its own |
/// |---|---|---|
/// | `latency` | answers later | `delay=50ms`, or `min=`, `max=` (uniform), or `median=`, `sigma=` (lognormal) |
/// | `error` | an error instead of an answer | `status=500`, `retry-after=` (none) |
/// | `rate-limit` | 429 with `Retry-After` | `retry-after=1s` |
/// | `hang` | the request is taken and never answered | |
/// | `refuse` | the connection is reset before anything is read from it; a kept one at its next request (HTTP/2: that stream) | |
/// | `reset` | the connection (HTTP/2: the stream) is reset within the body | `after=2` |
/// | `stall` | nothing more comes within the body, nor its end | `after=2` |
/// | `drip` | the body comes a few bytes at a time | `bytes=1`, `every=100ms` |
/// | `malformed` | JSON that is cut off, in an answer that is otherwise whole | `after=2` |
/// | `content-length` | a length that is `by` bytes off; a stream claims to be that long | `by=16` |
/// | `crash` | the program ends; in a test all connections are dropped and no new ones taken | |
///
/// Keys for all: `share=1` of the requests, from 0 to 1; `from=0s` and `for=` (without end), counted from the moment
/// when the fault was set; `on=` `requests` (`/generate` and `/v1`), `health` or `all` (these two). `/chaos`, `/load` and
/// `/metrics` stay as they are, but for `refuse` and `crash`, which know no paths.
///
/// `after` counts the events of a stream that still come whole; an answer of known length is cut in its middle.
/// A crash of share 1 does not wait for a request: it happens as soon as its time has come.
///
/// ```
/// use demo_backend::Fault;
///
/// let fault: Fault = "error,status=503,share=0.5,from=10s,for=5s".parse()?;
/// let same: Fault = serde_json::from_str(
///     r#"{"fault": "error", "status": 503, "share": 0.5, "from": "10s", "for": "5s"}"#,
/// )?;
/// assert_eq!(fault, same);
///
/// let mistake = "error,status=teapot".parse::<Fault>().unwrap_err();
/// assert_eq!(mistake.to_string(), r#"column 7: status: "teapot" is no number from 400 to 599"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Spec", into = "Spec")]
pub struct Fault {
    pub(crate) kind: Kind,
    pub(crate) share: f64,
    pub(crate) from: Duration,
    pub(crate) lasting: Option<Duration>,
    pub(crate) on: Target,
}

/// Which requests a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// `/generate` and `/v1`.
    #[default]
    Requests,
    /// `/health`.
    Health,
    /// Both.
    All,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Latency(Latency),
    Error {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    RateLimit {
        retry_after: Duration,
    },
    Hang,
    Refuse,
    Reset {
        after: u32,
    },
    Stall {
        after: u32,
    },
    Drip {
        bytes: NonZero<u32>,
        every: Duration,
    },
    Malformed {
        after: u32,
    },
    ContentLength {
        by: i64,
    },
    Crash,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Latency {
    Constant(Duration),
    Uniform { min: Duration, max: Duration },
    LogNormal { median: Duration, sigma: f64 },
}

/// A stream still sends its first event and one token: enough to be past the point of no return.
const AFTER: u32 = 2;

impl Fault {
    fn always(kind: Kind) -> Self {
        Self {
            kind,
            share: 1.0,
            from: Duration::ZERO,
            lasting: None,
            on: Target::Requests,
        }
    }

    /// Answers this much later.
    pub fn latency(delay: Duration) -> Self {
        Self::always(Kind::Latency(Latency::Constant(delay)))
    }

    /// Answers with an error.
    pub fn error(status: StatusCode) -> Self {
        let retry_after = None;
        Self::always(Kind::Error {
            status,
            retry_after,
        })
    }

    /// Answers with 429 and this `Retry-After`, in seconds rounded up.
    pub fn rate_limit(retry_after: Duration) -> Self {
        Self::always(Kind::RateLimit { retry_after })
    }

    /// Takes requests and never answers.
    pub fn hang() -> Self {
        Self::always(Kind::Hang)
    }

    /// Resets connections before anything is read from them.
    pub fn refuse() -> Self {
        Self::always(Kind::Refuse)
    }

    /// Resets within the body: a stream after this many events, another answer in its middle.
    pub fn reset(after: u32) -> Self {
        Self::always(Kind::Reset { after })
    }

    /// Sends nothing more within the body: a stream after this many events, another answer from its middle.
    pub fn stall(after: u32) -> Self {
        Self::always(Kind::Stall { after })
    }

    /// Sends the body a few bytes at a time.
    pub fn drip(bytes: NonZero<u32>, every: Duration) -> Self {
        Self::always(Kind::Drip { bytes, every })
    }

    /// Cuts the JSON of an answer, or of the event after this many, in its middle.
    pub fn malformed(after: u32) -> Self {
        Self::always(Kind::Malformed { after })
    }

    /// Claims a length that is this many bytes off.
    pub fn content_length(by: i64) -> Self {
        Self::always(Kind::ContentLength { by })
    }

    /// Ends the program; in a test, drops all connections and takes no new ones.
    pub fn crash() -> Self {
        Self::always(Kind::Crash)
    }

    /// Strikes this share of the requests, from 0 to 1.
    pub fn share(mut self, share: f64) -> Result<Self, InvalidFault> {
        self.share = checked_share(share).map_err(InvalidFault::new)?;
        Ok(self)
    }

    /// Strikes from this long after it was set.
    #[must_use]
    pub fn starting(mut self, from: Duration) -> Self {
        self.from = from;
        self
    }

    /// Strikes for this long, then no more.
    #[must_use]
    pub fn lasting(mut self, lasting: Duration) -> Self {
        self.lasting = Some(lasting);
        self
    }

    /// Strikes these requests.
    #[must_use]
    pub fn on(mut self, on: Target) -> Self {
        self.on = on;
        self
    }

    /// `latency`, `error` ...: the first word of the line.
    pub fn name(&self) -> &'static str {
        self.kind.name().word()
    }
}

impl Kind {
    fn name(&self) -> Name {
        match self {
            Self::Latency(_) => Name::Latency,
            Self::Error { .. } => Name::Error,
            Self::RateLimit { .. } => Name::RateLimit,
            Self::Hang => Name::Hang,
            Self::Refuse => Name::Refuse,
            Self::Reset { .. } => Name::Reset,
            Self::Stall { .. } => Name::Stall,
            Self::Drip { .. } => Name::Drip,
            Self::Malformed { .. } => Name::Malformed,
            Self::ContentLength { .. } => Name::ContentLength,
            Self::Crash => Name::Crash,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.name() as usize
    }
}

impl Latency {
    pub(crate) fn draw(&self, rng: &mut Rng) -> Duration {
        match *self {
            Self::Constant(delay) => delay,
            Self::Uniform { min, max } => min + (max - min).mul_f64(rng.unit()),
            Self::LogNormal { median, sigma } => {
                let seconds = median.as_secs_f64() * (sigma * rng.normal()).exp();
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constructors_say_what_the_lines_say() {
        let line = |line: &str| line.parse::<Fault>().unwrap();
        let second = Duration::from_secs(1);
        let fault = Fault::error(StatusCode::BAD_GATEWAY);
        let fault = fault
            .share(0.5)
            .unwrap()
            .starting(second)
            .lasting(2 * second);
        let fault = fault.on(Target::All);
        assert_eq!(
            fault,
            line("error,status=502,share=0.5,from=1s,for=2s,on=all")
        );
        assert_eq!(Fault::latency(second), line("latency,delay=1s"));
        assert_eq!(Fault::rate_limit(second), line("rate-limit"));
        assert_eq!(Fault::reset(2), line("reset"));
        assert_eq!(Fault::stall(2), line("stall"));
        assert_eq!(Fault::malformed(2), line("malformed"));
        assert_eq!(Fault::content_length(16), line("content-length"));
        let drip = Fault::drip(NonZero::<u32>::MIN, Duration::from_millis(100));
        assert_eq!(drip, line("drip"));
        assert_eq!(Fault::hang(), line("hang"));
        assert_eq!(Fault::crash(), line("crash"));
        assert!(Fault::hang().share(1.01).is_err());
        assert!(Fault::hang().share(f64::NAN).is_err());
    }

    #[test]
    fn latencies_follow_their_distribution() {
        let mut rng = Rng::of(3, 3);
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(20));
        let uniform = Latency::Uniform { min, max };
        assert!((0..1000).all(|_| (min..max).contains(&uniform.draw(&mut rng))));
        let median = Duration::from_millis(50);
        let normal = Latency::LogNormal { median, sigma: 1.0 };
        let mut drawn: Vec<_> = (0..1001).map(|_| normal.draw(&mut rng)).collect();
        drawn.sort();
        assert!(
            drawn[500].abs_diff(median) < Duration::from_millis(6),
            "{:?}",
            drawn[500]
        );
        // One deviation above the median is e times the median, which 16 % exceed.
        assert!(drawn[841].abs_diff(median.mul_f64(std::f64::consts::E)) < median / 2);
    }
}
