//! Every way in which a rule can be set, as callers feel it.

use std::time::Duration;

use demo_backend::{Fault, MockBackend, Reply};
use demo_gateway::Gateway;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{
    CHAT, CHAT_STREAM, PROMPT, asked, backend, eventually, get, left, limited, metric, open, post,
    post_with, posting, standing, start,
};

const ALICE: [(&str, &str); 1] = [("x-user-id", "alice")];

/// One rule with this in it.
fn rule(more: &str) -> String {
    format!("[[rate_limits]]\nname = \"r\"\nidentifier = \"user\"\n{more}\n")
}

async fn gateway(backend: &MockBackend, toml: &str) -> Gateway {
    start(limited(&[backend], toml)).await
}

/// Of so many requests one after the other, those that pass.
async fn passed(gateway: &Gateway, requests: usize, headers: &[(&str, &str)]) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        let reply = post_with(gateway, "/generate", PROMPT, headers).await;
        passed += usize::from(reply.status == StatusCode::OK);
    }
    passed
}

/// What `/status` says of the only rule.
async fn status(gateway: &Gateway) -> Value {
    get(gateway, "/status").await.json()["rate_limit"]["rules"][0].take()
}

#[tokio::test]
async fn each_strategy_admits_its_limit() {
    let backend = backend().await;
    for (strategy, admits) in [
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"token_bucket\"",
            3,
        ),
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"token_bucket\"\nburst = 5",
            5,
        ),
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"sliding_window\"",
            3,
        ),
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"sliding_log\"",
            3,
        ),
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"fixed_window\"",
            3,
        ),
        (
            "max_requests = 3\nwindow = \"1h\"\nstrategy = \"adaptive\"",
            3,
        ),
        // One after the other there is never more than one.
        ("max_requests = 3\nstrategy = \"in_flight\"", 8),
    ] {
        let gateway = gateway(&backend, &rule(strategy)).await;
        assert_eq!(passed(&gateway, 8, &ALICE).await, admits, "{strategy}");
        let told = standing(&gateway, "user:alice", "r").await;
        assert!(
            strategy.contains(told["strategy"].as_str().unwrap()),
            "{told}"
        );
        assert_eq!(
            (&told["unit"], &told["source"]),
            (&json!("requests"), &json!("local"))
        );
        assert_eq!(
            told["window_seconds"].is_null(),
            strategy.contains("in_flight")
        );
    }
}

#[tokio::test]
async fn a_stream_is_in_flight_to_its_last_event() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let toml = rule("max_requests = 1\nstrategy = \"in_flight\"");
    let gateway = gateway(&backend, &toml).await;
    let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    // Only who is known is counted.
    assert_eq!(left(&gateway, "user:alice", "r").await, 1.0);
    drop(response);

    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let mut request = posting(&gateway, "/v1/chat/completions", CHAT_STREAM);
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let mut body = open(request).await.into_body();
    body.frame().await.unwrap().unwrap();
    let refused = post_with(&gateway, "/v1/chat/completions", CHAT, &ALICE).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let policy = refused.header("ratelimit-policy");
    assert_eq!(policy, "\"r\";q=1;qu=\"concurrent-requests\"");
    // A number of requests at a time is not what OpenAI's clients mean by theirs.
    assert!(!refused.headers.contains_key("x-ratelimit-limit-requests"));
    drop(body);
    eventually("the place is free again", async || {
        left(&gateway, "user:alice", "r").await == 1.0
    })
    .await;
    assert_eq!(passed(&gateway, 3, &ALICE).await, 3);
}

#[tokio::test]
async fn a_rule_in_shadow_only_counts_what_it_would_refuse() {
    let backend = backend().await;
    let toml = "[[rate_limits]]\nname = \"tried-out\"\nidentifier = \"user\"\nmax_requests = 2\n\
        window = \"1h\"\nmode = \"shadow\"\n";
    let gateway = gateway(&backend, toml).await;
    assert_eq!(passed(&gateway, 5, &ALICE).await, 5);
    let told = status(&gateway).await;
    assert_eq!(
        (&told["mode"], &told["shadowed"]),
        (&json!("shadow"), &json!(3))
    );
    let line = "palisade_rate_limit_shadowed_total{layer=\"gateway\",rule=\"tried-out\"}";
    assert_eq!(metric(&gateway, line).await, 3.0);
}

#[tokio::test]
async fn a_rule_that_warms_up_begins_with_a_third() {
    let backend = backend().await;
    let toml = rule("max_requests = 9\nwindow = \"1h\"\nwarm_up = \"24h\"");
    let gateway = gateway(&backend, &toml).await;
    assert_eq!(passed(&gateway, 9, &ALICE).await, 3);
}

#[tokio::test]
async fn a_backend_that_is_overloaded_drains_the_rule() {
    let backend = backend().await;
    let toml = rule("max_requests = 100\nwindow = \"1h\"\ndrain_on_overload = true");
    let gateway = gateway(&backend, &toml).await;
    assert_eq!(passed(&gateway, 1, &ALICE).await, 1);
    // Longer than the gateway itself would wait for.
    backend.script([Reply::status(429).header("retry-after", "60")]);
    let refused = post_with(&gateway, "/generate", PROMPT, &ALICE).await;
    assert_eq!(
        (refused.status, asked(&backend).len()),
        (StatusCode::TOO_MANY_REQUESTS, 2)
    );
    // From here on it is the gateway that refuses, for this caller.
    let refused = post_with(&gateway, "/generate", PROMPT, &ALICE).await;
    assert_eq!(
        (refused.status, asked(&backend).len()),
        (StatusCode::TOO_MANY_REQUESTS, 2)
    );
    assert_eq!(refused.json()["rule"], "r");
    assert_eq!(passed(&gateway, 1, &[("x-user-id", "bob")]).await, 1);
}

#[tokio::test]
async fn who_is_over_its_rate_waits_for_it_if_that_is_set() {
    let backend = backend().await;
    for (toml, refused) in [
        (rule("max_requests = 1\nwindow = \"1h\""), 4),
        (
            "wait_up_to = \"30s\"\nwaiting = 3\n".to_owned()
                + &rule("max_requests = 1\nwindow = \"1h\""),
            4,
        ),
        (
            "wait_up_to = \"30s\"\nwaiting = 10\n".to_owned()
                + &rule(
                    "max_requests = 10\nwindow = \"1s\"\nburst = 1\nstrategy = \"token_bucket\"",
                ),
            0,
        ),
    ] {
        let gateway = gateway(&backend, &toml).await;
        // All at once, of which one passes at once.
        let client = crate::support::client();
        let sent: Vec<_> = (0..5)
            .map(|_| {
                let mut request = posting(&gateway, "/generate", PROMPT);
                request
                    .headers_mut()
                    .insert("x-user-id", "alice".parse().unwrap());
                tokio::spawn(client.request(request))
            })
            .collect();
        let mut passed = 0;
        for sent in sent {
            passed += usize::from(sent.await.unwrap().unwrap().status() == StatusCode::OK);
        }
        assert_eq!(5 - passed, refused, "{toml}");
        let told = get(&gateway, "/status").await.json();
        assert_eq!(told["rate_limit"]["waiting"], 0);
    }
}

#[tokio::test]
async fn the_limit_of_an_adaptive_rule_follows_how_requests_end() {
    let backend = backend().await;
    let toml = rule("max_requests = 1000\nwindow = \"1h\"\nstrategy = \"adaptive\"")
        + "[rate_limits.adaptive]\ninterval = \"1ms\"\nsamples = 3\nmost = 1200\nleast = 900\n";
    let mut config = limited(&[&backend], &toml);
    // What is not asked any more says nothing about how much can be done.
    config.circuit_breaker.failures = 1_000_000;
    config.retry.attempts = 1;
    let gateway = start(config).await;
    assert_eq!(status(&gateway).await["limit"], 1000);
    eventually("it has gone up to the most", async || {
        passed(&gateway, 1, &ALICE).await;
        status(&gateway).await["limit"] == 1200
    })
    .await;
    backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    eventually("it has gone down to the least", async || {
        passed(&gateway, 1, &ALICE).await;
        status(&gateway).await["limit"] == 900
    })
    .await;
}

#[tokio::test]
async fn tiers_and_exceptions_of_the_file_hold() {
    let backend = backend().await;
    let toml = "[[identity.keys]]\nkey = \"sk-gold\"\ntier = \"gold\"\n\
        [[identity.keys]]\nkey = \"sk-plain\"\n"
        .to_owned()
        + &rule("max_requests = 1\nwindow = \"1h\"")
        + "[[rate_limits.tiers]]\nname = \"gold\"\nmax_requests = 3\n\
        [[rate_limits.exceptions]]\nidentifier = \"user:alice\"\nmax_requests = 2\n";
    let gateway = gateway(&backend, &toml).await;
    for (header, admits) in [
        (("x-api-key", "sk-gold"), 3),
        (("x-api-key", "sk-plain"), 1),
        (("x-user-id", "alice"), 2),
        (("x-user-id", "bob"), 1),
    ] {
        assert_eq!(passed(&gateway, 5, &[header]).await, admits, "{header:?}");
    }
    let id = gateway.public_id("sk-gold");
    let gold = standing(&gateway, &format!("api_key:{id}"), "r").await;
    assert_eq!((&gold["limit"], &gold["remaining"]), (&json!(3), &json!(0)));
}

#[tokio::test]
async fn a_model_has_a_limit_of_its_own() {
    let backend = backend().await;
    let toml = "[[rate_limits]]\nname = \"per-model\"\nidentifier = \"model\"\nmax_requests = 1\n\
        window = \"1h\"\n[[rate_limits.exceptions]]\nidentifier = \"model:small\"\nmax_requests = 2\n";
    let gateway = gateway(&backend, toml).await;
    let body = |model: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#)
    };
    let mut statuses = Vec::new();
    for model in ["large", "large", "small", "small", "small"] {
        let reply = post(&gateway, "/v1/chat/completions", &body(model)).await;
        statuses.push(reply.status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 200, 200, 429]);
    assert_eq!(left(&gateway, "model:large", "per-model").await, 0.0);
    // `/generate` has a model by default.
    assert_eq!(passed(&gateway, 2, &[]).await, 1);
    assert_eq!(
        left(&gateway, "model:gpt-3.5-turbo", "per-model").await,
        0.0
    );
    // Which models there are is no question to one of them.
    for _ in 0..3 {
        assert_eq!(get(&gateway, "/v1/models").await.status, StatusCode::OK);
    }
    let hits = "llm_rate_limit_hits_total{identifier_type=\"model\"}";
    assert!(metric(&gateway, hits).await >= 3.0);
}

#[tokio::test]
async fn many_invented_callers_share_what_is_left_when_there_is_no_room_for_them() {
    let backend = backend().await;
    let toml = rule("max_requests = 2\nwindow = \"1h\"\ncapacity = 4");
    let gateway = gateway(&backend, &toml).await;
    let mut all = 0;
    for name in 0..40 {
        let name = format!("user-{name}");
        all += passed(&gateway, 1, &[("x-user-id", &name)]).await;
    }
    // Four by themselves, and all others together like one.
    assert_eq!(all, 4 + 2);
    assert_eq!(status(&gateway).await["keys"], 4);
}

#[tokio::test]
async fn neither_an_invented_key_nor_a_forged_address_gains_anything_over_the_address() {
    let backend = backend().await;
    let toml = "[[rate_limits]]\nname = \"per_user\"\nidentifier = \"user\"\nmax_requests = 100\n\
        window = \"1h\"\n[[rate_limits]]\nname = \"per_ip\"\nidentifier = \"ip\"\nmax_requests = 5\n\
        window = \"1h\"\n";
    // Whether or not proxies are trusted: the test is no proxy, or is the last of two.
    for (trust, address) in [
        ("", "127.0.0.1"),
        (
            "[identity]\ntrusted_proxies = [\"10.0.0.0/8\"]\n",
            "127.0.0.1",
        ),
        ("[identity]\ntrusted_hops = 1\n", "198.51.100.9"),
        (
            "[identity]\ntrusted_hops = 1\nforwarded = \"forwarded\"\n",
            "198.51.100.8",
        ),
        (
            "[identity]\ntrusted_proxies = [\"127.0.0.1\", \"198.51.100.0/24\"]\n",
            "203.0.113.1",
        ),
    ] {
        let gateway = gateway(&backend, &format!("{trust}{toml}")).await;
        let mut statuses = Vec::new();
        for number in 0..8_u8 {
            // What the caller makes up comes first, what a proxy would add comes last.
            let list = format!("6.6.6.{number}, 203.0.113.1, 198.51.100.9");
            let elements = format!("for=6.6.6.{number}, for=198.51.100.8");
            let key = format!("sk-{number}");
            let headers = [
                ("x-forwarded-for", &*list),
                ("forwarded", &*elements),
                ("x-api-key", &*key),
                ("x-real-ip", "6.6.6.6"),
            ];
            let reply = post_with(&gateway, "/generate", PROMPT, &headers).await;
            statuses.push(reply.status.as_u16());
        }
        assert_eq!(
            statuses,
            [200, 200, 200, 200, 200, 429, 429, 429],
            "{trust}"
        );
        assert_eq!(
            left(&gateway, &format!("ip:{address}"), "per_ip").await,
            0.0,
            "{trust}"
        );
    }
}

#[tokio::test]
async fn a_refusal_names_the_rule_its_numbers_and_when_it_ends() {
    let backend = backend().await;
    let gateway = gateway(&backend, &rule("max_requests = 1\nwindow = \"1h\"")).await;
    assert_eq!(passed(&gateway, 1, &ALICE).await, 1);
    for (path, body, pointer) in [
        ("/generate", PROMPT, ""),
        ("/v1/chat/completions", CHAT, "/error"),
    ] {
        let refused = post_with(&gateway, path, body, &ALICE).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let told = refused.json();
        let told = told.pointer(pointer).unwrap();
        for (member, value) in [
            ("rule", json!("r")),
            ("unit", json!("requests")),
            ("limit", json!(1)),
            ("remaining", json!(0)),
            ("cost", json!(1)),
        ] {
            assert_eq!(told[member], value, "{told}");
        }
        let until = told["until"].as_str().unwrap();
        assert!(until.len() == 24 && until.ends_with('Z'), "{until}");
        // Within the hour.
        let now = get(&gateway, "/status").await.json()["timestamp"].take();
        assert!(until > now.as_str().unwrap(), "{until} {now}");
        let millis: u64 = refused.header("retry-after-ms").parse().unwrap();
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert_eq!(millis.div_ceil(1000), seconds);
    }
}

#[tokio::test]
async fn a_mistake_is_not_charged_and_says_how_the_caller_stands() {
    let backend = backend().await;
    let gateway = gateway(&backend, &rule("max_requests = 5\nwindow = \"1h\"")).await;
    assert_eq!(passed(&gateway, 1, &ALICE).await, 1);
    for (path, body) in [
        ("/generate", "{}"),
        ("/generate/batch", "{}"),
        ("/v1/chat/completions", "not JSON"),
    ] {
        let reply = post_with(&gateway, path, body, &ALICE).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert!(
            reply.header("ratelimit").starts_with("\"r\";r=4;"),
            "{reply:?}"
        );
        assert_eq!(reply.header("ratelimit-policy"), "\"r\";q=5;w=3600");
        let openai = reply.header("x-ratelimit-remaining-requests");
        assert_eq!(openai, if path.starts_with("/v1") { "4" } else { "" });
    }
    assert_eq!(left(&gateway, "user:alice", "r").await, 4.0);
}

#[tokio::test]
async fn who_is_not_known_hears_how_the_address_stands() {
    let backend = backend().await;
    let toml =
        "[[identity.keys]]\nkey = \"sk\"\n[[rate_limits]]\nname = \"per_ip\"\nidentifier = \"ip\"\n\
        max_requests = 5\nwindow = \"1h\"\n"
            .to_owned() + &rule("max_requests = 5\nwindow = \"1h\"");
    let gateway = gateway(&backend, &toml).await;
    let headers = [("x-api-key", "sk-unknown")];
    let reply = post_with(&gateway, "/v1/chat/completions", CHAT, &headers).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert!(
        reply.header("ratelimit").starts_with("\"per_ip\";r=5;"),
        "{reply:?}"
    );
    assert!(!reply.header("ratelimit").contains("\"r\""), "{reply:?}");
}

#[tokio::test]
async fn the_gateways_own_503_says_when_to_come_back_in_both_ways() {
    let backend = backend().await;
    let gateway = gateway(&backend, "").await;
    backend.chaos([Fault::error(StatusCode::SERVICE_UNAVAILABLE)]);
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let millis: u64 = reply.header("retry-after-ms").parse().unwrap();
    let seconds: u64 = reply.header("retry-after").parse().unwrap();
    assert_eq!(Duration::from_millis(millis).as_secs().max(1), seconds);
}
