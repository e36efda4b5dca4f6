//! Requests that wait for their quota.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use palisade_core::{
    deadline::Deadline,
    gate::{Admit, Gate},
    key,
    reject::{Reason, Rejected},
    settle::{End, Settle},
    time::now,
};
use palisade_rate_limit::{
    CostExceedsQuota, Headers, Mode, Quota, RateLimit, RateLimitLayer, Reservation, Rule, Strategy,
    Tokens,
};
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, Service};

use crate::{from, limited, per_user};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// Every so many milliseconds one, with no burst.
pub(crate) fn one_in(millis: u32) -> Quota {
    Quota::new(1, MS * millis).unwrap()
}

pub(crate) fn paced(rules: impl IntoIterator<Item = Rule>) -> RateLimit {
    let limit = RateLimit::rules(rules).unwrap();
    limit.headers(Headers::Off).wait_up_to(MS * 10_000, 100)
}

async fn ask(limit: &RateLimit, request: &Request<()>) -> Result<Reservation, Rejected> {
    match limit.admit(&request.into(), now()) {
        Admit::Now(decided) => decided,
        Admit::Later(decided) => decided.await,
    }
}

/// Who passed, and when.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    limit: RateLimit,
    pub(crate) start: Instant,
    passed: Arc<Mutex<Vec<(String, u128)>>>,
}

impl Gatekeeper {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        Self {
            limit: limit.clone(),
            start: now(),
            passed: Arc::default(),
        }
    }

    /// Stands in line when this returns.
    pub(crate) async fn comes(&self, name: &str, request: Request<()>) -> JoinHandle<()> {
        let (this, name) = (self.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            let passed = ask(&this.limit, &request).await.is_ok();
            let at = this.start.elapsed().as_millis();
            let name = if passed { name } else { format!("not {name}") };
            this.passed.lock().unwrap().push((name, at));
        });
        yield_now().await;
        task
    }

    pub(crate) fn passed(&self) -> Vec<(String, u128)> {
        std::mem::take(&mut self.passed.lock().unwrap())
    }
}

pub(crate) fn at(passed: &[(&str, u128)]) -> Vec<(String, u128)> {
    let owned = passed.iter().map(|&(name, at)| (name.to_owned(), at));
    owned.collect()
}

fn costing(cost: &str) -> Request<()> {
    Request::builder().header("x-cost", cost).body(()).unwrap()
}

fn by_cost(name: &str, quota: Quota) -> Rule {
    Rule::new(name, quota).cost(|head| {
        let cost = head.headers.get("x-cost").map(|cost| cost.to_str());
        cost.map_or(1, |cost| cost.unwrap().parse().unwrap())
    })
}

#[tokio::test(start_paused = true)]
async fn it_waits_exactly_as_long_as_would_be_named() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::FixedWindow,
        Strategy::SlidingWindow,
        Strategy::SlidingLog,
    ] {
        let rule = || Rule::new("two", Quota::per_second(2)).strategy(strategy);
        let (named, waits) = (RateLimit::rules([rule()]).unwrap(), paced([rule()]));
        advance(MS * 200).await;
        for _ in 0..8 {
            let started = now();
            let refused = loop {
                match ask(&named, &Request::new(())).await {
                    Ok(_) => drop(ask(&waits, &Request::new(())).await.unwrap()),
                    Err(refused) => break refused,
                }
            };
            assert_eq!(started.elapsed(), Duration::ZERO);
            let wait = limited(&refused).retry_after;
            assert!(wait >= MS, "{strategy:?}");
            ask(&waits, &Request::new(())).await.unwrap();
            assert_eq!(started.elapsed(), wait, "{strategy:?}");
            ask(&named, &Request::new(())).await.unwrap();
        }
        assert_eq!(waits.handle().snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_served_in_the_order_of_its_requests_and_no_other_is_held_up() {
    let limit = paced([per_user(one_in(100))]);
    let line = Gatekeeper::new(&limit);
    for name in ["a0", "a1", "a2", "a3"] {
        line.comes(name, from("alice")).await;
    }
    line.comes("b0", from("bob")).await;
    assert_eq!(limit.handle().snapshot().waiting, 3);
    sleep(MS * 150).await;
    line.comes("a4", from("alice")).await;
    line.comes("b1", from("bob")).await;
    sleep(MS * 1000).await;
    let order = [
        ("a0", 0),
        ("b0", 0),
        ("a1", 100),
        ("b1", 150),
        ("a2", 200),
        ("a3", 300),
        ("a4", 400),
    ];
    assert_eq!(line.passed(), at(&order));
    assert_eq!(limit.handle().snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_nothing_and_lets_the_next_one_move_whenever_it_leaves() {
    for strategy in [Strategy::TokenBucket, Strategy::SlidingLog] {
        for place in 0..4_usize {
            for leaves in (0..420).step_by(10).chain([99, 101, 199, 201, 299, 301]) {
                let limit = paced([per_user(one_in(100)).strategy(strategy)]);
                let line = Gatekeeper::new(&limit);
                line.comes("first", from("alice")).await;
                let mut tasks = Vec::new();
                for name in ["0", "1", "2", "3"] {
                    tasks.push(line.comes(name, from("alice")).await);
                }
                sleep(MS * leaves).await;
                tasks[place].abort();
                sleep(MS * 1000).await;
                let mut names: Vec<_> = ["first", "0", "1", "2", "3"].into();
                // Aborted in the very millisecond of its turn, it may or may not have passed.
                let turn = 100 * (place as u32 + 1);
                let passed = line.passed();
                if leaves < turn || (leaves == turn && passed.len() == 4) {
                    names.remove(place + 1);
                }
                let due = (0..).map(|turn| 100 * turn);
                let expected: Vec<_> = names.into_iter().zip(due).collect();
                if leaves == turn {
                    assert_eq!(passed.len(), expected.len());
                } else {
                    assert_eq!(passed, at(&expected), "{strategy:?} {place} {leaves}");
                }
                assert_eq!(limit.handle().snapshot().waiting, 0);
                assert_eq!(
                    limit.handle().snapshot().rules[0].admitted,
                    passed.len() as u64
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_never_polled_has_taken_nothing_and_stands_in_no_line() {
    let limit = paced([per_user(one_in(100))]);
    drop(ask(&limit, &from("alice")).await.unwrap());
    let later = limit.admit(&(&from("alice")).into(), now());
    assert!(matches!(later, Admit::Later(_)));
    assert_eq!(limit.handle().snapshot().waiting, 0);
    drop(later);
    let started = now();
    ask(&limit, &from("alice")).await.unwrap();
    assert_eq!(started.elapsed(), MS * 100);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_wait_and_who_leaves_makes_room() {
    let limit = paced([per_user(one_in(100))]).wait_up_to(MS * 5000, 2);
    let line = Gatekeeper::new(&limit);
    line.comes("0", from("alice")).await;
    line.comes("1", from("alice")).await;
    let leaves = line.comes("2", from("alice")).await;
    let started = now();
    let refused = ask(&limit, &from("alice")).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(limited(&refused).retry_after, MS * 300, "behind both");
    // The places are those of all keys together.
    drop(ask(&limit, &from("bob")).await.unwrap());
    assert!(ask(&limit, &from("bob")).await.is_err());

    leaves.abort();
    sleep(MS * 50).await;
    assert_eq!(limit.handle().snapshot().waiting, 1);
    line.comes("3", from("bob")).await;
    sleep(MS * 500).await;
    assert_eq!(line.passed(), at(&[("0", 0), ("1", 100), ("3", 100)]));

    let nobody = paced([per_user(one_in(100))]).wait_up_to(MS * 5000, 0);
    drop(ask(&nobody, &from("alice")).await.unwrap());
    let refused = ask(&nobody, &from("alice")).await.unwrap_err();
    assert_eq!(limited(&refused).retry_after, MS * 100);
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_is_refused_at_once_also_because_of_those_before() {
    let limit = paced([per_user(one_in(100))]).wait_up_to(MS * 250, 100);
    let line = Gatekeeper::new(&limit);
    for name in ["0", "1", "2", "3"] {
        line.comes(name, from("alice")).await;
    }
    assert_eq!(line.passed(), at(&[("0", 0), ("not 3", 0)]));
    let refused = ask(&limit, &from("alice")).await.unwrap_err();
    assert_eq!(limited(&refused).retry_after, MS * 300);
    assert_eq!(refused.delay(), Some(MS * 300));
    sleep(MS * 50).await;
    line.comes("4", from("alice")).await;
    sleep(MS * 1000).await;
    assert_eq!(line.passed(), at(&[("1", 100), ("2", 200), ("4", 300)]));

    // A bucket that has some: the one before takes nine of ten, of which five are there.
    let bucket = Quota::new(10, MS * 1000).unwrap();
    let limit = paced([by_cost("ten", bucket)]).wait_up_to(MS * 500, 100);
    let line = Gatekeeper::new(&limit);
    line.comes("five", costing("5")).await;
    line.comes("nine", costing("9")).await;
    line.comes("one", costing("1")).await;
    line.comes("another", costing("1")).await;
    sleep(MS * 1000).await;
    let order = [("five", 0), ("not another", 0), ("nine", 400), ("one", 500)];
    assert_eq!(line.passed(), at(&order));
}

#[tokio::test(start_paused = true)]
async fn a_window_lets_all_through_at_its_turn_that_it_has_room_for() {
    for (strategy, passes) in [(Strategy::FixedWindow, 1000), (Strategy::SlidingLog, 1000)] {
        let rule = per_user(Quota::per_second(3)).strategy(strategy);
        let limit = paced([rule]).wait_up_to(MS * 1500, 100);
        let line = Gatekeeper::new(&limit);
        for _ in 0..7 {
            line.comes("a", from("alice")).await;
        }
        // The seventh would be the first of the window after the next.
        let mut order = vec![("a", 0); 3];
        order.push(("not a", 0));
        order.extend([("a", passes); 3]);
        sleep(MS * 2000).await;
        assert_eq!(line.passed(), at(&order), "{strategy:?}");
    }
    // Of two windows, one after the other.
    let rule = per_user(Quota::per_second(2)).strategy(Strategy::SlidingWindow);
    let limit = paced([rule]).wait_up_to(MS * 2000, 100);
    let line = Gatekeeper::new(&limit);
    for _ in 0..5 {
        line.comes("a", from("alice")).await;
    }
    sleep(MS * 4000).await;
    let order = [("a", 0), ("a", 0), ("not a", 0), ("a", 1500), ("a", 2000)];
    assert_eq!(line.passed(), at(&order));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_bounds_the_wait() {
    let limit = paced([per_user(one_in(100))]);
    drop(ask(&limit, &from("alice")).await.unwrap());
    let within = |millis| {
        let mut request = from("alice");
        let deadline = Deadline(now() + MS * millis);
        request.extensions_mut().insert(deadline);
        request
    };
    let started = now();
    let refused = ask(&limit, &within(99)).await.unwrap_err();
    assert_eq!(limited(&refused).retry_after, MS * 100);
    assert_eq!(started.elapsed(), Duration::ZERO);
    let line = Gatekeeper::new(&limit);
    line.comes("1", within(100)).await;
    line.comes("2", within(199)).await;
    line.comes("3", within(200)).await;
    line.comes("4", within(9999)).await;
    sleep(MS * 1000).await;
    let order = [("not 2", 0), ("1", 100), ("3", 200), ("4", 300)];
    assert_eq!(line.passed(), at(&order));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_never_jumps_the_line_though_there_is_room_for_it() {
    let bucket = Quota::new(10, MS * 1000).unwrap();
    let limit = paced([by_cost("ten", bucket)]);
    let line = Gatekeeper::new(&limit);
    line.comes("five", costing("5")).await;
    line.comes("ten", costing("10")).await;
    for name in ["one", "another"] {
        sleep(MS * 10).await;
        line.comes(name, costing("1")).await;
    }
    sleep(MS * 5000).await;
    let order = [("five", 0), ("ten", 500), ("one", 600), ("another", 700)];
    assert_eq!(line.passed(), at(&order));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_seat_stands_behind_all_others_who_have_none() {
    let bucket = Quota::new(10, MS * 1000).unwrap();
    let rule = by_cost("ten", bucket).key(key::header("x-user-id"));
    let line = Gatekeeper::new(&paced([rule.capacity(1)]));
    let costs = |user: &str, cost: &str| {
        let mut request = from(user);
        let cost = http::HeaderValue::from_str(cost).unwrap();
        request.headers_mut().insert("x-cost", cost);
        request
    };
    line.comes("seated", costs("alice", "1")).await;
    line.comes("five", costs("bob", "5")).await;
    line.comes("ten", costs("carol", "10")).await;
    sleep(MS * 10).await;
    // There would be room.
    line.comes("one", costs("dave", "1")).await;
    line.comes("seated too", costs("alice", "1")).await;
    sleep(MS * 5000).await;
    let order = [
        ("seated", 0),
        ("five", 0),
        ("seated too", 10),
        ("ten", 500),
        ("one", 600),
    ];
    assert_eq!(line.passed(), at(&order));
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_can_never_fit_does_not_wait_even_behind_others() {
    let limit = paced([by_cost("two", Quota::new(2, MS * 200).unwrap())]);
    let line = Gatekeeper::new(&limit);
    line.comes("2", costing("2")).await;
    line.comes("1", costing("1")).await;
    let started = now();
    let refused = ask(&limit, &costing("3")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::CostExceedsQuota);
    let source = std::error::Error::source(&refused).unwrap();
    assert!(source.is::<CostExceedsQuota>());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_is_not_waited_for() {
    for strategy in [Strategy::TokenBucket, Strategy::InFlight] {
        let limit = paced([Rule::new("none", Quota::per_second(0)).strategy(strategy)]);
        let started = now();
        assert!(ask(&limit, &Request::new(())).await.is_err());
        assert_eq!(started.elapsed(), Duration::ZERO, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_wait_is_too_long_to_be_configured() {
    let limit = paced([per_user(one_in(100))]).wait_up_to(Duration::MAX, usize::MAX);
    for _ in 0..3 {
        drop(ask(&limit, &from("alice")).await.unwrap());
    }
    assert_eq!(limit.handle().snapshot().rules[0].admitted, 3);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_comes_free_is_taken_at_once() {
    let limit = paced([Rule::in_flight("places", 2)]).wait_up_to(MS * 700, 10);
    let mut held = held_by(&limit, 2).await;
    let line = Gatekeeper::new(&limit);
    for name in ["0", "1", "2"] {
        line.comes(name, Request::new(())).await;
    }
    sleep(MS * 30).await;
    held.pop();
    sleep(MS * 7).await;
    // Whoever passes here leaves at once, and so lets the next one in.
    assert_eq!(line.passed(), at(&[("0", 30), ("1", 30), ("2", 30)]));
    drop(held);
    let filled = held_by(&limit, 2).await;
    let started = now();
    let refused = ask(&limit, &Request::new(())).await.unwrap_err();
    assert_eq!(started.elapsed(), MS * 700, "nobody has left in time");
    assert_eq!(refused.reason(), Reason::RateLimited);
    drop(filled);
}

async fn held_by(limit: &RateLimit, many: usize) -> Vec<Reservation> {
    let mut held = Vec::new();
    for _ in 0..many {
        held.push(ask(limit, &Request::new(())).await.unwrap());
    }
    held
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_or_changed_lets_the_first_in_line_try_at_once() {
    let tokens = |completion| {
        let mut request = Request::new(());
        let tokens = Tokens::new("m", 0).max_completion(completion);
        request.extensions_mut().insert(tokens);
        request
    };
    let new = || paced([Rule::tokens("tokens", Quota::per_minute(100))]);
    type Change = fn(&RateLimit, &mut Reservation);
    let changes: [(&str, Change); 4] = [
        ("settled", |_, reservation| {
            let end = End {
                usage: Some(palisade_core::classify::Usage {
                    prompt: 0,
                    completion: 10,
                }),
                ..End::new(palisade_core::classify::Verdict::Success)
            };
            reservation.settle(&end, now());
        }),
        ("reset", |limit, _| {
            assert!(limit.handle().reset_shared("tokens"));
        }),
        ("updated", |limit, _| {
            let quota = Quota::per_minute(200);
            limit.handle().update("tokens", quota).unwrap();
        }),
        ("shadow", |limit, _| {
            limit.handle().set_mode("tokens", Mode::Shadow).unwrap();
        }),
    ];
    for (name, change) in changes {
        let limit = new().wait_up_to(MS * 200_000, 10);
        let mut held = ask(&limit, &tokens(100)).await.unwrap();
        let line = Gatekeeper::new(&limit);
        line.comes("0", tokens(60)).await;
        line.comes("1", tokens(20)).await;
        sleep(MS * 100).await;
        assert_eq!(line.passed(), []);
        change(&limit, &mut held);
        sleep(MS * 5).await;
        assert_eq!(line.passed(), at(&[("0", 100), ("1", 100)]), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_is_only_watched_has_no_line() {
    let limit = paced([
        per_user(one_in(100)),
        Rule::new("global", Quota::per_day(100)),
    ]);
    let line = Gatekeeper::new(&limit);
    line.comes("0", from("alice")).await;
    line.comes("1", from("alice")).await;
    limit.handle().set_mode("per_user", Mode::Shadow).unwrap();
    line.comes("2", from("alice")).await;
    sleep(MS * 500).await;
    assert_eq!(line.passed().len(), 3);
    assert_eq!(limit.handle().snapshot().rules[0].shadowed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_is_counted_once() {
    let limit = paced([per_user(one_in(100))]).wait_up_to(MS * 250, 10);
    let line = Gatekeeper::new(&limit);
    for name in ["0", "1", "2", "3"] {
        line.comes(name, from("alice")).await;
    }
    sleep(MS * 500).await;
    let rule = limit.handle().snapshot().rules.remove(0);
    // Two had to wait in front of the line; the last was refused without a try.
    assert_eq!((rule.admitted, rule.refused), (3, 2));
}

#[test]
fn threads_that_wait_for_a_place_all_get_one_and_never_hold_more_than_there_are() {
    const THREADS: usize = 8;
    const EACH: usize = 300;

    let rules = [
        Rule::in_flight("places", 3),
        per_user(Quota::per_day(1_000_000)),
    ];
    let limit = paced(rules).wait_up_to(Duration::from_secs(600), THREADS);
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_time().build().unwrap();
                runtime.block_on(async {
                    for turn in 0..EACH {
                        let held = ask(&limit, &from("alice")).await.unwrap();
                        most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                        if turn % 2 == 0 {
                            std::thread::yield_now();
                        }
                        inside.fetch_sub(1, SeqCst);
                        drop(held);
                    }
                });
            });
        }
    });
    assert!((2..=3).contains(&most.into_inner()));
    let snapshot = limit.handle().snapshot();
    assert_eq!(snapshot.rules[0].admitted, (THREADS * EACH) as u64);
    assert_eq!(snapshot.waiting, 0);
    let state = limit.handle().peek("places", &"".into()).unwrap();
    assert_eq!(state.remaining, 3);
}

/// Asserts that the one that was ready is the one that is called.
#[derive(Default)]
struct Picky {
    ready: bool,
    called: Arc<AtomicUsize>,
}

impl Clone for Picky {
    fn clone(&self) -> Self {
        let called = self.called.clone();
        Self {
            ready: false,
            called,
        }
    }
}

impl Service<Request<()>> for Picky {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "was not asked");
        self.called.fetch_add(1, SeqCst);
        ready(Ok(Response::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_ready_is_called_after_the_wait() {
    let layer = RateLimitLayer::new(one_in(100)).wait_up_to(MS * 1000, 10);
    let picky = Picky::default();
    let mut service = layer.layer(picky.clone());
    let started = now();
    for turn in 0..4 {
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .unwrap();
        service.call(Request::new(())).await.unwrap();
        assert_eq!(started.elapsed(), MS * 100 * turn);
    }
    assert_eq!(picky.called.load(SeqCst), 4);
    // Who leaves while it waits has not called it.
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .unwrap();
    assert!(
        timeout(MS * 50, service.call(Request::new(())))
            .await
            .is_err()
    );
    sleep(MS * 500).await;
    assert_eq!(picky.called.load(SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn nobody_spins_while_it_waits() {
    let limit = paced([per_user(one_in(100))]);
    drop(ask(&limit, &from("alice")).await.unwrap());
    let polls: Vec<Arc<AtomicUsize>> = (0..5).map(|_| Arc::default()).collect();
    let mut tasks = Vec::new();
    for polls in &polls {
        let (limit, polls) = (limit.clone(), polls.clone());
        tasks.push(tokio::spawn(async move {
            let request = from("alice");
            let mut asked = pin!(ask(&limit, &request));
            std::future::poll_fn(|cx| {
                polls.fetch_add(1, SeqCst);
                asked.as_mut().poll(cx)
            })
            .await
            .unwrap();
        }));
        yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let polls: Vec<_> = polls.iter().map(|polls| polls.load(SeqCst)).collect();
    // Joins, hears that it is its turn, hears that its time has come.
    assert_eq!(polls, [2, 3, 3, 3, 3]);
}
