//! That no order of events admits too many probes or wedges a circuit, of any kind.

use palisade_core::{ratio::Ratio, reject::Reason, time::now};
use proptest::prelude::*;

use super::*;
use crate::settings::Window;

const COOLDOWN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// What may happen to a circuit; numbers choose among the requests that are under way.
#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Admit,
    Data(usize),
    Settle(usize, Verdict),
    Drop(usize),
    Forget(usize),
    Force(bool),
    Release,
    Restart,
    Update(Box<Settings>),
}

fn kinds() -> impl Strategy<Value = Settings> {
    let share = || Ratio::new(0.5).ok();
    let window = prop_oneof![
        Just(None),
        (1_u32..6).prop_map(|calls| Some(Window::Calls(calls))),
        (1_u64..20).prop_map(|seconds| Some(Window::Time(Duration::from_secs(seconds)))),
    ];
    let conditions = (
        prop::option::of(1_u32..4),
        prop::option::of(1_u32..4),
        any::<bool>(),
        any::<bool>(),
    );
    let half_open = (
        1_u32..6,
        any::<bool>(),
        prop::option::of(1_u64..30).prop_map(|seconds| seconds.map(Duration::from_secs)),
    );
    (window, conditions, half_open, any::<bool>()).prop_map(
        move |(window, (row, failures, ill, slow), (probes, some, longest), jitter)| {
            let mut settings = Settings::consecutive(2, COOLDOWN);
            // One condition at least, or it never opens.
            settings.consecutive = match (failures, ill) {
                (None, false) => Some(row.unwrap_or(2)),
                _ => row,
            };
            settings.window = window;
            settings.failures = failures;
            settings.failure_share = share().filter(|_| ill);
            settings.slow_share = share().filter(|_| slow);
            settings.slow_after = Duration::from_secs(3);
            settings.minimum_calls = 2;
            settings.jitter = settings.jitter.filter(|_| jitter);
            settings.probes = probes;
            settings.passing = share().filter(|_| some);
            settings.probe_timeout = PATIENCE;
            settings.longest_half_open = longest;
            settings
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Success),
        4 => Just(Verdict::Failure),
        1 => Just(Verdict::Unsent),
        1 => Just(Verdict::TimedOut),
        1 => Just(Verdict::CallerFault),
        1 => Just(Verdict::Refused(Reason::Overloaded)),
        2 => Just(Verdict::Canceled),
        1 => (0_u64..20).prop_map(|s| Verdict::Overload {
            retry_after: s.checked_sub(1).map(Duration::from_secs)
        }),
    ];
    let event = prop_oneof![
        20 => (0_u64..8000).prop_map(Event::Wait),
        40 => Just(Event::Admit),
        10 => any::<usize>().prop_map(Event::Data),
        25 => (any::<usize>(), verdict).prop_map(|(at, verdict)| Event::Settle(at, verdict)),
        5 => any::<usize>().prop_map(Event::Drop),
        3 => any::<usize>().prop_map(Event::Forget),
        1 => any::<bool>().prop_map(Event::Force),
        2 => Just(Event::Release),
        1 => Just(Event::Restart),
        1 => kinds().prop_map(|settings| Event::Update(Box::new(settings))),
    ];
    prop::collection::vec(event, 0..200)
}

/// Probes that are out.
fn out(circuit: &Circuit, under_way: &[(Instant, Admission)]) -> usize {
    let probes = under_way.iter().filter(|(_, admission)| {
        admission.stage == Stage::Probing && admission.epoch == circuit.epoch
    });
    probes.count()
}

/// A service that works, and callers who come often enough: in the end it is closed.
fn closes(circuit: &mut Circuit, mut now: Instant) -> bool {
    if circuit.is_forced() {
        circuit.release();
    }
    for _ in 0..20 {
        match circuit.admit(now) {
            Ok(mut admission) => circuit.settle(&mut admission, Says::Well, now),
            // The longest cool-down with its jitter, and the longest patience.
            Err(_) => now += Duration::from_secs(72).max(PATIENCE * 32),
        }
        if circuit.state() == CircuitState::Closed {
            return true;
        }
    }
    false
}

/// It can still be opened.
fn opens(circuit: &mut Circuit, now: Instant) -> bool {
    for _ in 0..100 {
        let Ok(mut admission) = circuit.admit(now) else {
            return true;
        };
        circuit.settle(&mut admission, Says::Ill, now);
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_order_of_events_admits_too_many_probes_or_wedges_it(
        settings in kinds(),
        events in events(),
    ) {
        let mut circuit = Circuit::new(settings, 1);
        let mut most = circuit.settings().probes;
        let mut now = now();
        let mut under_way: Vec<(Instant, Admission)> = Vec::new();
        for event in events {
            let some = |at: usize| (!under_way.is_empty()).then(|| at % under_way.len());
            match event {
                Event::Wait(millis) => now += Duration::from_millis(millis),
                Event::Admit => {
                    let left = circuit.next_probe_in(now);
                    let passes = left == Some(Duration::ZERO) || circuit.state() == CircuitState::Closed;
                    match circuit.admit(now) {
                        Ok(admission) => {
                            prop_assert!(passes);
                            let closed = circuit.state() == CircuitState::Closed;
                            prop_assert_eq!(admission.stage == Stage::Probing, !closed);
                            under_way.push((now, admission));
                            if let State::HalfOpen(probes) = &circuit.state {
                                let permits = probes.permits() as usize;
                                prop_assert!(out(&circuit, &under_way) <= permits);
                            }
                        }
                        Err(refused) => {
                            prop_assert!(!passes);
                            prop_assert_eq!(refused.remaining, circuit.next_probe_in(now));
                        }
                    }
                }
                Event::Data(at) => if let Some(at) = some(at) {
                    let (since, admission) = &mut under_way[at];
                    let slow = now - *since >= circuit.settings().slow_after;
                    circuit.first_data(admission, slow, now);
                },
                Event::Settle(at, verdict) => if let Some(at) = some(at) {
                    let (since, mut admission) = under_way.swap_remove(at);
                    let (age, late) = (now - since, circuit.settings().slow_after);
                    let end = End { age, ..End::new(verdict) };
                    let said = Says::of(&end, admission.stage, |age| age >= late);
                    circuit.settle(&mut admission, said, now);
                },
                Event::Drop(at) => if let Some(at) = some(at) {
                    circuit.give_back(&mut under_way.swap_remove(at).1);
                },
                Event::Forget(at) => if let Some(at) = some(at) {
                    under_way.swap_remove(at);
                },
                Event::Force(true) => circuit.force_open(),
                Event::Force(false) => circuit.force_closed(),
                Event::Release => circuit.release(),
                Event::Restart => {
                    let saved = circuit.save(now);
                    circuit.restore(&saved, now);
                    prop_assert_eq!(circuit.save(now), saved);
                }
                Event::Update(settings) => {
                    most = most.max(settings.probes);
                    circuit.update(*settings, now);
                }
            }
            prop_assert!(out(&circuit, &under_way) <= most as usize);
        }
        // Whatever is still under way stays so for ever.
        prop_assert!(closes(&mut circuit, now));
        prop_assert!(opens(&mut circuit, now));
        prop_assert!(closes(&mut circuit, now));
    }

    #[test]
    fn any_saved_circuit_is_a_circuit(
        settings in kinds(),
        numbers in any::<(u32, u64, u32)>(),
        counts in any::<(u64, u64, u64)>(),
        state in prop_oneof![
            Just(SavedState::Closed),
            any::<Duration>().prop_map(|remaining| SavedState::Open { remaining }),
            Just(SavedState::ForcedOpen),
            Just(SavedState::ForcedClosed),
        ],
    ) {
        let saved = Saved {
            state,
            reopenings: numbers.0,
            opened_total: numbers.1,
            in_a_row: numbers.2,
            calls: counts.0,
            failures: counts.1,
            slow_calls: counts.2,
        };
        let (mut circuit, now) = (Circuit::new(settings, 1), now());
        circuit.restore(&saved, now);
        let left = circuit.next_probe_in(now);
        prop_assert!(left.is_none_or(|left| left <= LONGEST_RETRY_AFTER));
        let later = now + LONGEST_RETRY_AFTER;
        prop_assert!(closes(&mut circuit, later));
        prop_assert!(opens(&mut circuit, later));
        prop_assert!(closes(&mut circuit, later));
    }
}
