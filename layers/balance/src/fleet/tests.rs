use std::{cell::Cell, collections::HashMap, sync::Arc, time::Duration};

use palisade_core::{classify::Verdict, gate::Outlook, settle::End, time};
use proptest::{prelude::*, sample::Index, strategy::Strategy as _};
use tokio::time::Instant;

use super::{Ended, Fleet, Item, Need, Want};
use crate::{
    coin::Coin,
    eject::Ejection,
    panic::Panic,
    slot::{Duty, Ticket},
    snapshot::{EndpointState, Health},
    strategy::Strategy,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Thing {
    pub(super) number: u32,
    gate: Option<Cell<Outlook>>,
}

impl Item for Thing {
    fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    fn hash(&self) -> u64 {
        crate::coin::mix(u64::from(self.number))
    }

    fn outlook(&self, _: Instant) -> Outlook {
        self.gate.as_ref().map_or(Outlook::Admits, Cell::get)
    }
}

pub(super) fn fleet(number: u32, now: Instant) -> Fleet<Thing> {
    let mut fleet = Fleet::new(now, Coin::seeded(1));
    for number in 0..number {
        let gate = None;
        fleet.insert(Thing { number, gate }, 1.0, u32::MAX, now);
    }
    fleet
}

pub(super) fn is(number: u32) -> impl Fn(&Thing) -> bool {
    move |thing| thing.number == number
}

pub(super) fn only(number: u32) -> impl Fn(&Thing) -> Want {
    move |thing| {
        if thing.number == number {
            Want::Yes
        } else {
            Want::No
        }
    }
}

pub(super) fn ends(
    fleet: &mut Fleet<Thing>,
    mut ticket: Ticket,
    verdict: Verdict,
    now: Instant,
) -> bool {
    let end = End::new(verdict);
    let change = fleet.settle(&mut ticket, &end, now);
    fleet.end(&mut ticket, now);
    change.ejected.is_some()
}

pub(super) fn fails(fleet: &mut Fleet<Thing>, number: u32, times: u32, now: Instant) -> bool {
    let mut ejected = false;
    for _ in 0..times {
        let ticket = fleet.pick(now, &Need::default(), only(number)).unwrap().1;
        ejected = ends(fleet, ticket, Verdict::Failure, now);
    }
    ejected
}

pub(super) fn state(fleet: &mut Fleet<Thing>, number: u32, now: Instant) -> EndpointState {
    fleet.state_by(is(number), now).unwrap().1
}

#[test]
fn an_ejection_lasts_exactly_as_long_as_it_says() {
    let now = time::now();
    let mut fleet = fleet(3, now);
    assert!(fails(&mut fleet, 0, 5, now));
    let until = fleet
        .pick(now, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    assert!((SECOND / 2..SECOND * 3 / 2).contains(&(until - now)));
    let nearly = until - Duration::from_nanos(1);
    assert!(fleet.pick(nearly, &Need::default(), only(0)).is_err());
    assert_eq!(
        fleet
            .pick(until, &Need::default(), |_| Want::Yes)
            .unwrap()
            .0
            .number,
        0,
        "a probe that is due costs nothing"
    );
    assert!(
        fleet.pick(until, &Need::default(), only(0)).is_err(),
        "one at a time"
    );
}

#[test]
fn ejections_double_until_it_has_worked_for_a_while() {
    let mut now = time::now();
    let mut fleet = fleet(3, now);
    fails(&mut fleet, 0, 5, now);
    for turn in 0..10 {
        let until = fleet
            .pick(now, &Need::default(), only(0))
            .unwrap_err()
            .unwrap();
        let usual = (SECOND * 2u32.pow(turn)).min(SECOND * 50);
        assert!(
            (usual / 2..=(usual * 3 / 2).min(SECOND * 50)).contains(&(until - now)),
            "{turn} {:?}",
            until - now
        );
        now = until;
        fails(&mut fleet, 0, 1, now);
    }
    now = fleet
        .pick(now, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    for _ in 0..6 {
        let ticket = fleet.pick(now, &Need::default(), only(0)).unwrap().1;
        ends(&mut fleet, ticket, Verdict::Success, now);
        now += SECOND * 10;
    }
    fails(&mut fleet, 0, 5, now);
    let until = fleet
        .pick(now, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    let pause = until - now;
    assert!(
        (SECOND..SECOND * 3).contains(&pause),
        "one doubling of six is left after 50 s: {pause:?}"
    );
}

#[test]
fn a_probe_that_never_ends_makes_way_for_another() {
    let now = time::now();
    let mut fleet = fleet(3, now);
    fails(&mut fleet, 0, 5, now);
    let later = fleet
        .pick(now, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    let lost = fleet.pick(later, &Need::default(), only(0)).unwrap().1;
    let timeout = fleet
        .pick(later, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    assert_eq!(timeout - later, SECOND * 10);
    let second = fleet.pick(timeout, &Need::default(), only(0)).unwrap().1;
    assert_eq!(state(&mut fleet, 0, timeout), EndpointState::Probing);
    ends(&mut fleet, lost, Verdict::Success, timeout);
    assert_eq!(
        state(&mut fleet, 0, timeout),
        EndpointState::SlowStart,
        "who answers late works, too"
    );
    assert!(!ends(&mut fleet, second, Verdict::Failure, timeout));
    assert_eq!(
        state(&mut fleet, 0, timeout),
        EndpointState::SlowStart,
        "of an earlier state"
    );
}

#[test]
fn a_probe_that_was_not_sent_or_was_refused_inside_is_free_again() {
    use palisade_core::reject::Reason;

    let now = time::now();
    let mut fleet = fleet(3, now);
    fails(&mut fleet, 0, 5, now);
    let later = fleet
        .pick(now, &Need::default(), only(0))
        .unwrap_err()
        .unwrap();
    let mut unsent = fleet.pick(later, &Need::default(), only(0)).unwrap().1;
    fleet.end(&mut unsent, later);
    for verdict in [Verdict::Refused(Reason::RateLimited), Verdict::Canceled] {
        let probe = fleet.pick(later, &Need::default(), only(0)).unwrap().1;
        ends(&mut fleet, probe, verdict, later);
    }
    assert!(fleet.pick(later, &Need::default(), only(0)).is_ok());
}

#[test]
fn failures_from_before_the_ejection_do_not_prolong_it() {
    let now = time::now();
    let mut fleet = fleet(3, now);
    let old = fleet.pick(now, &Need::default(), only(0)).unwrap().1;
    fails(&mut fleet, 0, 5, now);
    let until = fleet.pick(now, &Need::default(), only(0)).unwrap_err();
    assert!(!ends(&mut fleet, old, Verdict::Failure, now));
    assert_eq!(
        fleet.pick(now, &Need::default(), only(0)).unwrap_err(),
        until
    );
}

#[test]
fn what_a_request_tried_comes_last_even_before_what_is_dearer() {
    let now = time::now();
    let mut fleet = fleet(2, now);
    let slow = fleet.pick(now, &Need::default(), only(1)).unwrap().1;
    ends(&mut fleet, slow, Verdict::Success, now + SECOND * 5);
    let last = |thing: &Thing| {
        if thing.number == 0 {
            Want::Last
        } else {
            Want::Yes
        }
    };
    let later = now + SECOND * 5;
    assert_eq!(
        fleet.pick(later, &Need::default(), last).unwrap().0.number,
        1
    );
    fleet.remove(is(1));
    assert_eq!(
        fleet.pick(later, &Need::default(), last).unwrap().0.number,
        0
    );
}

#[test]
fn among_many_a_choice_looks_at_some_and_finds_the_one_that_is_left() {
    let now = time::now();
    let mut fleet = fleet(500, now);
    for number in (0..500).filter(|number| *number != 321) {
        fleet.find(is(number)).unwrap().duty = Duty::Suspended;
    }
    for _ in 0..20 {
        assert_eq!(
            fleet
                .pick(now, &Need::default(), |_| Want::Yes)
                .unwrap()
                .0
                .number,
            321
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert { gated: bool, most: u32 },
    Remove(Index),
    Suspend(Index),
    Resume(Index),
    Health(Index, Health),
    Gate(Index, u8),
    Strategy(Index),
    Rules(u8),
    Panic(Panic),
    Place(Index, Option<u8>, u32),
    Zone(Option<u8>),
    Pick,
    FirstData(Index),
    End(Index, u8),
    GiveBack(Index),
    Wait(u16),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        2 => (any::<bool>(), 1..4u32).prop_map(|(gated, most)| Step::Insert { gated, most }),
        1 => at().prop_map(Step::Remove),
        1 => at().prop_map(Step::Suspend),
        1 => at().prop_map(Step::Resume),
        1 => (at(), prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy)]).prop_map(|(at, health)| Step::Health(at, health)),
        2 => (at(), 0..4u8).prop_map(|(at, outlook)| Step::Gate(at, outlook)),
        1 => at().prop_map(Step::Strategy),
        1 => (0..3u8).prop_map(Step::Rules),
        1 => prop_oneof![Just(Panic::UseAll), Just(Panic::Refuse)].prop_map(Step::Panic),
        1 => (at(), prop::option::of(0..3u8), 0..3u32).prop_map(|(at, zone, priority)| Step::Place(at, zone, priority)),
        1 => prop::option::of(0..3u8).prop_map(Step::Zone),
        12 => Just(Step::Pick),
        3 => at().prop_map(Step::FirstData),
        8 => (at(), 0..7u8).prop_map(|(at, verdict)| Step::End(at, verdict)),
        2 => at().prop_map(Step::GiveBack),
        4 => (0..5000u16).prop_map(Step::Wait),
    ]
}

/// What anybody could know of an endpoint from outside.
#[derive(Debug)]
struct Known {
    gated: bool,
    outlook: Outlook,
    most: u32,
    in_flight: u32,
    duty: Duty,
    health: Health,
    ever_failed: bool,
}

impl Known {
    fn is_barred(&self) -> bool {
        let held = self.outlook == Outlook::Held;
        self.duty != Duty::Serving || self.health == Health::Unhealthy || held
    }

    fn is_surely_able(&self) -> bool {
        let admits = matches!(self.outlook, Outlook::Admits | Outlook::Probes);
        let trusted = if self.gated {
            admits
        } else {
            !self.ever_failed
        };
        !self.is_barred() && trusted && self.in_flight < self.most
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_breaks_the_rules_of_choice(steps in prop::collection::vec(step(), 1..120)) {
        let mut now = time::now();
        let mut fleet: Fleet<Thing> = Fleet::new(now, Coin::seeded(7));
        let mut known: HashMap<u32, Known> = HashMap::new();
        let mut tickets: Vec<(u32, Ticket, bool)> = Vec::new();
        let mut names = 0;
        for step in steps {
            let mut staying: Vec<_> = known.iter().filter(|(_, known)| known.duty != Duty::Leaving).map(|(&number, _)| number).collect();
            staying.sort_unstable();
            let some = |at: Index| (!staying.is_empty()).then(|| *at.get(&staying));
            match step {
                Step::Insert { gated, most } => {
                    let gate = gated.then(|| Cell::new(Outlook::Admits));
                    fleet.insert(Thing { number: names, gate }, 1.0, most, now);
                    known.insert(names, Known {
                        gated,
                        outlook: Outlook::Admits,
                        most,
                        in_flight: 0,
                        duty: Duty::Serving,
                        health: Health::Healthy,
                        ever_failed: false,
                    });
                    names += 1;
                }
                Step::Remove(at) => if let Some(number) = some(at) {
                    let gone = matches!(fleet.remove(is(number)), Some(Ended::Gone(_)));
                    let one = known.get_mut(&number).unwrap();
                    one.duty = Duty::Leaving;
                    prop_assert_eq!(gone, one.in_flight == 0);
                    if gone {
                        known.remove(&number);
                    }
                },
                Step::Suspend(at) => if let Some(number) = some(at) {
                    fleet.find(is(number)).unwrap().duty = Duty::Suspended;
                    known.get_mut(&number).unwrap().duty = Duty::Suspended;
                },
                Step::Resume(at) => if let Some(number) = some(at) {
                    fleet.resume(is(number), now);
                    known.get_mut(&number).unwrap().duty = Duty::Serving;
                },
                Step::Health(at, health) => if let Some(number) = some(at) {
                    fleet.set_health(is(number), health, now);
                    known.get_mut(&number).unwrap().health = health;
                },
                Step::Gate(at, outlook) => if let Some(number) = some(at) {
                    let outlook = [
                        Outlook::Admits,
                        Outlook::Probes,
                        Outlook::Refuses { until: Some(now + SECOND) },
                        Outlook::Held,
                    ][usize::from(outlook)];
                    if let Some(gate) = &fleet.find(is(number)).unwrap().item.gate {
                        gate.set(outlook);
                        known.get_mut(&number).unwrap().outlook = outlook;
                    }
                },
                Step::Strategy(at) => fleet.strategy = *at.get(&Strategy::ALL),
                Step::Rules(mode) => {
                    let rules = Ejection::default();
                    fleet.obey([rules, rules.shadow(), Ejection::off()][usize::from(mode)], now);
                }
                Step::Panic(panic) => fleet.panic = panic,
                Step::Place(at, zone, priority) => if let Some(number) = some(at) {
                    fleet.place(is(number), |slot| {
                        slot.zone = zone.map(|zone| Arc::from(zone.to_string()));
                        slot.priority = priority;
                    });
                },
                Step::Zone(zone) => fleet.set_zone(zone.map(|zone| Arc::from(zone.to_string()))),
                Step::Pick => match fleet.pick(now, &Need::default(), |_| Want::Yes) {
                    Ok((thing, ticket)) => {
                        let one = known.get_mut(&thing.number).unwrap();
                        prop_assert!(!one.is_barred() && one.in_flight < one.most, "{:?}", one);
                        one.in_flight += 1;
                        tickets.push((thing.number, ticket, false));
                    }
                    Err(until) => {
                        let able = known.values().any(Known::is_surely_able);
                        prop_assert!(!able || fleet.refuses(), "{:?}", known);
                        prop_assert!(until.is_none_or(|until| until > now));
                    }
                },
                Step::FirstData(at) => if !tickets.is_empty() {
                    let at = at.index(tickets.len());
                    fleet.first_data(&mut tickets[at].1, now);
                    tickets[at].2 = true;
                },
                Step::End(at, verdict) => if !tickets.is_empty() {
                    let (number, mut ticket, _) = tickets.swap_remove(at.index(tickets.len()));
                    let verdict = [
                        Verdict::Success,
                        Verdict::Failure,
                        Verdict::Overload { retry_after: Some(SECOND * 2) },
                        Verdict::TimedOut,
                        Verdict::Unsent,
                        Verdict::Canceled,
                        Verdict::CallerFault,
                    ][usize::from(verdict)];
                    let end = End { age: MS, ..End::new(verdict) };
                    fleet.settle(&mut ticket, &end, now);
                    over(&mut fleet, &mut known, number, ticket, now)?;
                    if verdict != Verdict::Success && let Some(one) = known.get_mut(&number) {
                        one.ever_failed = true;
                    }
                },
                Step::GiveBack(at) => if !tickets.is_empty() {
                    let at = at.index(tickets.len());
                    if !tickets[at].2 {
                        let (number, ticket, _) = tickets.swap_remove(at);
                        over(&mut fleet, &mut known, number, ticket, now)?;
                    }
                },
                Step::Wait(millis) => now += MS * u32::from(millis),
            }
            for slot in fleet.slots() {
                prop_assert_eq!(slot.load.in_flight(), known[&slot.item.number].in_flight);
            }
            prop_assert_eq!(fleet.slots().count(), known.len());
        }
        for (number, ticket, _) in tickets {
            over(&mut fleet, &mut known, number, ticket, now)?;
        }
        for slot in fleet.slots() {
            prop_assert_eq!(slot.load.in_flight(), 0);
            prop_assert!(slot.duty != Duty::Leaving);
        }
    }
}

fn over(
    fleet: &mut Fleet<Thing>,
    known: &mut HashMap<u32, Known>,
    number: u32,
    mut ticket: Ticket,
    now: Instant,
) -> Result<(), TestCaseError> {
    let gone = matches!(fleet.end(&mut ticket, now), Ended::Gone(_));
    let one = known.get_mut(&number).unwrap();
    one.in_flight -= 1;
    prop_assert_eq!(gone, one.duty == Duty::Leaving && one.in_flight == 0);
    if gone {
        known.remove(&number);
    }
    Ok(())
}
