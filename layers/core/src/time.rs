//! The one clock.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// The present, which tests can pause.
#[inline]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// The date and the time of day, which move with [`now`]: a paused clock pauses them too.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall_clock() -> SystemTime {
    static START: OnceLock<(Instant, SystemTime)> = OnceLock::new();
    /// Beyond this the wall clock was set, or a test has its own time: begin again from the real one.
    const DRIFT: Duration = Duration::from_secs(3600);

    let (instant, date) = *START.get_or_init(|| (now(), SystemTime::now()));
    let moved = date + now().saturating_duration_since(instant);
    let real = SystemTime::now();
    // Without virtual time the real clock is right, also after it was set.
    match real.duration_since(moved) {
        Ok(behind) if behind > DRIFT => real,
        _ => moved,
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
