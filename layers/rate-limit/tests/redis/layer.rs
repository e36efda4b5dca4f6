//! The layer with a real server: requests, streams and processes that share it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use palisade_core::{
    BoxError,
    classify::Sse,
    key::{self, Key},
    reject::{Reason, Rejected},
};
use palisade_rate_limit::{
    Estimate, OnStoreError, Quota, RateLimitLayer, RedisConfig, RedisStore, Rule, Strategy, Tokens,
};
use tokio::task::{JoinSet, yield_now};
use tower::{Layer, Service, ServiceExt};

use crate::support::{Server, connected, patient, until};

fn from(user: &str) -> Request<()> {
    let request = Request::builder().header("x-user-id", user);
    request.body(()).unwrap()
}

fn per_user(quota: Quota) -> Rule {
    Rule::new("per_user", quota).key(key::header("x-user-id"))
}

fn layer(store: &RedisStore, rules: impl IntoIterator<Item = Rule>) -> RateLimitLayer {
    let layer = RateLimitLayer::rules(rules).unwrap();
    layer.store(store).unwrap()
}

/// Whether one request passes, to the end of its answer.
async fn passes(layer: &RateLimitLayer, user: &str) -> Result<(), Reason> {
    let inner = tower::service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
    });
    let answer = layer.layer(inner).oneshot(from(user)).await;
    answer.map(drop).map_err(|error| {
        let rejected = Rejected::find(&*error).expect("refused by the layer");
        rejected.reason()
    })
}

/// How many of so many at the same time pass.
async fn passing(layer: &RateLimitLayer, user: &'static str, requests: usize) -> usize {
    let mut tasks = JoinSet::new();
    for _ in 0..requests {
        let layer = layer.clone();
        tasks.spawn(async move { passes(&layer, user).await.is_ok() });
    }
    let passed = tasks.join_all().await;
    passed.into_iter().filter(|passed| *passed).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_rules_are_shared_exactly_whatever_their_strategies() {
    let server = Server::start();
    let (one, other) = (patient(&server.url()).await, patient(&server.url()).await);
    for strategy in [
        Strategy::TokenBucket,
        Strategy::FixedWindow,
        Strategy::SlidingWindow,
        Strategy::SlidingLog,
    ] {
        let rules = || {
            [
                per_user(Quota::per_hour(50)).strategy(strategy),
                Rule::new("global", Quota::per_hour(80)).strategy(strategy),
            ]
        };
        let both = [layer(&one, rules()), layer(&other, rules())];
        let (alice, more) = tokio::join!(
            passing(&both[0], "alice", 64),
            passing(&both[1], "alice", 64)
        );
        assert_eq!(alice + more, 50, "{strategy:?}");
        let (bob, more) = tokio::join!(passing(&both[0], "bob", 64), passing(&both[1], "bob", 64));
        assert_eq!(
            bob + more,
            30,
            "what was refused for one rule took from none"
        );
    }
}

#[tokio::test]
async fn a_refusal_says_what_all_processes_have_used() {
    let server = Server::start();
    let (one, other) = (patient(&server.url()).await, patient(&server.url()).await);
    let rule = || [per_user(Quota::per_hour(10)).strategy(Strategy::SlidingWindow)];
    let both = [layer(&one, rule()), layer(&other, rule())];
    assert_eq!(passing(&both[0], "alice", 7).await, 7);
    let alice = Key::from("alice");
    for layer in &both {
        let state = layer.handle().peek_store("per_user", &alice).await;
        assert_eq!(state.unwrap().unwrap().remaining, 3);
    }
    assert_eq!(passing(&both[1], "alice", 7).await, 3);
    assert_eq!(both[1].handle().reset_store(None, &alice).await, Ok(1));
    // The other one hears of it within a second, and at once if it has not just been refused.
    assert_eq!(passing(&both[0], "alice", 20).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_ask_the_server_for_one_request_in_many() {
    let server = Server::start();
    for batch in [32, 128] {
        let (one, other) = (patient(&server.url()).await, patient(&server.url()).await);
        until(|| one.state().replicas >= 2).await;
        let quota = Quota::per_hour(20_000);
        let rule = || [per_user(quota).leased(batch)];
        let both = [layer(&one, rule()), layer(&other, rule())];
        let user = if batch == 32 { "alice" } else { "bob" };
        let mut passed = 0;
        for _ in 0..2000 {
            for layer in &both {
                passed += u64::from(passes(layer, user).await.is_ok());
            }
        }
        assert_eq!(passed, 4000);
        let checks = one.state().checks + other.state().checks;
        // One for each batch, some for the first request, and for those that come while the next is on its way.
        let most = 4000 / u64::from(batch) * 2 + 20;
        assert!(
            checks <= most,
            "{checks} of at most {most} for a batch of {batch}"
        );
        println!(
            "batch {batch}: {checks} checks for 4000 requests, {:.4} each",
            checks as f64 / 4000.0
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leased_processes_never_pass_more_than_the_quota_and_their_leases() {
    let server = Server::start();
    let stores = [patient(&server.url()).await, patient(&server.url()).await];
    until(|| stores.iter().all(|store| store.state().replicas >= 2)).await;
    for (user, strict, most) in [("alice", false, 1000 + 2 * 32), ("bob", true, 1000)] {
        let layers = stores.each_ref().map(|store| {
            let mut rule = per_user(Quota::per_hour(1000)).leased(32);
            if strict {
                rule = rule.strict();
            }
            layer(store, [rule])
        });
        let (one, other) = tokio::join!(
            passing(&layers[0], user, 2000),
            passing(&layers[1], user, 2000)
        );
        let passed = one + other;
        assert!((800..=most).contains(&passed), "{passed} of {most}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_done_without_by_policy_and_asked_again_when_it_is_back() {
    let mut server = Server::start();
    let config = RedisConfig::new(&server.url()).unwrap();
    // Patient, so that only a server that is gone is one.
    let config = config.deadline(Duration::from_secs(10));
    let store = connected(config.heartbeat(Duration::from_millis(50))).await;
    let policy = |name: &str, policy| {
        Rule::new(name, Quota::per_hour(100))
            .strategy(Strategy::FixedWindow)
            .key(key::header("x-user-id"))
            .on_store_error(policy)
    };
    let share = layer(&store, [policy("share", OnStoreError::LocalShare)]);
    let allow = layer(&store, [policy("allow", OnStoreError::Allow)]);
    let deny = layer(&store, [policy("deny", OnStoreError::Deny)]);
    for layer in [&share, &allow, &deny] {
        assert_eq!(passing(layer, "alice", 40).await, 40);
    }
    server.kill();
    until(|| !store.state().up).await;
    // Of a share of all there is, what was left.
    assert_eq!(passing(&share, "alice", 200).await, 60);
    assert_eq!(passing(&allow, "alice", 200).await, 200);
    assert_eq!(passes(&deny, "alice").await, Err(Reason::StoreUnavailable));
    server.restart();
    until(|| store.state().up).await;
    // It has forgotten everything, but what passed without it counts here.
    assert_eq!(passing(&share, "alice", 10).await, 0);
    assert_eq!(passing(&share, "bob", 200).await, 100);
    assert_eq!(passing(&deny, "alice", 200).await, 100);
}

/// A model that streams so many tokens, one with each event, and tells its use unless it is cut off.
#[derive(Clone)]
struct Model {
    tokens: u64,
    fails: bool,
    sent: Arc<AtomicU64>,
}

impl Model {
    fn answer(self) -> Response<impl Body<Data = Bytes, Error = BoxError> + Send> {
        let Self {
            tokens,
            fails,
            sent,
        } = self;
        let events = futures_util::stream::unfold(0, move |at| {
            let sent = sent.clone();
            async move {
                yield_now().await;
                let event = if at < tokens {
                    sent.fetch_add(1, SeqCst);
                    r#"data: {"choices":[{"delta":{"content":"x"}}]}"#.to_owned()
                } else if at == tokens && fails {
                    return Some((Err("the connection broke".into()), at + 1));
                } else if at == tokens {
                    format!(
                        r#"data: {{"choices":[],"usage":{{"prompt_tokens":10,"completion_tokens":{tokens}}}}}"#
                    )
                } else {
                    return None;
                };
                Some((Ok(Frame::data(Bytes::from(event + "\n\n"))), at + 1))
            }
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(StreamBody::new(events))
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_streams_that_end_break_off_or_are_left_are_settled_as_they_were_used() {
    let server = Server::start();
    let stores = [patient(&server.url()).await, patient(&server.url()).await];
    for (user, estimate) in [("most", Estimate::Most), ("learned", Estimate::Learned)] {
        let layers = stores.each_ref().map(|store| {
            let tokens = Rule::tokens("tokens", Quota::per_hour(100_000))
                .key(key::header("x-user-id"))
                .estimate(estimate);
            layer(store, [tokens]).classify(Sse)
        });
        let used = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for stream in 0..64_u64 {
            let (layer, used) = (layers[stream as usize % 2].clone(), used.clone());
            tasks.spawn(async move {
                let sent = Arc::new(AtomicU64::new(0));
                let model = Model {
                    tokens: 20 + stream * 3,
                    fails: stream % 4 == 1,
                    sent: sent.clone(),
                };
                let inner = tower::service_fn(move |_: Request<()>| {
                    let answer = model.clone().answer();
                    async { Ok::<_, Infallible>(answer) }
                });
                let mut request = from(user);
                let asked = Tokens::new("m", 10).max_completion(500);
                request.extensions_mut().insert(asked);
                let mut service = layer.layer(inner);
                let answer = service.ready().await.unwrap().call(request).await;
                let mut body = Box::pin(answer.unwrap().into_body());
                let leaves_after = if stream % 4 == 2 { 7 } else { u64::MAX };
                let mut frames = 0;
                while frames < leaves_after
                    && let Some(Ok(_)) = body.frame().await
                {
                    frames += 1;
                }
                drop(body);
                used.fetch_add(10 + sent.load(SeqCst), SeqCst);
            });
        }
        tasks.join_all().await;
        let used = used.load(SeqCst);
        let left = async || {
            let handle = layers[0].handle();
            let state = handle.peek_store("tokens", &user.into()).await;
            state.unwrap().unwrap().remaining
        };
        // What has ended is settled soon after.
        for _ in 0..1000 {
            if left().await == 100_000 - used {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(left().await, 100_000 - used, "{estimate:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_in_flight_are_shared_and_given_back_when_answers_have_ended() {
    let server = Server::start();
    let stores = [patient(&server.url()).await, patient(&server.url()).await];
    let layers = stores
        .each_ref()
        .map(|store| layer(store, [Rule::in_flight("places", 10)]));
    let (inside, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for task in 0..64 {
        let (layer, inside, most) = (layers[task % 2].clone(), inside.clone(), most.clone());
        tasks.spawn(async move {
            let service = tower::service_fn(move |_: Request<()>| {
                let (inside, most) = (inside.clone(), most.clone());
                async move {
                    most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                    for _ in 0..20 {
                        yield_now().await;
                    }
                    inside.fetch_sub(1, SeqCst);
                    Ok::<_, Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
                }
            });
            let mut passed = 0;
            for _ in 0..20 {
                let answer = layer.layer(service.clone()).oneshot(from("alice")).await;
                passed += u64::from(answer.is_ok());
            }
            passed
        });
    }
    let passed: u64 = tasks.join_all().await.into_iter().sum();
    assert!(passed > 10, "{passed}");
    assert!(most.load(SeqCst) <= 10, "{most:?}");
    let free = async || {
        let state = layers[0].handle().peek_store("places", &"".into()).await;
        state.unwrap().unwrap().remaining
    };
    for _ in 0..1000 {
        if free().await == 10 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} of 10 places are free", free().await);
}
