//! Nothing is lost: what callers were told is in the log.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use demo_backend::Fault;
use demo_gateway::{Config, config::Store};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use sqlx::Row;
use tokio::task::JoinSet;

use super::{Folder, ids, logged, logging, settled, sqlite};
use crate::{
    postgres::Postgres,
    process::{program, serve, terminate},
    support::{CHAT, CHAT_STREAM, PROMPT, backend, client, config, eventually, posting, start},
};

/// What many callers side by side have been told to the end, by the ids they gave, each until it cannot be told more.
async fn ask(url: &str, next: &Arc<AtomicUsize>, many: usize, callers: usize) -> BTreeSet<String> {
    let mut asking = JoinSet::new();
    for _ in 0..callers {
        let (next, url) = (next.clone(), url.to_owned());
        asking.spawn(async move {
            let client = client();
            let mut told = Vec::new();
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= many {
                    return told;
                }
                let id = format!("r-{number}");
                let (path, body) = match number % 4 {
                    0 => ("/v1/chat/completions", CHAT_STREAM),
                    1 => ("/generate", PROMPT),
                    _ => ("/v1/chat/completions", CHAT),
                };
                let request = Request::post(format!("{url}{path}"))
                    .header("content-type", "application/json")
                    .header("x-request-id", &id)
                    .body(Full::from(body));
                let Ok(answer) = client.request(request.unwrap()).await else {
                    return told;
                };
                if answer.into_body().collect().await.is_err() {
                    return told;
                }
                told.push(id);
            }
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

async fn ten_thousand_requests(store: Store) {
    const MANY: usize = 10_000;

    let backends = [backend().await, backend().await];
    let gateway = logging(&[&backends[0], &backends[1]], store).await;
    let told = ask(&gateway.url(), &Arc::default(), MANY, 16).await;
    assert_eq!(told.len(), MANY);
    assert_eq!(settled(&gateway, MANY as u64).await, (MANY as u64, 0));
    let rows = logged(&gateway).await;
    assert_eq!(ids(&rows), told);
    assert!(
        rows.iter()
            .all(|row| row["success"] == true && row["status"] == 200)
    );
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_are_all_in_sqlite() {
    let folder = Folder::new();
    let url = format!("sqlite:{}", folder.file().display());
    ten_thousand_requests(Store::at(url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_are_all_in_postgres() {
    let postgres = Postgres::start().await;
    ten_thousand_requests(Store::at(postgres.url())).await;
}

async fn stopped_under_load(args: &[&str]) {
    let backend = backend().await;
    let url = backend.url();
    let serving = [&["--listen", "127.0.0.1:0", "--backend", &url], args].concat();
    let (mut child, address, _) = serve(&[&serving[..], &["--rate-limit", "off"]].concat()).await;
    let url = format!("http://{address}");
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = asked.clone();
    let asking = tokio::spawn(async move { ask(&url, &counts, usize::MAX, 8).await });
    eventually("many have asked", async || asked.load(Relaxed) > 600).await;
    terminate(&child);
    let told = asking.await.unwrap();
    assert!(child.wait().await.unwrap().success());
    assert!(told.len() > 500, "{}", told.len());
    let export = [&["export", "--format", "jsonl"], args].concat();
    let output = program(&export).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let logged = ids(&rows);
    let lost: Vec<_> = told.difference(&logged).collect();
    assert!(lost.is_empty(), "answered and not logged: {lost:?}");
    // Beyond it there can only be those whose answers did not arrive, one for each caller.
    assert!(
        logged.len() <= told.len() + 8,
        "{} {}",
        logged.len(),
        told.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_under_load_every_request_that_was_answered_is_in_sqlite() {
    let folder = Folder::new();
    stopped_under_load(&["--data-dir", folder.shown()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_under_load_every_request_that_was_answered_is_in_postgres() {
    let postgres = Postgres::start().await;
    stopped_under_load(&["--store", &postgres.url()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_cut_off_at_the_end_is_in_the_log() {
    const MANY: usize = 90;

    let folder = Folder::new();
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let mut config = Config {
        data_dir: Some(folder.0.clone()),
        ..config(&[&backend])
    };
    config.server.shutdown_timeout = Duration::from_millis(50);
    let gateway = start(config).await;
    // Each request is a task of its own, and not one of its connection.
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let mut asking = JoinSet::new();
    for _ in 0..MANY {
        let request = posting(&gateway, "/generate", PROMPT);
        asking.spawn(client.request(request));
    }
    eventually("all are under way", async || backend.in_flight() == MANY).await;
    gateway.shutdown().await;
    let mut file = sqlite(&folder.file()).await;
    let count = sqlx::query("SELECT COUNT(*) FROM request_metrics WHERE verdict = 'canceled'");
    let count: i64 = count.fetch_one(&mut file).await.unwrap().get(0);
    assert_eq!(count, MANY as i64);
}
