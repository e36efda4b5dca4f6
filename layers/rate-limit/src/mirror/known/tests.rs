use super::{super::told::Name, *};

fn told(remaining: u64, limit: u64, seconds: At) -> Told<'static> {
    Told {
        policy: Name::new("p"),
        partition: None,
        unit: QuotaUnit::Requests,
        refill: Refill::AtReset,
        remaining,
        limit: Some(limit),
        window: Some(60 * SECOND),
        reset: seconds * SECOND,
    }
}

fn evenly(remaining: u64, limit: u64, seconds: At) -> Told<'static> {
    Told {
        refill: Refill::Evenly,
        window: None,
        ..told(remaining, limit, seconds)
    }
}

/// Of a request that was sent at `sent` and answered at `now`, in tenths of a second, when nothing was taken.
fn learn(known: &mut Known, told: Told<'_>, sent: At, now: At) {
    known.learn(&told, heard(0, 0, sent, now));
}

fn heard(mark: u64, taken: u64, sent: At, now: At) -> Heard {
    let (sent, now) = (sent * SECOND / 10, now * SECOND / 10);
    Heard {
        mark,
        taken,
        sent,
        now,
        jitter: 0,
    }
}

fn known(told: Told<'_>) -> Known {
    Known::new(&told, heard(0, 0, 0, 0))
}

#[test]
fn what_remains_goes_at_once_and_no_more_before_the_reset() {
    let known = known(told(30, 100, 10));
    assert_eq!(known.opens(1, 0, SECOND), SECOND);
    assert_eq!(known.opens(30, 0, SECOND), SECOND);
    assert_eq!(known.opens(1, 29, SECOND), SECOND);
    assert!(
        known.opens(1, 30, SECOND) >= 10 * SECOND,
        "what is on its way counts"
    );
    assert!(known.opens(31, 0, SECOND) >= 10 * SECOND);
}

#[test]
fn nothing_that_was_told_silences_a_client_for_longer_than_a_day() {
    // A day for one of ten thousand would be 27 years for all; what is told then is rounded to nothing.
    let mut known = known(evenly(9_999, 10_000, 86_400));
    learn(&mut known, evenly(0, 1, 0), 10, 11);
    let opens = known.opens(1, 0, 2 * SECOND);
    assert!(opens <= LONGEST + 2 * SECOND, "{} days", opens / LONGEST);
}

#[test]
fn when_it_opens_is_exact() {
    // Nothing left, and a limit of 100 in 60 s: one at the reset, and one each 0.6 s until an answer tells.
    let mut known = known(told(0, 100, 10));
    for nth in 0..5 {
        let at = 10 * SECOND + nth * SECOND * 6 / 10;
        assert_eq!(known.opens(1, nth as u64, 10 * SECOND - 1), at);
        assert_eq!(known.opens(1, nth as u64, at - 1), at);
        assert_eq!(known.opens(1, nth as u64, at), at);
        known.take(1, nth as u64, at);
    }
}

#[test]
fn after_a_reset_that_nobody_has_used_all_comes_back() {
    let mut idle = known(told(0, 100, 10));
    let late = 10 * SECOND + 60 * SECOND;
    assert_eq!(idle.opens(100, 0, late), late);
    idle.take(100, 0, late);
    assert!(idle.opens(1, 100, late) > late);
    // What was left is not lost at the reset.
    let spare = known(told(40, 100, 10));
    assert_eq!(spare.opens(40, 0, 10 * SECOND), 10 * SECOND);
    assert!(spare.opens(41, 0, 10 * SECOND) > 10 * SECOND);
}

#[test]
fn what_is_scarce_is_spent_evenly_until_the_reset() {
    let mut known = known(told(20, 100, 10));
    let (mut now, mut went) = (0, 0);
    while now < 10 * SECOND {
        let at = known.opens(1, went, now);
        if at <= now {
            known.take(1, went, now);
            went += 1;
        }
        now = at.max(now + 1);
    }
    assert_eq!(went, 20);
    assert_eq!(
        known.last,
        10 * SECOND - SECOND / 2,
        "one each half of a second"
    );
}

#[test]
fn an_answer_that_is_older_never_raises_what_remains() {
    let mut known = known(told(90, 100, 60));
    learn(&mut known, told(50, 100, 59), 10, 12);
    // Sent before that was known.
    learn(&mut known, told(80, 100, 59), 11, 13);
    assert_eq!(known.room(0, SECOND), 50);
    learn(&mut known, told(40, 100, 59), 9, 14);
    assert_eq!(
        known.room(0, SECOND),
        40,
        "a lower one counts whenever it was sent"
    );
    // Sent after it: the service has given some back.
    learn(&mut known, told(45, 100, 58), 15, 16);
    assert_eq!(known.room(0, 2 * SECOND), 45);
}

#[test]
fn a_late_answer_of_the_window_before_changes_nothing() {
    let mut known = known(told(3, 100, 2));
    // Sent after the reset, and told of the next window.
    learn(&mut known, told(99, 100, 60), 21, 22);
    // Sent before it.
    learn(&mut known, told(0, 100, 1), 10, 30);
    assert_eq!(known.room(0, 3 * SECOND), 99);
    assert_eq!(known.until(), 22 * SECOND / 10 + 60 * SECOND);
}

#[test]
fn a_new_window_is_seen_though_the_reset_was_thought_to_be_later() {
    let mut known = known(told(0, 100, 10));
    // The service's clock is ahead: its reset came three seconds before ours.
    learn(&mut known, told(98, 100, 60), 70, 71);
    assert_eq!(known.room(0, 8 * SECOND), 98);
}

#[test]
fn resets_that_come_nearer_as_less_remains_are_followed() {
    // A token bucket of 100 in 60 s, which says how long what remains would take to come.
    let mut known = known(told(99, 100, 60));
    for (nth, remaining) in [79, 59, 39, 19, 0].into_iter().enumerate() {
        // Others take most of it; all of ours sent before any was answered.
        let reset = (remaining as At * 60 / 100).max(1);
        let mark = nth as u64 + 1;
        known.learn(
            &told(remaining, 100, reset),
            heard(mark, 5, 1, 10 + nth as At),
        );
    }
    assert_eq!(known.room(5, 2 * SECOND), 0);
    assert!(
        known.opens(1, 5, 2 * SECOND) < 3 * SECOND,
        "and not only after the minute"
    );
}

#[test]
fn rounding_does_not_make_a_window_end_early() {
    // The reset is at 9.9 s; the service leaves out fractions of a second.
    let mut known = known(told(50, 100, 9));
    for sent in 1..90 {
        let left = (99 - sent) / 10;
        learn(&mut known, told(50, 100, left), sent, sent);
    }
    assert!(
        known.until() >= 9 * SECOND + 8 * SECOND / 10,
        "{}",
        known.until()
    );
}

#[test]
fn what_comes_back_evenly_is_counted_as_it_comes() {
    // All six are missing, and there in a minute: one each ten seconds.
    let mut known = known(evenly(0, 6, 60));
    assert_eq!(known.opens(1, 0, 0), 10 * SECOND);
    assert_eq!(known.hopes(1, 1, false, 0, 0), 20 * SECOND);
    assert_eq!(known.opens(1, 0, 10 * SECOND - 1), 10 * SECOND);
    assert_eq!(known.opens(1, 0, 10 * SECOND), 10 * SECOND);
    assert_eq!(
        known.opens(9, 0, 0),
        60 * SECOND,
        "more than all goes when all is there"
    );
    assert!(known.is_idle(60 * SECOND) && !known.is_idle(59 * SECOND));
    // It was not seen yet by the service when it wrote this.
    known.take(1, 0, 10 * SECOND);
    known.learn(&evenly(1, 6, 50), heard(0, 1, 100, 100));
    assert_eq!(known.opens(1, 1, 10 * SECOND), 20 * SECOND);
}

#[test]
fn what_is_on_its_way_is_counted_once() {
    // Ten were sent, and the answers come backwards: each knows of those before it.
    let mut known = known(told(90, 100, 60));
    for mark in (1..=10).rev() {
        known.learn(
            &told(90 - mark, 100, 60),
            heard(mark, 10, 1, 20 - mark as At),
        );
        assert_eq!(known.room(10, 2 * SECOND), 80);
    }
}

#[test]
fn a_reset_is_counted_from_when_more_had_come_back() {
    // A bucket that had one left, and by the next answer one more.
    let mut known = known(told(1, 100, 2));
    known.take(1, 0, SECOND / 2);
    known.learn(&told(1, 100, 2), heard(1, 1, 5, 14));
    assert_eq!(known.until(), 34 * SECOND / 10);
}

#[test]
fn an_older_answer_does_not_change_how_fast_a_quota_comes_back() {
    let mut known = known(evenly(0, 60, 60));
    learn(&mut known, evenly(30, 60, 300), 0, 10);
    assert_eq!(known.room(0, 10 * SECOND), 10);
}

#[test]
fn others_who_spend_the_same_quota_are_left_their_part() {
    let mut alone = known(told(100, 100, 60));
    let mut one_of_four = known(told(100, 100, 60));
    for nth in 1..=20 {
        let heard = heard(nth, nth, nth as At, nth as At);
        alone.learn(&told(100 - nth, 100, 60), heard);
        one_of_four.learn(&told(100 - 4 * nth, 100, 60), heard);
    }
    let gap = |known: &mut Known| {
        known.last = 0;
        known.paced(1, 9)
    };
    let (alone, one_of_four) = (&mut alone, &mut one_of_four);
    assert_eq!(gap(alone), alone.until / 10);
    let part = gap(one_of_four) as f64 / gap(alone) as f64;
    assert!((3.0..=4.0).contains(&part), "{part}");
}

#[test]
fn hopes_are_never_later_than_what_comes_true() {
    let mut known = known(told(11, 100, 10));
    known.take(1, 0, 0);
    known.ceiling = 10;
    assert_eq!(
        known.hopes(1, 9, false, 0, 0),
        5 * SECOND,
        "paced: 10 % are left"
    );
    assert_eq!(known.hopes(1, 10, false, 0, 0), 10 * SECOND);
    assert_eq!(known.hopes(1, 109, false, 0, 0), 10 * SECOND);
    assert_eq!(
        known.hopes(1, 110, false, 0, 0),
        70 * SECOND,
        "the next window's is used up as well"
    );
    assert_eq!(
        known.hopes(0, 110, false, 0, 0),
        0,
        "what costs nothing waits for nothing"
    );
    // After the reset, an answer that is on its way may open it; otherwise it opens with time.
    let late = 10 * SECOND;
    let spent = |known: &mut Known| (0..10).for_each(|_| known.take(1, 0, late));
    spent(&mut known);
    assert_eq!(known.hopes(1, 0, true, 0, late), late);
    assert_eq!(known.hopes(1, 0, false, 0, late), late + SECOND * 6 / 10);
}

#[test]
fn numbers_beyond_all_bounds_are_survived() {
    for remaining in [0, 1, u64::MAX] {
        for limit in [0, 1, u64::MAX] {
            for reset in [0, LONGEST] {
                for refill in [Refill::AtReset, Refill::Evenly] {
                    let told = Told {
                        refill,
                        limit: Some(limit),
                        reset,
                        window: None,
                        ..told(remaining, 1, 1)
                    };
                    let heard = heard(0, 0, 0, 0);
                    let mut known = Known::new(
                        &told,
                        Heard {
                            jitter: LONGEST,
                            ..heard
                        },
                    );
                    for cost in [0, 1, u64::MAX] {
                        for now in [0, LONGEST, 1000 * LONGEST] {
                            let (mark, taken, sent) = (cost / 2, cost, now / 2);
                            known.learn(
                                &told,
                                Heard {
                                    mark,
                                    taken,
                                    sent,
                                    now,
                                    jitter: LONGEST,
                                },
                            );
                            assert!(known.opens(cost, cost, now) >= now);
                            assert!(known.hopes(cost, u64::MAX, false, cost, now) >= now);
                            known.take(cost, cost, now);
                            known.give_back(cost, cost, now);
                            known.retry_at(now, cost);
                        }
                    }
                }
            }
        }
    }
}
