//! Tokens and money: what was reserved is what was used, however an answer ends.

use demo_backend::{Fault, MockBackend, Reply};
use demo_gateway::Gateway;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{
    backend, eventually, get, left, limited, metric, open, post, post_with, posting, standing,
    start,
};

const ALICE: [(&str, &str); 1] = [("x-user-id", "alice")];

/// Two tokens of text, in one message of one conversation.
const PROMPT_TOKENS: u64 = 2 + 3 + 3;

fn chat(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"12345"}}]{more}}}"#)
}

async fn gateway(backend: &MockBackend, limit: u64, more: &str) -> Gateway {
    let toml = format!(
        "[[rate_limits]]\nname = \"t\"\nidentifier = \"user\"\nunit = \"tokens\"\n\
         max_requests = {limit}\nwindow = \"24h\"\nstrategy = \"fixed_window\"\n{more}"
    );
    let mut config = limited(&[backend], &toml);
    // What fails has failed.
    config.retry.attempts = 1;
    start(config).await
}

/// What alice has used.
async fn used(gateway: &Gateway) -> u64 {
    let standing = standing(gateway, "user:alice", "t").await;
    let number = |name: &str| standing[name].as_u64().unwrap();
    number("limit") - number("remaining")
}

/// The pieces of text in events.
fn pieces(events: &str) -> u64 {
    let data = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let texts = chunks.filter(|chunk| {
        let text = chunk["choices"][0]["delta"]["content"].as_str();
        text.is_some_and(|text| !text.is_empty())
    });
    texts.count() as u64
}

#[tokio::test]
async fn what_is_settled_is_what_the_backend_says_was_used() {
    let backend = backend().await;
    let gateway = gateway(&backend, 100_000, "").await;
    let mut all = 0;
    for (path, body) in [
        ("/v1/chat/completions", chat("")),
        ("/v1/chat/completions", chat(r#","max_tokens":7,"n":3"#)),
        (
            "/v1/chat/completions",
            chat(r#","max_completion_tokens":5"#),
        ),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":["12345","1"],"n":2}"#.into(),
        ),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":[[1,2,3],[4]],"max_tokens":3}"#.into(),
        ),
        (
            "/v1/embeddings",
            r#"{"model":"m","input":["12345","1"]}"#.into(),
        ),
    ] {
        let reply = post_with(&gateway, path, &body, &ALICE).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let usage = &reply.json()["usage"];
        all += usage["total_tokens"].as_u64().unwrap();
        eventually("it is settled", async || used(&gateway).await == all).await;
    }
    let reply = post_with(&gateway, "/generate", r#"{"prompt":"12345"}"#, &ALICE).await;
    all += reply.json()["tokens_used"].as_u64().unwrap();
    eventually("it is settled", async || used(&gateway).await == all).await;
    let requests = format!("{{\"requests\":[{}]}}", [r#"{"prompt":"1"}"#; 5].join(","));
    let reply = post_with(&gateway, "/generate/batch", &requests, &ALICE).await;
    for result in reply.json()["results"].as_array().unwrap() {
        all += result["ok"]["tokens_used"].as_u64().unwrap();
    }
    eventually("it is settled", async || used(&gateway).await == all).await;
    // A list of models costs nothing.
    let mut request = crate::support::request(&gateway, http::Method::GET, "/v1/models")
        .body(http_body_util::Full::default())
        .unwrap();
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    assert_eq!(crate::support::send(request).await.status, StatusCode::OK);
    assert_eq!(used(&gateway).await, all);
}

#[tokio::test]
async fn a_request_reserves_the_most_that_it_may_use() {
    let backend = backend().await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let gateway = gateway(&backend, 1000, "").await;
    let mut request = posting(
        &gateway,
        "/v1/chat/completions",
        &chat(r#","max_tokens":100,"n":2,"stream":true"#),
    );
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let response = open(request).await;
    assert_eq!(used(&gateway).await, PROMPT_TOKENS + 200);
    // Told in the words of OpenAI too.
    let header = |name: &str| response.headers()[name].to_str().unwrap();
    assert_eq!(header("x-ratelimit-limit-tokens"), "1000");
    assert_eq!(
        header("x-ratelimit-remaining-tokens"),
        (1000 - PROMPT_TOKENS - 200).to_string()
    );
    assert!(header("x-ratelimit-reset-tokens").ends_with('s'));
    assert!(header("ratelimit-policy").contains("palisade-unit=\"tokens\""));
    assert!(
        !response
            .headers()
            .contains_key("x-ratelimit-limit-requests")
    );
    drop(response);

    // More than is left is refused for its cost, and less is not.
    let asking = |most: u64| chat(&format!(r#","max_tokens":{most}"#));
    eventually("it is settled", async || used(&gateway).await < 50).await;
    let remaining = left(&gateway, "user:alice", "t").await as u64;
    let (much, little) = (asking(remaining), asking(1));
    let refused = post_with(&gateway, "/v1/chat/completions", &much, &ALICE).await;
    assert_eq!(
        refused.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        refused.text()
    );
    let told = refused.json();
    assert_eq!(
        (&told["error"]["unit"], &told["error"]["remaining"]),
        (&json!("tokens"), &json!(remaining))
    );
    assert_eq!(told["error"]["cost"], remaining + PROMPT_TOKENS);
    let passed = post_with(&gateway, "/v1/chat/completions", &little, &ALICE).await;
    assert_eq!(passed.status, StatusCode::OK);
    // What can never fit is no matter of time.
    let refused = post_with(&gateway, "/v1/chat/completions", &asking(1000), &ALICE).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.header("x-should-retry"), "false");
    let told = refused.json();
    assert_eq!(told["error"]["code"], "cost_exceeds_quota");
    assert_eq!(
        (&told["error"]["rule"], &told["error"]["limit"]),
        (&json!("t"), &json!(1000))
    );
}

#[tokio::test]
async fn streams_that_end_break_off_or_are_left_pay_what_has_come() {
    let backend = backend().await;
    let gateway = gateway(&backend, 100_000, "").await;
    let stream = chat(r#","stream":true"#);
    let mut all = 0;

    // To its end: what the backend says, though the caller did not ask.
    backend.script([Reply::tokens(10)]);
    let reply = post_with(&gateway, "/v1/chat/completions", &stream, &ALICE).await;
    assert_eq!(pieces(&reply.text()), 10);
    all += PROMPT_TOKENS + 10;
    eventually("it is settled", async || used(&gateway).await == all).await;

    // Broken off by the backend, after some of it has come.
    backend.script([Reply::tokens(10).fault(Fault::reset(5))]);
    let reply = post_with(&gateway, "/v1/chat/completions", &stream, &ALICE).await;
    assert!(reply.text().contains("event: error"), "{}", reply.text());
    let came = pieces(&reply.text());
    assert!((1..10).contains(&came), "{came}");
    all += PROMPT_TOKENS + came;
    eventually("it is settled", async || used(&gateway).await == all).await;

    // Left by the caller, while the backend has stopped to write.
    backend.script([Reply::tokens(10).fault(Fault::stall(5))]);
    let mut request = posting(&gateway, "/v1/chat/completions", &stream);
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let mut body = open(request).await.into_body();
    let mut text = String::new();
    while pieces(&text) < came {
        let frame = body.frame().await.unwrap().unwrap();
        text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    drop(body);
    all += PROMPT_TOKENS + came;
    eventually("it is settled", async || used(&gateway).await == all).await;

    // Failed before anything came: nobody pays for that.
    for fault in [
        Fault::error(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::refuse(),
        Fault::reset(0),
    ] {
        backend.chaos([fault]);
        let reply = post_with(&gateway, "/v1/chat/completions", &stream, &ALICE).await;
        let text = reply.text();
        assert!(
            reply.status.is_server_error() || text.starts_with("event: error"),
            "{text}"
        );
        eventually("it is given back", async || used(&gateway).await == all).await;
    }
    backend.chaos([]);
    // Nor for what was wrong.
    let wrong = chat(r#","temperature":7"#);
    let reply = post_with(&gateway, "/v1/chat/completions", &wrong, &ALICE).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    eventually("it is given back", async || used(&gateway).await == all).await;
    // Left before anything came: the backend has read the prompt.
    backend.chaos([Fault::hang()]);
    let mut request = posting(&gateway, "/v1/chat/completions", &stream);
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let waiting = tokio::spawn(crate::support::client().request(request));
    eventually("the backend has it", async || backend.in_flight() == 1).await;
    waiting.abort();
    all += PROMPT_TOKENS;
    eventually("it is settled", async || used(&gateway).await == all).await;
}

#[tokio::test]
async fn many_streams_at_once_settle_to_what_they_used() {
    let backend = MockBackend::builder()
        .slots(100)
        .first_token(std::time::Duration::ZERO)
        .tokens_per_second(0.0)
        .start()
        .await
        .unwrap();
    let gateway = gateway(
        &backend,
        1_000_000,
        "estimate = \"learned\"\ngrowing = true\n",
    )
    .await;
    let client = crate::support::client();
    let mut sent = Vec::new();
    for number in 0..40_u32 {
        let reply = Reply::tokens(50 + number);
        backend.script([if number % 4 == 0 {
            reply.fault(Fault::reset(20))
        } else {
            reply
        }]);
        let mut request = posting(&gateway, "/v1/chat/completions", &chat(r#","stream":true"#));
        request
            .headers_mut()
            .insert("x-user-id", "alice".parse().unwrap());
        let client = client.clone();
        sent.push(tokio::spawn(async move {
            let body = client.request(request).await.unwrap().into_body();
            let bytes = body.collect().await.unwrap().to_bytes();
            pieces(std::str::from_utf8(&bytes).unwrap())
        }));
    }
    let mut all = 0;
    for sent in sent {
        all += PROMPT_TOKENS + sent.await.unwrap();
    }
    eventually("all is settled", async || used(&gateway).await == all).await;
}

#[tokio::test]
async fn a_growing_stream_ends_with_an_event_where_its_rule_has_no_more() {
    let backend = backend().await;
    // A request that does not say gets 256 at first, and 64 whenever it comes near the end of them.
    let gateway = gateway(&backend, 400, "estimate = \"learned\"\ngrowing = true\n").await;
    backend.script([Reply::tokens(1000)]);
    let hits = "llm_rate_limit_hits_total{identifier_type=\"user\"}";
    let before = metric(&gateway, hits).await;
    let stream = chat(r#","stream":true"#);
    let reply = post_with(&gateway, "/v1/chat/completions", &stream, &ALICE).await;
    assert_eq!(reply.status, StatusCode::OK);
    let text = reply.text();
    let (_, last) = text.split_once("event: error\n").unwrap();
    let data = last.strip_prefix("data: ").unwrap().trim_end();
    let error: Value = serde_json::from_str(data).unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error", "{error}");
    // Of a whole day.
    assert_eq!(error["error"]["code"], "quota_exhausted");
    assert_eq!(
        (&error["error"]["rule"], &error["error"]["limit"]),
        (&json!("t"), &json!(400))
    );
    assert!(error["error"]["until"].is_string(), "{error}");
    assert!(text.ends_with("\n\n") && !text.contains("[DONE]"), "{text}");
    let came = pieces(&text);
    assert!(came <= 400 - PROMPT_TOKENS && came > 256, "{came}");
    let all = PROMPT_TOKENS + came;
    eventually("it is settled", async || used(&gateway).await == all).await;
    assert!(metric(&gateway, hits).await > before);
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
}

#[tokio::test]
async fn money_is_spent_by_the_prices_of_the_models() {
    let backend = backend().await;
    let toml = "[prices.m]\nprompt = 10.0\ncompletion = 100.0\n\
        [prices.default]\nprompt = 1000.0\ncompletion = 1000.0\n\
        [[rate_limits]]\nname = \"budget\"\nidentifier = \"user\"\nunit = \"money\"\n\
        max_requests = 0.5\nwindow = \"24h\"\nstrategy = \"fixed_window\"\n";
    let gateway = start(limited(&[&backend], toml)).await;
    backend.script([Reply::tokens(100)]);
    let body = chat(r#","max_tokens":1000"#);
    let reply = post_with(&gateway, "/v1/chat/completions", &body, &ALICE).await;
    let usage = &reply.json()["usage"];
    let tokens = |name: &str| usage[name].as_f64().unwrap();
    assert_eq!(tokens("completion_tokens"), 100.0);
    let cost = (tokens("prompt_tokens") * 10.0 + 100.0 * 100.0) / 1e6;
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    eventually("it is settled", async || {
        near(left(&gateway, "user:alice", "budget").await, 0.5 - cost)
    })
    .await;
    let told = standing(&gateway, "user:alice", "budget").await;
    assert_eq!(
        (&told["unit"], &told["limit"]),
        (&json!("money"), &json!(0.5))
    );
    // A model that nobody has named costs as the others do: here too much.
    let other = body.replace("\"m\"", "\"other\"");
    let reply = post_with(&gateway, "/v1/chat/completions", &other, &ALICE).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.text());
    assert_eq!(reply.json()["error"]["limit"], 0.5);
    let status = get(&gateway, "/status").await.json();
    assert_eq!(status["rate_limit"]["rules"][0]["unit"], "money");
}

#[tokio::test]
async fn who_has_no_tokens_left_is_refused_before_the_body_is_read() {
    let backend = backend().await;
    let gateway = gateway(&backend, 20, "").await;
    backend.script([Reply::tokens(1000)]);
    // Allowed to use 12, the backend has used more: that is a debt.
    let body = chat(r#","max_tokens":12"#);
    let reply = post_with(&gateway, "/v1/chat/completions", &body, &ALICE).await;
    assert_eq!(reply.status, StatusCode::OK);
    eventually("it is settled", async || {
        left(&gateway, "user:alice", "t").await == 0.0
    })
    .await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-user-id: alice\r\n\
        connection: close\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    let answer = crate::support::raw(&gateway, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert_eq!(
        post(&gateway, "/v1/chat/completions", &body).await.status,
        StatusCode::OK
    );
}
