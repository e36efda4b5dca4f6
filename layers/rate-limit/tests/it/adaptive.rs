//! A limit that follows how requests end, through the layer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use palisade_core::{testing::Answers, time::now};
use palisade_rate_limit::{Adaptive, Quota, RateLimitLayer, Rule};
use tokio::time::advance;
use tower::{Layer, ServiceExt};

use crate::{admit, from, per_user};

const INTERVAL: Duration = Duration::from_secs(300);

/// Every so many requests answered by the service with this status.
struct World {
    layer: RateLimitLayer,
    status: Arc<AtomicU16>,
}

impl World {
    fn new(rule: Rule) -> Self {
        Self {
            layer: RateLimitLayer::rules([rule]).unwrap(),
            status: Arc::new(AtomicU16::new(200)),
        }
    }

    async fn request(&self) -> bool {
        let status = self.status.clone();
        let service = self.layer.layer(Answers(move || {
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::from_u16(status.load(SeqCst)).unwrap();
            response
        }));
        service.oneshot(from("alice")).await.is_ok()
    }

    /// So many that pass over an interval, answered like this.
    async fn interval(&self, status: u16, many: u32) {
        self.status.store(status, SeqCst);
        for _ in 0..many {
            advance(INTERVAL / many).await;
            assert!(self.request().await);
        }
    }

    fn limit(&self) -> u64 {
        let state = self
            .layer
            .handle()
            .peek("adaptive", &"alice".into())
            .unwrap();
        assert_eq!(
            self.layer.handle().snapshot().rules[0].quota.limit(),
            state.limit
        );
        assert_eq!(state.holds, state.limit);
        state.limit
    }
}

fn rule(limit: u64) -> Rule {
    Rule::new("adaptive", Quota::per_minute(limit)).adaptive(Adaptive::new())
}

#[tokio::test(start_paused = true)]
async fn a_failing_service_gets_less_and_one_that_recovers_gets_it_back() {
    let world = World::new(rule(100));
    assert_eq!(world.limit(), 100);
    world.interval(500, 50).await;
    assert_eq!(world.limit(), 80);
    let mut limits = Vec::new();
    for status in [503, 429, 502, 200, 200, 200, 200] {
        world.interval(status, 50).await;
        limits.push(world.limit());
    }
    // The average is near its end after fifty requests.
    assert_eq!(limits, [64, 51, 40, 48, 58, 70, 84]);
    // That is also what passes.
    advance(Duration::from_secs(120)).await;
    let passed = (0..200).filter(|_| admit(world.layer.gate(), &from("alice"), now()).is_ok());
    assert_eq!(passed.count(), 84);
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_did_and_what_was_refused_here_moves_nothing() {
    let world = World::new(rule(30));
    world.interval(404, 100).await;
    assert_eq!(world.limit(), 30);
    // Refusals of its own, of which there are many more than requests.
    for _ in 0..5 {
        for _ in 0..100 {
            world.request().await;
        }
        advance(INTERVAL).await;
    }
    let refused = world.layer.handle().snapshot().rules[0].refused;
    assert!(refused >= 300, "{refused}");
    assert_eq!(world.limit(), 30);
}

#[tokio::test(start_paused = true)]
async fn few_samples_are_waited_for() {
    let world = World::new(rule(100));
    world.interval(500, 19).await;
    assert_eq!(world.limit(), 100);
    world.interval(500, 1).await;
    assert_eq!(world.limit(), 80);
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_five_still_moves_both_ways() {
    let adaptive = Adaptive::new().most(6).unwrap();
    let world = World::new(Rule::new("adaptive", Quota::per_second(3)).adaptive(adaptive));
    let mut limits = Vec::new();
    for status in [200, 200, 200, 200, 500, 500, 500, 500, 500, 500, 200] {
        world.interval(status, 50).await;
        limits.push(world.limit());
    }
    assert_eq!(limits, [4, 5, 6, 6, 4, 3, 2, 1, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_where_the_limit_is() {
    let world = World::new(rule(100));
    let policy = async || {
        let service = world
            .layer
            .layer(Answers(|| Response::new(Empty::<Bytes>::new())));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let policy = response.headers()["ratelimit-policy"].to_str();
        policy.unwrap().to_owned()
    };
    assert_eq!(policy().await, r#""adaptive";q=100;w=60"#);
    world.interval(500, 50).await;
    assert_eq!(policy().await, r#""adaptive";q=80;w=60"#);
}

#[tokio::test(start_paused = true)]
async fn all_keys_follow_one_limit_and_each_has_its_own_count() {
    let rule = per_user(Quota::per_minute(10)).adaptive(Adaptive::new());
    let limit = RateLimitLayer::rules([rule]).unwrap();
    let failing = limit.layer(Answers(|| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    }));
    for user in 0..50 {
        advance(INTERVAL / 50).await;
        failing
            .clone()
            .oneshot(from(&user.to_string()))
            .await
            .unwrap();
    }
    for user in ["alice", "bob"] {
        let passed = (0..20).filter(|_| admit(limit.gate(), &from(user), now()).is_ok());
        assert_eq!(passed.count(), 8, "{user}");
    }
}
