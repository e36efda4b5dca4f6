use palisade_core::ratio::Ratio;
use proptest::prelude::*;

use super::{Admitted, Ejection, EjectionReason, Fault, Machine, Standing, Verge};

const SECOND: u64 = 1_000_000_000;

fn failed(
    machine: &mut Machine,
    rules: &Ejection,
    admitted: Admitted,
    now: u64,
) -> Option<EjectionReason> {
    heard(machine, rules, admitted, Fault::Failed, now)
}

fn heard(
    machine: &mut Machine,
    rules: &Ejection,
    admitted: Admitted,
    fault: Fault,
    now: u64,
) -> Option<EjectionReason> {
    let verge = Verge {
        rules,
        penalty: 0.0,
        room: true,
        crowded: false,
        chance: 0.5,
        now,
    };
    machine.failed(admitted, fault, &verge)
}

/// One attempt that works or fails at once.
fn end(machine: &mut Machine, rules: &Ejection, works: bool, now: u64) -> Option<EjectionReason> {
    let admitted = machine.start(false, now);
    if works {
        machine.worked(admitted, now);
        return None;
    }
    failed(machine, rules, admitted, now)
}

fn ejected(rules: &Ejection) -> Machine {
    let mut machine = Machine::new(rules, 0);
    for _ in 0..5 {
        end(&mut machine, rules, false, 0);
    }
    assert!(machine.is_out());
    machine
}

fn until(machine: &Machine, now: u64) -> u64 {
    match machine.standing(now) {
        Standing::Out { until: Some(until) } => until,
        other => panic!("{other:?}"),
    }
}

#[test]
fn less_than_four_of_five_that_work_eject() {
    let rules = Ejection::default();
    let mut machine = Machine::new(&rules, 0);
    let pattern = [true, true, true, false].iter().cycle();
    let reasons: Vec<_> = pattern
        .take(12)
        .map(|works| end(&mut machine, &rules, *works, SECOND))
        .collect();
    assert_eq!(reasons[..11], [None; 11], "ten ends first, and a failure");
    assert_eq!(reasons[11], Some(EjectionReason::SuccessRatio));
    assert_eq!(machine.last(), Some((EjectionReason::SuccessRatio, SECOND)));
}

#[test]
fn four_of_five_that_work_do_not_eject_for_ever() {
    let rules = Ejection::default();
    let mut machine = Machine::new(&rules, 0);
    for at in 0..10_000 {
        let works = at % 5 != 4;
        let reason = end(&mut machine, &rules, works, at * SECOND / 100);
        assert_eq!(reason, None, "{at}");
    }
}

#[test]
fn what_happened_a_window_ago_does_not_count() {
    let rules = Ejection::default();
    let mut machine = Machine::new(&rules, 0);
    for at in 0..9 {
        assert_eq!(
            end(&mut machine, &rules, at % 2 == 0, at * SECOND / 10),
            None
        );
    }
    assert_eq!(end(&mut machine, &rules, false, 311 * SECOND), None);
}

#[test]
fn one_that_fails_half_is_found_however_seldom_it_is_asked() {
    let rules = Ejection::default();
    let mut machine = Machine::new(&rules, 0);
    let reasons: Vec<_> = (0..10)
        .map(|at| end(&mut machine, &rules, at % 2 == 0, at * 60 * SECOND))
        .collect();
    assert_eq!(reasons[..9], [None; 9]);
    assert_eq!(reasons[9], Some(EjectionReason::SuccessRatio));
    // As seldom, one failure in five is what it may have.
    let mut machine = Machine::new(&rules, 0);
    for at in 0..1000 {
        let reason = end(&mut machine, &rules, at % 5 != 4, at * 60 * SECOND);
        assert_eq!(reason, None, "{at}");
    }
}

#[test]
fn who_is_back_after_it_failed_is_on_trial_and_who_was_overloaded_is_not() {
    let rules = Ejection::default();
    for worked in 0..8 {
        let mut machine = ejected(&rules);
        let now = until(&machine, 0);
        // The probe, and those after it.
        (0..=worked).for_each(|_| _ = end(&mut machine, &rules, true, now));
        let reason = end(&mut machine, &rules, false, now);
        let again = (worked < 5).then_some(EjectionReason::ProbeFailed);
        assert_eq!(reason, again, "{worked}");
    }
    let mut machine = Machine::new(&rules, 0);
    let admitted = machine.start(false, 0);
    let asked = Some(SECOND);
    let shed = Fault::Overloaded { asked };
    heard(&mut machine, &rules, admitted, shed, 0);
    end(&mut machine, &rules, true, SECOND);
    assert_eq!(end(&mut machine, &rules, false, SECOND), None);
}

#[test]
fn who_only_says_that_it_is_overloaded_is_ejected_and_who_serves_some_is_not() {
    let rules = Ejection::default();
    let shed = Fault::Overloaded { asked: None };
    let mut machine = Machine::new(&rules, 0);
    for at in 0..1000 {
        let admitted = machine.start(false, at);
        if at % 10 == 0 {
            machine.worked(admitted, at);
        } else {
            assert_eq!(heard(&mut machine, &rules, admitted, shed, at), None);
        }
    }
    let mut useless = Machine::new(&rules, 0);
    for left in (0..10).rev() {
        let admitted = useless.start(false, 0);
        let reason = heard(&mut useless, &rules, admitted, shed, 0);
        assert_eq!(reason, (left == 0).then_some(EjectionReason::Overload));
    }
}

#[test]
fn asking_to_be_left_alone_is_no_failure_and_makes_no_ejection_longer() {
    let rules = Ejection::default();
    let mut machine = Machine::new(&rules, 0);
    let mut now = 0;
    for _ in 0..5 {
        let admitted = machine.start(false, now);
        let asked = Some(7 * SECOND);
        let reason = heard(
            &mut machine,
            &rules,
            admitted,
            Fault::Overloaded { asked },
            now,
        );
        assert_eq!(reason, Some(EjectionReason::Overload));
        assert_eq!(until(&machine, now), now + 7 * SECOND);
        now += 7 * SECOND;
        assert_eq!(machine.standing(now), Standing::Due);
    }
    let admitted = machine.start(false, now);
    assert!(machine.worked(admitted, now));
    for _ in 0..5 {
        end(&mut machine, &rules, false, now);
    }
    assert_eq!(until(&machine, now), now + SECOND);
}

#[test]
fn pauses_double_to_the_longest_and_keep_their_jitter_there() {
    let rules = Ejection::default();
    let pauses = |grown| {
        let (least, most) = rules.pauses(grown);
        (least / 1e9, most / 1e9)
    };
    assert_eq!(pauses(0), (0.5, 1.5));
    assert_eq!(pauses(4), (8.0, 24.0));
    assert_eq!(pauses(6), (25.0, 50.0));
    assert_eq!(pauses(u32::MAX), (25.0, 50.0));
    assert!(rules.grows(5) && !rules.grows(6));
}

#[test]
fn each_slow_start_of_working_undoes_one_doubling() {
    let rules = Ejection::default();
    let mut machine = ejected(&rules);
    let mut now = until(&machine, 0);
    for _ in 0..3 {
        assert_eq!(
            end(&mut machine, &rules, false, now),
            Some(EjectionReason::ProbeFailed)
        );
        now = until(&machine, now);
    }
    assert_eq!(end(&mut machine, &rules, true, now), None);
    // Four doublings; two are undone by the first end after twenty seconds, one by that after ten more.
    for pause in [25, 5] {
        now += pause * SECOND;
        end(&mut machine, &rules, true, now);
    }
    for _ in 0..5 {
        end(&mut machine, &rules, false, now);
    }
    assert_eq!(until(&machine, now), now + 2 * SECOND);
}

#[test]
fn of_several_probes_only_the_last_is_given_back_and_any_may_pass() {
    let rules = Ejection::default();
    let mut machine = ejected(&rules);
    let mut now = until(&machine, 0);
    let mut probes = Vec::new();
    for timeout in [10, 20, 40, 40] {
        probes.push(machine.start(false, now));
        assert_eq!(until(&machine, now), now + timeout * SECOND);
        now += timeout * SECOND;
    }
    let last = machine.start(false, now);
    assert!(!machine.free_probe(probes[0], now));
    assert!(machine.is_probing());
    assert!(machine.free_probe(last, now));
    assert_eq!(machine.standing(now), Standing::Due);
    let next = machine.start(false, now);
    assert!(
        !machine.worked(probes[1], now),
        "of an ejection before that"
    );
    assert!(machine.answered(&mut next.clone(), now));
    assert_eq!(machine.standing(now), Standing::Able);
}

#[test]
fn what_goes_there_while_it_is_out_decides_nothing() {
    let rules = Ejection::default();
    let mut machine = ejected(&rules);
    let now = until(&machine, 0);
    let probe = machine.start(false, now);
    for _ in 0..10 {
        let doubtful = machine.start(true, now);
        assert!(!machine.worked(doubtful, now));
        let doubtful = machine.start(true, now);
        assert_eq!(failed(&mut machine, &rules, doubtful, now), None);
    }
    assert!(machine.is_probing());
    assert!(machine.worked(probe, now));
}

#[test]
fn a_shadow_lets_all_through_and_counts_what_it_would_have_done() {
    let rules = Ejection::default().shadow();
    let mut machine = Machine::new(&rules, 0);
    let begin = 20 * SECOND;
    let reasons: Vec<_> = (0..100)
        .filter_map(|at| {
            let now = begin + at * SECOND / 10;
            assert_eq!(machine.standing(now), Standing::Able);
            end(&mut machine, &rules, false, now)
        })
        .collect();
    use EjectionReason::{Consecutive, ProbeFailed};
    // At 0.4 s for 1 s, then for 2 s and for 4 s.
    assert_eq!(
        reasons,
        [Consecutive, ProbeFailed, ProbeFailed, ProbeFailed]
    );
    assert_eq!((machine.shadowed, machine.ejections), (4, 0));
    let later = begin + 60 * SECOND;
    end(&mut machine, &rules, true, later);
    assert!(!machine.is_out());
    assert_eq!(machine.slow_start(later), 1.0, "nothing has changed for it");
}

#[test]
fn who_is_out_is_back_when_ejection_is_switched_off() {
    let rules = Ejection::default();
    let mut machine = ejected(&rules);
    machine.obey(&rules.consecutive(3), 0);
    assert!(machine.is_out(), "other numbers are for the next time");
    machine.obey(&Ejection::off(), SECOND);
    assert_eq!(machine.standing(SECOND), Standing::Able);
    assert!(machine.slow_start(SECOND) > 1.0);
    for _ in 0..100 {
        assert_eq!(end(&mut machine, &Ejection::off(), false, SECOND), None);
    }
    machine.obey(&rules, SECOND);
    assert_eq!(
        end(&mut machine, &rules, false, SECOND),
        None,
        "it counts anew"
    );
}

#[test]
fn settings_that_make_no_sense_do_no_harm() {
    use std::time::Duration;

    let rules = Ejection::default()
        .consecutive(0)
        .pause(Duration::MAX)
        .longest(Duration::ZERO)
        .window(Duration::ZERO);
    let mut machine = Machine::new(&rules, 0);
    assert_eq!(
        end(&mut machine, &rules, false, 0),
        Some(EjectionReason::Consecutive)
    );
    assert!(until(&machine, 0) > 0);
    let never = Ejection::default()
        .consecutive(u32::MAX)
        .success_ratio(Ratio::HALF, u32::MAX);
    let mut machine = Machine::new(&never, 0);
    for at in 0..1000 {
        assert_eq!(end(&mut machine, &never, false, at), None);
    }
}

#[test]
fn the_ceiling_is_a_part_of_all_and_at_least_one() {
    let rules = Ejection::default();
    let allowed = [3, 9, 10, 19, 20, 100].map(|of| rules.allowed(of));
    assert_eq!(allowed, [1, 2, 3, 5, 6, 30]);
    let all = rules.ceiling(Ratio::new(1.0).unwrap());
    assert_eq!(all.allowed(7), 7);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    Works(usize),
    Fails(usize),
    Sheds(usize),
    FirstData(usize),
    GivesBack(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..8usize;
    prop_oneof![
        6 => Just(Step::Start),
        3 => at.clone().prop_map(Step::Works),
        4 => at.clone().prop_map(Step::Fails),
        3 => at.clone().prop_map(Step::Sheds),
        1 => at.clone().prop_map(Step::FirstData),
        1 => at.prop_map(Step::GivesBack),
        3 => (0..3 * SECOND).prop_map(Step::Wait),
    ]
}

/// All that has ended since it was last back, as anybody would write it down.
#[derive(Default)]
struct List {
    ends: Vec<(u64, Fate)>,
    trial: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Worked,
    Failed,
    Shed,
}

impl List {
    fn ejects(&self, now: u64) -> Option<EjectionReason> {
        let back = || self.ends.iter().rev().map(|(_, fate)| *fate);
        let of = |fate| {
            let recent =
                |(at, other): &&(u64, Fate)| at / SECOND + 10 > now / SECOND && *other == fate;
            self.ends.iter().filter(recent).count()
        };
        let (worked, failed) = match (of(Fate::Worked), of(Fate::Failed)) {
            (worked, failed) if worked + failed >= 10 => (worked, failed),
            _ => {
                let last = back().filter(|fate| *fate != Fate::Shed).take(20);
                let failed = last.clone().filter(|fate| *fate == Fate::Failed).count();
                (last.count() - failed, failed)
            }
        };
        let on_trial = self.trial && back().filter(|fate| *fate == Fate::Worked).count() < 5;
        let judged = back().filter(|fate| *fate != Fate::Shed);
        let row = judged.take_while(|fate| *fate == Fate::Failed).count();
        let unserved = back().take_while(|fate| *fate != Fate::Worked);
        let shed = unserved.filter(|fate| *fate == Fate::Shed).count();
        match self.ends.last()?.1 {
            Fate::Worked => None,
            Fate::Shed => (shed >= 10).then_some(EjectionReason::Overload),
            Fate::Failed if row >= 5 => Some(EjectionReason::Consecutive),
            Fate::Failed if on_trial => Some(EjectionReason::ProbeFailed),
            Fate::Failed => (worked + failed >= 10 && worked * 5 < (worked + failed) * 4)
                .then_some(EjectionReason::SuccessRatio),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Starts only when a fleet would.
    #[test]
    fn ejects_when_a_list_of_all_ends_says_so_and_always_comes_back(steps in prop::collection::vec(step(), 1..300)) {
        let rules = Ejection::default();
        let mut machine = Machine::new(&rules, 0);
        let mut now = 0;
        let mut list = List::default();
        // Those of the present state alone count.
        let mut flying: Vec<(Admitted, u64, bool)> = Vec::new();
        let mut lives = 0;
        for step in steps {
            let out = machine.is_out();
            match step {
                Step::Start => match machine.standing(now) {
                    Standing::Able => flying.push((machine.start(false, now), lives, false)),
                    Standing::Due => {
                        flying.push((machine.start(false, now), lives, true));
                        prop_assert!(!matches!(machine.standing(now), Standing::Due), "one at a time");
                    }
                    Standing::Out { until } => prop_assert!(until > Some(now)),
                    Standing::Barred => prop_assert!(false, "nobody said so"),
                },
                Step::Works(at) if at < flying.len() => {
                    let (admitted, life, probe) = flying.swap_remove(at);
                    let back = machine.worked(admitted, now);
                    prop_assert_eq!(back, out && !machine.is_out());
                    if life == lives && !out {
                        list.ends.push((now, Fate::Worked));
                    }
                    prop_assert!(!back || probe);
                }
                Step::Fails(at) | Step::Sheds(at) if at < flying.len() => {
                    let (admitted, life, _) = flying.swap_remove(at);
                    let (fault, fate) = match step {
                        Step::Fails(_) => (Fault::Failed, Fate::Failed),
                        _ => (Fault::Overloaded { asked: None }, Fate::Shed),
                    };
                    let reason = heard(&mut machine, &rules, admitted, fault, now);
                    if out {
                        prop_assert!(matches!(reason, None | Some(EjectionReason::ProbeFailed | EjectionReason::Overload)));
                    } else if life == lives {
                        list.ends.push((now, fate));
                        prop_assert_eq!(reason, list.ejects(now));
                    } else {
                        prop_assert_eq!(reason, None, "of another life");
                    }
                }
                Step::FirstData(at) if at < flying.len() => {
                    let probe = flying[at].2;
                    if machine.answered(&mut flying[at].0, now) {
                        prop_assert!(probe && out);
                        // It goes on as one of the new life.
                        flying[at].1 = lives + 1;
                    }
                }
                Step::GivesBack(at) if at < flying.len() => {
                    let admitted = flying.swap_remove(at).0;
                    if machine.free_probe(admitted, now) {
                        prop_assert_eq!(machine.standing(now), Standing::Due);
                    }
                }
                Step::Wait(pause) => now += pause,
                _ => {}
            }
            if out && !machine.is_out() {
                lives += 1;
                let asked = machine.last().map(|(reason, _)| reason) == Some(EjectionReason::Overload);
                list = List { ends: Vec::new(), trial: !asked };
            }
        }
        // Nothing that was lost keeps it out: one that works is enough.
        now += 50 * SECOND;
        if machine.is_out() {
            prop_assert_eq!(machine.standing(now), Standing::Due);
            let probe = machine.start(false, now);
            prop_assert!(machine.worked(probe, now));
        }
        prop_assert_eq!(machine.standing(now), Standing::Able);
    }
}
