//! The one clock.

use std::time::SystemTime;

use tokio::time::Instant;

/// The present, which tests can pause.
#[inline]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// The date and the time of day, which move with [`now`]: a paused clock pauses them too.
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this is the one place"
)]
pub fn wall_clock() -> SystemTime {
    let (virtual_now, real, date) = (
        now().into_std(),
        std::time::Instant::now(),
        SystemTime::now(),
    );
    // A test's clock is ahead of the real one or behind it by what was skipped and what was paused.
    match virtual_now.checked_duration_since(real) {
        Some(ahead) => date + ahead,
        None => date - (real - virtual_now),
    }
}

/// An instant of the one clock as the date and time of day.
pub fn to_wall_clock(instant: Instant) -> SystemTime {
    let (present, date) = (now(), wall_clock());
    match instant.checked_duration_since(present) {
        Some(ahead) => date + ahead,
        None => date - (present - instant),
    }
}
