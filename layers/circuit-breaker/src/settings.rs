use std::time::Duration;

use palisade_core::ratio::Ratio;

/// With fewer calls than this a window says nothing: one failure of one call is no rate.
const MINIMUM_CALLS: u32 = 10;

/// The largest window: 256 KiB, whatever number came out of a configuration file.
const MOST_CALLS: u32 = 1 << 20;

/// The window of a share that was asked for without one.
const CALLS: u32 = 100;

/// How long a circuit stays open at most by default: a service that was away for an hour is found within a minute of
/// its return, and a minute of refusals is what a caller that backs off by itself would wait too.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(60);

/// By how much a cool-down varies by default: replicas that opened at the same moment spread their probes over 40 % of
/// it, and none is far from what was asked for.
const JITTER: f64 = 0.2;

/// A request that is given up before any data and after this long was slow.
///
/// Without it a service that accepts and never answers would not be found by callers in a hurry.
const SLOW_AFTER: Duration = Duration::from_secs(5);

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Below it no call would be quick.
const QUICKEST: Duration = Duration::from_millis(1);

/// Shorter, its buckets would be shorter than a thread's turn.
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Longer is for ever; more would not fit into an instant.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// When a circuit opens, how long it stays open, and what closes it.
///
/// It opens as soon as one of its conditions is met: failures in a row, failures in the window, the share of failures
/// or of slow calls in the window. Numbers out of reason are brought into it when they are put to use;
/// [`Handle::settings`](crate::Handle::settings) tells those in use.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_circuit_breaker::{CircuitBreaker, Settings};
///
/// let mut settings = Settings::five_in_a_row();
/// settings.probes = 1;
/// let breaker = CircuitBreaker::new(settings);
/// assert_eq!(breaker.handle().settings().cooldown, Duration::from_secs(30));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Opens after so many failures in a row, 1 at least.
    pub consecutive: Option<u32>,
    /// Which calls the shares and the number of failures are counted among. A share without a window gets one of the
    /// last 100 calls.
    pub window: Option<Window>,
    /// Opens after so many failures in the window, 1 to its size, whatever their share.
    pub failures: Option<u32>,
    /// Opens when this share of the calls in the window has failed.
    pub failure_share: Option<Ratio>,
    /// Opens when this share of the calls in the window was [slow](Self::slow_after). While it is set a slow probe
    /// fails.
    pub slow_share: Option<Ratio>,
    /// From when on a call is slow, 1 ms at least: without its first data, or without its end if it has no data. A
    /// caller that leaves before the first data and after this long is a failure.
    pub slow_after: Duration,
    /// No share counts before so many calls, 1 to the size of the window.
    pub minimum_calls: u32,
    /// How long it stays open at first.
    pub cooldown: Duration,
    /// How long it stays open at most, before jitter: [`cooldown`](Self::cooldown) at least.
    pub longest_cooldown: Duration,
    /// By how much of itself each cool-down is longer or shorter, at random.
    pub jitter: Option<Ratio>,
    /// How many probes decide, 1 at least.
    pub probes: u32,
    /// Which share of them has to pass, if not all.
    pub passing: Option<Ratio>,
    /// How long a probe is waited for, 1 ms to a year.
    pub probe_timeout: Duration,
    /// How long it stays half-open at most.
    pub longest_half_open: Option<Duration>,
}

/// The calls that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many, 1 to 1 048 576.
    Calls(u32),
    /// Those that have ended within so long, 10 ms to a year: exact to a tenth of it, of which one more is counted.
    Time(Duration),
}

/// Whether a layer refuses, or only says that it would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It refuses.
    #[default]
    Enforce,
    /// It decides and counts as ever, and lets all requests through. Those that it would have refused are not heard
    /// when they end, as they would not have been sent.
    Shadow,
}

impl Settings {
    /// Opens after `failures` in a row.
    pub fn consecutive(failures: u32, cooldown: Duration) -> Self {
        Self {
            consecutive: Some(failures),
            ..Self::new(cooldown)
        }
    }

    /// Opens when `share` of the calls in the window have failed.
    pub fn window(share: Ratio, window: Window, cooldown: Duration) -> Self {
        Self {
            window: Some(window),
            failure_share: Some(share),
            ..Self::new(cooldown)
        }
    }

    /// Opens after 5 failures in a row for 30 s, and closes after 3 probes: finds a dead service whatever the rate.
    pub fn five_in_a_row() -> Self {
        Self {
            probes: 3,
            ..Self::consecutive(5, Duration::from_secs(30))
        }
    }

    /// Opens when half of at least 10 of the last 100 calls have failed, for 30 s, and closes after 3 probes: finds a
    /// service that fails often.
    pub fn half_of_ten() -> Self {
        Self {
            probes: 3,
            ..Self::window(Ratio::HALF, Window::Calls(CALLS), Duration::from_secs(30))
        }
    }

    /// Opens after 5 failures within 60 s, for 30 s, and closes after 3 probes: for services that are called seldom, as
    /// it depends on the rate of calls.
    pub fn five_in_a_minute() -> Self {
        Self {
            window: Some(Window::Time(Duration::from_secs(60))),
            failures: Some(5),
            probes: 3,
            ..Self::new(Duration::from_secs(30))
        }
    }

    fn new(cooldown: Duration) -> Self {
        Self {
            consecutive: None,
            window: None,
            failures: None,
            failure_share: None,
            slow_share: None,
            slow_after: SLOW_AFTER,
            minimum_calls: MINIMUM_CALLS,
            cooldown,
            longest_cooldown: LONGEST_COOLDOWN.max(cooldown),
            jitter: Ratio::new(JITTER).ok(),
            probes: 1,
            passing: None,
            probe_timeout: PROBE_TIMEOUT,
            longest_half_open: None,
        }
    }

    /// Brings every number into reason.
    pub(crate) fn reasonable(mut self) -> Self {
        let at_least_1 = |number: u32| number.max(1);
        self.consecutive = self.consecutive.map(at_least_1);
        self.failures = self.failures.map(at_least_1);
        let needs_one = self.failures.or(self.failure_share.map(|_| 1));
        if needs_one.or(self.slow_share.map(|_| 1)).is_some() {
            self.window.get_or_insert(Window::Calls(CALLS));
        }
        self.minimum_calls = self.minimum_calls.max(1);
        self.window = self.window.map(|window| match window {
            Window::Calls(calls) => Window::Calls(calls.clamp(1, MOST_CALLS)),
            Window::Time(span) => Window::Time(span.clamp(SHORTEST_WINDOW, YEAR)),
        });
        if let Some(Window::Calls(calls)) = self.window {
            self.minimum_calls = self.minimum_calls.min(calls);
            self.failures = self.failures.map(|failures| failures.min(calls));
        }
        self.slow_after = self.slow_after.max(QUICKEST);
        self.cooldown = self.cooldown.min(FOREVER);
        self.longest_cooldown = self.longest_cooldown.clamp(self.cooldown, FOREVER);
        self.probes = self.probes.max(1);
        // With no patience at all every probe would be given up before it is sent; more than a year, doubled, would
        // not fit into an instant.
        self.probe_timeout = self.probe_timeout.clamp(QUICKEST, YEAR);
        self.longest_half_open = self.longest_half_open.map(|it| it.clamp(QUICKEST, YEAR));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_reason_are_brought_into_it() {
        let mut low = Settings::consecutive(0, Duration::MAX);
        low.failures = Some(0);
        low.minimum_calls = 0;
        low.slow_after = Duration::ZERO;
        low.longest_cooldown = Duration::ZERO;
        low.probes = 0;
        low.probe_timeout = Duration::ZERO;
        low.longest_half_open = Some(Duration::ZERO);
        let low = low.reasonable();
        assert_eq!((low.consecutive, low.failures), (Some(1), Some(1)));
        assert_eq!(low.window, Some(Window::Calls(CALLS)));
        assert_eq!((low.minimum_calls, low.probes), (1, 1));
        assert_eq!(low.slow_after, QUICKEST);
        assert_eq!((low.cooldown, low.longest_cooldown), (FOREVER, FOREVER));
        assert_eq!(low.probe_timeout, QUICKEST);
        assert_eq!(low.longest_half_open, Some(QUICKEST));

        for (asked, given) in [
            (Window::Calls(0), Window::Calls(1)),
            (Window::Calls(u32::MAX), Window::Calls(MOST_CALLS)),
            (Window::Time(Duration::ZERO), Window::Time(SHORTEST_WINDOW)),
            (Window::Time(Duration::MAX), Window::Time(YEAR)),
        ] {
            let settings = Settings::window(Ratio::HALF, asked, Duration::ZERO).reasonable();
            assert_eq!(settings.window, Some(given));
        }
    }

    #[test]
    fn neither_the_minimum_of_calls_nor_of_failures_is_more_than_the_window_holds() {
        let mut small = Settings::window(Ratio::HALF, Window::Calls(3), Duration::ZERO);
        small.failures = Some(4);
        let small = small.reasonable();
        assert_eq!((small.minimum_calls, small.failures), (3, Some(3)));
    }

    #[test]
    fn what_is_in_reason_is_left_alone() {
        for settings in [
            Settings::five_in_a_row(),
            Settings::half_of_ten(),
            Settings::five_in_a_minute(),
        ] {
            assert_eq!(settings.clone().reasonable(), settings);
        }
    }
}
