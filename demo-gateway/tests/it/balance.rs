//! How backends are chosen: by each strategy, and by what requests belong to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use demo_backend::{Fault, MockBackend, Reply};
use demo_gateway::{
    Config, Gateway,
    config::{Affinity, Strategy},
};
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::{
    PROMPT, admin, asked, backend, client, config, eventually, get, metric, open, post, post_with,
    posting, start,
};

async fn choose(gateway: &Gateway, strategy: Strategy) {
    let body = json!({"strategy": strategy.name()}).to_string();
    let reply = admin(gateway, Method::POST, "/admin/strategy", &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let health = get(gateway, "/health").await.json();
    assert_eq!(health["load_balancer"]["strategy"], strategy.name());
}

async fn three() -> [MockBackend; 3] {
    [backend().await, backend().await, backend().await]
}

/// Where a request goes.
async fn goes(gateway: &Gateway, path: &str, body: &str, headers: &[(&str, &str)]) -> String {
    let reply = post_with(gateway, path, body, headers).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    reply.header("x-backend-id").to_owned()
}

#[tokio::test]
async fn each_strategy_is_chosen_by_its_name_and_uses_all_backends_with_its_state_kept() {
    // Long enough for what is in flight to matter.
    let slow = || {
        let builder = MockBackend::builder().first_token(Duration::from_millis(20));
        async { builder.start().await.unwrap() }
    };
    let backends = [slow().await, slow().await, slow().await];
    let gateway = &start(config(&backends.each_ref())).await;
    let mut sent = 0;
    for strategy in Strategy::ALL {
        choose(gateway, strategy).await;
        let status = get(gateway, "/status").await.json();
        assert_eq!(status["backend_status"]["strategy"], strategy.name());
        // All at once, each of another session.
        let requests = (0..60).map(|session| async move {
            let session = session.to_string();
            goes(gateway, "/generate", PROMPT, &[("x-session-id", &session)]).await
        });
        let seen: BTreeSet<_> = join_all(requests).await.into_iter().collect();
        sent += 60;
        assert_eq!(seen.len(), 3, "{strategy} sends only to {seen:?}");
        // What was counted before is counted still.
        let health = get(gateway, "/health").await.json();
        let reports = health["load_balancer"]["backends"].as_array().unwrap();
        let requests = reports
            .iter()
            .map(|it| it["total_requests"].as_u64().unwrap());
        assert_eq!(requests.sum::<u64>(), sent, "{strategy}");
    }
    let reply = admin(
        gateway,
        Method::POST,
        "/admin/strategy",
        r#"{"strategy":"fastest"}"#,
    )
    .await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    for strategy in Strategy::ALL {
        assert!(reply.text().contains(strategy.name()), "{}", reply.text());
    }
}

#[tokio::test]
async fn requests_of_a_session_go_to_one_backend_and_sessions_to_all() {
    let backends = three().await;
    let gateway = start(Config {
        strategy: Strategy::ConsistentHash,
        ..config(&backends.each_ref())
    })
    .await;
    let mut homes = BTreeMap::<String, BTreeSet<String>>::new();
    for round in 0..4 {
        for session in 0..30 {
            let session = format!("session-{session}");
            // What is asked does not matter, nor in which words.
            let (path, body) = match round {
                0 => ("/generate", PROMPT.to_owned()),
                _ => (
                    "/v1/chat/completions",
                    json!({
                        "model": "m",
                        "messages": [{"role": "user", "content": format!("{round} {session}")}],
                    })
                    .to_string(),
                ),
            };
            let id = goes(&gateway, path, &body, &[("x-session-id", &session)]).await;
            homes.entry(session).or_default().insert(id);
        }
    }
    assert!(homes.values().all(|home| home.len() == 1), "{homes:?}");
    let used: BTreeSet<_> = homes.values().flatten().collect();
    assert_eq!(used.len(), 3, "{homes:?}");

    // When one goes, its sessions go elsewhere, and no others.
    let gone = admin(&gateway, Method::DELETE, "/admin/remove-backend/b", "").await;
    assert_eq!(gone.status, StatusCode::OK);
    for (session, home) in &homes {
        let id = goes(&gateway, "/generate", PROMPT, &[("x-session-id", session)]).await;
        assert_ne!(id, "b");
        assert!(home.contains("b") || home.contains(&id), "{session}: {id}");
    }
}

#[tokio::test]
async fn without_a_session_the_key_of_the_cache_decides_and_then_how_the_prompt_begins() {
    let backends = three().await;
    let gateway = start(Config {
        strategy: Strategy::ConsistentHash,
        ..config(&backends.each_ref())
    })
    .await;
    let chat = |key: Option<usize>, messages: &[&str]| {
        let messages: Vec<_> = messages
            .iter()
            .map(|text| json!({"role": "user", "content": text}))
            .collect();
        let mut body = json!({"model": "m", "messages": messages});
        if let Some(key) = key {
            body["prompt_cache_key"] = format!("key-{key}").into();
        }
        body.to_string()
    };
    let path = "/v1/chat/completions";
    let mut used = BTreeSet::new();
    for number in 0..30 {
        // Longer than what is looked at, so that what comes after it makes no difference.
        let first = format!("conversation {number}: {}", "all about it ".repeat(400));
        let one = goes(&gateway, path, &chat(None, &[&first]), &[]).await;
        for turn in 0..3 {
            let next = chat(None, &[&first, "an answer", &format!("turn {turn}")]);
            assert_eq!(goes(&gateway, path, &next, &[]).await, one);
        }
        used.insert(one);
        let keyed = goes(&gateway, path, &chat(Some(number), &["a"]), &[]).await;
        for text in ["b", "c"] {
            let again = goes(&gateway, path, &chat(Some(number), &[text]), &[]).await;
            assert_eq!(again, keyed);
        }
    }
    assert_eq!(used.len(), 3, "{used:?}");
}

#[tokio::test]
async fn a_user_or_nothing_can_decide_instead() {
    let backends = three().await;
    for affinity in [Affinity::User, Affinity::Off] {
        let gateway = start(Config {
            strategy: Strategy::ConsistentHash,
            affinity,
            ..config(&backends.each_ref())
        })
        .await;
        let asks = async |number: usize| {
            // A session that is not asked for.
            let session = number.to_string();
            let headers = [("x-user-id", "alice"), ("x-session-id", &*session)];
            goes(&gateway, "/generate", PROMPT, &headers).await
        };
        let mut used = BTreeSet::new();
        if affinity == Affinity::User {
            for number in 0..30 {
                used.insert(asks(number).await);
            }
        } else {
            // At once, as one after the other may go to the one that was fastest.
            used.extend(join_all((0..30).map(asks)).await);
        }
        let expected = match affinity {
            Affinity::User => 1,
            _ => 3,
        };
        assert_eq!(used.len(), expected, "{affinity:?} {used:?}");
    }
}

#[tokio::test]
async fn the_header_of_a_session_can_be_another() {
    let backends = three().await;
    let gateway = start(Config {
        strategy: Strategy::ConsistentHash,
        session_header: "X-Conversation".into(),
        ..config(&backends.each_ref())
    })
    .await;
    let mut used = BTreeSet::new();
    for number in 0..30 {
        let body = json!({"prompt": number.to_string()}).to_string();
        let headers = [("x-conversation", "7")];
        used.insert(goes(&gateway, "/generate", &body, &headers).await);
    }
    assert_eq!(used.len(), 1, "{used:?}");
}

#[tokio::test]
async fn each_request_of_a_batch_belongs_where_its_prompt_does() {
    let backends = three().await;
    let gateway = start(Config {
        strategy: Strategy::ConsistentHash,
        affinity: Affinity::Prompt,
        ..config(&backends.each_ref())
    })
    .await;
    let prompts: Vec<_> = (0..12)
        .map(|number| json!({"prompt": format!("question {number}")}))
        .collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(goes(&gateway, "/generate", &prompt.to_string(), &[]).await);
    }
    // One after the other, as many at once may fill the backend where they belong.
    for (prompt, home) in prompts.iter().zip(&alone) {
        let batch = json!({"requests": [prompt]}).to_string();
        let reply = post(&gateway, "/generate/batch", &batch).await;
        assert_eq!(reply.json()["results"][0]["ok"]["backend_id"], **home);
    }
}

#[tokio::test]
async fn what_a_backend_says_of_its_load_stays_inside() {
    let backends = three().await;
    let gateway = start(config(&backends.each_ref())).await;
    for body in [PROMPT, crate::support::CHAT_STREAM] {
        let path = match body {
            PROMPT => "/generate",
            _ => "/v1/chat/completions",
        };
        let answer = open(posting(&gateway, path, body)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        for name in ["endpoint-load-metrics", "endpoint-load-metrics-bin"] {
            assert!(answer.headers().get(name).is_none(), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn backends_are_probed_while_the_strategy_asks_for_it() {
    let backends = three().await;
    let gateway = start(config(&backends.each_ref())).await;
    let probed = |backend: &MockBackend| {
        let seen = backend.seen();
        seen.iter().filter(|seen| seen.path == "/load").count()
    };
    for _ in 0..20 {
        goes(&gateway, "/generate", PROMPT, &[]).await;
    }
    assert!(backends.iter().all(|backend| probed(backend) == 0));
    choose(&gateway, Strategy::Prequal).await;
    eventually("all are probed", async || {
        goes(&gateway, "/generate", PROMPT, &[]).await;
        backends.iter().all(|backend| probed(backend) > 0)
    })
    .await;
    // Probes are no requests.
    let answered: usize = backends
        .iter()
        .map(|backend| {
            let seen = asked(backend);
            seen.iter().filter(|seen| seen.path == "/generate").count()
        })
        .sum();
    let health = get(&gateway, "/health").await.json();
    let reports = health["load_balancer"]["backends"].as_array().unwrap();
    let counted = reports
        .iter()
        .map(|it| it["total_requests"].as_u64().unwrap());
    assert_eq!(counted.sum::<u64>(), answered as u64);
}

#[tokio::test]
async fn adaptive_asks_how_busy_backends_are() {
    let backends = three().await;
    let gateway = start(Config {
        strategy: Strategy::Adaptive,
        ..config(&backends.each_ref())
    })
    .await;
    eventually("all have said", async || {
        let health = get(&gateway, "/health").await.json();
        let reports = health["load_balancer"]["backends"].as_array().unwrap();
        let said = |report: &Value| report["reported_load"]["in_flight"] == 0;
        reports.iter().all(said)
    })
    .await;
}

#[tokio::test]
async fn adaptive_asks_nobody_how_busy_it_is_when_it_is_told_not_to() {
    let backend = backend().await;
    let settings = demo_gateway::config::parse("probe_interval = \"0s\"").unwrap();
    let _gateway = start(Config {
        strategy: Strategy::Adaptive,
        probe_interval: settings.probe_interval,
        health_interval: Duration::from_millis(20),
        ..config(&[&backend])
    })
    .await;
    eventually("its health was asked for", async || {
        let seen = backend.seen();
        seen.iter().filter(|seen| seen.path == "/health").count() >= 5
    })
    .await;
    assert!(asked(&backend).is_empty());
}

#[tokio::test]
async fn a_backend_that_fails_others_need_not_fail_here_to_be_left_alone() {
    let backends = three().await;
    let failing = &backends[0];
    failing.script((0..100).map(|_| Reply::status(500)));
    for _ in 0..20 {
        let request = Request::post("/generate").body(Full::from(PROMPT));
        let answer = failing.answer(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        answer.into_body().collect().await.unwrap();
    }
    let gateway = start(Config {
        strategy: Strategy::Adaptive,
        probe_interval: Duration::from_millis(20),
        ..config(&backends.each_ref())
    })
    .await;
    eventually("it has said so", async || {
        let health = get(&gateway, "/health").await.json();
        let reports = health["load_balancer"]["backends"].as_array().unwrap();
        let errors = |report: &Value| report["reported_load"]["error_percent"].as_f64();
        reports
            .iter()
            .filter_map(errors)
            .any(|percent| percent > 20.0)
            && reports.iter().all(|report| errors(report).is_some())
    })
    .await;
    for _ in 0..40 {
        assert_eq!(
            post(&gateway, "/generate", PROMPT).await.status,
            StatusCode::OK
        );
    }
    let counts = backends.each_ref().map(|backend| {
        let seen = asked(backend);
        seen.iter().filter(|seen| seen.path == "/generate").count()
    });
    assert_eq!(counts[0], 20, "{counts:?}");
    assert!(counts[1] > 0 && counts[2] > 0, "{counts:?}");
}

#[tokio::test]
async fn a_backend_says_how_busy_it_is_before_it_has_a_request() {
    let backend = backend().await;
    let gateway = start(Config {
        strategy: Strategy::Prequal,
        ..config(&[&backend])
    })
    .await;
    eventually("it has said", async || {
        let health = get(&gateway, "/health").await.json();
        health["load_balancer"]["backends"][0]["reported_load"]["in_flight"] == 0
    })
    .await;
    assert_eq!(
        asked(&backend)
            .iter()
            .filter(|seen| seen.path != "/load")
            .count(),
        0
    );
}

#[tokio::test]
async fn a_long_prompt_is_much_work_for_as_long_as_it_is_under_way() {
    let backends = [backend().await, backend().await];
    let gateway = start(Config {
        strategy: Strategy::Adaptive,
        ..config(&backends.each_ref())
    })
    .await;
    let short = json!({"prompt": "word", "max_tokens": 5}).to_string();
    // What is usual has to be known first.
    for _ in 0..50 {
        goes(&gateway, "/generate", &short, &[]).await;
    }
    for backend in &backends {
        backend.chaos([Fault::hang()]);
    }
    let busy = || backends.each_ref().map(MockBackend::in_flight);
    let long = json!({"prompt": "word ".repeat(8000), "max_tokens": 5}).to_string();
    let mut under_way = vec![tokio::spawn(client().request(posting(
        &gateway,
        "/generate",
        &long,
    )))];
    eventually("one has it", async || busy().iter().sum::<usize>() == 1).await;
    let other = usize::from(busy()[0] == 1);
    for many in 1..=6 {
        under_way.push(tokio::spawn(client().request(posting(
            &gateway,
            "/generate",
            &short,
        ))));
        eventually("it is under way", async || {
            busy().iter().sum::<usize>() == many + 1
        })
        .await;
    }
    // All of them together are less work than the one.
    assert_eq!(busy()[other], 6);
    for request in under_way {
        request.abort();
    }
}

#[tokio::test]
async fn the_metrics_tell_what_the_balancer_sees() {
    let backend = backend().await;
    let mut config = config(&[&backend]);
    // Gateways of one process share their metrics.
    config.backends[0].id = Some("watched".into());
    let gateway = start(config).await;
    goes(&gateway, "/generate", PROMPT, &[]).await;
    let line =
        r#"palisade_balance_endpoint_state{layer="gateway",endpoint="watched",state="draining"}"#;
    assert_eq!(metric(&gateway, line).await, 0.0);
    let drain = r#"{"drain":true}"#;
    admin(&gateway, Method::POST, "/admin/backends/watched", drain).await;
    assert_eq!(metric(&gateway, line).await, 1.0);
}
