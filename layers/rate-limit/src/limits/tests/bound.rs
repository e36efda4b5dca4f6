//! What leases may exceed a quota by, whatever becomes of the processes that hold them.

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, Strategy as _, any, prop_assert, prop_oneof, proptest},
};

use super::*;

const BURST: u64 = 200;
const PER_SECOND: u64 = 100;
const BATCH: u32 = 16;
const PROCESSES: usize = 3;

#[derive(Clone, Debug)]
enum Event {
    /// So many requests at one process.
    Ask(usize, usize),
    /// All processes stand still, also longer than leases last.
    Pause(u64),
    /// One is started anew, with nothing that it had.
    Crash(usize),
}

fn event() -> impl proptest::strategy::Strategy<Value = Event> {
    prop_oneof![
        6 => (0..PROCESSES, 1..80_usize).prop_map(|(at, many)| Event::Ask(at, many)),
        3 => (0..200_u64).prop_map(Event::Pause),
        1 => (400..900_u64).prop_map(Event::Pause),
        1 => (0..PROCESSES).prop_map(Event::Crash),
    ]
}

fn rule(strict: bool) -> Rule {
    let rule = Rule::new("bucket", Quota::per_second(PER_SECOND).burst(BURST)).leased(BATCH);
    if strict { rule.strict() } else { rule }
}

async fn run(events: &[Event], strict: bool) -> Vec<(u64, u64)> {
    let store = Scripted::new(PROCESSES as u64);
    let new = || limit(&store, [rule(strict)]);
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| new()).collect();
    let mut times = Vec::new();
    for event in events {
        match *event {
            Event::Ask(at, many) => {
                let passed = admitted(&processes[at], "alice", many).await;
                times.push((store.nanos(), passed as u64));
            }
            Event::Pause(millis) => advance(Duration::from_millis(millis)).await,
            Event::Crash(at) => processes[at] = new(),
        }
    }
    times
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn leases_exceed_a_quota_by_no_more_than_is_said(
        events in vec(event(), 1..60),
        strict in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let times = runtime.block_on(run(&events, strict));
        let held = PROCESSES as u64 * u64::from(BATCH);
        let lasts = LEASE.as_millis() as u64 * PER_SECOND / 1000;
        let excess = if strict { 0 } else { held.min(lasts) };
        for (first, &(from, _)) in times.iter().enumerate() {
            let mut passed = 0;
            for &(to, many) in &times[first..] {
                passed += many;
                let refilled = (to - from).div_ceil(1_000_000_000 / PER_SECOND);
                let most = BURST + refilled + excess;
                prop_assert!(passed <= most, "{} of {}, strict: {}", passed, most, strict);
            }
        }
    }
}
