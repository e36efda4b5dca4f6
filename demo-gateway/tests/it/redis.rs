//! Gateways that share their limits through a Redis server of the test's own.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use demo_backend::{Fault, MockBackend, Reply};
use demo_gateway::{Config, Gateway};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{
    CHAT, CHAT_STREAM, PROMPT, admin, backend, client, eventually, get, left, limited, open,
    post_with, posting, standing, start,
};

const INSTALL: &str = "the tests need a redis server: apt-get install redis-server";

/// A server on a port of its own, which ends with the test.
struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    fn start() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "palisade-gateway-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        // Somebody else may take the port before the server does.
        for _ in 0..5 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            if let Some(child) = Self::spawn(port, &folder) {
                return Self {
                    child,
                    port,
                    folder,
                };
            }
        }
        panic!("redis-server does not start");
    }

    fn spawn(port: u16, folder: &PathBuf) -> Option<Child> {
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
        ]);
        command.arg(folder).args(["--port", &port.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect(INSTALL);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.is_ok_and(|line| line.contains("Ready to accept")));
        // It goes on writing, and must not find the pipe closed.
        std::thread::spawn(move || lines.for_each(drop));
        if !is_ready {
            child.wait().unwrap();
            return None;
        }
        Some(child)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On the same port, and empty.
    fn restart(&mut self) {
        self.child = Self::spawn(self.port, &self.folder).expect("the port is still free");
    }

    /// What `redis-cli` prints.
    fn cli(&self, arguments: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]).args(arguments);
        let output = cli.output().expect(INSTALL);
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// As long a deadline as no machine needs: what is not answered in time is not exact.
    fn toml(&self) -> String {
        format!(
            "[redis]\nurl = \"redis://127.0.0.1:{}\"\ndeadline = \"5s\"\n",
            self.port
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const ALICE: [(&str, &str); 1] = [("x-user-id", "alice")];

/// One rule for each user, with this in it.
fn rule(more: &str) -> String {
    format!("[[rate_limits]]\nname = \"r\"\nidentifier = \"user\"\n{more}\n")
}

async fn store(gateway: &Gateway) -> Value {
    get(gateway, "/status").await.json()["rate_limit"]["store"].take()
}

/// Two gateways with the same configuration, which know of each other.
async fn two(config: &Config) -> [Gateway; 2] {
    let both = [start(config.clone()).await, start(config.clone()).await];
    for gateway in &both {
        eventually("they share the store", async || {
            let store = store(gateway).await;
            store["up"] == true && store["replicas"] == 2
        })
        .await;
    }
    both
}

/// Of so many requests to each at once, those that pass.
async fn passed(gateways: &[Gateway], each: usize, user: &str) -> usize {
    let client = client();
    let mut sent = Vec::new();
    for number in 0..each * gateways.len() {
        let mut request = posting(&gateways[number % gateways.len()], "/generate", PROMPT);
        request
            .headers_mut()
            .insert("x-user-id", user.parse().unwrap());
        sent.push(tokio::spawn(client.request(request)));
    }
    let mut passed = 0;
    for sent in sent {
        let status = sent.await.unwrap().unwrap().status();
        assert!(matches!(status.as_u16(), 200 | 429), "{status}");
        passed += usize::from(status == StatusCode::OK);
    }
    passed
}

#[tokio::test]
async fn two_gateways_admit_together_exactly_what_one_would() {
    let (server, backend) = (Server::start(), backend().await);
    for (at, strategy) in [
        "window = \"24h\"\nstrategy = \"token_bucket\"",
        "window = \"24h\"\nstrategy = \"sliding_window\"",
        "window = \"24h\"\nstrategy = \"sliding_log\"",
        "window = \"24h\"\nstrategy = \"fixed_window\"",
        "window = \"24h\"\nstrategy = \"adaptive\"",
        "window = \"24h\"\nstrategy = \"fixed_window\"\nlease = 4\nstrict = true",
    ]
    .into_iter()
    .enumerate()
    {
        let mut toml = server.toml();
        toml += &format!("prefix = \"p{at}\"\n");
        toml += &rule(&format!("max_requests = 20\n{strategy}"));
        let both = two(&limited(&[&backend], &toml)).await;
        let admitted = passed(&both, 40, "alice").await;
        if strategy.contains("lease") {
            // What was leased and not spent is lost, never given twice.
            assert!((10..=20).contains(&admitted), "{strategy}: {admitted}");
            continue;
        }
        assert_eq!(admitted, 20, "{strategy}");
        for gateway in &both {
            let told = standing(gateway, "user:alice", "r").await;
            assert_eq!(
                (&told["remaining"], &told["source"]),
                (&json!(0), &json!("redis"))
            );
            assert!(told.get("store").is_none(), "{told}");
            let status = get(gateway, "/status").await.json();
            let rule = &status["rate_limit"]["rules"][0];
            assert_eq!(
                (&rule["source"], &rule["fallback"]),
                (&json!("redis"), &json!(false))
            );
            assert_eq!(rule["on_store_error"], "local_share");
        }
    }
}

#[tokio::test]
async fn a_place_in_flight_at_one_gateway_is_taken_at_the_other() {
    let (server, backend) = (Server::start(), backend().await);
    let toml = server.toml() + &rule("max_requests = 1\nstrategy = \"in_flight\"");
    let [one, other] = two(&limited(&[&backend], &toml)).await;
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let mut request = posting(&one, "/v1/chat/completions", CHAT_STREAM);
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let mut body = open(request).await.into_body();
    body.frame().await.unwrap().unwrap();
    let refused = post_with(&other, "/v1/chat/completions", CHAT, &ALICE).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    drop(body);
    eventually("the place is free again", async || {
        left(&other, "user:alice", "r").await == 1.0
    })
    .await;
    let reply = post_with(&other, "/v1/chat/completions", CHAT, &ALICE).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn tokens_are_settled_for_all_gateways() {
    let (server, backend) = (Server::start(), backend().await);
    let toml = server.toml()
        + &rule(
            "unit = \"tokens\"\nmax_requests = 10000\nwindow = \"24h\"\nstrategy = \"fixed_window\"\ngrowing = true",
        );
    let [one, other] = two(&limited(&[&backend], &toml)).await;
    let mut all = 0.0;
    for (number, gateway) in [&one, &other, &one, &other].into_iter().enumerate() {
        let tokens = 10 + number as u32;
        backend.script([Reply::tokens(tokens)]);
        let body = if number < 2 { CHAT } else { CHAT_STREAM };
        let reply = post_with(gateway, "/v1/chat/completions", body, &ALICE).await;
        assert_eq!(reply.status, StatusCode::OK);
        // "hi" is one token, in one message of one conversation.
        all += 1.0 + 3.0 + 3.0 + f64::from(tokens);
        for gateway in [&one, &other] {
            eventually("it is settled", async || {
                left(gateway, "user:alice", "r").await == 10000.0 - all
            })
            .await;
        }
    }
    // One that reserves all that is left holds it at the other too, until it has ended.
    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let most = 10000.0 - all - 7.0;
    let body = CHAT_STREAM.replace("\"stream\"", &format!("\"max_tokens\":{most},\"stream\""));
    let mut request = posting(&one, "/v1/chat/completions", &body);
    request
        .headers_mut()
        .insert("x-user-id", "alice".parse().unwrap());
    let mut held = open(request).await.into_body();
    held.frame().await.unwrap().unwrap();
    let refused = post_with(&other, "/v1/chat/completions", CHAT, &ALICE).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    drop(held);
    eventually("it is given back", async || {
        let reply = post_with(&other, "/v1/chat/completions", CHAT, &ALICE).await;
        reply.status == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn a_reset_at_one_gateway_is_one_at_all() {
    let (server, backend) = (Server::start(), backend().await);
    let toml = server.toml()
        + &rule("max_requests = 2\nwindow = \"24h\"")
        + "[[rate_limits]]\nname = \"all\"\nidentifier = \"global\"\nmax_requests = 100\nwindow = \"24h\"\n\
           [[rate_limits]]\nname = \"own\"\nidentifier = \"user\"\nmax_requests = 9\nwindow = \"24h\"\nlocal = true\n";
    let both = two(&limited(&[&backend], &toml)).await;
    let [one, other] = &both;
    assert_eq!(passed(&both, 4, "alice").await, 2);
    assert_eq!(left(other, "user:alice", "all").await, 98.0);
    // One request went to each, or both to one.
    let own = left(one, "user:alice", "own").await + left(other, "user:alice", "own").await;
    assert_eq!(own, 16.0);
    assert_eq!(standing(one, "user:alice", "own").await["source"], "local");

    let path = "/admin/reset-rate-limit/user:alice?rule_type=r";
    let reply = admin(one, Method::POST, path, "").await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(reply.json()["source"], "redis");
    assert!(reply.json().get("store").is_none());
    assert_eq!(left(other, "user:alice", "r").await, 2.0);
    assert_eq!(left(other, "user:alice", "all").await, 98.0);
    // What the other has heard of refusals it forgets within a second.
    eventually("the other admits again", async || {
        let reply = post_with(other, "/generate", PROMPT, &ALICE).await;
        reply.status == StatusCode::OK
    })
    .await;
    let reply = admin(one, Method::POST, "/admin/reset-rate-limit/global", "").await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(left(other, "user:alice", "all").await, 100.0);
}

/// A program of its own, as others start it: metrics are those of a process.
struct Running {
    child: Child,
    url: String,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-gateway"));
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        for (name, _) in std::env::vars() {
            if name.starts_with("PALISADE_") {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.strip_prefix("listening on ").unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    async fn send(&self, method: Method, path: &str, user: &str) -> crate::support::Reply {
        let mut request = http::Request::builder()
            .method(&method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json");
        // A token is a key, and a key comes before a user.
        request = if path.starts_with("/admin") {
            request.header("authorization", "Bearer the-admin-token")
        } else {
            request.header("x-user-id", user)
        };
        let body = if path == "/generate" { PROMPT } else { "" };
        crate::support::send(request.body(body.to_owned().into()).unwrap()).await
    }

    async fn get(&self, path: &str) -> crate::support::Reply {
        self.send(Method::GET, path, "nobody").await
    }

    async fn store(&self) -> Value {
        self.get("/status").await.json()["rate_limit"]["store"].take()
    }

    async fn metric(&self, line: &str) -> Option<String> {
        let page = self.get("/metrics").await.text();
        let found = page.lines().find_map(|text| text.strip_prefix(line));
        found.map(|value| value.trim().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of so many requests of a user in turns, those that pass.
async fn in_turns(gateways: &[&Running], requests: usize, user: &str) -> usize {
    let mut passed = 0;
    for number in 0..requests {
        let gateway = gateways[number % gateways.len()];
        let reply = gateway.send(Method::POST, "/generate", user).await;
        assert!(matches!(reply.status.as_u16(), 200 | 429), "{reply:?}");
        passed += usize::from(reply.status == StatusCode::OK);
    }
    passed
}

fn program(server: &Server, backend: &MockBackend, file: &PathBuf) -> Running {
    let toml =
        server.toml() + &rule("max_requests = 10\nwindow = \"24h\"\nstrategy = \"fixed_window\"");
    let toml = format!("admin_token = \"the-admin-token\"\n{toml}");
    std::fs::write(file, toml).unwrap();
    let backend = format!("b={}", backend.url());
    let file = file.to_str().unwrap();
    Running::start(&[
        "--config",
        file,
        "--listen",
        "127.0.0.1:0",
        "--backend",
        &backend,
    ])
}

#[tokio::test]
async fn while_the_store_is_gone_each_keeps_to_its_share_and_says_so() {
    let (mut server, backend) = (Server::start(), backend().await);
    let file = server.folder.join("gateway.toml");
    let (one, other) = (
        program(&server, &backend, &file),
        program(&server, &backend, &file),
    );
    let both = [&one, &other];
    let up = "palisade_rate_limit_store_up{store=\"gateway\"}";
    let shared = async |what: &str| {
        for gateway in both {
            eventually(what, async || {
                let store = gateway.store().await;
                store["up"] == true && store["replicas"] == 2
            })
            .await;
        }
    };
    shared("they share the store").await;
    assert_eq!(in_turns(&both, 7, "alice").await, 7);
    assert_eq!(one.metric(up).await.as_deref(), Some("1"));

    server.kill();
    for gateway in both {
        eventually("it is noticed", async || {
            gateway.store().await["up"] == false
        })
        .await;
        assert_eq!(gateway.metric(up).await.as_deref(), Some("0"));
        let status = gateway.get("/status").await.json();
        let rule = &status["rate_limit"]["rules"][0];
        assert_eq!(
            (&rule["fallback"], &rule["source"]),
            (&json!(true), &json!("local"))
        );
        assert_eq!(rule["on_store_error"], "local_share");
        // Half of it for each of two.
        assert_eq!(in_turns(&[gateway], 8, "bob").await, 5);
        let told = gateway.get("/rate-limits/user:bob").await.json()["r"].take();
        assert_eq!(
            (&told["source"], &told["store"]),
            (&json!("local"), &json!("down"))
        );
        assert_eq!(told["remaining"], 0);
        let fallback = "palisade_rate_limit_fallback_total{layer=\"gateway\",rule=\"r\",policy=\"local_share\"}";
        let counted: f64 = gateway.metric(fallback).await.unwrap().parse().unwrap();
        assert_eq!(counted, 8.0, "once for each request");
    }
    let path = "/admin/reset-rate-limit/user:bob";
    let reset = one.send(Method::POST, path, "bob").await;
    // It could not be done everywhere.
    assert_eq!(
        reset.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        reset.text()
    );
    let told = reset.json();
    assert_eq!(
        (&told["source"], &told["store"]),
        (&json!("local"), &json!("down"))
    );
    assert_eq!(in_turns(&[&one], 8, "bob").await, 5, "it was reset here");
    assert_eq!(in_turns(&[&other], 8, "bob").await, 0);

    server.restart();
    shared("they share the store again").await;
    assert_eq!(one.metric(up).await.as_deref(), Some("1"));
    // More turns than it takes, as one may be over before a place that the other holds is back.
    assert_eq!(in_turns(&both, 60, "carol").await, 10);
    let told = other.get("/rate-limits/user:carol").await.json()["r"].take();
    assert_eq!(
        (&told["remaining"], &told["source"]),
        (&json!(0), &json!("redis"))
    );
}

#[tokio::test]
async fn a_rule_can_let_all_pass_or_none_while_the_store_is_gone() {
    let (mut server, backend) = (Server::start(), backend().await);
    let with = |policy: &str| {
        let more = format!("max_requests = 2\nwindow = \"24h\"\non_store_error = \"{policy}\"");
        limited(&[&backend], &(server.toml() + &rule(&more)))
    };
    let (lax, strict) = (start(with("allow")).await, start(with("deny")).await);
    server.kill();
    for gateway in [&lax, &strict] {
        eventually("it is noticed", async || {
            store(gateway).await["up"] == false
        })
        .await;
    }
    for _ in 0..5 {
        let reply = post_with(&lax, "/generate", PROMPT, &ALICE).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    for (path, body, pointer) in [
        ("/generate", PROMPT, ""),
        ("/v1/chat/completions", CHAT, "/error"),
    ] {
        let reply = post_with(&strict, path, body, &ALICE).await;
        assert_eq!(
            reply.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "{}",
            reply.text()
        );
        assert!(
            !reply.header("retry-after").is_empty() && !reply.header("retry-after-ms").is_empty()
        );
        let told = reply.json();
        let told = told.pointer(pointer).unwrap();
        assert_eq!(told["rule"], "r");
        assert!(
            told["until"].is_string() && told.get("remaining").is_none(),
            "{told}"
        );
        let code = told.get("reason").or(told.get("code")).unwrap();
        assert_eq!(code, "store_unavailable");
    }
}

#[tokio::test]
async fn a_gateway_starts_without_its_store_and_finds_it_later() {
    let (mut server, backend) = (Server::start(), backend().await);
    server.kill();
    let toml = server.toml() + &rule("max_requests = 4\nwindow = \"24h\"");
    let gateway = start(limited(&[&backend], &toml)).await;
    assert_eq!(store(&gateway).await["up"], false);
    assert_eq!(passed(std::slice::from_ref(&gateway), 8, "alice").await, 4);
    server.restart();
    eventually("it is found", async || store(&gateway).await["up"] == true).await;
    assert_eq!(passed(std::slice::from_ref(&gateway), 8, "bob").await, 4);
    assert_eq!(standing(&gateway, "user:bob", "r").await["source"], "redis");
}

#[tokio::test]
async fn what_is_used_is_settled_before_a_gateway_is_gone() {
    let (server, backend) = (Server::start(), backend().await);
    let toml = server.toml()
        + &rule(
            "unit = \"tokens\"\nmax_requests = 10000\nwindow = \"24h\"\nstrategy = \"fixed_window\"",
        );
    let config = limited(&[&backend], &toml);
    let [one, other] = two(&config).await;
    backend.script([Reply::tokens(10)]);
    let body = CHAT.replace("\"model\"", "\"max_tokens\":5000,\"model\"");
    let reply = post_with(&one, "/v1/chat/completions", &body, &ALICE).await;
    assert_eq!(reply.status, StatusCode::OK);
    one.shutdown().await;
    // Without waiting: it is not gone before.
    assert_eq!(left(&other, "user:alice", "r").await, 10000.0 - 17.0);
    assert_eq!(
        server.cli(&["zcard", "palisade:{replicas}"]),
        "1",
        "it has left"
    );
}

#[tokio::test]
async fn nothing_that_is_stored_names_a_caller() {
    let (server, backend) = (Server::start(), backend().await);
    let toml = server.toml()
        + "prefix = \"mine\"\nsecret = \"pepper\"\n"
        + &rule("max_requests = 10\nwindow = \"24h\"");
    let gateway = start(limited(&[&backend], &toml)).await;
    let headers: [(&str, &str); 1] = [("x-api-key", "sk-very-secret")];
    assert_eq!(
        post_with(&gateway, "/generate", PROMPT, &headers)
            .await
            .status,
        StatusCode::OK
    );
    assert_eq!(passed(std::slice::from_ref(&gateway), 1, "alice").await, 1);
    let keys = server.cli(&["keys", "*"]);
    assert!(
        keys.lines().filter(|key| key.contains(":r:")).count() == 2,
        "{keys}"
    );
    assert!(keys.lines().all(|key| key.starts_with("mine:")), "{keys}");
    let id = gateway.public_id("sk-very-secret");
    for name in ["alice", "sk-very", &id] {
        assert!(!keys.contains(name), "{keys}");
    }
}
