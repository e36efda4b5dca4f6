//! What a flood of invented keys takes of the machine's memory. Alone in its process, which is what is measured.

#![cfg(target_os = "linux")]

use http::Request;
use palisade_core::{
    gate::{Admit, Gate},
    key,
    time::now,
};
use palisade_rate_limit::{Headers, Quota, RateLimit, Rule};

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("Linux says how much is resident") * 1024
}

#[tokio::test(start_paused = true)]
async fn a_million_invented_keys_stay_below_the_ceiling_that_was_set() {
    const SEATS: usize = 100_000;
    /// What each may take at most.
    const CEILING: u64 = 100 * SEATS as u64;

    let rule = Rule::new("per_user", Quota::per_hour(10)).key(key::header("x-user-id"));
    let limit = RateLimit::rules([rule.capacity(SEATS)]).expect("a rule");
    let limit = limit.headers(Headers::Off);
    let ask = |user: u64| {
        // Not in order: each as good as random.
        let user = user.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let request = Request::builder().header("x-user-id", format!("{user:016x}"));
        let request = request.body(()).expect("a request");
        matches!(limit.admit(&(&request).into(), now()), Admit::Now(Ok(_)))
    };
    assert!(ask(0));
    let before = resident();
    for user in 1..=1_000_000 {
        ask(user);
    }
    let grown = resident().saturating_sub(before);
    println!("{grown} bytes more are resident, of {CEILING} at most");
    assert!(grown <= CEILING, "{grown}");
    // Who had a seat before still has what it used.
    let remaining = (0..9).filter(|_| ask(0)).count();
    assert_eq!((remaining, ask(0)), (9, false));
}
