//! What the settings make of a circuit.

use super::*;
use crate::buckets::Sums;

#[test]
fn every_kind_of_circuit_opens_on_the_failure_that_meets_its_condition() {
    let seconds = Duration::from_secs;
    let time = exact(Settings::window(
        Ratio::HALF,
        Window::Time(seconds(60)),
        COOLDOWN,
    ));
    for (settings, good, bad) in [
        (row(3), 100, 3),
        (window(100), 100, 50),
        (time, 100, 100),
        (exact(Settings::five_in_a_row()), 100, 5),
        (exact(Settings::half_of_ten()), 100, 50),
        (exact(Settings::half_of_ten()), 5, 5),
        (exact(Settings::five_in_a_minute()), 100, 5),
    ] {
        let (mut circuit, now) = (circuit(settings), now());
        (0..good).for_each(|_| one(&mut circuit, Says::Well, now));
        for failure in 1..=bad {
            assert_eq!(circuit.state(), CircuitState::Closed, "before {failure}");
            one(&mut circuit, Says::Ill, now);
        }
        assert_eq!(circuit.state(), CircuitState::Open);
    }
}

#[test]
fn an_hour_reopens_every_kind_of_circuit() {
    for settings in [
        Settings::five_in_a_row(),
        Settings::half_of_ten(),
        Settings::five_in_a_minute(),
        Settings::window(
            Ratio::HALF,
            Window::Time(Duration::from_secs(10)),
            Duration::from_secs(30),
        ),
    ] {
        let (mut circuit, mut now) = (circuit(settings), now());
        for _ in 0..10 {
            one(&mut circuit, Says::Ill, now);
            if circuit.state() == CircuitState::Open {
                break;
            }
        }
        now += Duration::from_secs(3600);
        while circuit.state() != CircuitState::Closed {
            one(&mut circuit, Says::Well, now);
        }
    }
}

#[test]
fn probes_farther_apart_than_the_window_still_close_it() {
    for window in [Window::Time(Duration::from_secs(1)), Window::Calls(2)] {
        let mut settings = exact(Settings::window(Ratio::HALF, window, COOLDOWN));
        settings.minimum_calls = 2;
        settings.probes = 5;
        let (mut circuit, mut now) = (circuit(settings), now());
        (0..2).for_each(|_| one(&mut circuit, Says::Ill, now));
        for _ in 0..5 {
            assert_ne!(circuit.state(), CircuitState::Closed);
            now += Duration::from_secs(60);
            one(&mut circuit, Says::Well, now);
        }
        assert_eq!(circuit.state(), CircuitState::Closed);
    }
}

#[test]
fn fewer_probes_than_the_minimum_of_calls_close_it() {
    let mut settings = exact(Settings::window(
        Ratio::HALF,
        Window::Time(Duration::from_secs(1)),
        COOLDOWN,
    ));
    settings.minimum_calls = 10;
    settings.probes = 8;
    let (mut circuit, mut now) = (circuit(settings), now());
    (0..10).for_each(|_| one(&mut circuit, Says::Ill, now));
    now += COOLDOWN;
    (0..8).for_each(|_| one(&mut circuit, Says::Well, now));
    assert_eq!(circuit.state(), CircuitState::Closed);
}

#[test]
fn a_probe_that_is_slow_fails_where_slow_calls_count() {
    for minds in [false, true] {
        let (mut circuit, at) = opened_by(|settings| {
            settings.slow_share = Some(Ratio::HALF).filter(|_| minds);
            settings.slow_after = Duration::from_secs(1);
        });
        let later = at + COOLDOWN;
        let mut probe = circuit.admit(later).unwrap();
        circuit.first_data(&mut probe, true, later);
        let state = match minds {
            true => CircuitState::Open,
            false => CircuitState::Closed,
        };
        assert_eq!(circuit.state(), state);
        circuit.settle(&mut probe, Says::Well, later);
        assert_eq!(circuit.state(), state);
    }
}

#[test]
fn a_probe_that_is_slow_after_the_others_have_closed_it_counts_in_the_closed_circuit() {
    for says in [Says::Well, Says::Ill] {
        let (mut circuit, at) = opened_by(|settings| {
            settings.slow_share = Some(Ratio::HALF);
            settings.probes = 3;
            settings.passing = Some(Ratio::HALF);
        });
        let later = at + COOLDOWN;
        one(&mut circuit, Says::Well, later);
        let mut last = circuit.admit(later).unwrap();
        one(&mut circuit, Says::Well, later);
        assert_eq!(circuit.state(), CircuitState::Closed);

        circuit.first_data(&mut last, true, later);
        circuit.settle(&mut last, says, later);
        match says {
            Says::Well => assert_eq!(circuit.tally.sums(later).slow, 1),
            _ => assert_eq!(circuit.state(), CircuitState::Open),
        }
    }
}

#[test]
fn with_a_share_of_passing_probes_one_that_fails_is_forgiven() {
    let (mut circuit, at) = opened_by(|settings| {
        settings.probes = 5;
        settings.passing = Ratio::new(0.6).ok();
    });
    let later = at + COOLDOWN;
    for said in [Says::Well, Says::Ill, Says::Well, Says::Ill] {
        one(&mut circuit, said, later);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
    }
    one(&mut circuit, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::Closed);

    one(&mut circuit, Says::Ill, later);
    let again = later + COOLDOWN;
    for said in [Says::Well, Says::Ill, Says::Ill] {
        one(&mut circuit, said, again);
    }
    assert_eq!(circuit.state(), CircuitState::HalfOpen);
    one(&mut circuit, Says::Ill, again);
    assert_eq!(circuit.state(), CircuitState::Open);
}

#[test]
fn half_open_for_too_long_it_opens_again_unless_what_was_heard_is_good() {
    let longest = Duration::from_secs(3);
    let half_open = || {
        let (circuit, at) = opened_by(|settings| {
            settings.probes = 3;
            settings.longest_half_open = Some(longest);
        });
        (circuit, at + COOLDOWN)
    };
    let (mut silent, at) = half_open();
    let _probe = silent.admit(at).unwrap();
    let nearly = at + longest - TICK;
    silent.admit(nearly).expect_err("it is still waited for");
    let refused = silent.admit(at + longest).unwrap_err();
    assert_eq!(refused, CircuitOpen::until(COOLDOWN * 2));

    // One request a minute would never be enough.
    let (mut sparse, at) = half_open();
    one(&mut sparse, Says::Well, at);
    assert_eq!(sparse.state(), CircuitState::HalfOpen);
    one(&mut sparse, Says::Well, at + Duration::from_secs(60));
    assert_eq!(sparse.state(), CircuitState::Closed);
}

#[test]
fn other_settings_do_not_change_the_state_it_is_in() {
    let (mut circuit, at) = opened(1);
    let mut settings = circuit.settings().clone();
    settings.cooldown = COOLDOWN * 4;
    settings.probes = 2;
    circuit.update(settings, at);
    assert_eq!(circuit.next_probe_in(at), Some(COOLDOWN), "as it was told");
    let later = at + COOLDOWN;
    one(&mut circuit, Says::Well, later);
    assert_eq!(circuit.state(), CircuitState::HalfOpen, "two have to pass");
    one(&mut circuit, Says::Ill, later);
    assert_eq!(circuit.next_probe_in(later), Some(COOLDOWN * 8));
}

#[test]
fn a_restart_keeps_it_open_for_what_was_left_and_its_growth() {
    let (mut before, at) = opened(1);
    one(&mut before, Says::Ill, at + COOLDOWN);
    let later = at + COOLDOWN + Duration::from_secs(3);
    let saved = before.save(later);

    let (mut after, start) = (circuit(row(1)), now() + Duration::from_secs(77));
    after.restore(&saved, start);
    assert_eq!(after.next_probe_in(start), Some(Duration::from_secs(7)));
    assert_eq!(after.opened(), 2);
    let due = start + Duration::from_secs(7);
    after.admit(due - TICK).expect_err("not yet");
    one(&mut after, Says::Ill, due);
    assert_eq!(after.next_probe_in(due), Some(COOLDOWN * 4));
}

#[test]
fn a_restart_keeps_what_was_counted() {
    let time = exact(Settings::window(
        Ratio::HALF,
        Window::Time(Duration::from_secs(60)),
        COOLDOWN,
    ));
    for settings in [row(10), window(20), time] {
        let (mut before, now) = (circuit(settings.clone()), now());
        (0..4).for_each(|_| one(&mut before, Says::Well, now));
        (0..4).for_each(|_| one(&mut before, Says::Ill, now));
        let mut after = circuit(settings);
        let mut earlier = after.admit(now).unwrap();
        after.restore(&before.save(now), now);
        after.settle(&mut earlier, Says::Well, now);
        for circuit in [&mut before, &mut after] {
            (0..2).for_each(|_| one(circuit, Says::Ill, now));
        }
        assert_eq!(before.state(), after.state());
        assert_eq!(before.save(now), after.save(now));
    }
}

#[test]
fn a_window_of_time_is_empty_after_it_has_closed() {
    let mut settings = exact(Settings::five_in_a_minute());
    settings.probes = 1;
    let (mut circuit, now) = (circuit(settings), now());
    (0..5).for_each(|_| one(&mut circuit, Says::Ill, now));
    let later = now + Duration::from_secs(30);
    one(&mut circuit, Says::Well, later);
    assert_eq!(circuit.tally.sums(later), Sums::default());
    assert_eq!(circuit.state(), CircuitState::Closed);
}
