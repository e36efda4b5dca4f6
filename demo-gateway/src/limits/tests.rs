use std::net::SocketAddr;

use http::Request;
use palisade::{
    gate::{Admit, Gate},
    rate_limit::{Reservation, Tokens},
    time,
};

use super::*;
use crate::{
    config::{ApiKey, Exception, Rule, TierQuota},
    exchange::Operation,
};

/// The default with other rules.
fn with(rate_limits: Vec<Rule>) -> Config {
    Config {
        rate_limits,
        ..Config::default()
    }
}

/// Limits and somebody who is under them.
struct World {
    limits: Limits,
    identities: Identities,
}

impl World {
    fn new(config: &Config) -> Self {
        assert_eq!(config.check(), []);
        let identities = Identities::new(config);
        Self {
            limits: Limits::new(config, &identities, None).unwrap(),
            identities,
        }
    }

    /// With one rule, and keys of two tiers.
    fn of(rule: Rule) -> Self {
        let mut config = with(vec![rule]);
        config.identity.keys = vec![
            ApiKey::new("sk-basic", "basic"),
            ApiKey::new("sk-premium", "premium"),
        ];
        Self::new(&config)
    }

    fn request(&self, header: (&str, &str), tokens: Option<Tokens>) -> Request<()> {
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut request = Request::builder()
            .header(header.0, header.1)
            .body(())
            .unwrap();
        let caller = self.identities.find(peer, request.headers()).unwrap();
        let exchange = Arc::new(Exchange::new(
            Arc::new(caller),
            Operation::Chat,
            time::now(),
        ));
        request.extensions_mut().insert(exchange);
        if let Some(tokens) = tokens {
            request.extensions_mut().insert(tokens);
        }
        request
    }

    fn admit(&self, request: &Request<()>) -> Result<Reservation, Rejected> {
        match self.limits.gate().admit(&request.into(), time::now()) {
            Admit::Now(decided) => decided,
            Admit::Later(_) => panic!("nothing to wait for"),
        }
    }

    async fn remaining(&self, identifier: &str, rule: &str) -> f64 {
        let identifier = Identifier::parse(identifier).unwrap();
        let states = self.limits.states(&self.identities, &identifier).await;
        let (_, state) = states.iter().find(|(name, _)| *name == rule).unwrap();
        serde_json::to_value(state).unwrap()["remaining"]
            .as_f64()
            .unwrap()
    }
}

const ALICE: (&str, &str) = ("x-user-id", "alice");
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_peek_refuses_only_who_has_nothing_left_and_charges_nothing() {
    let mut config = Config::default();
    config.rate_limits[1].max_requests = 2.into();
    let world = World::new(&config);
    let alice = world.request(ALICE, None);
    for _ in 0..2 {
        assert!(world.limits.peek(&(&alice).into()).is_none());
        assert!(world.limits.peek(&(&alice).into()).is_none());
        assert!(world.admit(&alice).is_ok());
    }
    let refused = world.limits.peek(&(&alice).into()).unwrap();
    assert_eq!(refused.reason().name(), "rate_limited");
    assert!(refused.headers().unwrap().contains_key("ratelimit"));
    // Only what was let through counts, also for the address.
    assert_eq!(world.remaining("ip:192.0.2.1", "per_ip").await, 198.0);
    let caller = &super::caller(&(&alice).into()).unwrap().clone();
    assert_eq!(world.limits.kind("per_user", caller), "user");
}

#[tokio::test(start_paused = true)]
async fn who_may_still_wait_is_not_refused_by_a_peek() {
    let mut config = Config::default();
    config.rate_limits[1].max_requests = 1.into();
    for (wait_up_to, refused) in [(0, true), (30, true), (61, false)] {
        config.wait_up_to = Duration::from_secs(wait_up_to);
        config.rate_limits[1].strategy = LimitStrategy::TokenBucket;
        let world = World::new(&config);
        let alice = world.request(ALICE, None);
        assert!(world.admit(&alice).is_ok());
        let peeked = world.limits.peek(&(&alice).into());
        assert_eq!(peeked.is_some(), refused, "{wait_up_to}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_gives_all_back_to_one_identifier() {
    let world = World::new(&Config::default());
    assert!(world.admit(&world.request(ALICE, None)).is_ok());
    let user = Identifier::parse("user:alice").unwrap();
    let reset = async |rule, identifier| {
        let reset = world.limits.reset(rule, &world.identities, identifier);
        reset.await.map(|reset| reset.rules)
    };
    assert_eq!(world.remaining("user:alice", "per_user").await, 99.0);
    assert_eq!(reset(Some("nonsense"), &user).await, None);
    assert_eq!(reset(Some("per_user"), &user).await, Some(1));
    assert_eq!(world.remaining("user:alice", "per_user").await, 100.0);
    assert_eq!(world.remaining("user:alice", "global").await, 999.0);
    assert_eq!(reset(None, &Identifier::Global).await, Some(1));
    assert_eq!(world.remaining("user:alice", "global").await, 1000.0);
    let address = Identifier::parse("ip:192.0.2.1").unwrap();
    assert_eq!(reset(None, &address).await, Some(1));
    assert_eq!(reset(None, &address).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn tiers_and_exceptions_have_numbers_of_their_own() {
    let tier = |name: &str, max_requests: u64| TierQuota {
        name: name.into(),
        max_requests: max_requests.into(),
        burst: None,
    };
    let mut rule = Rule::new("r", Counts::User, 1, MINUTE);
    rule.exceptions = vec![Exception {
        identifier: "user:alice".into(),
        max_requests: 2.into(),
        burst: None,
    }];
    let passed = |world: &World, header| {
        let request = world.request(header, None);
        (0..10).filter(|_| world.admit(&request).is_ok()).count()
    };
    let (basic, premium) = (("x-api-key", "sk-basic"), ("x-api-key", "sk-premium"));
    let bob = ("x-user-id", "bob");
    let world = World::of(rule.clone());
    assert_eq!(
        [ALICE, bob, basic].map(|who| passed(&world, who)),
        [2, 1, 1]
    );
    // Premium callers have rules of their own.
    assert_eq!(passed(&world, premium), 10);
    rule.tiers = vec![tier("premium", 3)];
    let world = World::of(rule);
    assert_eq!([basic, premium].map(|who| passed(&world, who)), [1, 3]);
    let id = format!("api_key:{}", world.identities.public_id("sk-premium"));
    assert_eq!(world.remaining(&id, "r").await, 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_counted_for_all_the_users_that_it_speaks_for() {
    let mut config = with(vec![
        Rule::new("per_user", Counts::User, 2, MINUTE),
        Rule::new("per_key", Counts::Key, 3, MINUTE),
    ]);
    config.identity.user_header = config::UserHeader::WithKey;
    config.identity.keys = vec![ApiKey::new("sk", "basic")];
    let world = World::new(&config);
    let request = |user: &str| {
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let request = Request::builder()
            .header("x-api-key", "sk")
            .header("x-user-id", user);
        let mut request = request.body(()).unwrap();
        let caller = world.identities.find(peer, request.headers()).unwrap();
        let exchange = Arc::new(Exchange::new(
            Arc::new(caller),
            Operation::Chat,
            time::now(),
        ));
        request.extensions_mut().insert(exchange);
        request
    };
    let refusals: Vec<_> = ["alice", "alice", "alice", "bob", "bob"]
        .map(|user| world.admit(&request(user)).err())
        .into_iter()
        .map(|refused| refused.map(|refused| refused.policy().unwrap().to_owned()))
        .collect();
    let (user, key) = (Some("per_user".to_owned()), Some("per_key".to_owned()));
    assert_eq!(refusals, [None, None, user, None, key]);
}

#[tokio::test(start_paused = true)]
async fn a_model_has_a_limit_where_it_is_known() {
    let world = World::of(Rule::new("per_model", Counts::Model, 1, MINUTE));
    let asking = |model: &str| world.request(ALICE, Some(Tokens::new(model, 1)));
    assert!(world.admit(&asking("large")).is_ok());
    assert!(world.admit(&asking("large")).is_err());
    assert!(world.admit(&asking("small")).is_ok());
    assert!(world.admit(&world.request(ALICE, None)).is_ok());
    assert_eq!(world.remaining("model:large", "per_model").await, 0.0);
    assert_eq!(world.remaining("model:other", "per_model").await, 1.0);
}

#[test]
fn the_first_rule_of_its_unit_is_what_openai_clients_see() {
    let mut config = Config::default();
    config.rate_limits.push(Rule {
        unit: Unit::Tokens,
        ..Rule::new("tokens", Counts::User, 9000, MINUTE)
    });
    config.rate_limits.push(Rule {
        strategy: LimitStrategy::InFlight,
        window: None,
        ..Rule::new("at_once", Counts::User, 9, MINUTE)
    });
    let limits = World::new(&config).limits;
    let headers = |standing: &'static str, policy: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit", http::HeaderValue::from_static(standing));
        headers.insert("ratelimit-policy", http::HeaderValue::from_static(policy));
        headers
    };
    let said = headers(
        "\"at_once\";r=3, \"tokens\";r=70;t=20, \"per_user\";r=7;t=12, \"global\";r=900;t=3",
        "\"global\";q=1000;w=60, \"per_user\";q=250;w=60, \"tokens\";q=9000;w=60;palisade-unit=\"tokens\", \"at_once\";q=9",
    );
    let first = |unit| limits.first(&said, unit);
    let told = |first: First| (first.limit, first.remaining, first.reset);
    assert_eq!(first(Unit::Requests).map(told), Some((250, 7, 12)));
    assert_eq!(first(Unit::Tokens).map(told), Some((9000, 70, 20)));
    assert_eq!(first(Unit::Money), None);
    assert_eq!(limits.first(&headers("nonsense", ""), Unit::Requests), None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_explained_in_the_numbers_of_the_configuration() {
    let mut config = with(vec![Rule {
        unit: Unit::Money,
        ..Rule::new("budget", Counts::User, 0.5, MINUTE)
    }]);
    let price = config::Price {
        prompt: 1.0,
        completion: 2.0,
    };
    config.prices.insert("m".into(), price);
    let world = World::new(&config);
    let asking = |most| world.request(ALICE, Some(Tokens::new("m", 0).max_completion(most)));
    let _held = world.admit(&asking(200_000)).unwrap();
    let explained = |refused: Rejected| {
        let refusal = world.limits.explain(&refused).unwrap();
        serde_json::to_value(refusal).unwrap()
    };
    let refused = explained(world.admit(&asking(100_000)).unwrap_err());
    assert_eq!(refused["rule"], "budget");
    assert_eq!(refused["unit"], "money");
    assert_eq!(
        (&refused["limit"], &refused["remaining"]),
        (&0.5.into(), &0.1.into())
    );
    assert_eq!(refused["cost"], 0.2);
    assert!(refused["until"].as_str().unwrap().ends_with('Z'));
    let refused = explained(world.admit(&asking(300_000)).unwrap_err());
    assert_eq!(
        (&refused["limit"], &refused["cost"]),
        (&0.5.into(), &0.6.into())
    );
    assert!(refused.get("until").is_none() && refused.get("remaining").is_none());
}
