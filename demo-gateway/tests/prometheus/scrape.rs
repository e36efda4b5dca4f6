//! A Prometheus that scrapes a gateway under load, with the files as they are deployed.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use bytes::Bytes;
use demo_backend::MockBackend;
use demo_gateway::{Config, Gateway, alerts::rules::rules, config::Notify};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    dashboards::dashboards,
    expressions::metrics,
    receiver::Receiver,
    servers::{Folder, Server, deploy},
    support::{CHAT_STREAM, PROMPT, backend, client, eventually, limited, start},
};

/// What a gateway has only after what does not happen here.
const SILENT_PANELS: [&str; 0] = [];

/// Recorded by Prometheus of itself, not scraped.
const OWN: [&str; 2] = ["ALERTS", "up"];

/// A text with others in the place of those that have to be there.
fn replaced(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "no `{old}` in {text}");
        text.replace(old, new)
    })
}

fn read(name: &str) -> String {
    fs::read_to_string(deploy().join(name)).unwrap()
}

/// The files of `deploy/`, faster and at other addresses.
async fn servers(
    folder: &Folder,
    gateway: &Gateway,
    config: &Config,
    webhook: &str,
) -> [Server; 2] {
    let alertmanager = replaced(
        &read("alertmanager/alertmanager.yml"),
        &[
            ("http://127.0.0.1:9900", webhook),
            ("group_wait: 30s", "group_wait: 0s"),
            ("group_wait: 10s", "group_wait: 0s"),
            ("group_interval: 5m", "group_interval: 500ms"),
        ],
    );
    let path = folder.write("alertmanager.yml", &alertmanager);
    let alertmanager = Server::alertmanager(&path, &folder.0.join("alerts")).await;
    for name in ["recording", "alerts"] {
        let name = format!("rules/{name}.yml");
        folder.write(&name, &read(&format!("prometheus/{name}")));
    }
    folder.write("rules/slo.yml", &rules(config).unwrap());
    let address = alertmanager.url.strip_prefix("http://").unwrap();
    let prometheus = replaced(
        &read("prometheus/prometheus.yml"),
        &[
            (
                "scrape_interval: 15s",
                "scrape_interval: 250ms\n  scrape_timeout: 250ms",
            ),
            ("evaluation_interval: 15s", "evaluation_interval: 250ms"),
            ("127.0.0.1:8000", &gateway.addr().to_string()),
            ("127.0.0.1:9093", address),
        ],
    );
    let path = folder.write("prometheus.yml", &prometheus);
    let prometheus = Server::prometheus(&path, &folder.0.join("samples")).await;
    [prometheus, alertmanager]
}

const CALLERS: usize = 80;

/// Between two requests of a caller.
const PAUSE: Duration = Duration::from_millis(300);

/// Callers of all kinds, until dropped.
struct Load(Vec<JoinHandle<()>>);

impl Load {
    fn on(gateway: &Gateway) -> Self {
        let url: Arc<str> = gateway.url().into();
        let callers = [
            ("/generate", PROMPT, "alice"),
            ("/v1/chat/completions", CHAT_STREAM, "bob"),
            // Over its limit, nearly always.
            ("/generate", PROMPT, "greedy"),
            ("/generate", "{", "careless"),
        ];
        // Without a backend a request waits for some seconds: many callers, so that many fail.
        let callers = callers.iter().cycle().take(CALLERS);
        let callers = callers.map(|&(path, body, user)| {
            let (url, client) = (url.clone(), client());
            tokio::spawn(async move {
                loop {
                    let request = Request::post(format!("{url}{path}"))
                        .header("content-type", "application/json")
                        .header("x-user-id", user)
                        .body(Full::from(body))
                        .unwrap();
                    if let Ok(answer) = client.request(request).await {
                        let _read = answer.into_body().collect().await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        Self(callers.collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Sets the faults of a backend as somebody would from outside.
async fn chaos(backend: &MockBackend, faults: &'static str) {
    let request = Request::post(format!("{}/chaos", backend.url()))
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(faults))
        .unwrap();
    let answer = client().request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// Whether somebody was told so of the page on the promise of availability.
fn paged(receiver: &Receiver, status: &str) -> bool {
    receiver.messages().iter().any(|message| {
        let mut alerts = message.body["alerts"].as_array().unwrap().iter();
        message.path == "/page"
            && alerts.any(|alert| {
                alert["status"] == status
                    && alert["labels"]["alertname"] == "ErrorBudgetBurn"
                    && alert["labels"]["rule"] == "availability"
                    && alert["labels"]["above"] == "14.4"
            })
    })
}

const PAGE: &str =
    r#"ALERTS{alertname="ErrorBudgetBurn",alertstate="firing",rule="availability",above="14.4"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_name_is_in_the_scrape_and_an_outage_pages_and_clears() {
    let folder = Folder::new();
    let redis = Server::redis(&folder.0).await;
    let backends = [backend().await, backend().await];
    let limits = format!(
        r#"
        [redis]
        url = "{}"
        deadline = "1s"

        [[rate_limits]]
        name = "per_user"
        identifier = "user"
        max_requests = 1000000
        window = "1m"

        [[rate_limits.exceptions]]
        identifier = "user:greedy"
        max_requests = 1
        "#,
        redis.url
    );
    let mut config = limited(&backends.each_ref(), &limits);
    config.health_interval = Duration::from_millis(500);
    config.circuit_breaker.cooldown = Duration::from_millis(500);
    config.circuit_breaker.longest_cooldown = Duration::from_secs(1);
    // An hour is half a minute, and 5 minutes are 2.5 seconds.
    config.objective.period = Duration::from_secs(6 * 3600);
    let receiver = Receiver::new(&[]).await;
    config.notify = Some(Notify::new(format!("{}/notify", receiver.url)));
    let gateway = start(config.clone()).await;
    let [prometheus, _alertmanager] = servers(&folder, &gateway, &config, &receiver.url).await;
    let load = Load::on(&gateway);

    let good = r#"sum(increase(palisade_sla_requests_total{verdict="success"}[30s]))"#;
    eventually("Prometheus has seen some traffic", async || {
        prometheus
            .number(good)
            .await
            .is_some_and(|seen| seen > 300.0)
    })
    .await;
    let burns = prometheus
        .query(r#"ALERTS{alertname="ErrorBudgetBurn"}"#)
        .await;
    assert!(burns.is_empty(), "{burns:?}");

    for backend in &backends {
        chaos(backend, r#"[{"fault":"error","status":500}]"#).await;
    }
    eventually("the page fires", async || {
        !prometheus.query(PAGE).await.is_empty()
    })
    .await;
    eventually("somebody is told", async || paged(&receiver, "firing")).await;
    every_rule_works(&prometheus).await;

    for backend in &backends {
        chaos(backend, "[]").await;
    }
    eventually("the page ends", async || {
        prometheus.query(PAGE).await.is_empty()
    })
    .await;
    eventually("somebody is told of that", async || {
        paged(&receiver, "resolved")
    })
    .await;

    every_name_is_in_the_scrape(&prometheus).await;
    every_panel_shows_something(&prometheus).await;
    drop(load);
    gateway.shutdown().await;
}

async fn every_rule_works(prometheus: &Server) {
    for rule in prometheus.rules().await {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

async fn every_name_is_in_the_scrape(prometheus: &Server) {
    let rules = prometheus.rules().await;
    let of_rules = rules
        .iter()
        .map(|rule| rule["query"].as_str().unwrap().to_owned());
    let boards = dashboards();
    let panels = boards.iter().flat_map(|board| &board.panels);
    let of_panels = panels.flat_map(|panel| &panel.targets);
    let of_panels = of_panels.map(|target| shown(&target.expr));
    let expressions: Vec<_> = of_rules.chain(of_panels).collect();
    let names: BTreeSet<_> = expressions.iter().flat_map(|it| metrics(it)).collect();
    assert!(names.len() > 40, "{names:?}");
    let mut missing = Vec::new();
    for name in names {
        let seen = prometheus
            .query(&format!("count(last_over_time({name}[5m]))"))
            .await;
        if seen.is_empty() && !OWN.contains(&&*name) {
            missing.push(name);
        }
    }
    assert_eq!(
        missing, [""; 0],
        "named in rules and dashboards, and not in the scrape"
    );
}

/// A panel's expression, with what Grafana puts in the place of its variables.
fn shown(expression: &str) -> String {
    let text = expression.replace("$__rate_interval", "5s");
    let text = text.replace("$job", "palisade-gateway");
    assert!(!text.contains('$'), "{text}");
    text
}

async fn every_panel_shows_something(prometheus: &Server) {
    for board in dashboards() {
        for panel in board.panels.iter().filter(|panel| panel.kind != "row") {
            for target in &panel.targets {
                let expression = shown(&target.expr);
                let name = format!("{} / {}: {expression}", board.title, panel.title);
                if SILENT_PANELS.contains(&&*panel.title) {
                    prometheus.query(&expression).await;
                    continue;
                }
                eventually(&name, async || {
                    let result = prometheus.query(&expression).await;
                    result.iter().any(is_a_number)
                })
                .await;
            }
        }
    }
}

fn is_a_number(sample: &Value) -> bool {
    let value = sample["value"][1]
        .as_str()
        .and_then(|text| text.parse::<f64>().ok());
    value.is_some_and(f64::is_finite)
}
