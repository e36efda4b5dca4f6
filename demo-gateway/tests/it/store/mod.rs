//! The request log around a gateway that works: nothing is lost that is not counted, and no request waits for it.

mod complete;
mod outages;
mod rows;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use demo_backend::MockBackend;
use demo_gateway::{Config, Gateway, config::Store};
use http::{Method, StatusCode};
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};
use tokio::time::timeout;

use crate::support::{PROMPT, admin, config, eventually, get, post_with, start};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "palisade-log-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn shown(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn file(&self) -> PathBuf {
        self.0.join("requests.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn sqlite(path: &Path) -> SqliteConnection {
    let url = format!("sqlite:{}", path.display());
    SqliteConnection::connect(&url).await.unwrap()
}

/// Backends and this log.
async fn logging(backends: &[&MockBackend], store: Store) -> Gateway {
    start(Config {
        store,
        ..config(backends)
    })
    .await
}

async fn status(gateway: &Gateway) -> Value {
    get(gateway, "/status").await.json()["store"].take()
}

/// Waits until nothing waits to be written, and returns how many rows are written and how many there was no room for.
async fn settled(gateway: &Gateway, rows: u64) -> (u64, u64) {
    let sums = async || {
        let status = status(gateway).await;
        let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap();
        assert_eq!(number("/dropped/refused") + number("/dropped/shutdown"), 0);
        (number("/written"), number("/dropped/full"))
    };
    eventually("all rows are written or counted", async || {
        let (written, dropped) = sums().await;
        written + dropped == rows
    })
    .await;
    sums().await
}

/// The whole log, page by page.
async fn logged(gateway: &Gateway) -> Vec<Value> {
    let mut all = Vec::new();
    let mut query = "limit=1000".to_owned();
    loop {
        let path = format!("/admin/requests?{query}");
        let reply = admin(gateway, Method::GET, &path, "").await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let mut page = reply.json();
        let Value::Array(rows) = page["requests"].take() else {
            panic!("{page}");
        };
        all.extend(rows);
        match page["next"].as_i64() {
            Some(next) => query = format!("limit=1000&before={next}"),
            None => return all,
        }
    }
}

/// The ids of rows, each of which is there once.
fn ids(rows: &[Value]) -> BTreeSet<String> {
    let ids = rows.iter().map(|row| row["request_id"].as_str().unwrap());
    let ids: BTreeSet<_> = ids.map(str::to_owned).collect();
    assert_eq!(ids.len(), rows.len(), "none twice");
    ids
}

/// Asks, and holds that no request fails or takes as long as the database would let it wait.
async fn ask_undisturbed(gateway: &Gateway, name: &str, many: usize) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for number in 0..many {
        let id = format!("{name}-{number}");
        let headers = [("x-request-id", &*id)];
        let asking = post_with(gateway, "/generate", PROMPT, &headers);
        let reply = timeout(Duration::from_secs(2), asking).await;
        let reply = reply.expect("a request waits for the log");
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        told.insert(id);
    }
    told
}
