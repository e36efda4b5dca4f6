//! All interleavings of a few threads: `RUSTFLAGS="--cfg loom" cargo test -p palisade-circuit-breaker --lib shared`.

use std::sync::Arc;

use loom::thread;
use palisade_core::{ratio::Ratio, time};

use super::*;
use crate::Window;

const COOLDOWN: Duration = Duration::from_secs(5);

fn with(settings: Settings) -> Arc<Shared> {
    let common = Arc::new(Common::new());
    Arc::new(Shared::new(settings, 1, common, time::now()))
}

fn row(failures: u32, probes: u32) -> Settings {
    let mut settings = Settings::consecutive(failures, COOLDOWN);
    settings.jitter = None;
    settings.probes = probes;
    settings
}

fn shared(probes: u32) -> Arc<Shared> {
    with(row(1, probes))
}

fn end(verdict: Verdict) -> End {
    End::new(verdict)
}

fn opened(probes: u32) -> (Arc<Shared>, Instant) {
    let (shared, now) = (shared(probes), time::now());
    let mut call = shared.admit(now).unwrap();
    shared.settle(&mut call, &end(Verdict::Failure), now);
    (shared, now + COOLDOWN)
}

fn state(shared: &Shared) -> CircuitState {
    shared.look(|circuit| circuit.state())
}

/// The word says what the circuit does, once all is quiet.
fn assert_agrees(shared: &Shared) {
    let word = shared.glance();
    shared.look(|circuit| assert_eq!(circuit.glance(|at| shared.nanos(at)), word));
}

#[test]
fn whoever_passed_before_the_trip_says_nothing_about_the_probe() {
    loom::model(|| {
        let (shared, now) = (shared(1), time::now());
        let slow = {
            let shared = shared.clone();
            // Admitted before, while or after the circuit opens.
            thread::spawn(move || {
                if let Ok(mut call) = shared.admit(now) {
                    shared.first_data(&mut call, Duration::ZERO, now);
                    shared.settle(&mut call, &end(Verdict::Success), now);
                }
            })
        };
        let mut fatal = shared.admit(now).unwrap();
        shared.settle(&mut fatal, &end(Verdict::Failure), now);
        let later = now + COOLDOWN;
        let mut probe = shared.admit(later).expect("room for a probe");
        assert!(shared.admit(later).is_err(), "another probe");
        slow.join().unwrap();
        assert_eq!(state(&shared), CircuitState::HalfOpen);
        shared.settle(&mut probe, &end(Verdict::Success), later);
        assert_eq!(state(&shared), CircuitState::Closed);
        assert_agrees(&shared);
    });
}

#[test]
fn two_that_come_when_a_probe_is_due_are_not_both_it() {
    loom::model(|| {
        let (shared, now) = opened(1);
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.admit(now))
        };
        let mine = shared.admit(now);
        let other = other.join().unwrap();
        assert!(mine.is_ok() ^ other.is_ok());
        let mut probe = mine.or(other).unwrap();
        shared.give_back(&mut probe);
        assert_eq!(shared.outlook(now), Outlook::Probes);
        assert_agrees(&shared);
    });
}

#[test]
fn a_success_ends_the_row_between_two_failures_and_changes_nothing_before_or_after() {
    loom::model(|| {
        let now = time::now();
        let shared = with(row(2, 1));
        let [mut call, first, second] = [(); 3].map(|()| shared.admit(now).unwrap());
        let good = {
            let shared = shared.clone();
            thread::spawn(move || shared.settle(&mut call, &end(Verdict::Success), now))
        };
        for mut call in [first, second] {
            shared.settle(&mut call, &end(Verdict::Failure), now);
        }
        good.join().unwrap();
        // Between the two failures it ended the row, before or after them it changed nothing.
        let failures = shared.look(|circuit| circuit.tally().in_a_row());
        match state(&shared) {
            CircuitState::Open => assert_eq!(failures, 2),
            CircuitState::Closed => assert!(failures <= 1),
            CircuitState::HalfOpen => panic!("nobody has probed"),
        }
        assert_agrees(&shared);
    });
}

#[test]
fn a_window_of_time_loses_no_call_and_opens_with_the_last_that_it_takes() {
    loom::model(|| {
        let mut settings = Settings::window(Ratio::HALF, Window::Time(COOLDOWN), COOLDOWN);
        settings.minimum_calls = 2;
        let (shared, now) = (with(settings), time::now());
        let [mut call, mut other] = [(); 2].map(|()| shared.admit(now).unwrap());
        let bad = {
            let shared = shared.clone();
            thread::spawn(move || shared.settle(&mut other, &end(Verdict::Failure), now))
        };
        shared.settle(&mut call, &end(Verdict::Success), now);
        bad.join().unwrap();
        assert_eq!(state(&shared), CircuitState::Open);
        assert!(shared.admit(now).is_err());
        assert_agrees(&shared);
    });
}

#[test]
fn a_second_probe_has_room_only_once_the_first_has_passed() {
    loom::model(|| {
        let (shared, now) = opened(3);
        let mut first = shared.admit(now).expect("room for a probe");
        let passes = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.first_data(&mut first, Duration::ZERO, now);
                first
            })
        };
        let early = [(); 2].map(|()| shared.admit(now).is_ok());
        let first = passes.join().unwrap();
        assert_eq!(first.stage, Stage::Answered);
        // Two at most, and the one that came early keeps its place.
        let late = [(); 3].map(|()| shared.admit(now).is_ok());
        let sent = early.into_iter().chain(late).filter(|sent| *sent).count();
        assert_eq!(sent, 2);
        assert_agrees(&shared);
    });
}

#[test]
fn other_settings_that_come_as_a_call_ends_leave_word_and_circuit_agreed() {
    loom::model(|| {
        let (shared, now) = (with(row(2, 1)), time::now());
        let mut call = shared.admit(now).unwrap();
        let changes = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.configure(|circuit| {
                    let mut settings = circuit.settings().clone();
                    settings.window = Some(Window::Calls(4));
                    circuit.update(settings, now);
                });
            })
        };
        shared.settle(&mut call, &end(Verdict::Success), now);
        changes.join().unwrap();
        let mut after = shared.admit(now).unwrap();
        shared.settle(&mut after, &end(Verdict::Success), now);
        // The first is in the window or came before it.
        let calls = shared.look(|circuit| circuit.tally().sums(now).calls);
        assert!((1..=2).contains(&calls), "{calls}");
        assert_agrees(&shared);
    });
}

#[test]
fn a_circuit_that_is_forgotten_while_a_probe_is_out_hears_it_and_harms_nobody() {
    loom::model(|| {
        let (shared, now) = opened(1);
        let mut probe = shared.admit(now).expect("room for a probe");
        let forgets = {
            let shared = shared.clone();
            thread::spawn(move || shared.leave())
        };
        shared.settle(&mut probe, &end(Verdict::Success), now);
        forgets.join().unwrap();
        assert_eq!(state(&shared), CircuitState::Closed);
        assert_agrees(&shared);
    });
}
