//! All interleavings of a few threads: `RUSTFLAGS="--cfg loom" cargo test -p palisade-circuit-breaker --lib shared`.

use std::sync::Arc;

use loom::thread;
use palisade_core::classify::Verdict;

use super::*;
use crate::CircuitState;

const COOLDOWN: Duration = Duration::from_secs(5);

fn shared(probes: u32) -> Arc<Shared> {
    let shared = Shared::new(Tally::row(1), COOLDOWN);
    shared.configure(|circuit| {
        circuit.cooldown.set_jitter(None);
        circuit.probes = probes;
    });
    Arc::new(shared)
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
                    shared.first_data(&mut call);
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
        let shared = Arc::new(Shared::new(Tally::row(2), COOLDOWN));
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
        let failures = shared.look(|circuit| circuit.tally.failures());
        match state(&shared) {
            CircuitState::Open => assert_eq!(failures, 2),
            CircuitState::Closed => assert!(failures <= 1),
            CircuitState::HalfOpen => panic!("nobody has probed"),
        }
        assert_agrees(&shared);
    });
}
