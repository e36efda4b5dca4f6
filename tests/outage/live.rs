//! Backends come, go and differ, and the way they are chosen changes, while callers go on.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade::balance::{
    Strategy,
    simulation::{Group, Policy, Scenario, Size, Workload},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    SECOND,
    load::{Load, assert_all_well, share},
    support::{HttpClient, Running, http_client, program, send},
};

const TOKEN: &str = "the-admin-token";

/// What each of the fast ones takes for a request; the slow one takes ten times as long.
const FAST: Duration = Duration::from_millis(100);
const SLOW: Duration = SECOND;
/// Each works on so many requests at the same time.
const SLOTS: u32 = 4;
/// Two fast ones and a slow one can do 84 per second.
const RATE: f64 = 60.0;

fn backend(id: &str, takes: Duration) -> Running {
    let mut command = program("demo-backend");
    let takes = format!("{}ms", takes.as_millis());
    command.args([
        "--id",
        id,
        "--listen",
        "127.0.0.1:0",
        "--first-token",
        &takes,
    ]);
    command.args(["--slots", &SLOTS.to_string(), "--tokens-per-second", "0"]);
    // Seldom enough events for a stream that drips to last a while.
    command.args(["--tokens", "40"]);
    Running::start(command)
}

fn gateway(strategy: Strategy, backends: &[(&str, &Running)]) -> Running {
    let mut command = program("demo-gateway");
    command.args(["serve", "--listen", "127.0.0.1:0", "--rate-limit", "off"]);
    command.args(["--admin-token", TOKEN, "--strategy", strategy.name()]);
    for (id, backend) in backends {
        command.arg("--backend");
        command.arg(format!("{id}=http://{}", backend.address));
    }
    Running::start(command)
}

/// What the simulator says of each one's share, with so many fast ones before the slow one.
fn predicted(strategy: Strategy, fast: usize, requests: usize) -> (f64, f64) {
    let slow = FAST.as_secs_f64() / SLOW.as_secs_f64();
    let speeds = fast as f64 + slow;
    let workload = Workload {
        size: Size::Constant,
        mean: FAST.as_secs_f64(),
        // A plain answer comes as a whole: its first byte is there when the work is done.
        first_data: None,
        endpoints: vec![
            Group::of(fast).slots(SLOTS),
            Group::of(1).slots(SLOTS).speed(slow),
        ],
        ..Workload::default()
    };
    let capacity = speeds * f64::from(SLOTS) / FAST.as_secs_f64();
    let scenario = Scenario::of(workload)
        .load(RATE / capacity)
        .requests(requests);
    let report = palisade::balance::simulation::run(&scenario, Policy::Reports(strategy)).unwrap();
    (report.shares[0], report.shares[fast])
}

async fn ask(
    client: &HttpClient,
    gateway: &Running,
    method: Method,
    path: &str,
    body: Value,
) -> Value {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", gateway.address))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json");
    let body = Full::new(Bytes::from(body.to_string()));
    let answer = send(client, request.body(body).unwrap()).await.unwrap();
    let told = String::from_utf8_lossy(answer.body()).into_owned();
    assert_eq!(answer.status(), StatusCode::OK, "{path}: {told}");
    serde_json::from_str(&told).unwrap()
}

/// A stream: who sends it, and all of it when it has ended.
async fn stream(client: &HttpClient, gateway: &Running) -> (String, JoinHandle<Bytes>) {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let request = Request::post(format!("http://{}/v1/chat/completions", gateway.address))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(body.as_bytes())));
    let (head, body) = client.request(request.unwrap()).await.unwrap().into_parts();
    assert_eq!(head.status, StatusCode::OK);
    let backend = head.headers["x-backend-id"].to_str().unwrap().to_owned();
    let whole = tokio::spawn(async { body.collect().await.unwrap().to_bytes() });
    (backend, whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_ten_times_slower_one_comes_and_one_goes_and_no_caller_sees_it() {
    let (b0, b1, b2) = (
        backend("b0", FAST),
        backend("b1", FAST),
        backend("b2", SLOW),
    );
    let gateway = gateway(Strategy::Adaptive, &[("b0", &b0), ("b1", &b1), ("b2", &b2)]);
    let client = http_client();
    let mut load = Load::poisson(RATE, 0x9e37_79b9_7f4a_7c15, &gateway);
    load.until(15 * SECOND).await;

    let b3 = backend("b3", FAST);
    let added = json!({"id": "b3", "url": format!("http://{}", b3.address)});
    ask(&client, &gateway, Method::POST, "/admin/add-backend", added).await;
    load.until(load.age() + 15 * SECOND).await;
    let settled = load.age();

    // The one that goes is sending streams, slowly.
    let drip = r#"{"fault":"drip","bytes":200,"every":"50ms","share":1}"#;
    let chaos = Request::post(format!("http://{}/chaos", b0.address));
    let dripping = send(&client, chaos.body(Full::from(drip)).unwrap()).await;
    assert_eq!(dripping.unwrap().status(), StatusCode::OK);
    let mut streams = Vec::new();
    let mut there = 0;
    for _ in 0..30 {
        let (backend, whole) = stream(&client, &gateway).await;
        there += u32::from(backend == "b0");
        streams.push(whole);
        load.until(load.age() + Duration::from_millis(20)).await;
        if there == 3 {
            break;
        }
    }
    assert_eq!(there, 3, "streams at the one that is to go");
    let gone = ask(
        &client,
        &gateway,
        Method::DELETE,
        "/admin/remove-backend/b0",
        json!({}),
    )
    .await;
    let drained = load.age();
    let told = gone["message"].as_str().unwrap();
    assert!(told.contains("finishes"), "{told}");
    load.until(drained + 5 * SECOND).await;
    for stream in streams {
        let body = stream.await.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    }
    let end = load.age();
    let outcomes = load.end().await;

    assert_all_well(&outcomes);
    let before = |id| share(&outcomes, id, 3 * SECOND, 15 * SECOND);
    let after = |id| share(&outcomes, id, settled - 4 * SECOND, settled);
    let (fast, slow) = (before("b0").min(before("b1")), before("b2"));
    let (fast_predicted, slow_predicted) = predicted(Strategy::Adaptive, 2, 20_000);
    let (new_predicted, _) = predicted(Strategy::Adaptive, 3, 20_000);
    println!(
        "shares: fast {fast:.3} (predicted {fast_predicted:.3}), slow {slow:.4} (predicted {slow_predicted:.4}), \
         added {:.3} (predicted {new_predicted:.3})",
        after("b3")
    );
    // 720 requests: one at a tenth of the speed gets less than a tenth of what a fast one gets.
    assert!(slow < fast / 10.0, "slow {slow}, fast {fast}");
    assert!(
        (slow - slow_predicted).abs() < 0.02,
        "{slow} {slow_predicted}"
    );
    assert!(
        (fast - fast_predicted).abs() < 0.08,
        "{fast} {fast_predicted}"
    );
    // 240 requests, at the end of its slow start.
    assert!(after("b3") > new_predicted / 2.0, "{}", after("b3"));
    assert_eq!(share(&outcomes, "b0", drained, end), 0.0);
    let health = ask(&client, &gateway, Method::GET, "/health", json!({})).await;
    let left = health["load_balancer"]["backends"].as_array().unwrap();
    let left: Vec<_> = left.iter().map(|backend| &backend["id"]).collect();
    assert_eq!(left, ["b1", "b2", "b3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_strategy_takes_over_under_load_and_nothing_is_lost() {
    let backends = [
        backend("b0", FAST),
        backend("b1", FAST),
        backend("b2", 2 * FAST),
    ];
    let [b0, b1, b2] = &backends;
    let gateway = gateway(Strategy::RoundRobin, &[("b0", b0), ("b1", b1), ("b2", b2)]);
    let client = http_client();
    // A third of it is what the slowest can do.
    let mut load = Load::poisson(45.0, 0x2545_f491_4f6c_dd1d, &gateway);
    let mut spans = Vec::new();
    for strategy in Strategy::ALL.into_iter().chain([Strategy::Adaptive]) {
        let chosen = json!({"strategy": strategy.name()});
        ask(&client, &gateway, Method::POST, "/admin/strategy", chosen).await;
        let from = load.age();
        load.until(from + 2 * SECOND).await;
        spans.push((strategy, from, load.age()));
    }
    let outcomes = load.end().await;
    assert_all_well(&outcomes);
    for (strategy, from, to) in spans {
        let shares = ["b0", "b1", "b2"].map(|id| share(&outcomes, id, from, to));
        println!("{strategy}: {shares:.2?}");
        // One and the same prompt belongs to one and the same backend.
        if strategy != Strategy::ConsistentHash {
            assert!(
                shares.iter().all(|share| *share < 0.75),
                "{strategy}: {shares:?}"
            );
        }
    }
    let health = ask(&client, &gateway, Method::GET, "/health", json!({})).await;
    for backend in health["load_balancer"]["backends"].as_array().unwrap() {
        assert_eq!(backend["current_connections"], 0, "{backend}");
        assert_eq!(backend["error_count"], 0, "{backend}");
    }
}
