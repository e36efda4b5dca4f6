//! How much of the machine the process takes: Linux only, unknown elsewhere.

use std::{fs, num::NonZero, sync::Mutex, thread, time::Duration};

use tokio::time::Instant;

use crate::state::lock;

/// The kernel reports times in so many milliseconds, on every architecture that Rust runs on: USER_HZ.
const TICK: u64 = 10;

/// A share over less than this would be made of a few ticks.
const REFRESH: Duration = Duration::from_secs(1);

/// Looks at the process when asked.
#[derive(Debug)]
pub(crate) struct Process {
    last: Mutex<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    used: Option<Duration>,
    share: Option<f64>,
}

impl Process {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: Mutex::new(Sample {
                at: now,
                used: cpu_time(),
                share: None,
            }),
        }
    }

    /// The share of the CPUs since an earlier look, a second ago or more; `None` while there is none.
    pub(crate) fn cpu(&self, now: Instant) -> Option<f64> {
        let mut last = lock(&self.last);
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed >= REFRESH {
            let used = cpu_time();
            let taken = used
                .zip(last.used)
                .map(|(now, then)| now.saturating_sub(then));
            *last = Sample {
                at: now,
                used,
                share: taken.map(|taken| share(taken, elapsed, cpus())),
            };
        }
        last.share
    }

    /// The share of the memory that the process may use: the machine's, or the limit of its control group.
    pub(crate) fn memory(&self) -> Option<f64> {
        let resident = kibibytes(&read("/proc/self/status")?, "VmRSS:")?;
        let machine = kibibytes(&read("/proc/meminfo")?, "MemTotal:")?;
        let limits = [
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        let limits = limits.into_iter().filter_map(|path| limit(&read(path)?));
        let available = limits.fold(machine, u64::min);
        (available > 0).then(|| (resident as f64 / available as f64).min(1.0))
    }
}

fn cpu_time() -> Option<Duration> {
    ticks(&read("/proc/self/stat")?).map(|ticks| Duration::from_millis(ticks.saturating_mul(TICK)))
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn share(taken: Duration, elapsed: Duration, cpus: usize) -> f64 {
    (taken.as_secs_f64() / elapsed.as_secs_f64() / cpus as f64).min(1.0)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// User and system time in a line of `/proc/[pid]/stat`.
fn ticks(stat: &str) -> Option<u64> {
    // The name of the program is in parentheses, and may hold spaces and more of them.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// The bytes in a line `name: n kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let count: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    count.checked_mul(1024)
}

/// The bytes that a control group may use; `None` for `max`.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use palisade_core::time;

    use super::*;

    #[test]
    fn times_are_found_behind_whatever_the_program_is_called() {
        let stat = "71 (a) b (c) S 1 71 71 0 -1 4194560 9 8 7 6 1234 66 5 4 20 0 9 0 11 12 13";
        assert_eq!(ticks(stat), Some(1300));
        for broken in [
            "",
            "71 (a",
            "71 (a) S 1 2",
            "71 (a) S 1 1 1 1 1 1 1 1 1 1 x 1",
        ] {
            assert_eq!(ticks(broken), None, "{broken}");
        }
    }

    #[test]
    fn sizes_are_found_in_their_line() {
        let status = "Name:\tx\nVmHWM:\t   99 kB\nVmRSS:\t  2048 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(2 << 20));
        assert_eq!(kibibytes(status, "MemTotal:"), None);
        assert_eq!(kibibytes("VmRSS:\t2048\n", "VmRSS:"), None);
        assert_eq!((limit("4096\n"), limit("max\n")), (Some(4096), None));
    }

    #[test]
    fn a_busy_core_of_four_is_a_quarter() {
        let second = Duration::from_secs(1);
        assert_eq!(share(second, second, 4), 0.25);
        assert_eq!(
            share(9 * second, second, 4),
            1.0,
            "a tick may belong to the second before"
        );
    }

    #[test]
    fn a_share_of_the_cpus_is_known_after_a_second_and_kept_for_one() {
        let now = time::now();
        let process = Process::new(now);
        assert_eq!(process.cpu(now), None);
        assert_eq!(process.cpu(now + REFRESH / 2), None);
        let known = process.cpu(now + REFRESH);
        assert_eq!(known.is_some(), cfg!(target_os = "linux"));
        assert_eq!(process.cpu(now + REFRESH + REFRESH / 2), known);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_some_of_the_memory() {
        let share = Process::new(time::now()).memory().unwrap();
        assert!(share > 0.0 && share <= 1.0, "{share}");
    }

    #[test]
    fn times_beyond_32_bits_are_known() {
        // 64 busy cores for eight days.
        let stat = "71 (a) S 1 71 71 0 -1 4194560 9 8 7 6 4400000000 66 5 4 20 0 9 0 11 12 13";
        assert!(ticks(stat).is_some());
    }
}
