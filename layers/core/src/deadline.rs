//! By when a request has to be over.

use std::time::Duration;

use tokio::time::Instant;

/// By when a request has to be over, for layers further in that would rather not begin.
///
/// In the extensions of a request; a layer that puts one there keeps the earlier of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// What is left of it, zero when it has passed.
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }
}
