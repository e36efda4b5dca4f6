//! The page at `/` and its feed, without a browser.

use std::{collections::HashSet, time::Duration};

use demo_backend::{Fault, MockBackend};
use demo_gateway::Gateway;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    CHAT_STREAM, PROMPT, admin, backend, config, eventually, get, limited, open, post, post_with,
    request, send, start,
};

/// A reader of the feed.
struct Viewer {
    body: Incoming,
    held: Vec<u8>,
    /// Of the last message, in bytes.
    size: usize,
}

impl Viewer {
    async fn new(gateway: &Gateway) -> Self {
        let asked = request(gateway, Method::GET, "/events");
        let answer = open(asked.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        Self {
            body: answer.into_body(),
            held: Vec::new(),
            size: 0,
        }
    }

    /// The next message, with its name; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.held.windows(2).position(|two| two == b"\n\n") {
                let message: Vec<u8> = self.held.drain(..end + 2).collect();
                self.size = message.len();
                let text = String::from_utf8(message).unwrap();
                let (name, data) = text.split_once("\ndata: ").unwrap();
                let name = name.strip_prefix("event: ").unwrap().to_owned();
                return Some((name, serde_json::from_str(data.trim_end()).unwrap()));
            }
            let frame = timeout(Duration::from_secs(10), self.body.frame()).await;
            let frame = frame.expect("a message each second")?;
            self.held
                .extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    async fn tick(&mut self) -> Value {
        loop {
            let (name, message) = self.next().await.unwrap();
            if name == "tick" {
                return message;
            }
        }
    }
}

#[tokio::test]
async fn browsers_get_a_page_that_is_safe_and_programs_what_there_is() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let mut asked = request(&gateway, Method::GET, path);
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        send(asked.body(Full::default()).unwrap()).await
    };
    let page = ask("/", &[("accept", "text/html,*/*;q=0.8")]).await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.text().contains("<!doctype html>"));
    assert_eq!(ask("/", &[]).await.body, page.body);
    let json = ask("/", &[("accept", "application/json")]).await;
    assert_eq!(json.json()["name"], "palisade demo-gateway");
    for answer in [&page, &json] {
        assert_eq!(answer.header("vary"), "accept");
    }

    // All that it loads comes from here, guarded in the same way, and is not sent twice.
    let text = page.text();
    let mut files: HashSet<&str> = text
        .split('"')
        .filter(|it| it.starts_with("/dashboard/"))
        .collect();
    assert!(files.len() > 5, "{files:?}");
    files.insert("/dashboard/endpoints.js");
    files.insert("/");
    for file in files {
        let first = ask(file, &[]).await;
        assert_eq!(first.status, StatusCode::OK, "{file}");
        assert_eq!(first.header("x-content-type-options"), "nosniff");
        assert_eq!(first.header("cache-control"), "no-cache");
        let policy = first.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(
            policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
        let again = ask(file, &[("if-none-match", first.header("etag"))]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED, "{file}");
        assert!(again.body.is_empty());
    }
    assert_eq!(
        ask("/dashboard/nothing.js", &[]).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        post(&gateway, "/", "").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn a_tick_comes_each_second_also_when_nothing_happens() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let mut viewer = Viewer::new(&gateway).await;
    let (name, snapshot) = viewer.next().await.unwrap();
    assert_eq!(name, "snapshot");
    assert_eq!(snapshot["endpoints"][0]["url"], backend.url());
    assert_eq!(snapshot["tick"]["verdict"]["state"], "idle");
    let since = palisade::time::now();
    let first = viewer.tick().await;
    for number in 1..=3 {
        let tick = viewer.tick().await;
        for field in ["seq", "at"] {
            assert_eq!(
                tick[field].as_u64().unwrap(),
                first[field].as_u64().unwrap() + number
            );
        }
        assert_eq!(tick["total_requests"], 0);
    }
    assert!(since.elapsed() >= Duration::from_millis(2900));
    // The same words elsewhere.
    let status = get(&gateway, "/status").await.json();
    assert_eq!(status["verdict"]["text"], first["verdict"]["text"]);
}

#[tokio::test]
async fn all_that_ended_is_counted_and_no_key_is_told() {
    const KEY: &str = "sk-this-is-a-secret";
    let backend = backend().await;
    let gateway = start(limited(
        &[&backend],
        "[[rate_limits]]\nname = \"per_user\"\nidentifier = \"user\"\nmax_requests = 4\nwindow = \"1h\"\n",
    ))
    .await;
    let mut viewer = Viewer::new(&gateway).await;
    for _ in 0..6 {
        post_with(&gateway, "/generate", PROMPT, &[("x-api-key", KEY)]).await;
    }
    let batch = json!({"requests": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]});
    post(&gateway, "/generate/batch", &batch.to_string()).await;
    post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    // Neither is asked of a model.
    get(&gateway, "/health").await;
    get(&gateway, "/nothing").await;
    let mut seen = String::new();
    let (mut tick, mut rejected) = (Value::Null, Vec::new());
    while tick["total_requests"] != 10 {
        let (_, message) = viewer.next().await.unwrap();
        seen.push_str(&message.to_string());
        tick = message;
        let requests = tick["requests"].as_array().unwrap();
        rejected.extend(
            requests
                .iter()
                .filter(|it| it["verdict"] == "rejected")
                .cloned(),
        );
    }
    let own = &tick["gateway"]["overhead_us"];
    for share in ["p50", "p99"] {
        let micros = own[share].as_f64().unwrap();
        assert!(micros > 0.0 && micros < 5e5, "{own}");
    }
    assert_eq!(tick["gateway"]["log_dropped"], 0);
    let id = format!("api_key:{}", gateway.public_id(KEY));
    assert_eq!(rejected[0]["caller"], id);
    assert_eq!(rejected[0]["status"], 429);
    assert_eq!(rejected[0]["reason"], "rate_limited");
    assert!(
        rejected[0]["why"].as_str().unwrap().contains("per_user"),
        "{rejected:?}"
    );
    let limit = &tick["limits"][0];
    assert_eq!(
        (&limit["key"], &limit["rule"]),
        (&json!(id), &json!("per_user"))
    );
    assert_eq!((&limit["used"], &limit["limit"]), (&json!(4), &json!(4)));
    assert!(limit["rejected"].as_f64().unwrap() > 0.0, "{limit}");
    assert!(!seen.contains(KEY));
    // Who comes later is shown why, too.
    let (_, snapshot) = Viewer::new(&gateway).await.next().await.unwrap();
    let requests = snapshot["requests"].as_array().unwrap();
    assert!(requests.iter().any(|it| it["reason"] == "rate_limited"));
    assert!(!snapshot.to_string().contains(KEY));
    // And by the identifier that it says, it is reset.
    let path = format!("/admin/reset-rate-limit/{id}?rule_type=per_user");
    assert_eq!(
        admin(&gateway, Method::POST, &path, "{}").await.status,
        StatusCode::OK
    );
    eventually("nobody is over", async || {
        let tick = viewer.tick().await;
        tick["limits"]
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it["key"] != id)
    })
    .await;
}

#[tokio::test]
async fn a_tick_stays_small_with_ten_endpoints_in_an_incident() {
    let mut backends = Vec::new();
    for number in 0..10 {
        let id = format!("gpu-node-{number:02}");
        backends.push(
            MockBackend::builder()
                .id(id)
                .tokens_per_second(0.0)
                .start()
                .await
                .unwrap(),
        );
    }
    let all: Vec<&MockBackend> = backends.iter().collect();
    let mut config = limited(
        &all,
        "[[rate_limits]]\nname = \"requests_per_user\"\nidentifier = \"user\"\nmax_requests = 20\nwindow = \"1h\"\n\
         [[rate_limits]]\nname = \"requests_per_address\"\nidentifier = \"ip\"\nmax_requests = 9000\nwindow = \"1h\"\n\
         [[rate_limits]]\nname = \"requests_of_everybody\"\nidentifier = \"global\"\nmax_requests = 9000\nwindow = \"1h\"\n",
    );
    for (backend, running) in config.backends.iter_mut().zip(&backends) {
        backend.id = Some(running.id().into());
    }
    config.health_interval = Duration::from_millis(300);
    let gateway = start(config).await;
    let mut viewer = Viewer::new(&gateway).await;
    for backend in &backends[..4] {
        backend.crash().await;
    }
    for backend in &backends[4..7] {
        backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    }
    let (mut most, mut red, mut rejected, mut worst) = (0, 0, 0.0, String::new());
    for second in 0..6 {
        for number in 0..40 {
            let user = format!("somebody-with-a-rather-long-name-{}", number % 3);
            let path = if number % 2 == 0 {
                "/generate"
            } else {
                "/v1/chat/completions"
            };
            let body = if number % 2 == 0 { PROMPT } else { CHAT_STREAM };
            post_with(&gateway, path, body, &[("x-user-id", &user)]).await;
        }
        let tick = viewer.tick().await;
        let out = tick["endpoints"].as_array().unwrap().iter();
        red = red.max(
            out.filter(|it| it["state"] != "serving" && it["note"].is_string())
                .count(),
        );
        rejected = tick["rate"]["rejected"].as_f64().unwrap().max(rejected);
        if viewer.size > most {
            (most, worst) = (viewer.size, format!("{second} {tick}"));
        }
    }
    assert!(red >= 4, "{red}");
    assert!(rejected > 0.0, "{worst}");
    assert!(most > 2000 && most < 4096, "{most} {worst}");
}

#[tokio::test]
async fn whoever_only_watches_keeps_no_gateway_from_stopping_and_one_too_many_is_told_so() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let mut viewers = Vec::new();
    for _ in 0..64 {
        let mut viewer = Viewer::new(&gateway).await;
        viewer.next().await.unwrap();
        viewers.push(viewer);
    }
    let refused = get(&gateway, "/events").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), "1");
    assert!(
        refused.text().contains("64 are looking"),
        "{}",
        refused.text()
    );
    drop(viewers.pop());
    eventually("there is room again", async || {
        let asked = request(&gateway, Method::GET, "/events");
        open(asked.body(Full::default()).unwrap()).await.status() == StatusCode::OK
    })
    .await;

    let stopping = timeout(Duration::from_secs(5), gateway.shutdown());
    let (stopped, _) = tokio::join!(stopping, async {
        for viewer in &mut viewers {
            while viewer.next().await.is_some() {}
        }
    });
    assert!(stopped.is_ok(), "it waited for them");
}

#[tokio::test]
async fn an_endpoint_that_comes_is_told_with_all_that_is_fixed_of_it() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start(config(&[&first])).await;
    let mut viewer = Viewer::new(&gateway).await;
    viewer.next().await.unwrap();
    let added = json!({"id": "b", "url": second.url(), "zone": "z", "max_connections": 7});
    admin(
        &gateway,
        Method::POST,
        "/admin/add-backend",
        &added.to_string(),
    )
    .await;
    let snapshot = loop {
        let (name, message) = viewer.next().await.unwrap();
        if name == "snapshot" {
            break message;
        }
    };
    let fixed = json!({"id": "b", "url": second.url(), "zone": "z", "max_in_flight": 7});
    assert_eq!(snapshot["endpoints"][1], fixed);
    assert_eq!(viewer.tick().await["endpoints"][1]["id"], "b");
}
