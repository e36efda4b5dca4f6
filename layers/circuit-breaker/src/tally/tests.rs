use std::time::Duration;

use palisade_core::time::now;
use proptest::prelude::*;

use super::*;

const SPAN: Duration = Duration::from_secs(60);

fn tally(settings: Settings) -> Tally {
    Tally::new(&settings.reasonable())
}

fn settings(window: Window) -> Settings {
    Settings::window(Ratio::HALF, window, Duration::ZERO)
}

fn both_kinds() -> [Tally; 2] {
    [Window::Calls(100), Window::Time(SPAN)].map(|window| tally(settings(window)))
}

#[test]
fn after_100_successes_a_window_of_100_calls_at_half_is_too_bad_on_the_50th_failure_in_a_row() {
    let now = now();
    let mut tally = tally(settings(Window::Calls(100)));
    (0..100).for_each(|_| tally.success(false, now));
    (0..49).for_each(|_| tally.failure(false, now));
    assert!(!tally.is_too_bad());
    tally.failure(false, now);
    assert!(tally.is_too_bad());
}

#[test]
fn after_100_successes_a_window_of_time_at_half_is_too_bad_on_the_100th_failure() {
    let now = now();
    let mut tally = tally(settings(Window::Time(SPAN)));
    (0..100).for_each(|_| tally.success(false, now));
    (0..99).for_each(|_| tally.failure(false, now));
    assert!(!tally.is_too_bad());
    tally.failure(false, now);
    assert!(tally.is_too_bad());
}

#[test]
fn an_empty_window_of_either_kind_is_too_bad_on_the_tenth_call_if_five_failed() {
    let now = now();
    for mut tally in both_kinds() {
        (0..5).for_each(|_| tally.failure(false, now));
        (0..4).for_each(|_| tally.success(false, now));
        assert!(!tally.is_too_bad(), "on the ninth");
        tally.success(false, now);
        assert!(tally.is_too_bad());
    }
    for mut tally in both_kinds() {
        (0..4).for_each(|_| tally.failure(false, now));
        (0..6).for_each(|_| tally.success(false, now));
        assert!(!tally.is_too_bad(), "four of ten");
    }
}

#[test]
fn an_empty_window_of_either_kind_is_too_slow_on_the_tenth_call_if_five_were_slow() {
    let now = now();
    for window in [Window::Calls(100), Window::Time(SPAN)] {
        let mut settings = settings(window);
        settings.failure_share = None;
        settings.slow_share = Some(Ratio::HALF);
        let mut tally = tally(settings);
        (0..5).for_each(|_| tally.success(true, now));
        (0..4).for_each(|_| tally.failure(false, now));
        assert!(!tally.is_too_bad(), "on the ninth");
        tally.failure(false, now);
        assert!(tally.is_too_bad());
    }
}

#[test]
fn failures_older_than_the_window_do_not_count() {
    let now = now();
    let mut tally = tally(Settings::five_in_a_minute());
    (0..4).for_each(|_| tally.failure(false, now));
    let later = now + SPAN + SPAN / 10;
    (0..4).for_each(|_| tally.failure(false, later));
    assert!(!tally.is_too_bad());
    let soon = later + SPAN / 2;
    (0..100).for_each(|_| tally.success(false, soon));
    assert!(!tally.is_too_bad());
    tally.failure(false, soon);
    assert!(tally.is_too_bad(), "five in a minute, whatever their share");
}

#[test]
fn each_condition_is_enough() {
    let now = now();
    let all = || {
        let mut settings = settings(Window::Calls(100));
        settings.consecutive = Some(5);
        settings.failures = Some(20);
        settings.slow_share = Ratio::new(0.9).ok();
        tally(settings)
    };
    let mut in_a_row = all();
    (0..50).for_each(|_| in_a_row.success(false, now));
    (0..5).for_each(|_| in_a_row.failure(false, now));
    assert!(in_a_row.is_too_bad());

    let mut share = all();
    for _ in 0..5 {
        share.failure(false, now);
        share.success(false, now);
    }
    assert!(share.is_too_bad());

    let mut failures = all();
    (0..70).for_each(|_| failures.success(false, now));
    (0..20).for_each(|_| failures.overload(false, now));
    assert!(failures.is_too_bad());

    let mut slow = all();
    (0..10).for_each(|_| slow.success(true, now));
    assert!(slow.is_too_bad());
}

#[test]
fn other_settings_keep_what_was_counted_by_windows_of_the_same_kind() {
    let now = now();
    for (window, larger, other) in [
        (Window::Calls(20), Window::Calls(50), Window::Time(SPAN)),
        (
            Window::Time(SPAN),
            Window::Time(SPAN * 2),
            Window::Calls(50),
        ),
    ] {
        let old = settings(window).reasonable();
        let mut tally = tally(old.clone());
        (0..6).for_each(|_| tally.success(false, now));
        (0..4).for_each(|_| tally.failure(true, now));
        let mut new = settings(larger);
        new.failure_share = Ratio::new(0.4).ok();
        let new = new.reasonable();
        tally.update(&old, &new, now);
        let sums = tally.sums(now);
        assert_eq!((sums.calls, sums.failures, sums.slow), (10, 4, 4));
        assert!(tally.is_too_bad(), "by the new share");
        tally.update(&new, &settings(other).reasonable(), now);
        assert_eq!(tally.sums(now), Sums::default());
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Success(bool),
    Failure(bool),
    Overload,
    Clear,
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        60 => any::<bool>().prop_map(Event::Success),
        60 => any::<bool>().prop_map(Event::Failure),
        20 => Just(Event::Overload),
        1 => Just(Event::Clear),
        10 => (0_u64..20_000).prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 0..600)
}

fn tell(tally: &mut Tally, event: Event, now: &mut Instant) {
    match event {
        Event::Success(slow) => tally.success(slow, *now),
        Event::Failure(slow) => tally.failure(slow, *now),
        Event::Overload => tally.overload(false, *now),
        Event::Clear => tally.clear(),
        Event::Wait(millis) => *now += Duration::from_millis(millis),
    }
}

proptest! {
    #[test]
    fn shares_are_those_of_the_calls_in_the_window(
        time in any::<bool>(),
        minimum in 0_u32..100,
        failing in 0.01_f64..=1.0,
        slow in 0.01_f64..=1.0,
        events in events(),
    ) {
        let mut settings = settings(if time { Window::Time(SPAN) } else { Window::Calls(70) });
        settings.failure_share = Ratio::new(failing).ok();
        settings.slow_share = Ratio::new(slow).ok();
        settings.minimum_calls = minimum;
        let minimum = settings.clone().reasonable().minimum_calls as usize;
        let mut tally = tally(settings);
        // When, failed, slow.
        let mut list: Vec<(Instant, bool, bool)> = Vec::new();
        let (mut now, mut first) = (now(), None);
        for event in events {
            tell(&mut tally, event, &mut now);
            let call = match event {
                Event::Clear => {
                    list.clear();
                    continue;
                }
                Event::Wait(_) => continue,
                Event::Success(slow) => (now, false, slow),
                Event::Failure(slow) => (now, true, slow),
                Event::Overload => (now, true, false),
            };
            let first = *first.get_or_insert(now);
            list.push(call);
            let bucket = |at: Instant| (at - first).as_nanos() / (SPAN.as_nanos() / 10);
            let last: Vec<_> = match time {
                true => list.iter().filter(|(at, ..)| bucket(now) - bucket(*at) <= 10).collect(),
                false => list[list.len().saturating_sub(70)..].iter().collect(),
            };
            let failed = last.iter().filter(|(_, failed, _)| *failed).count();
            let slow_ones = last.iter().filter(|(.., slow)| *slow).count();
            let sums = tally.sums(now);
            prop_assert_eq!(
                (sums.calls as usize, sums.failures as usize, sums.slow as usize),
                (last.len(), failed, slow_ones)
            );
            let share = |part: usize| part as f64 / last.len() as f64;
            let too_bad = last.len() >= minimum && (share(failed) >= failing || share(slow_ones) >= slow);
            prop_assert_eq!(tally.is_too_bad(), too_bad);
        }
    }

    #[test]
    fn a_row_equals_the_failures_since_the_last_success(limit in 1_u32..20, events in events()) {
        let mut tally = tally(Settings::consecutive(limit, Duration::ZERO));
        let mut list = Vec::new();
        let mut now = now();
        for event in events {
            tell(&mut tally, event, &mut now);
            list.push(event);
            let since = list.iter().rev().take_while(|event| {
                !matches!(event, Event::Success(_) | Event::Clear)
            });
            let failures = since.filter(|event| matches!(event, Event::Failure(_))).count();
            prop_assert_eq!(tally.in_a_row() as usize, failures);
            prop_assert_eq!(tally.is_too_bad(), failures >= limit as usize);
            prop_assert_eq!(tally.ignores_success(), failures == 0);
        }
    }
}
