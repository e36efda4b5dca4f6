//! The program and a collector: one trace for each request, with a span for each attempt.

mod collector;
mod headers;

use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use demo_backend::{Fault, MockBackend, Reply};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};

use self::collector::{Collector, Seen};
use crate::support::{
    CHAT, CHAT_STREAM, PROMPT, Reply as Answer, asked, backend, eventually, open, send,
};

/// The program, and the file that says what it does.
struct Program {
    child: Child,
    url: String,
    file: PathBuf,
}

impl Program {
    async fn start(toml: &str, backends: &[&MockBackend]) -> Self {
        Self::start_with(toml, backends, &[]).await
    }

    async fn start_with(toml: &str, backends: &[&MockBackend], variables: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let name = format!("palisade-traces-{}-{number}.toml", std::process::id());
        let file = std::env::temp_dir().join(name);
        let mut text = format!(
            "listen = \"127.0.0.1:0\"\nstrategy = \"round_robin\"\nhealth_interval = \"1h\"\n{toml}\n"
        );
        for (backend, id) in backends.iter().zip('a'..) {
            text += &format!("[[backends]]\nid = \"{id}\"\nurl = \"{}\"\n", backend.url());
        }
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-gateway"));
        for (name, _) in std::env::vars() {
            if name.starts_with("PALISADE_") || name.starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["--config", file.to_str().unwrap()])
            .envs(variables.iter().copied())
            .kill_on_drop(true)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        let url = first.strip_prefix("listening on ").unwrap().to_owned();
        // Else it would stop at its next word.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, url, file }
    }

    fn request(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::from(body.to_owned())).unwrap()
    }

    async fn ask(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        send(self.request(path, body, headers)).await
    }

    /// The value of a line of the metrics page that begins so.
    async fn metric(&self, line: &str) -> f64 {
        let page = self.ask("/metrics", "", &[]).await.text();
        let found = page.lines().find_map(|text| text.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Ends it as an operator does. How long that took.
    async fn stop(&mut self) -> Duration {
        let id = self.child.id().unwrap().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status();
        assert!(killed.unwrap().success());
        let begun = now();
        assert!(self.child.wait().await.unwrap().success());
        begun.elapsed()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.file);
    }
}

fn now() -> Instant {
    palisade::time::now()
}

fn traced(collector: &Collector, more: &str) -> String {
    format!(
        "rate_limit = \"off\"\n[trace]\notlp = \"{}\"\n{more}",
        collector.url()
    )
}

/// A trace that a caller has begun.
fn parent(number: u32) -> (String, String) {
    let trace = format!("{:032x}", 0xabc0_0000_u32 + number);
    (trace.clone(), format!("00-{trace}-00f067aa0ba902b7-01"))
}

async fn arrived(collector: &Collector, trace: &str, many: usize) -> Vec<Seen> {
    eventually("all spans of the trace", async || {
        collector.trace(trace).len() >= many
    })
    .await;
    let seen = collector.trace(trace);
    assert_eq!(seen.len(), many, "{seen:#?}");
    seen
}

fn request_and_attempts(seen: &[Seen]) -> (&Seen, Vec<&Seen>) {
    let requests: Vec<_> = seen.iter().filter(|seen| seen.is_request()).collect();
    assert_eq!(requests.len(), 1, "{seen:#?}");
    (
        requests[0],
        seen.iter().filter(|seen| seen.is_attempt()).collect(),
    )
}

/// One request whose first attempt fails, through a gateway that tells this collector.
async fn tried_twice(collector: &Collector, protocol: &str) {
    let (first, second) = (backend().await, backend().await);
    first.script([Reply::status(500)]);
    let more = format!("protocol = \"{protocol}\"\nservice_name = \"shop\"");
    let gateway = Program::start(&traced(collector, &more), &[&first, &second]).await;
    let mut twice = None;
    for number in 0..4 {
        let (trace, parent) = parent(number);
        let headers = [("traceparent", &*parent), ("tracestate", "vendor=1")];
        let answer = gateway.ask("/v1/chat/completions", CHAT, &headers).await;
        assert_eq!(answer.status, StatusCode::OK);
        if answer.header("x-attempts") == "2" {
            twice = Some((trace, answer));
            break;
        }
    }
    let (trace, answer) = twice.expect("the one that meets the failure");
    let seen = arrived(collector, &trace, 3).await;
    let (request, attempts) = request_and_attempts(&seen);
    assert_eq!(request.parent(), "00f067aa0ba902b7");
    assert_eq!(request.span.name, "POST /v1/chat/completions");
    assert_eq!(request.resource["service.name"], "shop");
    assert_eq!(
        request.resource["service.version"],
        env!("CARGO_PKG_VERSION")
    );
    assert!(!request.resource["service.instance.id"].is_empty());
    let usage = &answer.json()["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap().to_string();
    for (key, value) in [
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        (
            "http.request.header.x-request-id",
            answer.header("x-request-id"),
        ),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.input_tokens", &tokens("prompt_tokens")),
        ("gen_ai.usage.output_tokens", &tokens("completion_tokens")),
        ("palisade.verdict", "success"),
        ("palisade.attempts", "2"),
        ("palisade.backend", "b"),
        ("error.type", ""),
    ] {
        assert_eq!(request.says(key), value, "{key}");
    }
    assert!(!request.is_error());
    let [failed, fine] = &attempts[..] else {
        panic!("{seen:#?}")
    };
    for (attempt, backend, number) in [(failed, &first, ""), (fine, &second, "1")] {
        assert_eq!(attempt.parent(), request.id());
        assert_eq!(attempt.span.name, "chat m");
        assert_eq!(attempt.says("http.request.resend_count"), number);
        let address = backend.addr();
        assert_eq!(attempt.says("server.address"), address.ip().to_string());
        assert_eq!(attempt.says("server.port"), address.port().to_string());
        // The backend's spans are below this attempt's.
        let told = format!("00-{trace}-{}-01", attempt.id());
        let is_told = |seen: &demo_backend::Seen| {
            seen.headers["traceparent"] == *told && seen.headers["tracestate"] == "vendor=1"
        };
        assert!(asked(backend).iter().any(is_told), "{told}");
        let within = |at: u64| {
            (request.span.start_time_unix_nano..=request.span.end_time_unix_nano).contains(&at)
        };
        let span = &attempt.span;
        assert!(within(span.start_time_unix_nano) && within(span.end_time_unix_nano));
    }
    assert_eq!(failed.says("error.type"), "500");
    assert_eq!(failed.says("palisade.verdict"), "failure");
    assert!(failed.is_error());
    assert_eq!(fine.says("palisade.verdict"), "success");
    assert_eq!(
        fine.says("gen_ai.usage.output_tokens"),
        tokens("completion_tokens")
    );
    assert!(!fine.is_error());
}

#[tokio::test]
async fn a_request_that_was_tried_twice_is_one_trace_over_http() {
    tried_twice(&Collector::http().await, "http").await;
}

#[tokio::test]
async fn a_request_that_was_tried_twice_is_one_trace_over_grpc() {
    tried_twice(&Collector::grpc().await, "grpc").await;
}

#[tokio::test]
async fn a_stream_that_is_cut_and_a_caller_who_leaves_are_told_apart() {
    let collector = Collector::http().await;
    let backend = backend().await;
    let gateway = Program::start(&traced(&collector, ""), &[&backend]).await;

    backend.script([Reply::tokens(10).fault(Fault::reset(3))]);
    let (trace, cut) = parent(1);
    let headers = [("traceparent", &*cut)];
    let answer = gateway
        .ask("/v1/chat/completions", CHAT_STREAM, &headers)
        .await;
    assert!(answer.text().contains("event: error"), "{}", answer.text());
    let seen = arrived(&collector, &trace, 2).await;
    let (request, attempts) = request_and_attempts(&seen);
    assert_eq!(request.says("http.response.status_code"), "200");
    assert_eq!(request.says("gen_ai.request.stream"), "true");
    for span in [request, attempts[0]] {
        assert_eq!(span.says("palisade.verdict"), "failure");
        assert!(span.is_error());
        let first: f64 = span
            .says("gen_ai.response.time_to_first_chunk")
            .parse()
            .unwrap();
        assert!(first > 0.0 && first <= span.seconds(), "{first}");
    }
    assert!(!request.says("palisade.why").is_empty());

    backend.script([Reply::tokens(10).fault(Fault::stall(3))]);
    let (trace, left) = parent(2);
    let headers = [("traceparent", &*left)];
    let asks = gateway.request("/v1/chat/completions", CHAT_STREAM, &headers);
    let mut body = open(asks).await.into_body();
    body.frame().await.unwrap().unwrap();
    let waited = Duration::from_millis(300);
    tokio::time::sleep(waited).await;
    drop(body);
    let seen = arrived(&collector, &trace, 2).await;
    let (request, attempts) = request_and_attempts(&seen);
    for span in [request, attempts[0]] {
        assert_eq!(span.says("palisade.verdict"), "canceled");
        assert!(!span.is_error());
        // It ended when the caller left, and not with the last that was sent.
        assert!(span.seconds() >= waited.as_secs_f64(), "{}", span.seconds());
    }
}

#[tokio::test]
async fn another_model_that_is_asked_instead_is_named_by_its_attempts() {
    let collector = Collector::http().await;
    let backend = backend().await;
    backend.script([Reply::status(500), Reply::tokens(2)]);
    let more = "[retry]\nattempts = 1\n[fallbacks]\nm = [\"n\"]";
    let gateway = Program::start(&traced(&collector, more), &[&backend]).await;
    let (trace, parent) = parent(1);
    let headers = [("traceparent", &*parent)];
    let answer = gateway.ask("/v1/chat/completions", CHAT, &headers).await;
    assert_eq!(answer.header("x-fallback"), "n", "{}", answer.text());
    let seen = arrived(&collector, &trace, 3).await;
    let (request, attempts) = request_and_attempts(&seen);
    assert_eq!(request.says("gen_ai.request.model"), "m");
    let names: Vec<_> = attempts.iter().map(|attempt| &*attempt.span.name).collect();
    assert_eq!(names, ["chat m", "chat n"]);
    assert_eq!(attempts[1].says("gen_ai.request.model"), "n");
}

#[tokio::test]
async fn a_refusal_says_why() {
    let collector = Collector::http().await;
    let backend = backend().await;
    let toml = format!(
        "[trace]\notlp = \"{}\"\n[[rate_limits]]\nname = \"one\"\nidentifier = \"user\"\n\
         max_requests = 1\nwindow = \"1h\"\n",
        collector.url()
    );
    let gateway = Program::start(&toml, &[&backend]).await;
    for (number, status) in [(1, StatusCode::OK), (2, StatusCode::TOO_MANY_REQUESTS)] {
        let parent = parent(number).1;
        let headers = [("x-user-id", "alice"), ("traceparent", &*parent)];
        let answer = gateway.ask("/generate", PROMPT, &headers).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    let seen = arrived(&collector, &parent(2).0, 1).await;
    let (request, _) = request_and_attempts(&seen);
    assert_eq!(request.says("palisade.verdict"), "refused");
    assert_eq!(request.says("palisade.reason"), "rate_limited");
    assert_eq!(request.says("palisade.rule"), "one");
    assert_eq!(request.says("palisade.caller"), "user:alice");
    assert!(!request.says("palisade.why").is_empty());
    // It is the caller who asked too often.
    assert!(!request.is_error());
}

#[tokio::test]
async fn each_of_a_batch_has_a_span_and_its_attempts_are_below_it() {
    let collector = Collector::http().await;
    let backend = backend().await;
    let gateway = Program::start(&traced(&collector, ""), &[&backend]).await;
    let (trace, parent) = parent(1);
    let batch = r#"{"requests":[{"prompt":"a"},{"prompt":"b"},{"no":1}]}"#;
    let headers = [("traceparent", &*parent)];
    let answer = gateway.ask("/generate/batch", batch, &headers).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = arrived(&collector, &trace, 1 + 3 + 2).await;
    let (request, attempts) = request_and_attempts(&seen);
    let items: Vec<_> = seen
        .iter()
        .filter(|seen| seen.span.name == "item")
        .collect();
    assert_eq!((items.len(), attempts.len()), (3, 2));
    assert!(items.iter().all(|item| item.parent() == request.id()));
    for attempt in attempts {
        let item = items.iter().find(|item| item.id() == attempt.parent());
        assert_eq!(item.unwrap().says("palisade.verdict"), "success");
    }
    let wrong = items
        .iter()
        .find(|item| item.says("palisade.attempts") == "0");
    assert_eq!(wrong.unwrap().says("palisade.verdict"), "caller_fault");
}

#[tokio::test]
async fn what_nobody_samples_is_not_sent_and_the_callers_choice_counts() {
    let collector = Collector::http().await;
    let backend = backend().await;
    let mut gateway = Program::start(&traced(&collector, "sample = 0.0"), &[&backend]).await;
    for _ in 0..5 {
        gateway.ask("/generate", PROMPT, &[]).await;
        gateway.ask("/livez", "", &[]).await;
    }
    let (unsampled, parent_of_it) = parent(1);
    let without = format!("{}00", &parent_of_it[..53]);
    gateway
        .ask("/generate", PROMPT, &[("traceparent", &without)])
        .await;
    let (sampled, with) = parent(2);
    gateway
        .ask("/generate", PROMPT, &[("traceparent", &with)])
        .await;
    gateway.stop().await;
    assert_eq!(collector.trace(&unsampled).len(), 0);
    let seen = collector.seen();
    assert_eq!(seen.len(), 2, "a request and its attempt: {seen:#?}");
    assert!(seen.iter().all(|seen| seen.trace() == sampled));
    // The backend hears of a trace all the same.
    let told = asked(&backend);
    assert!(
        told.iter()
            .all(|seen| seen.headers.contains_key("traceparent"))
    );
    let unsampled = told.iter().find(|seen| {
        let parent = seen.headers["traceparent"].to_str().unwrap();
        parent.contains(&unsampled)
    });
    let told = unsampled.unwrap().headers["traceparent"].to_str().unwrap();
    assert!(told.ends_with("-00") && told != without, "{told}");
}

#[tokio::test]
async fn nothing_that_has_ended_is_lost_when_the_program_is_stopped() {
    let collector = Collector::http().await;
    let backend = backend().await;
    let mut gateway = Program::start(&traced(&collector, ""), &[&backend]).await;
    const MANY: usize = 700;
    for number in 0..MANY {
        let path = if number % 2 == 0 {
            "/generate"
        } else {
            "/nothing-here"
        };
        gateway.ask(path, PROMPT, &[]).await;
    }
    gateway.stop().await;
    let seen = collector.seen();
    let requests = seen.iter().filter(|seen| seen.is_request()).count();
    let attempts = seen.iter().filter(|seen| seen.is_attempt()).count();
    assert_eq!((requests, attempts), (MANY, MANY / 2));
    let mut traces: Vec<_> = seen.iter().map(Seen::trace).collect();
    traces.sort();
    traces.dedup();
    assert_eq!(traces.len(), MANY);
    // Paths that callers make up are no names.
    let unknown = seen
        .iter()
        .find(|seen| seen.says("http.response.status_code") == "404");
    assert_eq!(unknown.unwrap().span.name, "POST");
}

#[tokio::test]
async fn a_collector_that_says_nothing_delays_no_request_and_no_end() {
    let collector = Collector::mute().await;
    let backend = backend().await;
    let mut gateway = Program::start(&traced(&collector, ""), &[&backend]).await;
    let item = r#"{"prompt":"hi","max_tokens":1}"#;
    let batch = format!(r#"{{"requests":[{}]}}"#, [item; 100].join(","));
    // Two thousand spans: four batches, for each of which the collector would be waited for 5 s.
    for _ in 0..10 {
        let begun = now();
        let answer = gateway.ask("/generate/batch", &batch, &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
    }
    let took = gateway.stop().await;
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn what_no_collector_gets_is_counted() {
    let collector = Collector::http().await;
    let toml = traced(&collector, "");
    drop(collector);
    let backend = backend().await;
    let gateway = Program::start(&toml, &[&backend]).await;
    for _ in 0..10 {
        assert_eq!(
            gateway.ask("/generate", PROMPT, &[]).await.status,
            StatusCode::OK
        );
    }
    let lost = "palisade_gateway_spans_dropped_total{reason=\"export_failed\"} ";
    eventually("all that were lost are counted", async || {
        gateway.metric(lost).await >= 20.0
    })
    .await;
    assert_eq!(
        gateway.metric(lost).await,
        20.0,
        "ten requests and their attempts"
    );
}
