//! That the short cuts change nothing.

use palisade_core::{ratio::Ratio, time};
use proptest::prelude::*;

use super::*;
use crate::settings::Window;

const COOLDOWN: Duration = Duration::from_secs(5);
const SLOW_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Admit,
    Data(usize),
    Settle(usize, u8),
    Drop(usize),
    Force(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        20 => (0_u64..8000).prop_map(Event::Wait),
        40 => Just(Event::Admit),
        10 => any::<usize>().prop_map(Event::Data),
        30 => (any::<usize>(), 0_u8..7).prop_map(|(at, verdict)| Event::Settle(at, verdict)),
        5 => any::<usize>().prop_map(Event::Drop),
        1 => (0_u8..3).prop_map(Event::Force),
    ];
    prop::collection::vec(event, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The bare circuit is the model: it takes no short cuts.
    #[test]
    fn what_the_atomic_word_decides_the_circuit_decides_too(
        kind in 0_u8..4,
        probes in 1_u32..4,
        events in events(),
    ) {
        let mut settings = match kind {
            0 => Settings::consecutive(2, COOLDOWN),
            1 => Settings::window(Ratio::HALF, Window::Calls(4), COOLDOWN),
            2 => Settings::window(Ratio::HALF, Window::Time(COOLDOWN * 4), COOLDOWN),
            _ => {
                let mut settings = Settings::consecutive(2, COOLDOWN);
                settings.slow_share = Some(Ratio::HALF);
                settings
            }
        };
        settings.minimum_calls = 4;
        settings.jitter = None;
        settings.probes = probes;
        let origin = time::now();
        let shared = Shared::new(settings.clone(), 1, Arc::new(Common::new()), origin);
        let mut model = Circuit::new(settings, 1);

        let mut now = time::now();
        let mut under_way: Vec<(Instant, Admission, Admission)> = Vec::new();
        for event in events {
            let some = |at: usize| (!under_way.is_empty()).then(|| at % under_way.len());
            match event {
                Event::Wait(millis) => now += Duration::from_millis(millis),
                Event::Admit => {
                    let outlook = shared.outlook(now);
                    match (shared.admit(now), model.admit(now)) {
                        (Ok(left), Ok(right)) => {
                            let expected = match right.stage {
                                Stage::Probing => Outlook::Probes,
                                _ => Outlook::Admits,
                            };
                            prop_assert_eq!(outlook, expected);
                            prop_assert_eq!(left.stage, right.stage);
                            under_way.push((now, left, right));
                        }
                        (left, right) => {
                            let (left, right) = (left.unwrap_err(), right.unwrap_err());
                            prop_assert_eq!(left, right);
                            let until = right.remaining.map(|remaining| now + remaining);
                            prop_assert_eq!(outlook, match model.is_forced() {
                                true => Outlook::Held,
                                false => Outlook::Refuses { until },
                            });
                        }
                    }
                }
                Event::Data(at) => if let Some(at) = some(at) {
                    let (since, left, right) = &mut under_way[at];
                    let age = now - *since;
                    shared.first_data(left, age, now);
                    model.first_data(right, age >= SLOW_AFTER, now);
                },
                Event::Settle(at, verdict) => if let Some(at) = some(at) {
                    let (since, mut left, mut right) = under_way.swap_remove(at);
                    let retry_after = Some(Duration::from_secs(7));
                    let end = End {
                        verdict: match verdict {
                            0 | 1 => Verdict::Success,
                            2 | 3 => Verdict::Failure,
                            4 => Verdict::Overload { retry_after },
                            5 => Verdict::CallerFault,
                            _ => Verdict::Canceled,
                        },
                        usage: None,
                        streamed: 0,
                        age: now - since,
                    };
                    let said = Says::of(&end, right.stage, |age| age >= SLOW_AFTER);
                    if right.stage != Stage::Answered {
                        right.slow = end.age >= SLOW_AFTER;
                    }
                    shared.settle(&mut left, &end, now);
                    model.settle(&mut right, said, now);
                },
                Event::Drop(at) => if let Some(at) = some(at) {
                    let (_, mut left, mut right) = under_way.swap_remove(at);
                    shared.give_back(&mut left);
                    model.give_back(&mut right);
                },
                Event::Force(0) => {
                    shared.change(Circuit::force_open);
                    model.force_open();
                }
                Event::Force(1) => {
                    shared.change(Circuit::force_closed);
                    model.force_closed();
                }
                Event::Force(_) => {
                    shared.change(Circuit::release);
                    model.release();
                }
            }
            shared.look(|circuit| {
                assert_eq!(circuit.state(), model.state());
                assert_eq!(circuit.tally().in_a_row(), model.tally().in_a_row());
                assert_eq!(circuit.tally().sums(now), model.tally().sums(now));
                assert_eq!(circuit.next_probe_in(now), model.next_probe_in(now));
                assert_eq!(circuit.opened(), model.opened());
            });
        }
    }
}
