mod changes;
mod clock;
mod decisions;
mod doubles;
mod in_flight;
mod log;
mod moving;
mod quotas;

use std::time::Duration;

use proptest::{collection::vec, prelude::*, strategy::Strategy as _};

use super::*;
use crate::rule::Strategy;

/// All that count what has come, by one quota.
const STRATEGIES: [Strategy; 4] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
    Strategy::SlidingLog,
];

/// Those that settle.
const WINDOWS: [Strategy; 2] = [Strategy::FixedWindow, Strategy::SlidingWindow];

fn quota(limit: u64, window: u64) -> Quota {
    Quota::new(limit, Duration::from_nanos(window)).unwrap()
}

fn meter(strategy: Strategy, limit: u64, window: u64) -> Meter {
    Meter::new(strategy, &quota(limit, window)).unwrap()
}

fn strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop::sample::select(&STRATEGIES[..])
}

/// Takes and accepts.
fn pass(meter: &Meter, count: &mut Count, cost: u64, now: u64) -> Result<(), Full> {
    let next = meter.take(count, cost, now)?;
    meter.accept(count, next, now);
    Ok(())
}

fn taken(meter: &Meter, cost: u64, now: u64) -> Count {
    let mut count = Count::default();
    pass(meter, &mut count, cost, now).unwrap();
    count
}

fn refused(taken: Result<Next, Full>) -> u64 {
    match taken {
        Err(Full::For(nanos)) => nanos,
        other => panic!("{other:?}"),
    }
}

/// What was counted, and when; decides by adding it all up.
#[derive(Clone, Debug)]
struct Model {
    strategy: Strategy,
    limit: u64,
    window: u64,
    passed: Vec<(u64, u64)>,
}

impl Model {
    fn new(strategy: Strategy, limit: u64, window: u64) -> Self {
        Self {
            strategy,
            limit,
            window,
            passed: Vec::new(),
        }
    }

    fn has_room(&self, cost: u64, now: u64) -> bool {
        let (limit, window) = (i128::from(self.limit), i128::from(self.window));
        let cost = i128::from(cost);
        let (number, into) = (now / self.window, i128::from(now % self.window));
        let in_window = |number: u64| self.sum(|at| at / self.window == number);
        match self.strategy {
            Strategy::TokenBucket => {
                // A bucket that holds time, filled up to the brim at each step.
                let interval = i128::from(self.window.div_ceil(self.limit));
                let brim = interval * limit;
                let (mut holds, mut last) = (brim, 0);
                for &(at, cost) in &self.passed {
                    holds = brim.min(holds + i128::from(at - last)) - i128::from(cost) * interval;
                    last = at;
                }
                brim.min(holds + i128::from(now - last)) >= cost * interval
            }
            Strategy::FixedWindow => in_window(number) + cost <= limit,
            Strategy::SlidingLog => self.sum(|at| at + self.window > now) + cost <= limit,
            _ => {
                let before = number.checked_sub(1).map_or(0, in_window);
                let used = in_window(number) + cost;
                before * (window - into) + used * window <= limit * window
            }
        }
    }

    fn sum(&self, counts: impl Fn(u64) -> bool) -> i128 {
        let counted = self.passed.iter().filter(|(at, _)| counts(*at));
        counted.map(|&(_, cost)| i128::from(cost)).sum()
    }

    /// All that is decided by what is left.
    fn remaining(&self, now: u64) -> u64 {
        let room = (1..=self.limit)
            .rev()
            .find(|&cost| self.has_room(cost, now));
        room.unwrap_or(0)
    }
}
