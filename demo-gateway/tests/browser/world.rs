//! A gateway that runs as people run it, with backends and with callers.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use demo_backend::MockBackend;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::sleep,
};

use crate::cdp::Page;

pub(crate) const TOKEN: &str = "the-admin-token";

/// A backend that answers as a small model does.
pub(crate) async fn backend(id: &str) -> MockBackend {
    MockBackend::builder()
        .id(id)
        .first_token(Duration::from_millis(20))
        .tokens_per_second(2000.0)
        .tokens(40)
        .recording(0)
        .start()
        .await
        .unwrap()
}

/// The program. Dropped, it is gone.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) url: String,
    file: PathBuf,
}

impl Gateway {
    /// Starts one with these backends, and what else the configuration is to say.
    pub(crate) async fn start(backends: &[&MockBackend], more: &str) -> Self {
        Self::start_at("127.0.0.1:0", backends, more).await
    }

    pub(crate) async fn start_at(listen: &str, backends: &[&MockBackend], more: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let mut text = format!(
            "listen = {listen:?}\nadmin_token = {TOKEN:?}\nhealth_interval = \"500ms\"\n{more}\n"
        );
        for backend in backends {
            write!(
                text,
                "[[backends]]\nid = {:?}\nurl = {:?}\n",
                backend.id(),
                backend.url()
            )
            .unwrap();
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("dashboard-{}-{number}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-gateway"));
        command.arg("--config").arg(&file).kill_on_drop(true);
        for (name, _) in std::env::vars() {
            if name.starts_with("PALISADE_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next_line().await.unwrap().expect("it did not start");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let url = first.strip_prefix("listening on ").unwrap().to_owned();
        Self { child, url, file }
    }

    /// Where it listens, without the scheme.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Ends it as Ctrl-C does; how long that took.
    pub(crate) async fn stop(mut self) -> Duration {
        let id = self.child.id().unwrap().to_string();
        let since = palisade::time::now();
        let told = std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status();
        assert!(told.unwrap().success());
        assert!(self.child.wait().await.unwrap().success());
        since.elapsed()
    }

    /// Requests for a model that have ended, as `/metrics` counts them.
    pub(crate) async fn counted(&self) -> u64 {
        let page = get(&self.url, "/metrics").await;
        let lines = page
            .lines()
            .filter(|line| line.starts_with("llm_requests_total{"));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.file);
    }
}

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) async fn get(url: &str, path: &str) -> String {
    let answer = client().get(format!("{url}{path}").parse().unwrap()).await;
    let body = answer.unwrap().into_body().collect().await.unwrap();
    String::from_utf8(body.to_bytes().into()).unwrap()
}

/// Callers who ask until told to stop: plain requests and streams, of some users.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(url: &str, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let (url, stop, client) = (url.to_owned(), stop.clone(), client());
            set.spawn(async move {
                let user = ["alice", "bruno", "chen"][caller % 3];
                while !stop.load(Relaxed) {
                    let (path, body) = match caller % 2 {
                        0 => ("/generate", r#"{"prompt":"Why is the sky blue?"}"#),
                        _ => (
                            "/v1/chat/completions",
                            r#"{"model":"gpt-3.5-turbo","stream":true,"messages":[{"role":"user","content":"Hi"}]}"#,
                        ),
                    };
                    let request = Request::post(format!("{url}{path}"))
                        .header("content-type", "application/json")
                        .header("x-user-id", user)
                        .body(Full::from(body));
                    // What becomes of it is the gateway's to tell.
                    if let Ok(answer) = client.request(request.unwrap()).await {
                        let _end = answer.into_body().collect().await;
                    }
                    sleep(Duration::from_millis(60)).await;
                }
            });
        }
        Self { stop, callers: set }
    }

    /// Waits for the last answers.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Relaxed);
        while self.callers.join_next().await.is_some() {}
    }
}

/// What assistive technology would stumble over, in the page as it is.
pub(crate) async fn check_access(page: &Page, view: &str) {
    let file = std::env::var_os("PALISADE_AXE").map(PathBuf::from);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let file = file.unwrap_or_else(|| target.join("axe/axe.min.js"));
    let axe = std::fs::read_to_string(&file).unwrap_or_else(|error| {
        let path = file.display();
        panic!("axe-core is not here ({path}: {error}): tests/run fetches it, or set PALISADE_AXE")
    });
    if page.eval("typeof axe").await == "undefined" {
        page.eval(&format!("{axe}; true")).await;
    }
    let found = page
        .eval(
            "axe.run(document, { resultTypes: ['violations'] }).then(r => r.violations.flatMap(v =>
               v.nodes.map(n => `${v.id}: ${n.target} ${n.failureSummary}`)))",
        )
        .await;
    assert_eq!(found, serde_json::json!([]), "{view}: {found:#}");
}

/// Nothing is wider than the page, and what can be pressed is large enough for a finger.
pub(crate) async fn check_fit(page: &Page, view: &str) {
    let wide = page
        .eval(
            "(() => { const d = document.documentElement; return d.scrollWidth <= d.clientWidth ? [] :
               [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > d.clientWidth + 1)
                 .map(e => `${e.tagName}.${e.className} #${e.id}`).slice(0, 9); })()",
        )
        .await;
    assert_eq!(wide, serde_json::json!([]), "{view}: wider than the page");
    let small = page
        .eval(
            "[...document.querySelectorAll('button, select, input, .checks a')]
               .map(e => [e.id || e.textContent, e.getBoundingClientRect()])
               .filter(([, r]) => r.width && (r.width < 24 || r.height < 24)).map(([name, r]) => `${name} ${r.width}x${r.height}`)",
        )
        .await;
    assert_eq!(small, serde_json::json!([]), "{view}: too small");
}

/// No error was logged, and nothing was asked of another host.
pub(crate) fn check_quiet(page: &Page, gateway: &str) {
    let own = |text: &str| {
        text.contains("the server responded with a status of") || text.contains("net::ERR_")
    };
    for said in page.events("Runtime.consoleAPICalled") {
        assert!(
            said["type"] != "error" && said["type"] != "warning",
            "{said:#}"
        );
    }
    for entry in page.events("Log.entryAdded") {
        let entry = &entry["entry"];
        // Chromium writes a line of its own for each answer of 401 or 503, and for each connection that is refused.
        let text = entry["text"].as_str().unwrap();
        let is_own = entry["source"] == "network" && own(text);
        assert!(entry["level"] != "error" || is_own, "{entry:#}");
    }
    let thrown = page.events("Runtime.exceptionThrown");
    assert!(thrown.is_empty(), "{thrown:#?}");
    let asked = page.events("Network.requestWillBeSent");
    assert!(asked.len() > 10, "{}", asked.len());
    for request in asked {
        let url = request["request"]["url"].as_str().unwrap();
        assert!(url.starts_with(gateway) || url == "about:blank", "{url}");
    }
}
