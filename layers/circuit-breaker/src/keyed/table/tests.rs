use std::collections::{HashMap, HashSet as Names};

use palisade_core::{classify::Verdict, settle::End, time};
use proptest::prelude::*;

use super::*;
use crate::CircuitState;

const COOLDOWN: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);

fn table(capacity: usize) -> (Table, Instant) {
    let origin = time::now();
    let mut settings = Settings::consecutive(1, COOLDOWN);
    settings.jitter = None;
    let mut table = Table::new(settings, Arc::new(Common::new()), origin);
    table.capacity = capacity;
    table.idle = IDLE;
    (table, origin)
}

fn key(number: u32) -> Key<'static> {
    number.to_string().into()
}

fn open(shared: &Shared, now: Instant) {
    let mut admission = shared.admit(now).unwrap();
    shared.settle(&mut admission, &End::new(Verdict::Failure), now);
}

fn state(table: &Table, key: &Key<'_>) -> Option<CircuitState> {
    let seat = table.find(key)?;
    Some(seat.shared.look(|circuit| circuit.state()))
}

#[test]
fn a_key_keeps_its_circuit_and_kinds_of_keys_are_not_mixed_up() {
    let (mut table, now) = table(10);
    let address = Key::Address("1.2.3.4".parse().unwrap());
    for key in [&key(1), &address] {
        open(&table.seat(key, now).unwrap(), now);
        assert!(table.seat(key, now).unwrap().admit(now).is_err());
    }
    assert!(
        table
            .seat(&"1.2.3.4".into(), now)
            .unwrap()
            .admit(now)
            .is_ok()
    );
    assert_eq!(table.queue.len(), 3);
}

#[test]
fn an_open_circuit_outlives_every_closed_one() {
    let (mut table, now) = table(10);
    for number in 0..9 {
        open(&table.seat(&key(number), now).unwrap(), now);
    }
    for number in 100..1000 {
        table.seat(&key(number), now).unwrap();
        assert_eq!(table.queue.len(), 10.min(number as usize - 90));
    }
    for number in 0..9 {
        assert_eq!(state(&table, &key(number)), Some(CircuitState::Open));
    }
}

#[test]
fn a_half_open_circuit_outlives_every_closed_one_while_it_is_asked_for() {
    let (mut table, now) = table(10);
    let shared = table.seat(&key(0), now).unwrap();
    open(&shared, now);
    let later = now + COOLDOWN;
    let _probe = shared.admit(later).unwrap();
    table.ask(&key(0), later);
    for number in 100..1000 {
        table.seat(&key(number), later).unwrap();
    }
    assert_eq!(state(&table, &key(0)), Some(CircuitState::HalfOpen));
}

#[test]
fn when_all_are_open_the_one_asked_for_the_longest_ago_goes() {
    let (mut table, mut now) = table(3);
    for number in 0..3 {
        open(&table.seat(&key(number), now).unwrap(), now);
        now += Duration::from_secs(1);
    }
    table.ask(&key(0), now);
    table.seat(&key(3), now).unwrap();
    assert_eq!(state(&table, &key(1)), None);
    assert!(
        [0, 2, 3]
            .iter()
            .all(|number| state(&table, &key(*number)).is_some())
    );
}

#[test]
fn a_circuit_that_somebody_has_forced_is_kept_and_newcomers_have_none_if_all_are() {
    let (mut table, now) = table(2);
    for number in 0..2 {
        let shared = table.seat(&key(number), now).unwrap();
        match number {
            0 => shared.change(|circuit| circuit.force_closed()),
            _ => shared.change(|circuit| circuit.force_open()),
        }
    }
    assert!(table.seat(&key(2), now + IDLE * 100).is_none());
    assert!(table.forget(&key(0)));
    assert!(table.seat(&key(2), now + IDLE * 100).is_some());
}

#[test]
fn idle_ones_go_as_others_come_unless_they_still_refuse() {
    let (mut table, now) = table(1000);
    for number in 0..100 {
        table.seat(&key(number), now).unwrap();
    }
    let refusing = table.seat(&key(1000), now).unwrap();
    refusing.change(|circuit| {
        let mut settings = circuit.settings().clone();
        settings.cooldown = IDLE * 10;
        circuit.update(settings, now);
    });
    open(&refusing, now);
    let later = now + IDLE;
    for number in 100..200 {
        table.seat(&key(number), later).unwrap();
    }
    assert_eq!(table.queue.len(), 101);
    assert_eq!(table.evicted, 100);
    assert_eq!(state(&table, &key(1000)), Some(CircuitState::Open));

    // Its time is over, and nobody asks for it.
    let much_later = now + IDLE * 20;
    for number in 200..300 {
        table.seat(&key(number), much_later).unwrap();
    }
    assert_eq!(state(&table, &key(1000)), None);
}

#[test]
fn one_that_is_used_stays_where_many_are_used_once() {
    let (mut table, mut now) = table(100);
    for number in 0..10_000 {
        now += Duration::from_millis(200);
        table.seat(&key(number + 10), now).unwrap();
        let favourite = table.ask(&key(number % 10), now).is_some();
        if !favourite {
            table.seat(&key(number % 10), now).unwrap();
            assert!(number < 10, "favourite {} was forgotten", number % 10);
        }
    }
}

#[test]
fn one_that_is_used_stays_where_all_newcomers_come_at_once() {
    let (mut table, now) = table(10);
    table.seat(&key(0), now).unwrap();
    for number in 1..1_000 {
        table.seat(&key(number), now).unwrap();
        assert!(table.ask(&key(0), now).is_some(), "by {number}");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Seat(u32),
    Ask(u32),
    Open(u32),
    Probe(u32),
    Wait(u64),
    Forget(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let number = || 0_u32..30;
    let event = prop_oneof![
        10 => number().prop_map(Event::Seat),
        5 => number().prop_map(Event::Ask),
        5 => number().prop_map(Event::Open),
        2 => number().prop_map(Event::Probe),
        2 => (0_u64..20_000).prop_map(Event::Wait),
        1 => number().prop_map(Event::Forget),
    ];
    prop::collection::vec(event, 0..300)
}

proptest! {
    #[test]
    fn the_queue_is_the_set_is_bounded_and_loses_no_open_one_while_a_closed_one_is_there(
        capacity in 1_usize..20,
        events in events(),
    ) {
        let (mut table, mut now) = table(capacity);
        for event in events {
            let before: HashMap<String, (CircuitState, bool)> = table
                .seats()
                .map(|seat| {
                    let state = seat.shared.look(|circuit| circuit.state());
                    let refuses = seat.shared.look(|circuit| circuit.next_probe_in(now) > Some(Duration::ZERO));
                    (format!("{:?}", seat.key), (state, refuses))
                })
                .collect();
            let mut forgotten_by_hand = false;
            match event {
                Event::Seat(number) => {
                    let shared = table.seat(&key(number), now).unwrap();
                    let found = table.find(&key(number)).unwrap();
                    prop_assert!(Arc::ptr_eq(&found.shared, &shared));
                }
                Event::Ask(number) => {
                    table.ask(&key(number), now);
                }
                Event::Open(number) => if let Some(shared) = table.ask(&key(number), now)
                    && let Ok(mut admission) = shared.admit(now) {
                    shared.settle(&mut admission, &End::new(Verdict::Failure), now);
                },
                Event::Probe(number) => if let Some(shared) = table.ask(&key(number), now)
                    && let Ok(mut admission) = shared.admit(now) {
                    shared.settle(&mut admission, &End::new(Verdict::Success), now);
                },
                Event::Wait(millis) => now += Duration::from_millis(millis),
                Event::Forget(number) => {
                    forgotten_by_hand = table.forget(&key(number));
                }
            }
            prop_assert!(table.queue.len() <= capacity);
            prop_assert_eq!(table.queue.len(), table.seats.len());
            let after: Names<String> = table.seats().map(|seat| format!("{:?}", seat.key)).collect();
            prop_assert_eq!(after.len(), table.queue.len());
            if forgotten_by_hand {
                continue;
            }
            for (name, (_, refuses)) in &before {
                if *refuses && !after.contains(name) {
                    let closed = before.values().filter(|(state, _)| *state == CircuitState::Closed);
                    prop_assert_eq!(closed.count(), 0, "{} was forgotten", name);
                }
            }
        }
    }
}
