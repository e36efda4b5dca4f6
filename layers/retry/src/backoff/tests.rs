use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const ALL: [Jitter; 5] = [
    Jitter::Full,
    Jitter::Equal,
    Jitter::Decorrelated,
    Jitter::DecorrelatedV2,
    Jitter::None,
];

fn backoff(jitter: Jitter, seed: u64) -> Backoff {
    let backoff = Backoff::exponential(100 * MS, 2000 * MS).unwrap();
    backoff.jitter(jitter).seed(seed)
}

/// The `n`th delays of many requests, sorted.
fn sorted(jitter: Jitter, n: usize) -> Vec<Duration> {
    let backoff = backoff(jitter, 7);
    let mut all: Vec<_> = (0..10_000)
        .map(|_| backoff.delays().nth(n).unwrap())
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_backoff_that_cannot_grow_is_an_error() {
    for (min, max) in [(Duration::ZERO, MS), (2 * MS, MS)] {
        let error = Backoff::exponential(min, max).unwrap_err();
        assert_eq!(error, InvalidBackoff { min, max });
    }
    let error = Backoff::exponential(2 * MS, MS).unwrap_err();
    assert_eq!(error.to_string(), "backoff cannot grow from 2ms up to 1ms");
}

#[test]
fn full_jitter_is_even_between_zero_and_the_delay() {
    for (n, full) in [(0, 100 * MS), (2, 400 * MS), (9, 2000 * MS)] {
        let all = sorted(Jitter::Full, n);
        assert!(all[0] < full / 100 && all[9_999] < full && all[9_999] > full * 99 / 100);
        let median = all[5_000];
        assert!(
            median > full * 48 / 100 && median < full * 52 / 100,
            "{median:?}"
        );
    }
}

#[test]
fn equal_jitter_waits_at_least_half() {
    let all = sorted(Jitter::Equal, 1);
    assert!(all[0] >= 100 * MS && all[0] < 102 * MS);
    assert!(all[9_999] < 200 * MS && all[9_999] > 198 * MS);
}

#[test]
fn decorrelated_jitter_grows_from_the_delay_before() {
    let backoff = backoff(Jitter::Decorrelated, 7);
    let mut before = 100 * MS;
    for delay in backoff.delays().take(10_000) {
        assert!(delay >= 100 * MS && delay <= (3 * before).min(2000 * MS));
        before = delay;
    }
}

#[test]
fn the_second_decorrelated_jitter_has_its_first_median_at_the_shortest_delay() {
    let median = sorted(Jitter::DecorrelatedV2, 0)[5_000];
    assert!(median > 85 * MS && median < 115 * MS, "{median:?}");
}

#[test]
fn a_constant_delay_is_constant_and_may_be_zero() {
    for delay in [Duration::ZERO, 5 * MS] {
        let delays: Vec<_> = Backoff::constant(delay).delays().take(3).collect();
        assert_eq!(delays, [delay; 3]);
    }
}

#[test]
fn the_same_seed_gives_the_same_delays_and_none_gives_others() {
    for jitter in ALL {
        let take = |backoff: Backoff| backoff.delays().take(8).collect::<Vec<_>>();
        assert_eq!(take(backoff(jitter, 1)), take(backoff(jitter, 1)));
        if jitter != Jitter::None {
            assert_ne!(take(backoff(jitter, 1)), take(backoff(jitter, 2)));
            let random = || Backoff::default().jitter(jitter);
            assert_ne!(take(random()), take(random()));
        }
    }
}

/// The mean of the `n`th delays, as a multiple of the first delay without jitter.
fn mean(backoff: &Backoff, n: usize) -> f64 {
    const REQUESTS: u32 = 40_000;
    let delay = |_| backoff.delays().nth(n).unwrap().as_secs_f64();
    (0..REQUESTS).map(delay).sum::<f64>() / f64::from(REQUESTS) / 0.1
}

/// The mean of a function over the unit interval, by Simpson's rule.
fn integral(f: impl Fn(f64) -> f64) -> f64 {
    const HALVES: u32 = 2_000;
    let width = 1.0 / f64::from(HALVES);
    let weight = |k: u32| match k {
        0 | HALVES => 1.0,
        k if k % 2 == 1 => 4.0,
        _ => 2.0,
    };
    let sum: f64 = (0..=HALVES)
        .map(|k| weight(k) * f(f64::from(k) * width))
        .sum();
    sum * width / 3.0
}

#[test]
fn the_means_are_those_of_the_formulas() {
    let wide = |jitter| {
        let backoff = Backoff::exponential(100 * MS, Duration::from_secs(1_000)).unwrap();
        backoff.jitter(jitter).seed(42)
    };
    let curve = |at: f64| at.exp2() * (4.0 * at).sqrt().tanh() / 1.4;
    let smooth = |n: f64| {
        let before = if n > 0.0 {
            integral(|u| curve(n - 1.0 + u))
        } else {
            0.0
        };
        integral(|u| curve(n + u)) - before
    };
    for (jitter, n, expected) in [
        (Jitter::None, 3, 8.0),
        (Jitter::Full, 3, 4.0),
        (Jitter::Equal, 3, 6.0),
        // Between 1 and 3, and then between 1 and three times that.
        (Jitter::Decorrelated, 0, 2.0),
        (Jitter::Decorrelated, 1, 3.5),
        (Jitter::DecorrelatedV2, 0, smooth(0.0)),
        (Jitter::DecorrelatedV2, 1, smooth(1.0)),
        (Jitter::DecorrelatedV2, 4, smooth(4.0)),
    ] {
        let mean = mean(&wide(jitter), n);
        // Five standard errors of the widest of them.
        let off = (mean / expected - 1.0).abs();
        assert!(off < 0.02, "{jitter:?} {n}: {mean} and not {expected}");
    }
}

#[test]
fn a_line_grows_by_its_step_and_a_function_as_it_says() {
    let plain = |backoff: Backoff| -> Vec<_> {
        let delays = backoff.jitter(Jitter::None).delays();
        delays.take(5).map(|delay| delay.as_millis()).collect()
    };
    let line = Backoff::linear(100 * MS, 350 * MS).unwrap();
    assert_eq!(plain(line), [100, 200, 300, 350, 350]);
    let falling = Backoff::custom(70 * MS, |n| (100 - 20 * n) * MS);
    assert_eq!(plain(falling), [70, 70, 60, 40, 20]);
    assert_eq!(plain(Backoff::seconds()), [1000, 2000, 4000, 8000, 10_000]);
    let error = Backoff::linear(Duration::ZERO, MS).unwrap_err();
    assert_eq!(error.to_string(), "backoff cannot grow from 0ns up to 1ms");
}

#[test]
fn a_function_is_given_its_random_part_too() {
    let backoff = Backoff::custom(SECOND, |_| 100 * MS).jitter(Jitter::Equal);
    let delays: Vec<_> = backoff.seed(3).delays().take(1000).collect();
    assert!(
        delays
            .iter()
            .all(|delay| (50 * MS..100 * MS).contains(delay))
    );
    assert!(delays.iter().any(|delay| *delay > 95 * MS));
}

/// Every kind that there is, between these two delays.
fn kinds(min: Duration, max: Duration) -> [Backoff; 4] {
    [
        Backoff::constant(min),
        Backoff::linear(min, max).unwrap(),
        Backoff::exponential(min, max).unwrap(),
        Backoff::custom(max, move |n| min.saturating_mul(n)),
    ]
}

proptest! {
    /// Against the bounds as the documentation has them, and however many attempts there were.
    #[test]
    fn every_delay_is_within_its_bounds_and_nothing_overflows(
        min in 1_u64.., more in 0_u64.., seed: u64, which in 0..ALL.len(), skipped: u32,
    ) {
        let min = Duration::from_nanos(min);
        let max = min.saturating_add(Duration::from_secs(more));
        for (kind, backoff) in kinds(min, max).into_iter().enumerate() {
            let jitter = ALL[which];
            let curve = backoff.clone().jitter(Jitter::None);
            let backoff = backoff.jitter(jitter).seed(seed);
            let most = if kind == 0 { min } else { max };
            let first = curve.delays().next().unwrap();
            let mut before = first;
            for (delay, full) in backoff.delays().zip(curve.delays()).take(100) {
                prop_assert!(delay <= most, "{delay:?} > {most:?}");
                let (least, most) = match jitter {
                    Jitter::None => (full, full),
                    Jitter::Full => (Duration::ZERO, full),
                    Jitter::Equal => (full / 2, full),
                    Jitter::Decorrelated => (first, before.max(first).saturating_mul(3)),
                    Jitter::DecorrelatedV2 => (Duration::ZERO, max),
                };
                prop_assert!(least <= delay && delay <= most, "{least:?} {delay:?} {most:?}");
                before = delay;
            }
            let mut late = Progress { taken: skipped, ..Progress::default() };
            for _ in 0..3 {
                prop_assert!(backoff.next(&mut late) <= most);
            }
            let again = backoff.clone().seed(seed);
            let same: Vec<_> = again.clone().seed(seed).delays().take(20).collect();
            prop_assert_eq!(again.delays().take(20).collect::<Vec<_>>(), same);
        }
    }

    #[test]
    fn a_longest_delay_beyond_all_measure_is_none_that_panics(
        min in 1_u64.., which in 0..ALL.len(), skipped: u32,
    ) {
        for backoff in kinds(Duration::from_nanos(min), Duration::MAX) {
            let backoff = backoff.jitter(ALL[which]);
            let mut late = Progress { taken: skipped, ..Progress::default() };
            for _ in 0..100 {
                backoff.next(&mut late);
            }
        }
    }
}
