//! A scan that need not ask whether an endpoint is wanted takes a shorter way, to the same end.

use std::time::Duration;

use palisade_core::{classify::Verdict, settle::End, time};
use proptest::{prelude::*, sample::Index, strategy::Strategy as _};

use super::{
    Need, Want,
    tests::{fleet, is},
};
use crate::{slot::Duty, snapshot::Health, strategy::Strategy};

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
enum Step {
    Pick(Option<u64>),
    End(Index, u8),
    Weight(Index, f64),
    Full(Index, u32),
    Healthy(Index, bool),
    Serving(Index, bool),
    Strategy(Index),
    Wait(u64),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        16 => prop::option::of(0..5u64).prop_map(Step::Pick),
        10 => (at(), 0..5u8).prop_map(|(at, verdict)| Step::End(at, verdict)),
        1 => (at(), 1e-3..1e3f64).prop_map(|(at, weight)| Step::Weight(at, weight)),
        1 => (at(), 0..4u32).prop_map(|(at, most)| Step::Full(at, most)),
        1 => (at(), any::<bool>()).prop_map(|(at, well)| Step::Healthy(at, well)),
        1 => (at(), any::<bool>()).prop_map(|(at, serves)| Step::Serving(at, serves)),
        2 => at().prop_map(Step::Strategy),
        4 => (0..20_000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_wants_all_gets_what_who_is_asked_gets(
        number in prop_oneof![1..12u32, 65..90u32],
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut now = time::now();
        let mut fleets = [fleet(number, now), fleet(number, now)];
        let mut tickets = Vec::new();
        for step in steps {
            match step {
                Step::Pick(affinity) => {
                    let picked = [false, true].map(|wants_all| {
                        let need = Need { affinity, wants_all, ..Need::default() };
                        let picked = fleets[usize::from(wants_all)].pick(now, &need, |_| Want::Yes);
                        picked.map(|(thing, ticket)| (thing.number, ticket))
                    });
                    match picked {
                        [Ok((one, first)), Ok((other, second))] => {
                            prop_assert_eq!((one, first.doubtful), (other, second.doubtful));
                            tickets.push([first, second]);
                        }
                        [Err(one), Err(other)] => prop_assert_eq!(one, other),
                        _ => prop_assert!(false, "one is refused"),
                    }
                }
                Step::End(at, verdict) => if !tickets.is_empty() {
                    let pair = tickets.swap_remove(at.index(tickets.len()));
                    let verdict = match verdict {
                        0 | 1 => Verdict::Failure,
                        2 => Verdict::Overload { retry_after: Some(MS * 700) },
                        _ => Verdict::Success,
                    };
                    for (fleet, mut ticket) in fleets.iter_mut().zip(pair) {
                        fleet.settle(&mut ticket, &End::new(verdict), now);
                        fleet.end(&mut ticket, now);
                    }
                },
                Step::Wait(millis) => now += Duration::from_millis(millis),
                step => for fleet in &mut fleets {
                    let thing = |at: Index| is(at.index(number as usize) as u32);
                    match step {
                        Step::Weight(at, weight) => fleet.find(thing(at)).unwrap().set_weight(weight),
                        Step::Full(at, most) => fleet.find(thing(at)).unwrap().max_in_flight = most,
                        Step::Healthy(at, true) => { fleet.set_health(thing(at), Health::Healthy, now); }
                        Step::Healthy(at, false) => { fleet.set_health(thing(at), Health::Unhealthy, now); }
                        Step::Serving(at, true) => { fleet.resume(thing(at), now); }
                        Step::Serving(at, false) => fleet.find(thing(at)).unwrap().duty = Duty::Suspended,
                        Step::Strategy(at) => fleet.strategy = *at.get(&Strategy::ALL),
                        _ => unreachable!("above"),
                    }
                },
            }
            prop_assert_eq!(fleets[0].panics(), fleets[1].panics());
        }
    }
}
