use std::{fmt, sync::Arc, time::Duration};

use palisade_core::{head::RequestHead, ratio::Ratio};

use super::times::Times;

/// After how long a hedge is sent: what most answers take is a good delay.
///
/// Shorter ones than a millisecond are as long as that.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::ratio::Ratio;
/// use palisade_retry::{HedgeLayer, hedge::Delay};
///
/// let p99 = Delay::quantile(Ratio::new(0.99)?).until_then(Duration::from_millis(300));
/// let layer = HedgeLayer::new(p99);
/// assert_eq!(layer.handle().snapshot().delay, Some(Duration::from_millis(300)));
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone)]
pub struct Delay(pub(crate) Kind);

type Function = dyn Fn(&RequestHead<'_>) -> Option<Duration> + Send + Sync;

#[derive(Clone)]
pub(crate) enum Kind {
    Fixed(Duration),
    By(Arc<Function>),
    Learnt {
        quantile: Ratio,
        samples: u32,
        window: Duration,
        until_then: Option<Duration>,
    },
}

/// The timer knows no less.
pub(crate) const LEAST: Duration = Duration::from_millis(1);

impl Delay {
    /// Always the same.
    pub fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(delay.max(LEAST)))
    }

    /// As a function of the request says; those for which it is `None` are not hedged.
    pub fn by(
        delay: impl Fn(&RequestHead<'_>) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::By(Arc::new(delay)))
    }

    /// As long as this share of answers has taken to their first data of late, to 1/16 of it: of at least 100 answers
    /// within the last minute. Before there are so many, nothing is hedged.
    ///
    /// Takes 17 KB for each layer.
    pub fn quantile(quantile: Ratio) -> Self {
        Self(Kind::Learnt {
            quantile,
            samples: 100,
            window: Duration::from_secs(60),
            until_then: None,
        })
    }

    /// Learns of this many answers before it knows; 100 otherwise. Nothing to a delay that is not learnt.
    #[must_use]
    pub fn samples(mut self, least: u32) -> Self {
        if let Kind::Learnt { samples, .. } = &mut self.0 {
            *samples = least.max(1);
        }
        self
    }

    /// Forgets what is older than this; a minute otherwise. Nothing to a delay that is not learnt.
    #[must_use]
    pub fn window(mut self, span: Duration) -> Self {
        if let Kind::Learnt { window, .. } = &mut self.0 {
            *window = span;
        }
        self
    }

    /// Uses this as long as too few answers have come. Nothing to a delay that is not learnt.
    #[must_use]
    pub fn until_then(mut self, delay: Duration) -> Self {
        if let Kind::Learnt { until_then, .. } = &mut self.0 {
            *until_then = Some(delay.max(LEAST));
        }
        self
    }

    pub(crate) fn times(&self) -> Option<Times> {
        match &self.0 {
            Kind::Learnt {
                quantile,
                samples,
                window,
                ..
            } => Some(Times::new(*quantile, *samples, *window)),
            Kind::Fixed(_) | Kind::By(_) => None,
        }
    }

    /// What does not depend on the request.
    pub(crate) fn now(&self, learnt: Option<Duration>) -> Option<Duration> {
        match &self.0 {
            Kind::Fixed(delay) => Some(*delay),
            Kind::By(_) => None,
            Kind::Learnt { until_then, .. } => learnt.map(|delay| delay.max(LEAST)).or(*until_then),
        }
    }
}

impl Default for Delay {
    /// The 95th percentile.
    fn default() -> Self {
        Self::quantile(Ratio::new(0.95).expect("a share"))
    }
}

impl From<Duration> for Delay {
    fn from(delay: Duration) -> Self {
        Self::fixed(delay)
    }
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Fixed(delay) => f.debug_tuple("Fixed").field(delay).finish(),
            Kind::By(_) => f.write_str("By"),
            Kind::Learnt {
                quantile, window, ..
            } => f
                .debug_struct("Quantile")
                .field("quantile", &quantile.get())
                .field("window", window)
                .finish_non_exhaustive(),
        }
    }
}
