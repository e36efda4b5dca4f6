//! Limits around a store that does as it is told, on a paused clock.

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
    settle::{End, Settle},
};
use tokio::{
    task::yield_now,
    time::{advance, timeout},
};

use super::*;
use crate::{
    Estimate, OnStoreError, Quota, StoreError, Tokens,
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

#[tokio::test(start_paused = true)]
async fn processes_that_share_a_store_admit_exactly_the_limit() {
    let store = Scripted::new(2);
    let both = [limit(&store, [per_user(10)]), limit(&store, [per_user(10)])];
    let mut passed = 0;
    for turn in 0..30 {
        passed += admitted(&both[turn % 2], "alice", 1).await;
    }
    assert_eq!(passed, 10);
    assert_eq!(admitted(&both[0], "bob", 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_never_put_to_the_store_holds_nothing_here() {
    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let place = Rule::in_flight("place", 1).local();
    let limit = limit(&store, [place, per_user(10)]);
    let request = from("alice");
    let asked = limit.admit(&(&request).into(), time::now());
    assert!(matches!(asked, Admit::Later(_)));
    drop(asked);
    assert_eq!(store.trips(), 0);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_hears_of_a_place_that_ends_also_without_room_for_the_job() {
    let store = Scripted::new(1);
    let limit = limit(&store, [Rule::in_flight("place", 1)]);
    let reservation = ask(&limit, &from("alice")).await.unwrap();
    let before = store.trips();
    store.runs.store(false, SeqCst);
    end(reservation, Verdict::Success, None);
    assert_eq!(store.trips(), before + 1, "or it would be renewed for ever");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_waited_for_no_longer_than_its_deadline() {
    for (policy, passes) in [
        (OnStoreError::Allow, true),
        (OnStoreError::Deny, false),
        (OnStoreError::LocalShare, true),
    ] {
        let store = Scripted::new(4);
        let limit = limit(&store, [per_user(100).on_store_error(policy)]);
        assert_eq!(admitted(&limit, "alice", 1).await, 1);
        store.set(Mood::Hangs);
        let asked = time::now();
        let answer = ask(&limit, &from("alice")).await;
        assert_eq!(asked.elapsed(), DEADLINE, "{policy:?}");
        assert_eq!(answer.is_ok(), passes, "{policy:?}");
        if let Err(refused) = answer {
            assert_eq!(refused.reason(), Reason::StoreUnavailable);
            assert_eq!(refused.delay(), Some(Duration::from_secs(1)));
            assert_eq!(refused.policy(), Some("per_user"));
        }
        // Known to be down, it is not asked, and nobody waits.
        store.up.store(false, SeqCst);
        let (asked, trips) = (time::now(), store.trips());
        assert_eq!(ask(&limit, &from("alice")).await.is_ok(), passes);
        assert_eq!((asked.elapsed(), store.trips()), (Duration::ZERO, trips));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_all_processes_together_keep_to_the_limit() {
    let store = Scripted::new(4);
    let processes: Vec<_> = (0..4).map(|_| limit(&store, [per_user(100)])).collect();
    for process in &processes {
        // As often as a process hears how all have used it.
        assert_eq!(admitted(process, "alice", 10).await, 10);
    }
    store.up.store(false, SeqCst);
    let mut without = 0;
    for process in &processes {
        let mine = admitted(process, "alice", 100).await;
        assert!(mine <= 25, "{mine} of a share of 25");
        without += mine;
    }
    // Each knows of what was used when it was told last, and so of 10 to 40: together a quarter of 30, 20 and 10 less
    // than there was, and what rounding leaves of a share.
    assert!(40 + without <= 100 + 15 + 3, "{without} besides 40");
    assert!(without >= 60, "{without}");

    // Who was never heard of has the share too, and no more.
    let mut cold = 0;
    for process in &processes {
        cold += admitted(process, "bob", 100).await;
    }
    assert_eq!(cold, 100);
}

#[tokio::test(start_paused = true)]
async fn what_passed_without_the_store_still_counts_when_it_is_back() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(10)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    store.up.store(true, SeqCst);
    let refused = ask(&limit, &from("alice")).await;
    assert_eq!(reason(refused), Reason::RateLimited);
    assert_eq!(store.trips(), 0, "refused here");
    // A window later, the store alone decides.
    advance(Duration::from_secs(3600)).await;
    assert_eq!(admitted(&limit, "alice", 11).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_let_all_pass_is_decided_by_the_store_alone_when_it_is_back() {
    let store = Scripted::new(2);
    let rule = per_user(10).on_store_error(OnStoreError::Allow);
    let limit = limit(&store, [rule]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 30).await, 30);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "alice", 30).await, 10);
}

#[tokio::test(start_paused = true)]
async fn one_question_without_an_answer_is_no_outage() {
    let store = Scripted::new(4);
    let limit = limit(&store, [per_user(10)]);
    store.set(Mood::Hangs);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.set(Mood::Answers);
    // Not held to its share of two.
    assert_eq!(admitted(&limit, "alice", 30).await, 10);
}

#[tokio::test(start_paused = true)]
async fn the_share_follows_the_number_of_processes() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(100)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 50);
    store.replicas.store(5, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(admitted(&limit, "bob", 100).await, 20);
    store.replicas.store(1, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 50);
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_is_refused_here_for_a_second() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(2)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    let trips = store.trips();
    let refused = ask(&limit, &from("alice")).await.unwrap_err();
    assert_eq!(refused.delay(), Some(Duration::from_secs(3600)));
    assert_eq!(admitted(&limit, "alice", 1000).await, 0);
    assert_eq!(store.trips(), trips);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);

    advance(Duration::from_secs(1)).await;
    let trips = store.trips();
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(store.trips(), trips + 1);

    // A reset shows at once where it was made.
    let handle = limit.handle();
    assert_eq!(handle.reset_store(None, &"alice".into()).await, Ok(1));
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_here_is_given_back_when_the_store_refuses() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100)).local();
    let bucket = here.clone();
    let rules = [
        Rule {
            name: "bucket".into(),
            ..bucket
        },
        here.strategy(Strategy::FixedWindow),
        per_user(2),
    ];
    let limit = limit(&store, rules);
    assert_eq!(admitted(&limit, "alice", 2).await, 2);
    advance(Duration::from_secs(2)).await;
    let left = |rule| {
        let state = limit.handle().peek(rule, &"".into());
        state.unwrap().remaining
    };
    let (before, refused) = (
        (left("bucket"), left("here")),
        ask(&limit, &from("alice")).await,
    );
    assert_eq!(reason(refused), Reason::RateLimited);
    assert_eq!((left("bucket"), left("here")), before);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_the_store_is_asked_gives_back_what_was_taken_here() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100))
        .strategy(Strategy::FixedWindow)
        .local();
    let places = Rule::in_flight("places", 3).key(key::header("x-user-id"));
    let limit = limit(&store, [here, per_user(10), places]);
    store.set(Mood::Hangs);
    let left = timeout(5 * MS, ask(&limit, &from("alice"))).await;
    assert!(left.is_err());
    store.set(Mood::Answers);
    upkeep().await;
    let state = limit.handle().peek("here", &"".into()).unwrap();
    assert_eq!(state.remaining, 100);
    // It may have got a place: nobody else would give that back. What it may have taken besides, stands.
    let changes = store.changes.lock().unwrap();
    let told: Vec<_> = changes
        .iter()
        .map(|change| (&*change.rule, change.used))
        .collect();
    assert_eq!(told, [("places", 0)]);
}

#[tokio::test(start_paused = true)]
async fn places_in_the_store_are_given_back_when_the_answer_has_ended() {
    let store = Scripted::new(1);
    let places = Rule::in_flight("places", 2).key(key::header("x-user-id"));
    let limit = limit(&store, [places]);
    let first = ask(&limit, &from("alice")).await.unwrap();
    let mut second = ask(&limit, &from("alice")).await.unwrap();
    assert!(ask(&limit, &from("alice")).await.is_err());
    // A verdict is not the end.
    second.settle(&End::new(Verdict::Failure), time::now());
    upkeep().await;
    advance(Duration::from_secs(1)).await;
    assert!(ask(&limit, &from("alice")).await.is_err());
    drop(second);
    upkeep().await;
    advance(Duration::from_secs(1)).await;
    let third = ask(&limit, &from("alice")).await.unwrap();
    drop((first, third));
    upkeep().await;
    let tickets: Vec<_> = store
        .changes
        .lock()
        .unwrap()
        .iter()
        .map(|change| change.ticket)
        .collect();
    assert_eq!(tickets.len(), 3);
    assert!(tickets[0] != tickets[1] && tickets[1] != tickets[2]);
}

#[tokio::test(start_paused = true)]
async fn costs_are_settled_in_the_store_exactly_once() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(10_000)).key(key::header("x-user-id"));
    let limit = limit(&store, [tokens]);
    let request = |prompt, most| {
        let mut request = from("alice");
        let tokens = Tokens::new("m", prompt).max_completion(most);
        request.extensions_mut().insert(tokens);
        request
    };
    let used = |prompt, completion| Some(Usage { prompt, completion });
    let first = ask(&limit, &request(100, 900)).await.unwrap();
    let second = ask(&limit, &request(100, 900)).await.unwrap();
    let third = ask(&limit, &request(100, 900)).await.unwrap();
    let left = async |store: &RateLimit| {
        let state = store.handle().peek_store("tokens", &"alice".into()).await;
        state.unwrap().unwrap().remaining
    };
    assert_eq!(left(&limit).await, 7000);
    end(second, Verdict::Success, used(100, 50));
    end(first, Verdict::Success, used(100, 1900));
    end(third, Verdict::Unsent, None);
    upkeep().await;
    assert_eq!(left(&limit).await, 10_000 - 150 - 2000);
    assert_eq!(store.changes.lock().unwrap().len(), 3);
    // As reserved: nothing to settle.
    end(
        ask(&limit, &request(100, 900)).await.unwrap(),
        Verdict::Success,
        used(100, 900),
    );
    upkeep().await;
    assert_eq!(store.changes.lock().unwrap().len(), 3);
    // Where it cannot be settled, what was reserved stands.
    store.runs.store(false, SeqCst);
    end(
        ask(&limit, &request(100, 900)).await.unwrap(),
        Verdict::Success,
        used(1, 1),
    );
    assert_eq!(left(&limit).await, 10_000 - 150 - 2000 - 1000 - 1000);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_outgrows_its_reservation_asks_the_store_and_is_ended_when_it_refuses() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(400))
        .key(key::header("x-user-id"))
        .estimate(Estimate::Learned)
        .growing();
    let limit = limit(&store, [tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 10).max_completion(10_000));
    // 10 and the 256 of who is not known yet.
    let mut stream = ask(&limit, &request).await.unwrap();
    let mut streamed = 0;
    let refused = loop {
        streamed += 1;
        if let Err(refused) = stream.progress(streamed, time::now()) {
            break refused;
        }
        upkeep().await;
        assert!(streamed < 1000);
    };
    assert_eq!(refused.reason(), Reason::RateLimited);
    // Three steps of 64 fit into 134, of which two did; never a step more was streamed than was reserved.
    assert!((256..=266 + 128).contains(&streamed), "{streamed}");
    let end = End {
        streamed,
        age: MS,
        ..End::new(Verdict::Refused(refused.reason()))
    };
    stream.finish(&end, time::now());
    drop(stream);
    upkeep().await;
    let state = limit.handle().peek_store("tokens", &"alice".into()).await;
    assert_eq!(state.unwrap().unwrap().remaining, 400 - 10 - streamed);
}

#[tokio::test(start_paused = true)]
async fn leases_save_trips_and_never_give_more_than_the_quota() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(32)]);
    assert_eq!(admitted(&limit, "alice", 960).await, 960);
    let trips = store.trips();
    assert!(trips <= 960 / 24 + 1, "{trips} trips");
    let more = admitted(&limit, "alice", 1000).await;
    assert_eq!(960 + more, 1000);
    assert!(
        store.trips() < trips + 10,
        "an empty quota is not asked for each request"
    );
}

#[tokio::test(start_paused = true)]
async fn many_who_find_a_lease_used_up_ask_for_one() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(64)]);
    let requests = (0..64).map(|_| {
        let limit = limit.clone();
        tokio::spawn(async move { ask(&limit, &from("alice")).await.is_ok() })
    });
    let requests: Vec<_> = requests.collect();
    for request in requests {
        assert!(request.await.unwrap());
    }
    upkeep().await;
    // The first, and the one that is asked for when it is nearly used up.
    assert!((1..=2).contains(&store.leases.load(SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_a_lease_is_asked_for_keeps_nobody_waiting() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(64)]);
    store.set(Mood::Hangs);
    let (first, second) = (from("alice"), from("alice"));
    let left = timeout(5 * MS, ask(&limit, &first));
    let stays = ask(&limit, &second);
    let (left, stays) = tokio::join!(left, stays);
    assert!(left.is_err());
    // By policy: the share of this process.
    assert!(stays.is_ok());
    assert_eq!(store.leases.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_lost_when_it_is_over() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).leased(20)]);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    advance(LEASE - MS).await;
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    assert_eq!(store.leases.load(SeqCst), 1);
    advance(MS).await;
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    assert_eq!(store.leases.load(SeqCst), 2);
    assert_eq!(100 - 2 * 20, {
        let state = limit.handle().peek_store("per_user", &"alice".into()).await;
        state.unwrap().unwrap().remaining
    });
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_does_not_answer_for_is_decided_by_policy() {
    for (policy, passes) in [(OnStoreError::Allow, true), (OnStoreError::Deny, false)] {
        for mood in [Mood::Hangs, Mood::Fails] {
            let store = Scripted::new(1);
            let limit = limit(&store, [per_user(100).leased(20).on_store_error(policy)]);
            store.set(mood);
            let asked = time::now();
            let answer = ask(&limit, &from("alice")).await;
            assert!(asked.elapsed() <= DEADLINE);
            assert_eq!(answer.is_ok(), passes);
            if !passes {
                assert_eq!(reason(answer), Reason::StoreUnavailable);
            }
        }
    }
    let store = Scripted::new(1);
    store.runs.store(false, SeqCst);
    let limit = limit(
        &store,
        [per_user(100).leased(20).on_store_error(OnStoreError::Deny)],
    );
    assert_eq!(
        reason(ask(&limit, &from("alice")).await),
        Reason::StoreUnavailable
    );
}

#[tokio::test(start_paused = true)]
async fn strict_leases_leave_out_what_they_could_exceed_the_quota_by() {
    // Two processes hold their leases to the end of the window and spend them after its turn.
    for (strict, most) in [(false, 140), (true, 100)] {
        let store = Scripted::new(2);
        let mut rule = per_user(100).leased(20);
        if strict {
            rule = rule.strict();
        }
        let both = [limit(&store, [rule.clone()]), limit(&store, [rule])];
        advance(Duration::from_secs(3600) - 100 * MS).await;
        for process in &both {
            assert_eq!(admitted(process, "alice", 1).await, 1);
        }
        advance(100 * MS).await;
        let mut passed = 0;
        for _ in 0..50 {
            for process in &both {
                passed += admitted(process, "alice", 10).await;
            }
            advance(20 * MS).await;
        }
        assert!(passed <= most, "{passed} of {most}, strict: {strict}");
        assert!(passed >= 60, "{passed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_in_shadow_asks_no_store() {
    let store = Scripted::new(2);
    let shadow = per_user(4).mode(Mode::Shadow);
    let limit = limit(&store, [shadow]);
    assert_eq!(admitted(&limit, "alice", 10).await, 10);
    assert_eq!(store.trips(), 0);
    let rule = &limit.handle().snapshot().rules[0];
    assert_eq!((rule.admitted, rule.shadowed), (2, 8), "a share of two");
    limit.handle().set_mode("per_user", Mode::Enforce).unwrap();
    assert_eq!(admitted(&limit, "alice", 10).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_adapts_follows_what_the_store_has_learned() {
    let store = Scripted::new(1);
    let rule = per_user(100).strategy(Strategy::Adaptive);
    let limit = limit(&store, [rule]);
    let end_in = async |verdict| {
        advance(Duration::from_secs(2)).await;
        for _ in 0..3 {
            end(ask(&limit, &from("alice")).await.unwrap(), verdict, None);
        }
        upkeep().await;
        limit
            .handle()
            .peek("per_user", &"alice".into())
            .unwrap()
            .limit
    };
    assert_eq!(end_in(Verdict::Success).await, 100);
    assert_eq!(end_in(Verdict::Failure).await, 10);
    let reports = store.reports.lock().unwrap();
    let sum = reports
        .iter()
        .fold((0, 0), |sum, ends| (sum.0 + ends.good, sum.1 + ends.bad));
    assert_eq!(reports.len(), 2, "once in a second");
    assert_eq!(sum, (3, 1), "the rest with the next report");
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_quota_that_the_store_counts() {
    let store = Scripted::new(1);
    let rule = Rule::new("bucket", Quota::per_second(10).burst(1)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(2), 100);
    let start = time::now();
    let mut times = Vec::new();
    for _ in 0..4 {
        ask(&limit, &from("alice")).await.unwrap();
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [0, 100, 200, 300]);
}

#[tokio::test(start_paused = true)]
async fn looking_at_a_store_that_is_down_is_an_error_and_a_reset_is_made_here() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(10)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    store.set(Mood::Fails);
    let handle = limit.handle();
    assert!(
        handle
            .peek_store("per_user", &"alice".into())
            .await
            .is_err()
    );
    assert!(handle.reset_store(None, &"alice".into()).await.is_err());
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    assert_eq!(
        handle.peek_store("no_such_rule", &"alice".into()).await,
        Ok(None)
    );
}

#[test]
fn a_window_that_the_store_cannot_count_is_an_error() {
    let odd = Quota::new(5, Duration::from_nanos(1_500)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let store = Scripted::new(1);
        let rule = Rule::new("odd", odd).strategy(Strategy::FixedWindow);
        let limit = RateLimit::rules([rule.clone()]).unwrap();
        assert!(limit.central(Arc::new(store.clone())).is_err());
        let limit = RateLimit::rules([rule.local()]).unwrap();
        assert!(limit.central(Arc::new(store)).is_ok());
    });
}

#[tokio::test(start_paused = true)]
async fn who_waited_until_the_store_was_back_is_counted_there_under_its_own_key() {
    let store = Scripted::new(2);
    let rule = Rule::new("bucket", Quota::per_second(2).burst(2)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(5), 100);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    let waits = tokio::spawn({
        let limit = limit.clone();
        async move { ask(&limit, &from("alice")).await.is_ok() }
    });
    upkeep().await;
    assert_eq!(limit.handle().snapshot().waiting, 1);
    store.up.store(true, SeqCst);
    assert!(waits.await.unwrap());
    let counts = store.counts.lock().unwrap();
    let subjects: Vec<_> = counts.keys().map(|(_, subject)| *subject).collect();
    assert_eq!(subjects, [store.subject(&"alice".into())]);
}

#[tokio::test(start_paused = true)]
async fn what_was_leased_is_given_back_when_another_rule_refuses() {
    let store = Scripted::new(1);
    let global = Rule::new("global", Quota::per_hour(1000)).strategy(Strategy::FixedWindow);
    let places = Rule::in_flight("places", 1).key(key::header("x-user-id"));
    let limit = limit(&store, [global.leased(20), places]);
    let held = ask(&limit, &from("alice")).await.unwrap();
    advance(MS).await;
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(
        store.leases.load(SeqCst),
        1,
        "the lease was spent by who was refused"
    );
    let rules = limit.handle().snapshot().rules;
    assert_eq!((rules[0].admitted, rules[1].admitted), (1, 1));
    assert_eq!((rules[0].refused, rules[1].refused), (0, 100));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn only_what_passed_is_counted_as_admitted_and_each_request_once() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100)).local();
    let limit = limit(&store, [here, per_user(10)]);
    let totals = || {
        let rules = limit.handle().snapshot().rules;
        rules
            .iter()
            .map(|rule| (rule.admitted, rule.refused))
            .collect::<Vec<_>>()
    };
    assert_eq!(admitted(&limit, "alice", 15).await, 10);
    assert_eq!(totals(), [(10, 0), (10, 5)]);
    // Counted here and there, after the store was down.
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);
    assert_eq!(totals(), [(12, 0), (12, 5)]);
    // Looking counts nothing.
    assert!(limit.handle().preview(&(&from("alice")).into()).is_err());
    assert_eq!(totals(), [(12, 0), (12, 5)]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_refused_by_the_store_once() {
    let store = Scripted::new(1);
    let rule = Rule::new("bucket", Quota::per_second(10).burst(1)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(9), 100);
    let requests = (0..4).map(|_| {
        let limit = limit.clone();
        tokio::spawn(async move { ask(&limit, &from("alice")).await.is_ok() })
    });
    for request in requests.collect::<Vec<_>>() {
        assert!(request.await.unwrap());
    }
    let rule = &limit.handle().snapshot().rules[0];
    assert!(rule.admitted == 4 && rule.refused <= 3, "{rule:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_no_way_around_what_passed_without_the_store() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).leased(20)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 200).await, 100);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "alice", 200).await, 0);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(admitted(&limit, "alice", 100).await, 100);
    assert!(store.leases.load(SeqCst) > 0);
}

#[tokio::test(start_paused = true)]
async fn what_one_without_a_seat_has_used_in_the_store_is_not_held_against_others() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).capacity(1)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 100).await, 100);
    assert_eq!(admitted(&limit, "carol", 200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_seat_here_keeps_its_tier_in_the_store() {
    let store = Scripted::new(1);
    let rule = per_user(2)
        .tier("premium", Quota::per_hour(50), |key| *key == "bob".into())
        .capacity(1);
    let limit = limit(&store, [rule]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 60).await, 50);
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_never_fits_is_told_so_also_to_who_was_refused_a_moment_ago() {
    let store = Scripted::new(1);
    let cost = |head: &RequestHead<'_>| match head.headers.contains_key("x-large") {
        true => 3,
        false => 1,
    };
    let limit = limit(&store, [per_user(2).cost(cost)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    let mut large = from("alice");
    large
        .headers_mut()
        .insert("x-large", "yes".parse().unwrap());
    assert_eq!(reason(ask(&limit, &large).await), Reason::CostExceedsQuota);
}

#[tokio::test(start_paused = true)]
async fn a_larger_quota_counts_at_once_for_who_was_refused_a_moment_ago() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(2)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    limit
        .handle()
        .update("per_user", Quota::per_hour(5))
        .unwrap();
    assert_eq!(admitted(&limit, "alice", 4).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_is_closed_before_the_store_is_asked_refuses() {
    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let other = Rule::new("other", Quota::per_hour(100)).strategy(Strategy::FixedWindow);
    let limit = limit(&store, [per_user(10), other]);
    let request = from("alice");
    let Admit::Later(asked) = limit.admit(&(&request).into(), time::now()) else {
        panic!("the store has to be asked");
    };
    limit
        .handle()
        .update("per_user", Quota::per_hour(0))
        .unwrap();
    let refused = asked.await.unwrap_err();
    assert_eq!(refused.policy(), Some("per_user"));
    assert_eq!(store.trips(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_by_an_earlier_quota_is_given_back_by_it() {
    let store = Scripted::new(1);
    let places = Rule::in_flight("places", 2).key(key::header("x-user-id"));
    let tokens = Rule::tokens("tokens", Quota::per_hour(1000)).key(key::header("x-user-id"));
    let limit = limit(&store, [places, tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 100).max_completion(100));
    let held = ask(&limit, &request).await.unwrap();
    let handle = limit.handle();
    handle.update("places", Quota::per_second(0)).unwrap();
    handle.update("tokens", Quota::per_day(1000)).unwrap();
    end(held, Verdict::Unsent, None);
    upkeep().await;
    let changes = store.changes.lock().unwrap();
    let mut told: Vec<_> = changes
        .iter()
        .map(|change| (&*change.rule, change.plan))
        .collect();
    told.sort_by_key(|change| change.0);
    let hour = 3_600_000_000_000;
    assert!(
        matches!(
            told[..],
            [
                ("places", Plan::InFlight { limit: 2 }),
                ("tokens", Plan::SlidingWindow { window, .. }),
            ] if window == hour
        ),
        "{told:?}"
    );
}

/// How often it was asked, and when it panics.
#[derive(Clone)]
struct Panics(Arc<[AtomicUsize; 2]>);

impl key::ExtractKey for Panics {
    fn key<'a>(&self, _: &RequestHead<'a>) -> Option<Key<'a>> {
        let [asked, panics_at] = &*self.0;
        assert_ne!(
            asked.fetch_add(1, SeqCst),
            panics_at.load(SeqCst),
            "told to"
        );
        Some("alice".into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_when_it_is_asked_for_again_keeps_no_place() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let user = Panics(Arc::new([
        AtomicUsize::new(0),
        AtomicUsize::new(usize::MAX),
    ]));
    let place = Rule::in_flight("place", 1).local();
    let there = Rule::new("there", Quota::per_hour(100)).key(user.clone());
    let leased = Rule::new("leased", Quota::per_hour(100))
        .key(user.clone())
        .leased(10);
    for rule in [there, leased] {
        let limit = limit(&store, [place.clone(), rule]);
        // All of the lease but one.
        for _ in 0..8 {
            drop(ask(&limit, &from("alice")).await.unwrap());
        }
        // Once to decide, and once more to ask the store.
        let [asked, panics_at] = &*user.0;
        panics_at.store(asked.load(SeqCst) + 1, SeqCst);
        let request = from("alice");
        let panics = || limit.admit(&(&request).into(), time::now());
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(ask(&limit, &from("alice")).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_granted_when_the_stream_has_ended_is_given_back() {
    for heard in [false, true] {
        let store = Scripted::new(1);
        let tokens = Rule::tokens("tokens", Quota::per_hour(10_000))
            .key(key::header("x-user-id"))
            .estimate(Estimate::Learned)
            .growing();
        let limit = limit(&store, [tokens]);
        let mut request = from("alice");
        request
            .extensions_mut()
            .insert(Tokens::new("m", 10).max_completion(10_000));
        let mut stream = ask(&limit, &request).await.unwrap();
        stream.progress(256, time::now()).unwrap();
        if heard {
            upkeep().await;
        }
        let end = End {
            streamed: 256,
            age: MS,
            ..End::new(Verdict::Canceled)
        };
        stream.finish(&end, time::now());
        drop(stream);
        upkeep().await;
        upkeep().await;
        let state = limit.handle().peek_store("tokens", &"alice".into()).await;
        assert_eq!(
            state.unwrap().unwrap().remaining,
            10_000 - 266,
            "heard: {heard}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_store_did_not_answer_for_is_not_given_back() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(10_000))
        .key(key::header("x-user-id"))
        .estimate(Estimate::Learned)
        .growing();
    let limit = limit(&store, [tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 10).max_completion(10_000));
    let mut stream = ask(&limit, &request).await.unwrap();
    store.set(Mood::Fails);
    stream.progress(256, time::now()).unwrap();
    upkeep().await;
    store.set(Mood::Answers);
    stream.progress(257, time::now()).unwrap();
    end(
        stream,
        Verdict::Success,
        Some(Usage {
            prompt: 10,
            completion: 257,
        }),
    );
    upkeep().await;
    let state = limit.handle().peek_store("tokens", &"alice".into()).await;
    assert_eq!(state.unwrap().unwrap().remaining, 10_000 - 267);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_before_a_store_has_failed_goes_back_to_its_own_window() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_second(10))
        .strategy(Strategy::FixedWindow)
        .local();
    let limit = limit(&store, [here, per_user(100)]);
    store.set(Mood::Hangs);
    advance(Duration::from_millis(990)).await;
    let first = ask(&limit, &from("alice")).await.unwrap();
    store.set(Mood::Answers);
    let second = ask(&limit, &from("alice")).await.unwrap();
    end(first, Verdict::Unsent, None);
    let state = limit.handle().peek("here", &"".into()).unwrap();
    assert_eq!(state.remaining, 9);
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_look_does_not_refuse_who_would_wait() {
    let rule = Rule::new("bucket", Quota::per_second(1));
    let limit = RateLimit::rules([rule]).unwrap();
    let patient = limit.clone().wait_up_to(Duration::from_secs(2), 9);
    for (limit, passes) in [(limit, false), (patient, true)] {
        assert_eq!(admitted(&limit, "alice", 1).await, 1);
        let looked = limit.handle().preview(&(&from("alice")).into());
        assert_eq!(looked.is_ok(), passes);
    }
}

#[test]
fn a_lease_cannot_be_drained() {
    let rule = per_user(100).leased(10).drain_on_overload();
    assert!(matches!(
        RateLimit::rules([rule]),
        Err(RuleError::CannotLease(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_not_divided_while_somebody_changes_it() {
    let store = Scripted::new(1);
    let config = Config {
        rules: vec![per_user(100)],
        headers: Headers::Standard,
        name: "rate_limit".into(),
        pacing: None,
        central: Some(Arc::new(store.clone())),
    };
    let limits = Limits::new(config, time::now()).unwrap();
    let (request, alice) = (from("alice"), Key::from("alice"));
    let look = || {
        limits.describe(&(&request).into(), &mut http::HeaderMap::new(), time::now());
        let state = limits.peek_key(&limits.limits[0], &alice, time::now());
        state.remaining
    };
    store.replicas.store(4, SeqCst);
    let changing = limits.changing.lock().unwrap();
    assert_eq!(
        look(),
        100,
        "or a share of the earlier quota could come last"
    );
    drop(changing);
    assert_eq!(look(), 25);
}

mod bound {
    //! What leases may exceed a quota by, whatever becomes of the processes that hold them.

    use proptest::{
        collection::vec,
        prelude::{ProptestConfig, Strategy as _, any, prop_assert, prop_oneof, proptest},
    };

    use super::*;

    const BURST: u64 = 200;
    const PER_SECOND: u64 = 100;
    const BATCH: u32 = 16;
    const PROCESSES: usize = 3;

    #[derive(Clone, Debug)]
    enum Event {
        /// So many requests at one process.
        Ask(usize, usize),
        /// All processes stand still, also longer than leases last.
        Pause(u64),
        /// One is started anew, with nothing that it had.
        Crash(usize),
    }

    fn event() -> impl proptest::strategy::Strategy<Value = Event> {
        prop_oneof![
            6 => (0..PROCESSES, 1..80_usize).prop_map(|(at, many)| Event::Ask(at, many)),
            3 => (0..200_u64).prop_map(Event::Pause),
            1 => (400..900_u64).prop_map(Event::Pause),
            1 => (0..PROCESSES).prop_map(Event::Crash),
        ]
    }

    fn rule(strict: bool) -> Rule {
        let rule = Rule::new("bucket", Quota::per_second(PER_SECOND).burst(BURST)).leased(BATCH);
        if strict { rule.strict() } else { rule }
    }

    async fn run(events: &[Event], strict: bool) -> Vec<(u64, u64)> {
        let store = Scripted::new(PROCESSES as u64);
        let new = || limit(&store, [rule(strict)]);
        let mut processes: Vec<_> = (0..PROCESSES).map(|_| new()).collect();
        let mut times = Vec::new();
        for event in events {
            match *event {
                Event::Ask(at, many) => {
                    let passed = admitted(&processes[at], "alice", many).await;
                    times.push((store.nanos(), passed as u64));
                }
                Event::Pause(millis) => advance(Duration::from_millis(millis)).await,
                Event::Crash(at) => processes[at] = new(),
            }
        }
        times
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn leases_exceed_a_quota_by_no_more_than_is_said(
            events in vec(event(), 1..60),
            strict in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let times = runtime.block_on(run(&events, strict));
            let held = PROCESSES as u64 * u64::from(BATCH);
            let lasts = LEASE.as_millis() as u64 * PER_SECOND / 1000;
            let excess = if strict { 0 } else { held.min(lasts) };
            for (first, &(from, _)) in times.iter().enumerate() {
                let mut passed = 0;
                for &(to, many) in &times[first..] {
                    passed += many;
                    let refilled = (to - from).div_ceil(1_000_000_000 / PER_SECOND);
                    let most = BURST + refilled + excess;
                    prop_assert!(passed <= most, "{} of {}, strict: {}", passed, most, strict);
                }
            }
        }
    }
}
