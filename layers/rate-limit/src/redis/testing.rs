//! Asks a store without a layer: for the tests and the benches of this crate, without any promise.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use palisade_core::key::Key;

use crate::{
    RedisStore, StoreError,
    central::{self, Central, Change, Course, Ends, Subject},
    meter::{self, Count, Meter, Standing},
    quota::Quota,
    rule::Strategy,
};

/// How a rule counts; times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan(central::Plan);

impl Plan {
    /// One comes back in each interval.
    pub fn token_bucket(interval: u64, burst: u64) -> Self {
        Self(central::Plan::TokenBucket { interval, burst })
    }

    /// In windows that all keys turn together.
    pub fn fixed_window(limit: u64, window: u64) -> Self {
        Self(central::Plan::FixedWindow { limit, window })
    }

    /// This window and a share of the one before, by whole ticks.
    pub fn sliding_window(limit: u64, window: u64, tick: u64) -> Self {
        Self(central::Plan::SlidingWindow {
            limit,
            window,
            tick,
        })
    }

    /// Every one.
    pub fn sliding_log(limit: u64, window: u64) -> Self {
        Self(central::Plan::SlidingLog { limit, window })
    }

    /// Places.
    pub fn in_flight(limit: u64) -> Self {
        Self(central::Plan::InFlight { limit })
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask(central::Ask);

impl Ask {
    /// One of `plan` for `key`; without a key for all.
    pub fn new(store: &RedisStore, rule: &str, key: Option<&str>, plan: Plan) -> Self {
        Self(central::Ask {
            rule: rule.into(),
            subject: key.map_or(Subject::SHARED, |key| store.subject(&Key::from(key))),
            plan: plan.0,
            cost: 1,
            ticket: 0,
        })
    }

    /// So many.
    #[must_use]
    pub fn cost(mut self, cost: u64) -> Self {
        self.0.cost = cost;
        self
    }

    /// Names a place in flight.
    #[must_use]
    pub fn ticket(mut self, ticket: u64) -> Self {
        self.0.ticket = ticket;
        self
    }

    /// What became of it, having been taken at `at`.
    pub fn used(&self, at: u64, used: u64) -> Settled {
        Settled(Change {
            rule: self.0.rule.clone(),
            subject: self.0.subject,
            plan: self.0.plan,
            ticket: self.0.ticket,
            at,
            reserved: self.0.cost,
            used,
            drain: false,
        })
    }
}

/// What became of what was taken.
#[derive(Clone, Debug)]
pub struct Settled(Change);

impl Settled {
    /// And nothing remains.
    #[must_use]
    pub fn drain(mut self) -> Self {
        self.0.drain = true;
        self
    }
}

/// How a rule answered; times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether there was room, and else how long there is none.
    pub full: Option<Full>,
    /// What can be taken now.
    pub remaining: u64,
    /// Until one can be taken.
    pub retry_after: u64,
    /// Until all can be taken.
    pub reset_after: u64,
    /// The time of the store.
    pub at: u64,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// For so long.
    For(u64),
    /// And there never will be.
    Forever,
}

impl From<central::Answer> for Answer {
    fn from(answer: central::Answer) -> Self {
        Self {
            full: answer.full.map(|full| match full {
                meter::Full::For(wait) => Full::For(wait),
                meter::Full::Forever => Full::Forever,
            }),
            remaining: answer.standing.remaining,
            retry_after: answer.standing.retry_after,
            reset_after: answer.standing.reset_after,
            at: answer.at,
        }
    }
}

/// An adaptive limit: base, least, most; growth, shrinkage, threshold, alpha; samples; interval.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Base, least and most.
    pub limits: [u64; 3],
    /// Growth, shrinkage, threshold and alpha.
    pub factors: [f64; 4],
    /// At least so many.
    pub samples: u64,
    /// Nanoseconds.
    pub interval: u64,
}

/// What one key has used, counted without a store: by the meters of this crate, for the same plans.
#[derive(Debug, Default)]
pub struct Local {
    count: Count,
    /// By which it was counted last, and when.
    last: Option<(Plan, u64)>,
}

impl Local {
    /// Takes so much at a time in nanoseconds.
    pub fn take(&mut self, plan: Plan, cost: u64, now: u64) -> Answer {
        let (meter, mut count) = self.at(plan);
        let tried = meter.take(&count, cost, now);
        if let Ok(next) = tried {
            meter.accept(&mut count, next, now);
            let standing = meter.standing(&count, now);
            if cost > 0 {
                (self.count, self.last) = (count, Some((plan, now)));
            }
            return answer(None, standing, now);
        }
        answer(tried.err(), meter.standing(&count, now), now)
    }

    /// Takes nothing.
    pub fn peek(&self, plan: Plan, cost: u64, now: u64) -> Answer {
        let (meter, count) = self.at(plan);
        let full = meter.take(&count, cost, now).err();
        answer(full, meter.standing(&count, now), now)
    }

    /// Corrects what was taken at `at`.
    pub fn settle(&mut self, plan: Plan, reserved: u64, used: u64, at: u64, now: u64) {
        if reserved != used {
            let (meter, mut count) = self.at(plan);
            meter.settle(&mut count, reserved, used, at, now);
            (self.count, self.last) = (count, Some((plan, now)));
        }
    }

    /// Takes all that remains.
    pub fn drain(&mut self, plan: Plan, now: u64) {
        let (meter, mut count) = self.at(plan);
        meter.drain(&mut count, None, now);
        (self.count, self.last) = (count, Some((plan, now)));
    }

    /// The count, as such a plan goes on with it.
    fn at(&self, plan: Plan) -> (Meter, Count) {
        let (meter, mut count) = (meter(plan), self.count.clone());
        if let Some((old, then)) = self.last.filter(|(old, _)| *old != plan) {
            // A store does not hear of a change before it is asked, and goes on from what it wrote down last.
            meter.carry(&self::meter(old), &mut count, then);
        }
        (meter, count)
    }
}

fn answer(full: Option<meter::Full>, standing: Standing, at: u64) -> Answer {
    central::Answer { full, standing, at }.into()
}

/// The meter whose plan it is.
fn meter(Plan(plan): Plan) -> Meter {
    let (strategy, limit, window) = match plan {
        central::Plan::TokenBucket { interval, burst } => {
            (Strategy::TokenBucket, burst, interval * burst)
        }
        central::Plan::FixedWindow { limit, window } => (Strategy::FixedWindow, limit, window),
        central::Plan::SlidingWindow { limit, window, .. } => {
            (Strategy::SlidingWindow, limit, window)
        }
        central::Plan::SlidingLog { limit, window } => (Strategy::SlidingLog, limit, window),
        central::Plan::InFlight { limit } => (Strategy::InFlight, limit, 1),
    };
    let quota = Quota::new(limit, Duration::from_nanos(window)).expect("plans are of quotas");
    let meter = Meter::new(strategy, &quota).expect("plans are of meters");
    assert_eq!(meter.plan(), Some(plan), "no meter has this plan");
    meter
}

/// Sets the clock to a time in microseconds, or back to the server's.
pub fn set_clock(store: &RedisStore, now: Option<u64>) {
    store.shared().clock.store(now.unwrap_or(0), Relaxed);
}

/// Has every decision sent on its own, or with others when there are many, as by default.
pub fn coalesce(store: &RedisStore, on: bool) {
    store.shared().batch.off.store(!on, Relaxed);
}

/// Whether it can be asked.
pub fn is_up(store: &RedisStore) -> bool {
    store.is_up()
}

/// Takes from all or none.
pub async fn take(store: &RedisStore, asks: &[Ask]) -> Result<Vec<Answer>, StoreError> {
    let answers = store.take(asks.iter().map(|ask| ask.0.clone()).collect());
    Ok(answers.await?.rules.into_iter().map(Into::into).collect())
}

/// Takes nothing.
pub async fn peek(store: &RedisStore, asks: &[Ask]) -> Result<Vec<Answer>, StoreError> {
    let answers = store.peek(asks.iter().map(|ask| ask.0.clone()).collect());
    Ok(answers.await?.rules.into_iter().map(Into::into).collect())
}

/// Takes up to `want`.
pub async fn lease(store: &RedisStore, ask: &Ask, want: u64) -> Result<(u64, Answer), StoreError> {
    let grant = store.lease(ask.0.clone(), want).await?;
    Ok((grant.granted, grant.answer.into()))
}

/// Settles.
pub async fn settle(store: &RedisStore, changes: &[Settled]) -> Result<(), StoreError> {
    let changes = changes.iter().map(|change| change.0.clone()).collect();
    store.settle(changes).await
}

/// Forgets.
pub async fn reset(store: &RedisStore, asks: &[Ask]) -> Result<Vec<bool>, StoreError> {
    store
        .reset(asks.iter().map(|ask| ask.0.clone()).collect())
        .await
}

/// Reports ends.
pub async fn adapt(
    store: &RedisStore,
    rule: &str,
    (good, bad): (u64, u64),
    numbers: Numbers,
) -> Result<u64, StoreError> {
    let Numbers {
        limits: [base, least, most],
        factors: [grow, shrink, threshold, alpha],
        samples,
        interval,
    } = numbers;
    let course = Course {
        base,
        least,
        most,
        grow,
        shrink,
        threshold,
        alpha,
        samples,
        interval,
    };
    store
        .adapt(Arc::from(rule), Ends { good, bad }, course)
        .await
}

/// Leaves a job to the upkeep.
pub fn run(store: &RedisStore, job: impl Future<Output = ()> + Send + 'static) -> bool {
    store.run(Box::pin(job))
}

/// How long a lease lasts.
pub fn lease_for(store: &RedisStore) -> Duration {
    store.lease_for()
}
