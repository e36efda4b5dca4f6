//! Limits around a store that does as it is told, on a paused clock.

mod alone;
mod asking;
mod bound;
mod leases;
mod outage;
mod settling;

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use http::Request;
use palisade_core::{
    classify::{Usage, Verdict},
    key,
    reject::Reason,
    settle::{End, Settle},
    time,
};
use tokio::{
    task::yield_now,
    time::{advance, timeout},
};

use super::*;
use crate::{
    Estimate, Mode, OnStoreError, StoreError, Strategy, Tokens,
    central::{Answer, Answers, Ask, Change, Course, Ends, Grant, Job, Pending, Plan, Subject},
    gate::RateLimit,
    meter::{Count, Meter},
};

const MS: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_millis(20);
const LEASE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mood {
    #[default]
    Answers,
    Hangs,
    Fails,
}

/// Counts as the meters do, for all who share it.
#[derive(Debug, Default)]
struct Scripted {
    up: AtomicBool,
    replicas: AtomicU64,
    mood: Mutex<Mood>,
    counts: Mutex<HashMap<(Arc<str>, Subject), Count>>,
    trips: AtomicUsize,
    leases: AtomicUsize,
    changes: Mutex<Vec<Change>>,
    reports: Mutex<Vec<Ends>>,
    runs: AtomicBool,
    start: Mutex<Option<Instant>>,
}

impl Scripted {
    fn new(replicas: u64) -> Arc<Self> {
        let store = Self::default();
        store.up.store(true, SeqCst);
        store.runs.store(true, SeqCst);
        store.replicas.store(replicas, SeqCst);
        *store.start.lock().unwrap() = Some(time::now());
        Arc::new(store)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn trips(&self) -> usize {
        self.trips.load(SeqCst)
    }

    fn nanos(&self) -> u64 {
        let start = self.start.lock().unwrap().unwrap();
        time::now().duration_since(start).as_nanos() as u64
    }

    fn meter(plan: Plan) -> Meter {
        let quota = |limit, nanos| Quota::new(limit, Duration::from_nanos(nanos)).unwrap();
        let (strategy, quota) = match plan {
            Plan::TokenBucket { interval, burst } => {
                (Strategy::TokenBucket, quota(burst, interval * burst))
            }
            Plan::FixedWindow { limit, window } => (Strategy::FixedWindow, quota(limit, window)),
            Plan::SlidingWindow { limit, window, .. } => {
                (Strategy::SlidingWindow, quota(limit, window))
            }
            Plan::SlidingLog { limit, window } => (Strategy::SlidingLog, quota(limit, window)),
            Plan::InFlight { limit } => (Strategy::InFlight, quota(limit, 1_000_000_000)),
        };
        Meter::new(strategy, &quota).unwrap()
    }

    fn decide(&self, asks: &[Ask], commit: bool) -> Answers {
        let now = self.nanos();
        let mut counts = self.counts.lock().unwrap();
        let tried: Vec<_> = asks
            .iter()
            .map(|ask| {
                let count = counts.entry((ask.rule.clone(), ask.subject)).or_default();
                Self::meter(ask.plan).take(count, ask.cost, now)
            })
            .collect();
        let all = tried.iter().all(Result::is_ok);
        let rules = asks.iter().zip(tried).map(|(ask, tried)| {
            let meter = Self::meter(ask.plan);
            let count = counts.entry((ask.rule.clone(), ask.subject)).or_default();
            if let (Ok(next), true) = (tried, all && commit) {
                meter.accept(count, next, now);
            }
            Answer {
                full: tried.err(),
                standing: meter.standing(count, now),
                at: now,
            }
        });
        Answers {
            rules: rules.collect(),
        }
    }

    fn after<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Pending<T> {
        self.trips.fetch_add(1, SeqCst);
        let store = self.clone();
        Box::pin(async move {
            let mood = *store.mood.lock().unwrap();
            match mood {
                Mood::Answers => {
                    yield_now().await;
                    Ok(work(&store))
                }
                Mood::Fails => Err(StoreError::Failed("told to".into())),
                Mood::Hangs => {
                    let _ = timeout(DEADLINE, pending::<()>()).await;
                    Err(StoreError::TimedOut)
                }
            }
        })
    }
}

impl Central for Arc<Scripted> {
    fn is_up(&self) -> bool {
        self.up.load(SeqCst)
    }

    fn replicas(&self) -> u64 {
        self.replicas.load(SeqCst)
    }

    fn subject(&self, key: &Key<'_>) -> Subject {
        let mut subject = [0; 16];
        if let Key::Bytes(bytes) = key {
            subject[..bytes.len()].copy_from_slice(bytes);
        }
        Subject(subject)
    }

    fn take(&self, asks: Vec<Ask>) -> Pending<Answers> {
        self.after(move |store| store.decide(&asks, true))
    }

    fn peek(&self, asks: Vec<Ask>) -> Pending<Answers> {
        self.after(move |store| store.decide(&asks, false))
    }

    fn lease(&self, ask: Ask, want: u64) -> Pending<Grant> {
        self.leases.fetch_add(1, SeqCst);
        self.after(move |store| {
            let room = store.decide(std::slice::from_ref(&ask), false).rules[0];
            let granted = want.min(room.standing.remaining);
            let ask = Ask {
                cost: granted.max(1),
                ..ask
            };
            let answer = store.decide(&[ask], true).rules[0];
            Grant { granted, answer }
        })
    }

    fn settle(&self, changes: Vec<Change>) -> Pending<()> {
        self.after(move |store| {
            let now = store.nanos();
            for change in changes {
                let mut counts = store.counts.lock().unwrap();
                let meter = Scripted::meter(change.plan);
                let count = counts
                    .entry((change.rule.clone(), change.subject))
                    .or_default();
                meter.settle(count, change.reserved, change.used, change.at, now);
                if change.drain {
                    meter.drain(count, None, now);
                }
                store.changes.lock().unwrap().push(change);
            }
        })
    }

    fn reset(&self, asks: Vec<Ask>) -> Pending<Vec<bool>> {
        self.after(move |store| {
            let mut counts = store.counts.lock().unwrap();
            asks.into_iter()
                .map(|ask| {
                    let count = counts.remove(&(ask.rule, ask.subject));
                    count.is_some_and(|count| count != Count::default())
                })
                .collect()
        })
    }

    fn adapt(&self, _: Arc<str>, ends: Ends, course: Course) -> Pending<u64> {
        self.after(move |store| {
            store.reports.lock().unwrap().push(ends);
            if ends.bad > 0 {
                course.least
            } else {
                course.base
            }
        })
    }

    fn run(&self, job: Job) -> bool {
        if self.runs.load(SeqCst) {
            tokio::spawn(job);
        }
        self.runs.load(SeqCst)
    }

    fn lease_for(&self) -> Duration {
        LEASE
    }
}

fn limit(store: &Arc<Scripted>, rules: impl IntoIterator<Item = Rule>) -> RateLimit {
    RateLimit::rules(rules)
        .unwrap()
        .central(Arc::new(store.clone()))
        .unwrap()
}

fn per_user(limit: u64) -> Rule {
    Rule::new("per_user", Quota::per_hour(limit))
        .strategy(Strategy::FixedWindow)
        .key(key::header("x-user-id"))
}

fn from(user: &str) -> Request<()> {
    let request = Request::builder().header("x-user-id", user);
    request.body(()).unwrap()
}

async fn ask(limit: &RateLimit, request: &Request<()>) -> Result<Reservation, Rejected> {
    use palisade_core::gate::Gate;

    match limit.admit(&request.into(), time::now()) {
        Admit::Now(decided) => decided,
        Admit::Later(decided) => decided.await,
    }
}

/// How many of so many are admitted.
async fn admitted(limit: &RateLimit, user: &str, requests: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += usize::from(ask(limit, &from(user)).await.is_ok());
    }
    admitted
}

fn end(mut reservation: Reservation, verdict: Verdict, usage: Option<Usage>) {
    let end = End {
        usage,
        age: MS,
        ..End::new(verdict)
    };
    reservation.finish(&end, time::now());
}

/// Lets what was left to the store be done.
async fn upkeep() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn reason(refused: Result<Reservation, Rejected>) -> Reason {
    refused.unwrap_err().reason()
}
