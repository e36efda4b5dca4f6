//! Scripts decide as lists of what was admitted do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use palisade_rate_limit::{
    RedisStore,
    testing::{self, Answer, Ask, Full, Local, Numbers, Plan},
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Runtime;

use crate::{
    model::{Kind, Model},
    support::{self, Server},
};

/// Long enough that nothing expires while a test runs.
const HOUR: u64 = 3_600_000_000;

/// Microseconds.
const START: u64 = 1_700_000_000_000_000;

struct Bench {
    runtime: Runtime,
    server: Server,
}

impl Bench {
    fn start() -> Self {
        Self {
            runtime: Runtime::new().unwrap(),
            server: Server::start(),
        }
    }

    fn store(&self) -> RedisStore {
        self.runtime.block_on(support::store(&self.server))
    }
}

fn plan(model: &Model) -> Plan {
    let limit = model.limit;
    match model.kind {
        Kind::Bucket { interval } => Plan::token_bucket(interval, limit),
        Kind::Fixed { window } => Plan::fixed_window(limit, window * 1000),
        Kind::Sliding { window, tick } => Plan::sliding_window(limit, window * 1000, tick * 1000),
        Kind::Log { window } => Plan::sliding_log(limit, window * 1000),
    }
}

/// Waits in Redis end with a microsecond.
fn up(nanos: u64) -> u64 {
    nanos.div_ceil(1000)
}

/// Checks all that an answer says against what the model would admit later.
fn assert_standing(model: &Model, answer: &Answer, now: u64) {
    assert_eq!(answer.at, now * 1000);
    assert_eq!(answer.remaining, model.remaining(now), "{model:?} at {now}");
    for (wait, cost) in [(answer.retry_after, 1), (answer.reset_after, model.limit)] {
        assert!(model.would(cost, now + up(wait)), "{answer:?} of {model:?}");
        assert!(
            wait == 0 || !model.would(cost, now + up(wait) - 1),
            "{answer:?} of {model:?}"
        );
    }
}

fn assert_full(model: &Model, answer: &Answer, cost: u64, now: u64) {
    match answer.full {
        None => assert!(model.would(cost, now), "{cost} of {model:?} at {now}"),
        Some(Full::Forever) => assert!(cost > model.limit),
        Some(Full::For(wait)) => {
            assert!(!model.would(cost, now), "{cost} of {model:?} at {now}");
            assert!(
                model.would(cost, now + up(wait)),
                "{answer:?} of {model:?} at {now}"
            );
            assert!(
                !model.would(cost, now + up(wait) - 1),
                "{answer:?} of {model:?} at {now}"
            );
        }
    }
}

/// One that nobody else has.
fn rule() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("r{}", NEXT.fetch_add(1, Relaxed))
}

#[derive(Clone, Debug)]
enum Event {
    Take(u64),
    Peek(u64),
    /// Settles the oldest that is open with so much.
    Settle(u64),
    Drain,
    Limit(u64),
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        8 => (0..6u64).prop_map(Event::Take),
        1 => (0..6u64).prop_map(Event::Peek),
        2 => (0..8u64).prop_map(Event::Settle),
        1 => Just(Event::Drain),
        1 => (1..20u64).prop_map(Event::Limit),
    ];
    let after = prop_oneof![
        2 => Just(0),
        1 => Just(1),
        4 => 0..HOUR / 8,
        1 => Just(HOUR),
        1 => 0..3 * HOUR,
    ];
    vec((after, event), 1..40)
}

/// The same, but for waits that end between two microseconds.
fn assert_same(store: &Answer, local: &Answer) {
    let micros = |answer: &Answer| Answer {
        full: answer.full.map(|full| match full {
            Full::For(wait) => Full::For(up(wait)),
            Full::Forever => Full::Forever,
        }),
        retry_after: up(answer.retry_after),
        reset_after: up(answer.reset_after),
        ..*answer
    };
    assert_eq!(micros(store), micros(local));
}

/// One script of events for the store, for the meters of this crate, and for the list: all decide alike.
fn play(bench: &Bench, kind: Kind, limit: u64, events: Vec<(u64, Event)>) {
    let (rule, store) = (rule(), bench.store());
    // A list has ticks of any length; meters have those that their quota needs.
    let has_meter = !matches!(kind, Kind::Sliding { tick: 2.., .. });
    let mut local = has_meter.then(Local::default);
    let mut model = Model::new(kind, limit);
    let (mut now, mut open) = (START, Vec::new());
    bench.runtime.block_on(async {
        for (after, event) in events {
            now += after;
            testing::set_clock(&store, Some(now));
            let ask = |cost| Ask::new(&store, &rule, Some("k"), plan(&model)).cost(cost);
            match event {
                Event::Take(cost) => {
                    let answer = testing::take(&store, &[ask(cost)]).await.unwrap()[0];
                    if let Some(local) = &mut local {
                        assert_same(&answer, &local.take(plan(&model), cost, now * 1000));
                    }
                    assert_full(&model, &answer, cost, now);
                    if answer.full.is_none() {
                        model.take(cost, now);
                        if cost > 0 {
                            open.push((cost, now));
                        }
                    }
                    assert_standing(&model, &answer, now);
                }
                Event::Peek(cost) => {
                    let answer = testing::peek(&store, &[ask(cost)]).await.unwrap()[0];
                    if let Some(local) = &local {
                        assert_same(&answer, &local.peek(plan(&model), cost, now * 1000));
                    }
                    assert_full(&model, &answer, cost, now);
                    assert_standing(&model, &answer, now);
                }
                Event::Settle(used) => {
                    if open.is_empty() {
                        continue;
                    }
                    let (reserved, at) = open.remove(0);
                    // What is corrected upwards is counted in windows.
                    let used = match kind {
                        Kind::Fixed { .. } | Kind::Sliding { .. } => used,
                        Kind::Bucket { .. } | Kind::Log { .. } => used.min(reserved),
                    };
                    let settled = ask(reserved).used(at * 1000, used);
                    testing::settle(&store, &[settled]).await.unwrap();
                    if let Some(local) = &mut local {
                        local.settle(plan(&model), reserved, used, at * 1000, now * 1000);
                    }
                    let is_log = matches!(kind, Kind::Log { .. });
                    if is_log && used < reserved && at + HOUR <= now {
                        continue;
                    }
                    model.settle(reserved, used, at, now);
                }
                Event::Drain => {
                    let drained = ask(0).used(now * 1000, 0).drain();
                    testing::settle(&store, &[drained]).await.unwrap();
                    if let Some(local) = &mut local {
                        local.drain(plan(&model), now * 1000);
                    }
                    model.drain(now);
                }
                Event::Limit(limit) => {
                    // A meter remembers no more entries than its limit, also when that is raised again.
                    if matches!(kind, Kind::Log { .. }) && limit < model.limit {
                        local = None;
                    }
                    model.limit = limit;
                }
            }
        }
    });
}

/// All cases share a server, where each has a rule of its own.
fn check<S: Strategy>(cases: S, check: impl Fn(&Bench, S::Value)) {
    let bench = Bench::start();
    let config = Config {
        cases: 128,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&cases, |case| {
        check(&bench, case);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// An adaptive limit, by the rule in words.
struct Course {
    numbers: Numbers,
    limit: u64,
    average: f64,
    samples: u64,
    since: u64,
}

impl Course {
    fn ends(&mut self, (good, bad): (u64, u64), now: u64) -> u64 {
        let [_, least, most] = self.numbers.limits;
        let [grow, shrink, threshold, alpha] = self.numbers.factors;
        let many = good + bad;
        if many > 0 {
            let share = good as f64 / many as f64;
            self.average += (1.0 - (1.0 - alpha).powf(many as f64)) * (share - self.average);
            self.samples += many;
        }
        let is_due = (now - self.since) * 1000 >= self.numbers.interval;
        if !is_due || self.samples < self.numbers.samples {
            return self.limit;
        }
        let limit = self.limit as f64;
        if self.average >= threshold {
            let more = (limit * grow - 1e-6).ceil() as u64;
            self.limit = more.max(self.limit + 1).min(most);
        } else if self.average < threshold - threshold.min(1.0 - threshold) / 2.0 {
            let less = (limit * shrink + 1e-6).floor() as u64;
            self.limit = less.min(self.limit - 1).max(least);
        }
        (self.samples, self.since) = (0, now);
        self.limit
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    let factors = (1.01..3.0f64, 0.3..0.99f64, 0.5..1.0f64, 0.01..0.5f64);
    (1..1000u64, factors, 1..50u64).prop_map(|(base, factors, samples)| Numbers {
        limits: [base, base.div_ceil(10), base * 10],
        factors: [factors.0, factors.1, factors.2, factors.3],
        samples,
        interval: 300_000_000_000,
    })
}

#[test]
fn buckets_decide_as_a_list_does() {
    check(
        (1..20u64, 1..7u64, events()),
        |bench, (limit, nanos, events)| {
            // Not whole microseconds.
            let interval = HOUR * 1000 / 12 + nanos;
            play(bench, Kind::Bucket { interval }, limit, events);
        },
    );
}

#[test]
fn fixed_windows_decide_as_a_list_does() {
    check((1..20u64, events()), |bench, (limit, events)| {
        play(bench, Kind::Fixed { window: HOUR }, limit, events);
    });
}

#[test]
fn sliding_windows_decide_as_a_list_does() {
    let ticks = prop_oneof![Just(1), Just(HOUR / 60)];
    check(
        (1..20u64, ticks, events()),
        |bench, (limit, tick, events)| {
            play(bench, Kind::Sliding { window: HOUR, tick }, limit, events);
        },
    );
}

#[test]
fn sliding_logs_decide_as_a_list_does() {
    check((1..20u64, events()), |bench, (limit, events)| {
        play(bench, Kind::Log { window: HOUR }, limit, events);
    });
}

#[test]
fn limits_follow_how_requests_end_and_move_once_in_an_interval() {
    let reports = vec((0..400_000_000u64, 0..40u64, 0..10u64), 1..60);
    check((numbers(), reports), |bench, (numbers, reports)| {
        let (rule, store) = (rule(), bench.store());
        let mut now = START;
        let mut course = Course {
            numbers,
            limit: numbers.limits[0],
            average: 1.0,
            samples: 0,
            since: now,
        };
        for (first, (after, good, bad)) in reports.into_iter().enumerate() {
            now += if first == 0 { 0 } else { after };
            testing::set_clock(&store, Some(now));
            let limit = testing::adapt(&store, &rule, (good, bad), numbers);
            let limit = bench.runtime.block_on(limit).unwrap();
            assert_eq!(limit, course.ends((good, bad), now));
        }
    });
}

#[test]
fn factors_that_doubles_do_not_hold_round_as_one_would() {
    let bench = Bench::start();
    let store = bench.store();
    // 100 × 1.1 is a little above 110 in doubles, and 100 × 0.57 a little below 57.
    for (ends, expected) in [((99, 0), 110), ((0, 99), 57)] {
        let numbers = Numbers {
            limits: [100, 10, 1000],
            factors: [1.1, 0.57, 0.95, 0.1],
            samples: 20,
            interval: 1_000_000_000,
        };
        let rule = rule();
        let report = async |ends| testing::adapt(&store, &rule, ends, numbers).await.unwrap();
        bench.runtime.block_on(async {
            testing::set_clock(&store, Some(START));
            assert_eq!(report((0, 0)).await, 100);
            testing::set_clock(&store, Some(START + 1_000_000));
            assert_eq!(report(ends).await, expected);
        });
    }
}
