//! What is asked of backends, and what is told of them.

use std::time::Duration;

use demo_backend::{Fault, MockBackend, Reply};
use demo_gateway::{
    Config, Gateway,
    config::{Backend, CheckKind, HealthCheck, Statuses},
};
use http::{Method, StatusCode};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic_health::ServingStatus;

use crate::support::{PROMPT, admin, asked, backend, config, eventually, get, post, start};

async fn checked_by(check: HealthCheck, backends: &[&MockBackend]) -> Gateway {
    start(Config {
        health_interval: Duration::from_millis(40),
        health_check: check,
        ..config(backends)
    })
    .await
}

async fn report(gateway: &Gateway, at: usize) -> Value {
    let mut health = get(gateway, "/health").await.json();
    health["load_balancer"]["backends"][at].take()
}

#[tokio::test]
async fn a_check_asks_where_it_is_told_and_a_wrong_status_takes_a_backend_out() {
    let backend = backend().await;
    let check = |path: &str, statuses| HealthCheck {
        path: path.into(),
        statuses: Statuses(statuses),
        rise: 1,
        fall: 1,
        ..HealthCheck::default()
    };
    // There is no such path, and that is what is expected.
    let gateway = checked_by(check("/no/such/path", 404..=404), &[&backend]).await;
    eventually("it was asked", async || {
        report(&gateway, 0).await["last_health_check"].is_string()
    })
    .await;
    assert_eq!(report(&gateway, 0).await["healthy"], true);
    let seen = backend.seen();
    let seen = seen
        .iter()
        .find(|seen| seen.path == "/no/such/path")
        .unwrap();
    assert_eq!(seen.headers["user-agent"], "palisade-health");

    let gateway = checked_by(check("/no/such/path", 200..=299), &[&backend]).await;
    eventually("it is out", async || {
        report(&gateway, 0).await["state"] == "unhealthy"
    })
    .await;
    let told = report(&gateway, 0).await;
    assert_eq!(told["ejection"]["reason"], "health_check");
    assert!(
        told["health_check_error"].as_str().unwrap().contains("404"),
        "{told}"
    );
    assert_eq!(get(&gateway, "/health").await.json()["status"], "unhealthy");
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_is_found_and_comes_back() {
    let backend = backend().await;
    for kind in [CheckKind::Tcp, CheckKind::Http] {
        let check = HealthCheck {
            kind,
            ..HealthCheck::default()
        };
        let gateway = checked_by(check, &[&backend]).await;
        eventually("it was asked", async || {
            report(&gateway, 0).await["last_health_check"].is_string()
        })
        .await;
        assert_eq!(report(&gateway, 0).await["health_check_error"], Value::Null);
        backend.crash().await;
        eventually("it is out", async || {
            report(&gateway, 0).await["state"] == "unhealthy"
        })
        .await;
        backend.restart().await.unwrap();
        eventually("it is back", async || {
            report(&gateway, 0).await["healthy"] == true
        })
        .await;
    }
}

#[tokio::test]
async fn a_backend_that_does_not_speak_grpc_fails_checks_that_do() {
    let backend = backend().await;
    let check = HealthCheck {
        kind: CheckKind::Grpc,
        ..HealthCheck::default()
    };
    let gateway = checked_by(check, &[&backend]).await;
    eventually("it is out", async || {
        report(&gateway, 0).await["state"] == "unhealthy"
    })
    .await;
    let why = report(&gateway, 0).await["health_check_error"].clone();
    assert!(why.is_string(), "{why}");
}

#[tokio::test]
async fn a_service_that_says_by_grpc_that_it_does_not_serve_is_out_until_it_does() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("llm", ServingStatus::Serving)
        .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            let connection = http2::Builder::new(TokioExecutor::new());
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    let gateway = start(Config {
        health_interval: Duration::from_millis(40),
        health_check: HealthCheck {
            kind: CheckKind::Grpc,
            service: "llm".into(),
            ..HealthCheck::default()
        },
        backends: vec![Backend::new(url)],
        ..config(&[])
    })
    .await;
    eventually("it was asked", async || {
        report(&gateway, 0).await["last_health_check"].is_string()
    })
    .await;
    let told = report(&gateway, 0).await;
    assert_eq!(told["health_check_error"], Value::Null);
    assert_eq!(told["healthy"], true);
    reporter
        .set_service_status("llm", ServingStatus::NotServing)
        .await;
    eventually("it is out", async || {
        report(&gateway, 0).await["state"] == "unhealthy"
    })
    .await;
    reporter
        .set_service_status("llm", ServingStatus::Serving)
        .await;
    eventually("it is back", async || {
        report(&gateway, 0).await["healthy"] == true
    })
    .await;
    server.abort();
}

#[tokio::test]
async fn what_is_open_and_why_is_told_on_one_page() {
    let backends = [backend().await, backend().await];
    let [bad, _good] = &backends;
    let mut config = config(&backends.each_ref());
    config.circuit_breaker.failures = 3;
    config.circuit_breaker.cooldown = Duration::from_secs(600);
    config.circuit_breaker.longest_cooldown = Duration::from_secs(600);
    let gateway = start(config).await;
    let told = report(&gateway, 0).await;
    assert_eq!(
        (&told["ejection"], &told["circuit"]["state"]),
        (&Value::Null, &json!("closed"))
    );

    bad.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
    eventually("its circuit is open", async || {
        let reply = post(&gateway, "/generate", PROMPT).await;
        assert_eq!(reply.status, StatusCode::OK);
        report(&gateway, 0).await["circuit_breaker_open"] == true
    })
    .await;
    let told = report(&gateway, 0).await;
    let ejection = &told["ejection"];
    assert_eq!(
        (&told["state"], &told["healthy"]),
        (&json!("ejected"), &json!(false))
    );
    assert_eq!(ejection["reason"], "circuit_breaker");
    let (since, until) = (ejection["since"].as_str(), ejection["until"].as_str());
    assert!(since.unwrap() < until.unwrap(), "{told}");
    let circuit = &told["circuit"];
    assert_eq!(
        (&circuit["state"], &circuit["forced"]),
        (&json!("open"), &json!(false))
    );
    assert!(
        circuit["next_probe_in_ms"].as_f64().unwrap() > 200_000.0,
        "{told}"
    );
    assert_eq!(circuit["opened_total"], 1);

    for (state, reason) in [("open", json!("held_open")), ("closed", Value::Null)] {
        let body = json!({ "state": state }).to_string();
        let steered = admin(&gateway, Method::POST, "/admin/circuit-breaker/a", &body).await;
        assert_eq!(steered.status, StatusCode::OK);
        let told = report(&gateway, 0).await;
        let ejection = &told["ejection"];
        assert_eq!(
            ejection.get("reason").unwrap_or(&Value::Null),
            &reason,
            "{told}"
        );
        assert_eq!(told["circuit"]["forced"], true);
    }
    let drain = r#"{"drain":true}"#;
    admin(&gateway, Method::POST, "/admin/backends/b", drain).await;
    assert_eq!(report(&gateway, 1).await["ejection"]["reason"], "drained");
}

#[tokio::test]
async fn what_a_backend_says_of_its_load_is_told() {
    let backend = MockBackend::builder().slots(4).start().await.unwrap();
    let gateway = start(config(&[&backend])).await;
    assert_eq!(report(&gateway, 0).await["reported_load"], Value::Null);
    backend.script([Reply::tokens(2)]);
    post(&gateway, "/generate", PROMPT).await;
    let load = report(&gateway, 0).await["reported_load"].take();
    assert!(load["utilization"].is_number(), "{load}");
    assert_eq!(asked(&backend).len(), 1);
}
