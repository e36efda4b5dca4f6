//! Prometheus and Alertmanager, as programs of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::support::{client, eventually};

const INSTALL: &str =
    "the tests need servers: apt-get install prometheus prometheus-alertmanager redis-server";

/// The folder with what is deployed.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// A folder of the test's own, which ends with it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "palisade-prometheus-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program to its end, and returns what it said if it was content.
pub(crate) fn run(program: &str, args: &[&Path]) -> String {
    let output = Command::new(program).args(args).output().expect(INSTALL);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = said(&output.stdout) + &said(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}:\n{told}");
    told
}

/// A server that runs, and ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Server {
    pub(crate) async fn prometheus(config: &Path, data: &Path) -> Self {
        Self::start("prometheus", |address| {
            vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", data.display()),
                format!("--web.listen-address={address}"),
                "--log.level=error".into(),
            ]
        })
        .await
    }

    pub(crate) async fn alertmanager(config: &Path, data: &Path) -> Self {
        Self::start("prometheus-alertmanager", |address| {
            vec![
                format!("--config.file={}", config.display()),
                format!("--storage.path={}", data.display()),
                format!("--web.listen-address={address}"),
                "--cluster.listen-address=".into(),
                "--log.level=error".into(),
            ]
        })
        .await
    }

    pub(crate) async fn redis(data: &Path) -> Self {
        let mut server = Self::start("redis-server", |address| {
            let (host, port) = address.rsplit_once(':').unwrap();
            let args = [
                "--bind",
                host,
                "--port",
                port,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ];
            let mut args = args.map(String::from).to_vec();
            args.push(data.display().to_string());
            args
        })
        .await;
        server.url = server.url.replace("http", "redis");
        server
    }

    async fn start(program: &str, args: impl Fn(&str) -> Vec<String>) -> Self {
        // Somebody else may take the port before the server does.
        for _ in 0..5 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            drop(listener);
            let child = Command::new(program)
                .args(args(&address))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .spawn();
            let mut server = Self {
                child: child.expect(INSTALL),
                url: format!("http://{address}"),
            };
            let mut ended = false;
            eventually(&format!("{program} is ready"), async || {
                ended = server.child.try_wait().unwrap().is_some();
                ended || server.is_ready(program).await
            })
            .await;
            if !ended {
                return server;
            }
        }
        panic!("{program} does not start");
    }

    async fn is_ready(&self, program: &str) -> bool {
        if program == "redis-server" {
            let address = self.url.strip_prefix("http://").unwrap();
            return tokio::net::TcpStream::connect(address).await.is_ok();
        }
        let answer = get(&format!("{}/-/ready", self.url)).await;
        answer.is_some_and(|(status, _)| status == 200)
    }

    /// What its API answers.
    pub(crate) async fn api(&self, path: &str) -> Value {
        let (status, body) = get(&format!("{}/api/v1/{path}", self.url)).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200, "{path}: {value}");
        value["data"].clone()
    }

    /// What an expression gives now.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={query}")).await;
        match data["resultType"].as_str() {
            Some("vector") => data["result"].as_array().unwrap().clone(),
            other => panic!("{expression}: {other:?}"),
        }
    }

    /// The first number that an expression gives.
    pub(crate) async fn number(&self, expression: &str) -> Option<f64> {
        let result = self.query(expression).await;
        result.first()?["value"][1].as_str()?.parse().ok()
    }

    /// All rules, as Prometheus has read them.
    pub(crate) async fn rules(&self) -> Vec<Value> {
        let data = self.api("rules").await;
        let groups = data["groups"].as_array().unwrap().iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.cloned().collect()
    }
}

async fn get(url: &str) -> Option<(u16, Bytes)> {
    let request = Request::get(url).body(Full::default()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), client().request(request));
    let (parts, body) = answer.await.ok()?.ok()?.into_parts();
    Some((parts.status.as_u16(), body.collect().await.ok()?.to_bytes()))
}
