//! One line for each request, whatever becomes of it.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use demo_backend::{Fault, Reply};
use demo_gateway::{
    Config, Gateway, StartError,
    config::{AccessLog, ApiKey, Format},
};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::{
    process,
    support::{
        CHAT, CHAT_STREAM, PROMPT, TOKEN, backend, config, eventually, get, limited, open, post,
        post_with, posting, request, send, start,
    },
};

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let name = format!("palisade-access-{}-{number}.log", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn log(&self, format: Format) -> AccessLog {
        AccessLog {
            format,
            target: self.0.to_str().unwrap().into(),
            ..AccessLog::default()
        }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let line = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        text.lines().map(line).collect()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

const KEY: &str = "sk-very-secret-key";
const RULE: &str =
    "[[rate_limits]]\nname = \"three\"\nidentifier = \"user\"\nmax_requests = 3\nwindow = \"1h\"";

#[tokio::test]
async fn there_are_as_many_lines_as_requests_and_no_key_in_any() {
    let backend = backend().await;
    let file = File::new();
    let mut config = Config {
        access_log: file.log(Format::Json),
        ..config(&[&backend])
    };
    config.identity.keys = vec![ApiKey::new(KEY, "basic")];
    let gateway = start(config).await;
    let mut ids = BTreeSet::new();
    let key = [("x-api-key", KEY)];
    let wrong = [("x-api-key", "sk-another-secret")];
    let bearer = format!("Bearer {KEY}");
    for number in 0..20 {
        let id = format!("id-{number}");
        let with = |more: &[(&'static str, &str)]| {
            let all = [&[("x-request-id", &*id)], more].concat();
            all.into_iter()
                .map(|(name, value)| (name, value.to_owned()))
                .collect::<Vec<_>>()
        };
        let (path, body, headers) = match number % 5 {
            0 => ("/generate", PROMPT, with(&key)),
            1 => (
                "/v1/chat/completions",
                CHAT_STREAM,
                with(&[("authorization", &bearer)]),
            ),
            2 => ("/v1/chat/completions", CHAT, with(&wrong)),
            3 => ("/generate", "{\"no\":\"prompt\"}", with(&key)),
            _ => (
                "/generate/batch",
                r#"{"requests":[{"prompt":"a"},{"prompt":"b"}]}"#,
                with(&key),
            ),
        };
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        post_with(&gateway, path, body, &headers).await;
        ids.insert(id);
    }
    let by_key = format!("/rate-limits/api_key:{KEY}?token={KEY}");
    let asks = request(&gateway, Method::GET, &by_key).header("x-request-id", "by-key");
    send(asks.body(Default::default()).unwrap()).await;
    ids.insert("by-key".into());
    let asks =
        request(&gateway, Method::GET, "/admin").header("authorization", format!("Bearer {TOKEN}"));
    send(
        asks.header("x-request-id", "admin")
            .body(Default::default())
            .unwrap(),
    )
    .await;
    ids.insert("admin".into());
    let public = gateway.public_id(KEY);
    gateway.shutdown().await;

    let (text, lines) = (file.text(), file.lines());
    for secret in [KEY, "sk-another-secret", TOKEN] {
        assert!(!text.contains(secret), "{text}");
    }
    let told: BTreeSet<_> = lines
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((lines.len(), &told), (22, &ids));
    let line = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    let plain = line("id-0");
    assert_eq!(plain["status"], 200);
    assert_eq!(plain["verdict"], "success");
    assert_eq!(plain["caller"], format!("api_key:{public}"));
    assert_eq!(plain["operation"], "generate_content");
    assert_eq!(plain["backend"], "a");
    assert_eq!(plain["attempts"], 1);
    assert!(plain["completion_tokens"].as_u64().unwrap() > 0);
    assert!(plain["ms"].as_f64().unwrap() > 0.0);
    assert!(plain["time"].as_str().unwrap().ends_with('Z'));
    let stream = line("id-1");
    assert_eq!(stream["stream"], true);
    assert!(stream["first_token_ms"].as_f64().unwrap() <= stream["ms"].as_f64().unwrap());
    assert_eq!(stream["model"], "m");
    for (id, status) in [("id-2", 401), ("id-3", 400)] {
        assert_eq!(line(id)["status"], status);
        assert_eq!(line(id)["verdict"], "caller_fault");
        assert!(!line(id)["why"].as_str().unwrap().is_empty());
    }
    assert_eq!(line("id-4")["batch"], true);
    assert_eq!(line("by-key")["path"], "/rate-limits/");
    // What it would say repeats what was asked for.
    assert_eq!(line("by-key")["why"], "the answer had status 400");
}

#[tokio::test]
async fn a_refusal_is_explained() {
    let backend = backend().await;
    let file = File::new();
    let config = Config {
        access_log: file.log(Format::Json),
        ..limited(&[&backend], RULE)
    };
    let gateway = start(config).await;
    for _ in 0..4 {
        post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "alice")]).await;
    }
    gateway.shutdown().await;
    let lines = file.lines();
    let refused = &lines[3];
    assert_eq!(refused["status"], 429);
    assert_eq!(refused["verdict"], "refused");
    assert_eq!(refused["reason"], "rate_limited");
    assert_eq!(refused["rule"], "three");
    assert_eq!(refused["caller"], "user:alice");
    assert!(
        refused["why"].as_str().unwrap().contains("rate"),
        "{refused}"
    );
    assert_eq!(refused["attempts"], 0);
}

#[tokio::test]
async fn of_a_share_all_failures_are_told() {
    let backend = backend().await;
    let file = File::new();
    let log = AccessLog {
        sample: 0.0,
        ..file.log(Format::Json)
    };
    let gateway = start(Config {
        access_log: log,
        ..limited(&[&backend], RULE)
    })
    .await;
    for _ in 0..5 {
        post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "alice")]).await;
    }
    get(&gateway, "/nothing-here").await;
    gateway.shutdown().await;
    let status: Vec<_> = file
        .lines()
        .iter()
        .map(|line| line["status"].as_u64().unwrap())
        .collect();
    assert_eq!(status, [429, 429, 404]);
}

#[tokio::test]
async fn a_stream_that_breaks_off_and_a_caller_who_leaves_have_a_line_each() {
    let backend = backend().await;
    let file = File::new();
    let gateway = start(Config {
        access_log: file.log(Format::Json),
        ..config(&[&backend])
    })
    .await;
    backend.script([
        Reply::tokens(10).fault(Fault::reset(3)),
        Reply::tokens(10).fault(Fault::stall(3)),
    ]);
    post(&gateway, "/v1/chat/completions", CHAT_STREAM).await;
    let response = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    eventually("both have ended", async || file.text().lines().count() == 2).await;
    let lines = file.lines();
    assert_eq!(lines[0]["verdict"], "failure");
    assert_eq!(lines[1]["verdict"], "canceled");
    for line in &lines {
        assert_eq!(line["status"], 200);
        assert!(line["why"].is_string(), "{line}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_a_caller_writes_stays_in_its_line() {
    let backend = backend().await;
    let file = File::new();
    let gateway = start(Config {
        access_log: file.log(Format::Text),
        ..config(&[&backend])
    })
    .await;
    let evil = r#"{"model":"a\nstatus=200 verdict=success \u001b[2J","messages":[{"role":"user","content":"hi"}]}"#;
    post(&gateway, "/v1/chat/completions", evil).await;
    get(&gateway, "/a%0astatus=200%20verdict=success").await;
    let long = format!("/{}", "x".repeat(5000));
    get(&gateway, &long).await;
    gateway.shutdown().await;
    let text = file.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(!text.contains('\u{1b}'));
    assert!(
        lines[0].contains(r#" model="a\nstatus=200 verdict=success "#),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].contains(" status=404 verdict=caller_fault"),
        "{}",
        lines[1]
    );
    assert!(
        lines
            .iter()
            .all(|line| line.len() < 2500 && line.starts_with("time=20"))
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_written_to_is_told_at_the_start() {
    let backend = backend().await;
    let config = Config {
        access_log: AccessLog {
            format: Format::Json,
            target: "/nowhere/at/all/access.log".into(),
            ..AccessLog::default()
        },
        ..config(&[&backend])
    };
    match Gateway::start(config).await {
        Err(StartError::AccessLog(target, _)) => assert!(target.contains("nowhere")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_opened_anew_on_sigusr1_and_no_line_is_lost() {
    let (log, toml) = (File::new(), File::new());
    let moved = File(log.0.with_extension("1"));
    let target = log.0.display();
    let text = format!("[access_log]\nformat = \"json\"\ntarget = \"{target}\"\n");
    std::fs::write(&toml.0, text).unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--embedded-backends", "1"];
    let arguments = [&arguments[..], &["--config", toml.0.to_str().unwrap()]].concat();
    let (mut child, address, _) = process::serve(&arguments).await;
    let ask = async |many: u32| {
        for _ in 0..many {
            let asked = http::Request::builder().uri(format!("http://{address}/livez"));
            assert_eq!(
                send(asked.body(Default::default()).unwrap()).await.status,
                200
            );
        }
    };
    ask(3).await;
    eventually("they are written", async || log.lines().len() == 3).await;
    std::fs::rename(&log.0, &moved.0).unwrap();
    // It goes on in what it has opened, wherever that is now.
    ask(2).await;
    eventually("they are written", async || moved.lines().len() == 5).await;
    assert!(!log.0.exists());
    process::send_signal(&child, "-USR1");
    eventually("there is a new one", async || log.0.exists()).await;
    ask(4).await;
    eventually("they are in the new one", async || log.lines().len() == 4).await;
    // What asks for a new configuration opens nothing, and ends nothing.
    process::send_signal(&child, "-HUP");
    ask(1).await;
    process::terminate(&child);
    assert!(child.wait().await.unwrap().success());
    assert_eq!((moved.lines().len(), log.lines().len()), (5, 5));
}
