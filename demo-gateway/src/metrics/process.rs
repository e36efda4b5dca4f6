//! What a scrape says of the process, under the names that are usual for Prometheus.

use std::{fs, sync::OnceLock};

use super::text::Writer;

/// Of what Linux counts processor time in, on every processor there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the system says of a process.
#[derive(Debug, Default, PartialEq)]
struct Process {
    cpu_seconds: Option<f64>,
    started: Option<f64>,
    threads: Option<f64>,
    resident: Option<f64>,
    virtually: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

/// Adds what can be found out: on Linux all of it, elsewhere nothing.
pub(super) fn render(page: &mut Writer) {
    let process = Process::look();
    let rows = [
        (
            "process_cpu_seconds_total",
            "Processor time that the process has used, of user and system.",
            "counter",
            process.cpu_seconds,
        ),
        (
            "process_max_fds",
            "File descriptors that the process may have open.",
            "gauge",
            process.max_fds,
        ),
        (
            "process_open_fds",
            "File descriptors that the process has open, connections among them.",
            "gauge",
            process.open_fds,
        ),
        (
            "process_resident_memory_bytes",
            "Memory that the process has in use.",
            "gauge",
            process.resident,
        ),
        (
            "process_start_time_seconds",
            "When the process was started, in seconds since 1970.",
            "gauge",
            process.started,
        ),
        (
            "process_threads",
            "Threads of the process.",
            "gauge",
            process.threads,
        ),
        (
            "process_virtual_memory_bytes",
            "Memory that the process has asked for.",
            "gauge",
            process.virtually,
        ),
    ];
    for (name, help, kind, value) in rows {
        if let Some(value) = value {
            page.head(name, Some(help), kind);
            page.number(name, &[], value);
        }
    }
}

impl Process {
    fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        static BOOTED: OnceLock<Option<f64>> = OnceLock::new();
        let booted = *BOOTED.get_or_init(|| number_after(&read("/proc/stat"), "btime "));
        let mut process = Self::read(
            &read("/proc/self/stat"),
            &read("/proc/self/status"),
            &read("/proc/self/limits"),
            booted,
        );
        let fds = fs::read_dir("/proc/self/fd");
        // One of them is for this look.
        process.open_fds = fds.ok().map(|fds| fds.count().saturating_sub(1) as f64);
        process
    }

    fn read(stat: &str, status: &str, limits: &str, booted: Option<f64>) -> Self {
        // The name of the program may have spaces and brackets in it.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let fields: Vec<&str> = after.split(' ').collect();
        // Numbered from 1 in proc(5), where the one after the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = |number| Some(field(number)? / TICKS_PER_SECOND);
        let bytes = |name| Some(number_after(status, name)? * 1024.0);
        Self {
            cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            started: booted.zip(ticks(22)).map(|(booted, after)| booted + after),
            threads: field(20),
            resident: bytes("VmRSS:"),
            virtually: bytes("VmSize:"),
            open_fds: None,
            max_fds: number_after(limits, "Max open files"),
        }
    }
}

/// The first number in the line that begins so.
fn number_after(text: &str, start: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(start))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read_whatever_the_program_is_called() {
        let stat =
            "42 (a b) c) S 1 42 42 0 -1 4194560 900 0 0 0 250 50 0 0 20 0 7 0 12345 99 8 1 2";
        let status = "Name:\ta\nVmSize:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        let limits = "Limit  Soft Limit Hard Limit Units\nMax open files            1024                 4096 files\n";
        let process = Process::read(stat, status, limits, Some(1000.0));
        let expected = Process {
            cpu_seconds: Some(3.0),
            started: Some(1123.45),
            threads: Some(7.0),
            resident: Some(1_048_576.0),
            virtually: Some(2_097_152.0),
            open_fds: None,
            max_fds: Some(1024.0),
        };
        assert_eq!(process, expected);
    }

    #[test]
    fn what_cannot_be_read_is_not_shown() {
        assert_eq!(Process::read("", "", "", None), Process::default());
        let unlimited =
            "Max open files            unlimited            unlimited            files\n";
        assert_eq!(
            Process::read("1 (a) S", "x", unlimited, None),
            Process::default()
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_runs_since_it_was_started_and_has_memory() {
        let process = Process::look();
        let now = palisade::time::wall_clock();
        let now = now
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - process.started.unwrap();
        assert!((-2.0..36_000.0).contains(&age), "{age}");
        assert!(process.resident.unwrap() > 1e6);
        assert!(process.open_fds.unwrap() >= 3.0);
        assert!(process.threads.unwrap() >= 1.0);
        assert!(process.cpu_seconds.unwrap() < 36_000.0);
    }
}
