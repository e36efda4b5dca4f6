//! Backends die, fail, come and go while callers go on: real processes, real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod live;
mod load;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use load::{Load, assert_all_well, share};
use support::{HttpClient, Running, free_port, program, send};

const SECOND: Duration = Duration::from_secs(1);
/// 200 requests a second.
const EVERY: Duration = Duration::from_millis(5);

fn backend(id: &str, port: u16, faults: &[&str]) -> Running {
    let mut command = program("demo-backend");
    command.args(["--id", id, "--listen", &format!("127.0.0.1:{port}")]);
    // 60 requests in flight at 200 a second: each takes 300 ms.
    command.args([
        "--slots",
        "1000",
        "--first-token",
        "300ms",
        "--tokens-per-second",
        "0",
    ]);
    command.args(["--tokens", "5"]);
    for fault in faults {
        command.args(["--fault", fault]);
    }
    Running::start(command)
}

fn gateway(backends: &[&Running]) -> Running {
    let mut command = program("demo-gateway");
    command.args(["serve", "--listen", "127.0.0.1:0", "--rate-limit", "off"]);
    command.args(["--health-interval", "1s"]);
    for (at, backend) in backends.iter().enumerate() {
        command.arg("--backend");
        command.arg(format!("b{at}=http://{}", backend.address));
    }
    Running::start(command)
}

/// How many attempts the gateway has made at a backend, also those that it hid from its callers.
async fn attempts_at(id: &str, gateway: &Running, client: &HttpClient) -> u32 {
    let request = Request::get(format!("http://{}/health", gateway.address));
    let request = request.body(Full::default()).unwrap();
    let health = send(client, request).await.unwrap();
    let health: serde_json::Value = serde_json::from_slice(health.body()).unwrap();
    let backends = health["load_balancer"]["backends"].as_array().unwrap();
    let backend = backends.iter().find(|backend| backend["id"] == id).unwrap();
    let attempts = backend["total_requests"].as_u64().unwrap();
    u32::try_from(attempts).unwrap()
}

fn sent_in(span: Duration) -> f64 {
    span.as_secs_f64() / EVERY.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_is_killed_and_comes_back_and_no_caller_sees_it() {
    let ports = [free_port(), free_port(), free_port()];
    let mut backends: Vec<_> = (0..3)
        .map(|at| backend(&format!("b{at}"), ports[at], &[]))
        .collect();
    let gateway = gateway(&backends.iter().collect::<Vec<_>>());

    let mut load = Load::every(EVERY, &gateway);
    load.until(5 * SECOND).await;
    backends[1].kill();
    load.until(7 * SECOND).await;
    let early = attempts_at("b1", &gateway, &load.client).await;
    load.until(15 * SECOND).await;
    let late = attempts_at("b1", &gateway, &load.client).await;
    backends[1] = backend("b1", ports[1], &[]);
    load.until(35 * SECOND).await;
    let outcomes = load.end().await;

    assert_all_well(&outcomes);
    let before = share(&outcomes, "b1", 2 * SECOND, 5 * SECOND);
    let dead = f64::from(late - early) / sent_in(8 * SECOND);
    let back = share(&outcomes, "b1", 28 * SECOND, 30 * SECOND);
    println!(
        "share of the killed one: before {before:.3}, while dead {dead:.4}, 15 s after {back:.3}"
    );
    assert!(before >= 0.2, "{before}");
    assert!(dead <= 0.01, "{dead}");
    assert!(back >= 0.2, "{back}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_fails_fast_and_no_caller_sees_it() {
    let fault = "error,status=500,share=1";
    let backends = [
        backend("b0", 0, &[]),
        backend("b1", 0, &[fault]),
        backend("b2", 0, &[]),
    ];
    let gateway = gateway(&backends.iter().collect::<Vec<_>>());
    let mut load = Load::every(EVERY, &gateway);
    load.until(2 * SECOND).await;
    let early = attempts_at("b1", &gateway, &load.client).await;
    load.until(12 * SECOND).await;
    let late = attempts_at("b1", &gateway, &load.client).await;
    assert_all_well(&load.end().await);
    let share = f64::from(late - early) / sent_in(10 * SECOND);
    println!("attempts at the failing one after 2 s: {share:.4} of the requests");
    assert!(share < 0.01, "{share}");
}
