//! When an endpoint is taken out of choice for how its attempts end, for how long, and how it comes back.

use std::time::Duration;

use palisade_core::ratio::Ratio;
use tokio::time::Instant;

mod machine;
mod recent;
#[cfg(test)]
mod tests;

pub(crate) use self::machine::{Admitted, Fault, Machine, Standing, Verge};

/// When an endpoint is ejected for how its attempts end, and for how long. Set by
/// [`Endpoints::set_ejection`](crate::Endpoints::set_ejection).
///
/// The default ejects after five failures in a row, or when of at least ten ends within ten seconds less than 80 %
/// worked, or of the last twenty where fewer came in that time; for 1 s at first, twice as long each time, 50 s at most;
/// and at most 30 % of the endpoints at a time.
/// Who is back after failures is ejected by the first that follows until five requests in a row have worked.
/// An answer that asks to be left alone for a while (Retry-After) ejects for that long, at least for half of the first
/// pause. Ten answers of overload with none
/// between them that worked eject as failures do, unless most endpoints are overloaded. An endpoint with a gate of its
/// own is not ejected: the gate says when it is out.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::{Ejection, Endpoints};
/// use palisade_core::ratio::Ratio;
///
/// let ejection = Ejection::default()
///     .consecutive(3)
///     .success_ratio(Ratio::new(0.95)?, 100)
///     .pause(Duration::from_secs(2));
/// let endpoints = Endpoints::<()>::default();
/// // First only look at what it would do.
/// endpoints.set_ejection(ejection.shadow());
/// assert_ne!(endpoints.ejection(), ejection);
/// endpoints.set_ejection(ejection);
/// assert_eq!(endpoints.ejection(), ejection);
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    pub(crate) mode: Mode,
    consecutive: u32,
    ratio: Ratio,
    ends: u32,
    window: Duration,
    pause: Duration,
    longest: Duration,
    pub(crate) ceiling: f64,
}

/// Whether what is decided also happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    On,
    Shadow,
    Off,
}

/// Failures in a row, as Envoy and linkerd count them.
const CONSECUTIVE: u32 = 5;
const ENDS: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);
/// With the slow start after it, who works again has 80 % of its share within 60 s, whatever the chance.
const LONGEST: Duration = Duration::from_secs(50);
const CEILING: f64 = 0.3;
/// No pause and no window is longer, so that no time overflows.
const AT_MOST: Duration = Duration::from_secs(24 * 3600);
const AT_LEAST: Duration = Duration::from_millis(1);

impl Default for Ejection {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            consecutive: CONSECUTIVE,
            ratio: Ratio::new(0.8).unwrap_or(Ratio::HALF),
            ends: ENDS,
            window: WINDOW,
            pause: PAUSE,
            longest: LONGEST,
            ceiling: CEILING,
        }
    }
}

impl Ejection {
    /// Ejects nobody; failures still cost what they cost in the choice.
    pub fn off() -> Self {
        Self {
            mode: Mode::Off,
            ..Self::default()
        }
    }

    /// Decides, counts and reports what it would have ejected, and lets all through.
    #[must_use]
    pub fn shadow(mut self) -> Self {
        self.mode = Mode::Shadow;
        self
    }

    /// Ejects after so many failures in a row, at least 1; `u32::MAX` never does.
    #[must_use]
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = failures.max(1);
        self
    }

    /// Ejects when less than this share of at least so many ends worked, not counting those of overload; and after so
    /// many of overload with none between them that worked. `u32::MAX` ends never do.
    ///
    /// Where fewer came within the [window](Self::window), the last that came count, twice as many at most and at most
    /// 64, unless there was none for thirty windows.
    #[must_use]
    pub fn success_ratio(mut self, least: Ratio, ends: u32) -> Self {
        self.ratio = least;
        self.ends = ends.max(1);
        self
    }

    /// The span that the success ratio looks back over, in tenths: the running one and the nine before it.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window.clamp(AT_LEAST * 10, AT_MOST);
        self
    }

    /// How long the first ejection lasts, longer or shorter by up to a half. Each one is twice as long as the one
    /// before it; each ten seconds of working undo one of these doublings.
    #[must_use]
    pub fn pause(mut self, first: Duration) -> Self {
        self.pause = first.clamp(AT_LEAST, AT_MOST);
        self
    }

    /// No ejection for failures lasts longer.
    #[must_use]
    pub fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest.clamp(AT_LEAST, AT_MOST);
        self
    }

    /// At most this part of the endpoints is out at a time, and of three and more at least one may be. Gates that have
    /// opened by themselves beyond it are advice.
    #[must_use]
    pub fn ceiling(mut self, ceiling: Ratio) -> Self {
        self.ceiling = ceiling.get();
        self
    }

    /// How many of so many may be out.
    #[inline]
    pub(crate) fn allowed(&self, of: u32) -> u32 {
        // A little more than the product, which may be a little less than the whole number that it is.
        ((f64::from(of) * self.ceiling + 1e-9) as u32).max(1)
    }

    /// Between which lengths an ejection lasts, after so many before it. Nanoseconds.
    fn pauses(&self, grown: u32) -> (f64, f64) {
        let longest = self.longest.as_nanos() as f64;
        let usual = self.pause.as_nanos() as f64 * 2f64.powi(grown.min(64) as i32);
        let usual = usual.min(longest);
        (usual * 0.5, (usual * 1.5).min(longest))
    }

    /// Whether the next ejection could last longer than one after so many.
    fn grows(&self, grown: u32) -> bool {
        self.pauses(grown).0 < self.longest.as_nanos() as f64 * 0.5
    }
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EjectionReason {
    /// It failed too many times in a row.
    Consecutive,
    /// Too many of its attempts failed.
    SuccessRatio,
    /// It asked to be left alone.
    Overload,
    /// It was to show that it works again, and did not.
    ProbeFailed,
    /// Its own gate refused.
    Gate,
}

impl EjectionReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Consecutive,
        Self::SuccessRatio,
        Self::Overload,
        Self::ProbeFailed,
        Self::Gate,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive",
            Self::SuccessRatio => "success_ratio",
            Self::Overload => "overload",
            Self::ProbeFailed => "probe_failed",
            Self::Gate => "gate",
        }
    }
}

/// That an endpoint was ejected, or would have been in [shadow](Ejection::shadow).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejected {
    /// What for.
    pub reason: EjectionReason,
    /// When that began.
    pub at: Instant,
}
