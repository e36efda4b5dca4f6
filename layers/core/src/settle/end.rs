use std::time::Duration;

use crate::classify::{Usage, Verdict};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// What the attempt says about the service.
    pub verdict: Verdict,
    /// The tokens used, as far as the answer told before it ended.
    pub usage: Option<Usage>,
    /// The [pieces](crate::classify::Judge::streamed) of the answer that came, as far as the judge counts them.
    pub streamed: u64,
    /// The time since admission.
    pub age: Duration,
}

impl End {
    /// At once, and before anything came of the answer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use palisade_core::{classify::Verdict, settle::End};
    ///
    /// let age = Duration::from_secs(1);
    /// let end = End { age, ..End::new(Verdict::TimedOut) };
    /// assert_eq!((end.usage, end.streamed), (None, 0));
    /// ```
    pub const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            usage: None,
            streamed: 0,
            age: Duration::ZERO,
        }
    }
}
