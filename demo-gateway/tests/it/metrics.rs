//! What a scrape of a gateway under load says, and whether all of it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use demo_backend::{Fault, MockBackend};
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use palisade::time;

use crate::support::{CHAT, CHAT_STREAM, PROMPT, Reply, backend, eventually, send};

/// What the layers say, and what the gateway does.
const TABLES: [&str; 2] = [
    include_str!("../../../src/metrics.md"),
    include_str!("../../src/metrics.md"),
];

/// What this gateway may have no part of: layers that are not in its stack, what is not configured, and what is learned.
const ELSEWHERE: [&str; 15] = [
    "palisade_sla_label_",
    "palisade_gateway_access_log_",
    "palisade_gateway_log_lines_",
    "palisade_gateway_spans_",
    "palisade_notify_",
    "palisade_store_",
    "palisade_chaos_",
    "palisade_throttle_",
    "palisade_quota_mirror_",
    "palisade_rate_limit_store_",
    "palisade_balance_discovery_",
    "palisade_balance_connect",
    "palisade_deadline_median_seconds",
    "palisade_deadline_timeout_seconds",
    "palisade_hedge_delay_seconds",
];

/// A program of its own: metrics are those of a process.
struct Program {
    child: Child,
    url: String,
}

impl Program {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-gateway"));
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
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

    async fn ask(&self, method: Method, path: &str, body: &str) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .header("x-user-id", "alice")
            .body(body.to_owned().into());
        send(request.unwrap()).await
    }

    async fn post(&self, path: &str, body: &str) -> Reply {
        self.ask(Method::POST, path, body).await
    }

    async fn scrape(&self) -> Page {
        let reply = self.ask(Method::GET, "/metrics", "").await;
        assert_eq!(
            reply.header("content-type"),
            "text/plain; version=0.0.4; charset=utf-8"
        );
        Page::read(reply.text())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page as Prometheus reads it.
struct Page {
    text: String,
    /// Kinds by name.
    families: BTreeMap<String, String>,
    /// Values by the whole name, labels included.
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn read(text: String) -> Self {
        let (mut families, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let twice = families.insert(name.to_owned(), kind.to_owned());
                assert_eq!(twice, None, "{name}");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let twice = samples.insert(series.to_owned(), value.parse().unwrap());
                assert_eq!(twice, None, "{series}");
            }
        }
        Self {
            text,
            families,
            samples,
        }
    }

    /// All series of that name together.
    fn sum(&self, name: &str) -> f64 {
        let all = self.samples.iter();
        let all = all.filter(|(series, _)| series.split('{').next() == Some(name));
        all.map(|(_, value)| value).sum()
    }

    /// The names of labels by the names of families.
    fn labels(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for series in self.samples.keys() {
            let (name, rest) = series.split_once('{').unwrap_or((series, ""));
            let of = self.family(name);
            let here = labels.entry(of.to_owned()).or_default();
            let names = rest
                .split("=\"")
                .map(|part| part.rsplit([',', '{', '"']).next());
            // What stands before each `="`.
            let mut names: Vec<_> = names.map(Option::unwrap_or_default).collect();
            names.pop();
            here.extend(
                names
                    .into_iter()
                    .filter(|name| *name != "le")
                    .map(str::to_owned),
            );
        }
        labels
    }

    fn family<'a>(&self, name: &'a str) -> &'a str {
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        base.filter(|base| self.families.contains_key(*base))
            .unwrap_or(name)
    }

    /// Buckets only grow with their bound, and the last has all there is.
    fn has_sound_histograms(&self) {
        let mut last: Option<(&str, f64)> = None;
        let mut seen = 0;
        // In the order of the page, which is that of the bounds.
        for line in self.text.lines().filter(|line| line.contains("_bucket{")) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (of, le) = series.split_once("le=\"").unwrap();
            let value: f64 = value.parse().unwrap();
            if let Some((before, below)) = last {
                assert!(before != of || value >= below, "{line}");
            }
            last = Some((of, value));
            if le == "+Inf\"}" {
                let (name, labels) = of.split_once("_bucket{").unwrap();
                let count = match labels.trim_end_matches(',') {
                    "" => format!("{name}_count"),
                    labels => format!("{name}_count{{{labels}}}"),
                };
                assert_eq!(self.samples[&count], value, "{count}");
                seen += 1;
            }
        }
        let histograms = self.families.values();
        assert!(seen >= histograms.filter(|kind| *kind == "histogram").count());
    }

    /// Whether nothing that only grows has become less since.
    fn goes_on_from(&self, before: &Self) {
        for (series, value) in &before.samples {
            let name = series.split('{').next().unwrap();
            let grows = before.families.get(before.family(name));
            if grows.is_some_and(|kind| kind != "gauge") {
                assert!(self.samples[series] >= *value, "{series}");
            }
        }
    }
}

/// The rows of the tables: name, kind and labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let rows = TABLES.iter().flat_map(|table| table.lines());
    let rows = rows.filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let kind = cells.next()?.split(',').next()?.to_owned();
        let labels = cells
            .next()?
            .split(", ")
            .map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        Some((name, (kind, labels)))
    });
    rows.collect()
}

/// The names that are in the sources of the layers.
fn named(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named(&path, names);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let constants = text.split("&str = \"palisade_").skip(1);
        let constants = constants.filter_map(|rest| rest.split('"').next());
        names.extend(constants.map(|name| format!("palisade_{name}")));
    }
}

#[test]
fn the_table_of_the_layers_has_every_name_in_their_sources_and_no_other() {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../layers");
    let mut names = BTreeSet::new();
    for layer in fs::read_dir(layers).unwrap() {
        let sources = layer.unwrap().path().join("src");
        if sources.is_dir() {
            named(&sources, &mut names);
        }
    }
    let table = TABLES[0]
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let table: BTreeSet<_> = table.filter_map(|line| line.split('`').next()).collect();
    assert!(names.len() > 40, "{names:?}");
    assert_eq!(
        names.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        table
    );
}

#[tokio::test]
async fn every_name_in_a_scrape_is_told_and_every_name_that_is_told_is_in_it() {
    let backend = backend().await;
    let folder = std::env::temp_dir().join(format!("palisade-metrics-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("gateway.toml");
    let toml = r#"
        [[rate_limits]]
        name = "callers"
        identifier = "user"
        max_requests = 75
        window = "24h"
        [fallbacks]
        "m" = ["other"]
    "#;
    fs::write(&file, toml).unwrap();
    let backend_at = format!("b={}", backend.url());
    let program = Program::start(&["--config", file.to_str().unwrap(), "--backend", &backend_at]);
    fs::remove_dir_all(&folder).unwrap();
    for _ in 0..70 {
        program.post("/generate", PROMPT).await;
    }
    program.post("/v1/chat/completions", CHAT).await;
    let stream = program.post("/v1/chat/completions", CHAT_STREAM).await;
    assert_eq!(stream.status, StatusCode::OK, "{}", stream.text());
    let page = program.scrape().await;
    let documented = documented();
    for (name, kind) in &page.families {
        let row = documented.get(name);
        let (told, _) = row.unwrap_or_else(|| panic!("{name} is told nowhere"));
        assert_eq!(told, kind, "{name}");
    }
    for (name, here) in page.labels() {
        let (_, told) = &documented[&name];
        assert!(
            here.is_subset(told),
            "{name}: {here:?}, and told are {told:?}"
        );
    }
    for name in documented.keys() {
        let may_miss = ELSEWHERE.iter().any(|start| name.starts_with(start));
        assert!(may_miss || page.families.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_gateway_under_load_counts_each_request_once_and_promtool_finds_no_fault() {
    const EACH: usize = 100;
    let backends = [backend().await, backend().await];
    let [one, other] = backends.each_ref().map(MockBackend::url);
    let (one, other) = (format!("one={one}"), format!("two={other}"));
    let program = Program::start(&[
        "--rate-limit",
        "off",
        "--backend",
        &one,
        "--backend",
        &other,
    ]);
    let asks = [
        ("/generate", PROMPT),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT_STREAM),
    ];
    let requests = (0..EACH)
        .flat_map(|_| asks)
        .map(|(path, body)| program.post(path, body));
    let load = stream::iter(requests).buffer_unordered(16);
    let mut load = std::pin::pin!(load.enumerate());
    let mut before: Option<Page> = None;
    while let Some((number, reply)) = load.next().await {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        if number % 60 == 0 {
            let page = program.scrape().await;
            page.has_sound_histograms();
            if let Some(before) = before.replace(page) {
                program.scrape().await.goes_on_from(&before);
            }
        }
    }
    let all = (EACH * asks.len()) as f64;
    // An answer is settled once its last byte is written, which is about when it is read.
    eventually("all are counted", async || {
        program
            .scrape()
            .await
            .sum("palisade_gateway_overhead_seconds_count")
            >= all
    })
    .await;
    let page = program.scrape().await;
    page.has_sound_histograms();
    for name in [
        "palisade_gateway_overhead_seconds_count",
        "llm_request_duration_seconds_count",
        "llm_requests_total",
        "gen_ai_server_request_duration_seconds_count",
        "palisade_sla_duration_seconds_count",
        "palisade_sla_requests_total",
        "palisade_balance_attempts_total",
    ] {
        assert_eq!(page.sum(name), all, "{name}");
    }
    let streams = "gen_ai_server_time_to_first_token_seconds_count";
    assert_eq!(page.sum(streams), EACH as f64);
    assert_eq!(page.sum("palisade_metrics_dropped_series_total"), 0.0);
    assert_eq!(page.sum("palisade_sla_in_flight"), 0.0);
    assert!(page.families.keys().is_sorted());
    let names: Vec<_> = page
        .text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    assert!(names.is_sorted(), "{names:?}");
    promtool(&page.text);
    let mut served = 0.0;
    for backend in &backends {
        let request = Request::get(format!("{}/metrics", backend.url()));
        let page = Page::read(
            send(request.body(String::new().into()).unwrap())
                .await
                .text(),
        );
        page.has_sound_histograms();
        promtool(&page.text);
        served += page.sum("llm_instance_requests_total");
        let answers = page.sum("llm_instance_duration_seconds_count");
        assert_eq!(answers, page.sum("llm_instance_requests_total"));
    }
    assert_eq!(served, all);
}

/// What Prometheus itself has to say of a page: nothing.
fn promtool(page: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().expect("promtool, of Debian's prometheus");
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let said = promtool.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&text), "");
    assert!(said.status.success());
}

#[tokio::test]
async fn to_wait_for_a_stream_is_no_work_and_each_of_a_batch_is_a_request() {
    let slow = MockBackend::builder()
        .first_token(Duration::from_millis(500))
        .tokens_per_second(20.0)
        .tokens(30)
        .start()
        .await
        .unwrap();
    let at = format!("slow={}", slow.url());
    let program = Program::start(&["--rate-limit", "off", "--backend", &at]);
    let overhead = async |count: f64| {
        let name = "palisade_gateway_overhead_seconds";
        eventually("it is recorded", async || {
            program.scrape().await.sum(&format!("{name}_count")) == count
        })
        .await;
        program.scrape().await.sum(&format!("{name}_sum"))
    };
    let since = time::now();
    let reply = program.post("/v1/chat/completions", CHAT_STREAM).await;
    let took = since.elapsed().as_secs_f64();
    assert!(reply.text().contains("[DONE]"), "{}", reply.text());
    assert!(took > 1.5, "{took}");
    let own = overhead(1.0).await;
    assert!(own > 0.0 && own < took / 4.0, "{own} of {took}");
    let batch = format!("{{\"requests\":[{PROMPT},{PROMPT},{{}}]}}");
    let reply = program.post("/generate/batch", &batch).await;
    assert_eq!(reply.json()["processed_count"], 3);
    // One that was wrong is a request, too.
    overhead(4.0).await;
    // A request that is refused before anything is asked of a backend.
    let reply = program.post("/generate", "{").await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    overhead(5.0).await;
    let page = program.scrape().await;
    assert_eq!(
        page.samples["palisade_gateway_answers_total{status=\"400\"}"],
        1.0
    );
}

#[tokio::test]
async fn what_is_the_callers_fault_says_nothing_about_the_backend() {
    let backend = MockBackend::builder().start().await.unwrap();
    let at = format!("strict={}", backend.url());
    let program = Program::start(&["--rate-limit", "off", "--backend", &at]);
    let answers = |status| demo_backend::Reply::status(status);
    backend.script([answers(400), answers(404)]);
    for expected in [400, 404] {
        let reply = program.post("/generate", PROMPT).await;
        assert_eq!(reply.status.as_u16(), expected, "{}", reply.text());
    }
    backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    assert_eq!(program.post("/generate", PROMPT).await.status.as_u16(), 502);
    let page = program.scrape().await;
    let of = |status: &str| {
        let name = format!("llm_requests_total{{backend=\"strict\",status=\"{status}\"}}");
        page.samples[&*name]
    };
    assert_eq!((of("success"), of("error")), (0.0, 1.0));
    let faults = "palisade_sla_requests_total{layer=\"gateway\",verdict=\"caller_fault\"}";
    assert_eq!(page.samples[faults], 2.0);
}
