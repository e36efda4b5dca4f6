use palisade_core::{ratio::Ratio, reject::Reason, time::now};

use super::*;
use crate::settings::Window;

mod kinds;

const COOLDOWN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);
const SLOW_AFTER: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_nanos(1);

fn exact(mut settings: Settings) -> Settings {
    settings.jitter = None;
    settings.probe_timeout = PATIENCE;
    settings
}

fn row(failures: u32) -> Settings {
    exact(Settings::consecutive(failures, COOLDOWN))
}

fn window(calls: u32) -> Settings {
    exact(Settings::window(
        Ratio::HALF,
        Window::Calls(calls),
        COOLDOWN,
    ))
}

fn circuit(settings: Settings) -> Circuit {
    Circuit::new(settings, 1)
}

/// A circuit that opened at the time it is returned with.
fn opened(probes: u32) -> (Circuit, Instant) {
    opened_by(|settings| settings.probes = probes)
}

fn opened_by(set: impl FnOnce(&mut Settings)) -> (Circuit, Instant) {
    let mut settings = row(1);
    set(&mut settings);
    let (mut circuit, now) = (circuit(settings), now());
    one(&mut circuit, Says::Ill, now);
    (circuit, now)
}

/// Sends a request and ends it at once.
fn one(circuit: &mut Circuit, says: Says, now: Instant) {
    let mut admission = circuit.admit(now).unwrap();
    circuit.settle(&mut admission, says, now);
}

fn says(verdict: Verdict, age: Duration, stage: Stage) -> Says {
    let end = End {
        age,
        ..End::new(verdict)
    };
    Says::of(&end, stage, |age| age >= SLOW_AFTER)
}

#[test]
fn every_verdict_says_what_the_table_says() {
    let retry_after = Some(Duration::from_secs(3));
    for (verdict, meaning) in [
        (Verdict::Success, Says::Well),
        (Verdict::Failure, Says::Ill),
        (Verdict::TimedOut, Says::Ill),
        (Verdict::Unsent, Says::Ill),
        (Verdict::Overload { retry_after }, Says::Busy(retry_after)),
        (Verdict::CallerFault, Says::Nothing),
        (Verdict::Refused(Reason::RateLimited), Says::Nothing),
        (Verdict::Canceled, Says::Nothing),
    ] {
        let young = SLOW_AFTER - TICK;
        assert_eq!(says(verdict, young, Stage::Waiting), meaning, "{verdict:?}");
    }
}

#[test]
fn giving_up_late_counts_unless_data_have_come() {
    let canceled = |stage| says(Verdict::Canceled, SLOW_AFTER, stage);
    assert_eq!(canceled(Stage::Waiting), Says::Ill);
    assert_eq!(canceled(Stage::Probing), Says::Ill);
    assert_eq!(canceled(Stage::Answered), Says::Nothing);
}

#[test]
fn opens_on_the_last_failure_in_a_row_and_not_one_earlier() {
    let now = now();
    let mut circuit = circuit(row(3));
    for said in [Says::Ill, Says::Ill, Says::Well, Says::Ill, Says::Ill] {
        one(&mut circuit, said, now);
    }
    assert_eq!(circuit.state(), CircuitState::Closed);
    one(&mut circuit, Says::Ill, now);
    assert_eq!(circuit.state(), CircuitState::Open);
    assert_eq!(circuit.opened(), 1);
}

#[test]
fn a_verdict_from_before_the_trip_is_ignored() {
    let now = now();
    let mut circuit = circuit(row(1));
    let mut slow = circuit.admit(now).unwrap();
    let mut slow_too = circuit.admit(now).unwrap();
    one(&mut circuit, Says::Ill, now);
    let later = now + COOLDOWN;
    let mut probe = circuit.admit(later).unwrap();

    circuit.settle(&mut slow, Says::Well, later);
    circuit.settle(&mut slow_too, Says::Ill, later);

    circuit.admit(later).expect_err("the probe is still out");
    circuit.settle(&mut probe, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn the_pause_named_is_exact_to_the_nanosecond() {
    let (mut circuit, at) = opened(1);
    let nearly = at + COOLDOWN - TICK;
    assert_eq!(circuit.next_probe_in(nearly), Some(TICK));
    let refused = circuit.admit(nearly).unwrap_err();
    assert_eq!(refused, CircuitOpen::until(TICK));
    assert!(circuit.admit(at + COOLDOWN).is_ok());
}

#[test]
fn the_open_time_doubles_with_every_failed_probe_and_starts_afresh_after_closing() {
    let (mut circuit, mut now) = opened(1);
    for pause in [5, 10, 20, 40, 60, 60] {
        let left = circuit.next_probe_in(now);
        assert_eq!(left, Some(Duration::from_secs(pause)));
        now += Duration::from_secs(pause);
        one(&mut circuit, Says::Ill, now);
    }
    now += Duration::from_secs(60);
    one(&mut circuit, Says::Well, now);
    assert_eq!(circuit.state(), CircuitState::Closed);
    one(&mut circuit, Says::Ill, now);
    assert_eq!(circuit.next_probe_in(now), Some(COOLDOWN));
    assert_eq!(circuit.opened(), 8);
}

#[test]
fn two_circuits_with_jitter_and_other_seeds_open_for_other_times() {
    let pause = |seed| {
        let mut circuit = Circuit::new(Settings::consecutive(1, COOLDOWN), seed);
        let now = now();
        one(&mut circuit, Says::Ill, now);
        circuit.next_probe_in(now).unwrap()
    };
    assert_eq!(pause(1), pause(1));
    assert_ne!(pause(1), pause(2));
}

#[test]
fn closes_when_every_probe_has_passed() {
    let (mut circuit, at) = opened(3);
    let later = at + COOLDOWN;
    let mut first = circuit.admit(later).unwrap();
    circuit.admit(later).expect_err("one goes first");
    circuit.first_data(&mut first, false, later);
    circuit.settle(&mut first, Says::Well, later);

    let mut second = circuit.admit(later).unwrap();
    let mut third = circuit.admit(later).unwrap();
    circuit.admit(later).expect_err("no more are needed");
    circuit.settle(&mut second, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::HalfOpen);
    circuit.admit(later).expect_err("the third is still out");
    circuit.settle(&mut third, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn one_failed_probe_opens_again_and_the_others_are_not_heard() {
    let (mut circuit, at) = opened(3);
    let later = at + COOLDOWN;
    one(&mut circuit, Says::Well, later);
    let mut good = circuit.admit(later).unwrap();
    let mut bad = circuit.admit(later).unwrap();
    circuit.settle(&mut bad, Says::Ill, later);
    circuit.settle(&mut good, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::Open);
    assert_eq!(circuit.next_probe_in(later), Some(COOLDOWN * 2));
}

#[test]
fn a_body_that_breaks_after_its_probe_has_passed_opens_while_others_are_still_out() {
    let (mut circuit, at) = opened(2);
    let later = at + COOLDOWN;
    let mut probe = circuit.admit(later).unwrap();
    circuit.first_data(&mut probe, false, later);
    circuit.settle(&mut probe, Says::Ill, later);
    assert_eq!(circuit.state(), CircuitState::Open);
}

#[test]
fn the_bodies_of_all_probes_that_have_passed_count_in_the_closed_circuit() {
    let (mut circuit, at) = opened(2);
    let mut settings = circuit.settings().clone();
    settings.consecutive = Some(2);
    circuit.update(settings, at);
    let later = at + COOLDOWN;
    let mut probes = [(); 2].map(|()| {
        let mut probe = circuit.admit(later).unwrap();
        circuit.first_data(&mut probe, false, later);
        probe
    });
    assert_eq!(circuit.state(), CircuitState::Closed);
    for probe in &mut probes {
        circuit.settle(probe, Says::Ill, later);
    }
    assert_eq!(circuit.state(), CircuitState::Open);
}

#[test]
fn a_probe_that_says_nothing_makes_room_for_another() {
    let (mut circuit, at) = opened(1);
    let later = at + COOLDOWN;
    one(&mut circuit, Says::Nothing, later);
    let mut dropped = circuit.admit(later).unwrap();
    circuit.give_back(&mut dropped);
    circuit.give_back(&mut dropped);
    let _probe = circuit.admit(later).unwrap();
    circuit.admit(later).expect_err("there is one place");
}

#[test]
fn a_verdict_is_heard_once() {
    let (mut circuit, at) = opened(2);
    let later = at + COOLDOWN;
    let mut probe = circuit.admit(later).unwrap();
    circuit.settle(&mut probe, Says::Well, later);
    circuit.settle(&mut probe, Says::Well, later);
    circuit.settle(&mut probe, Says::Ill, later);
    circuit.give_back(&mut probe);
    assert_eq!(circuit.state(), CircuitState::HalfOpen);
}

#[test]
fn a_probe_that_never_ends_is_given_up_to_the_nanosecond() {
    let (mut circuit, at) = opened(1);
    let sent = at + COOLDOWN;
    let mut lost = circuit.admit(sent).unwrap();
    let nearly = sent + PATIENCE - TICK;
    circuit.admit(nearly).expect_err("it is still waited for");
    assert_eq!(circuit.next_probe_in(nearly), None);

    let later = sent + PATIENCE;
    assert_eq!(circuit.next_probe_in(later), Some(Duration::ZERO));
    let mut probe = circuit.admit(later).unwrap();
    circuit.settle(&mut lost, Says::Ill, later);
    assert_eq!(circuit.state(), CircuitState::HalfOpen);
    circuit.admit(later).expect_err("the other probe is out");
    circuit.settle(&mut probe, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn what_has_passed_still_counts_when_a_later_probe_is_given_up() {
    let (mut circuit, at) = opened(2);
    let sent = at + COOLDOWN;
    one(&mut circuit, Says::Well, sent);
    let _lost = circuit.admit(sent).unwrap();
    one(&mut circuit, Says::Well, sent + PATIENCE);
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn a_probe_that_never_ends_is_given_up_also_while_there_is_room_for_another() {
    let (mut circuit, at) = opened(3);
    let sent = at + COOLDOWN;
    one(&mut circuit, Says::Well, sent);
    let _lost = circuit.admit(sent).unwrap();
    assert_eq!(circuit.next_probe_in(sent), Some(Duration::ZERO));
    for _ in 0..2 {
        one(&mut circuit, Says::Well, sent + PATIENCE);
    }
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn a_probe_that_has_passed_is_heard_however_long_its_body_takes() {
    let (mut circuit, at) = opened(2);
    let sent = at + COOLDOWN;
    let mut stream = circuit.admit(sent).unwrap();
    circuit.first_data(&mut stream, false, sent);
    let later = sent + PATIENCE * 2;
    one(&mut circuit, Says::Nothing, later);
    circuit.settle(&mut stream, Says::Ill, later);
    assert_eq!(circuit.state(), CircuitState::Open);
}

#[test]
fn a_service_that_takes_longer_to_answer_than_a_probe_is_waited_for_is_found_to_work() {
    let (mut circuit, mut now) = opened(1);
    now += COOLDOWN;
    let takes = PATIENCE * 5;
    // Somebody asks every second; whoever is admitted is answered in the end.
    let mut under_way = Vec::new();
    for _ in 0..600 {
        if let Ok(admission) = circuit.admit(now) {
            under_way.push((now + takes, admission));
        }
        under_way.retain_mut(|(answered, admission)| {
            if *answered <= now {
                circuit.settle(admission, Says::Well, now);
            }
            admission.stage != Stage::Over
        });
        now += Duration::from_secs(1);
    }
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn overload_fails_a_probe_and_sets_the_open_time_up_to_ten_minutes() {
    for (asked, pause) in [(60, 60), (3, 3), (100_000, 600)] {
        let (mut circuit, at) = opened(1);
        let later = at + COOLDOWN;
        let asked = Duration::from_secs(asked);
        one(&mut circuit, Says::Busy(Some(asked)), later);
        let left = circuit.next_probe_in(later);
        assert_eq!(left, Some(Duration::from_secs(pause)));
    }
}

#[test]
fn overload_counts_in_a_window_but_not_in_a_row() {
    let now = now();
    for (settings, opens) in [(row(1), false), (window(1), true)] {
        let mut circuit = circuit(settings);
        one(&mut circuit, Says::Busy(None), now);
        assert_eq!(circuit.admit(now).is_err(), opens);
    }
}

#[test]
fn a_forced_circuit_hears_nothing_and_starts_afresh_when_released() {
    let (mut circuit, now) = opened(1);
    circuit.force_closed();
    let mut before = circuit.admit(now).unwrap();
    one(&mut circuit, Says::Ill, now);
    assert_eq!(circuit.state(), CircuitState::Closed);
    assert!(circuit.is_forced());

    circuit.force_open();
    let a_year_on = now + Duration::from_secs(365 * 24 * 3600);
    assert_eq!(
        circuit.admit(a_year_on).unwrap_err(),
        CircuitOpen::for_now()
    );
    assert_eq!(circuit.next_probe_in(a_year_on), None);

    circuit.release();
    circuit.settle(&mut before, Says::Ill, now);
    assert_eq!(circuit.state(), CircuitState::Closed);
    assert!(!circuit.is_forced());
    assert_eq!(circuit.tally.in_a_row(), 0);
}

#[test]
fn what_was_admitted_before_a_release_is_not_heard_after_it() {
    let now = now();
    for force in [Circuit::force_closed, |_: &mut Circuit| {}] {
        let mut circuit = circuit(row(1));
        force(&mut circuit);
        let mut before = circuit.admit(now).unwrap();
        circuit.release();
        circuit.settle(&mut before, Says::Ill, now);
        assert_eq!(circuit.state(), CircuitState::Closed);
    }
}

#[test]
fn an_hour_reopens_whatever_the_cool_down_grew_to() {
    let mut circuit = Circuit::new(Settings::consecutive(1, Duration::from_secs(30)), 7);
    let mut now = now();
    for _ in 0..100 {
        one(&mut circuit, Says::Ill, now);
        now += Duration::from_secs(3600);
    }
    one(&mut circuit, Says::Well, now);
    assert_eq!(circuit.state(), CircuitState::Closed);
}
