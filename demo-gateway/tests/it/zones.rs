//! Near backends first, and those that stand by only when they are needed.

use std::collections::BTreeSet;

use demo_backend::MockBackend;
use demo_gateway::{Config, Gateway, config::Backend};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{PROMPT, admin, backend, config, get, post, start};

/// Backends with a zone and a priority each, and a gateway in a zone.
async fn start_in(zone: Option<&str>, places: &[(&MockBackend, &str, u32)]) -> Gateway {
    let backends = places.iter().zip('a'..).map(|(place, id)| Backend {
        id: Some(id.to_string()),
        zone: Some(place.1.into()).filter(|zone: &String| !zone.is_empty()),
        priority: place.2,
        ..Backend::new(place.0.url())
    });
    start(Config {
        zone: zone.map(Into::into),
        backends: backends.collect(),
        ..config(&[])
    })
    .await
}

async fn used(gateway: &Gateway) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for _ in 0..40 {
        let reply = post(gateway, "/generate", PROMPT).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        used.insert(reply.header("x-backend-id").to_owned());
    }
    used
}

async fn change(gateway: &Gateway, id: &str, change: Value) {
    let path = format!("/admin/backends/{id}");
    let reply = admin(gateway, Method::POST, &path, &change.to_string()).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
}

fn these(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test]
async fn near_backends_get_all_requests_until_they_are_gone() {
    let backends = [backend().await, backend().await, backend().await];
    let [a, b, c] = backends.each_ref();
    let gateway = start_in(
        Some("east"),
        &[(a, "east", 0), (b, "west", 0), (c, "east", 0)],
    )
    .await;
    assert_eq!(used(&gateway).await, these(&["a", "c"]));
    let health = get(&gateway, "/health").await.json();
    let balancer = &health["load_balancer"];
    assert_eq!(balancer["zone"], "east");
    assert_eq!(balancer["backends"][1]["zone"], "west");
    for id in ["a", "c"] {
        change(&gateway, id, json!({"drain": true})).await;
    }
    assert_eq!(used(&gateway).await, these(&["b"]));
    for id in ["a", "c"] {
        change(&gateway, id, json!({"drain": false})).await;
    }
    assert_eq!(used(&gateway).await, these(&["a", "c"]));
}

#[tokio::test]
async fn backends_that_stand_by_get_requests_when_the_first_are_gone() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start_in(None, &[(&first, "", 0), (&second, "", 1)]).await;
    assert_eq!(used(&gateway).await, these(&["a"]));
    let health = get(&gateway, "/health").await.json();
    let backends = &health["load_balancer"]["backends"];
    assert_eq!(
        (&backends[0]["priority"], &backends[1]["priority"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(backends[0]["zone"], Value::Null);
    let held = admin(
        &gateway,
        Method::POST,
        "/admin/circuit-breaker/a",
        r#"{"state":"open"}"#,
    )
    .await;
    assert_eq!(held.status, StatusCode::OK);
    assert_eq!(used(&gateway).await, these(&["b"]));
}

#[tokio::test]
async fn zone_and_priority_change_while_requests_come() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start_in(Some("east"), &[(&first, "east", 0), (&second, "west", 0)]).await;
    assert_eq!(used(&gateway).await, these(&["a"]));
    change(&gateway, "b", json!({"zone": "east"})).await;
    assert_eq!(used(&gateway).await, these(&["a", "b"]));
    change(&gateway, "a", json!({"priority": 1, "weight": 2})).await;
    assert_eq!(used(&gateway).await, these(&["b"]));
    // Of no zone any more: near to all.
    change(&gateway, "a", json!({"priority": 0, "zone": ""})).await;
    assert_eq!(used(&gateway).await, these(&["a", "b"]));
    let health = get(&gateway, "/health").await.json();
    let report = &health["load_balancer"]["backends"][0];
    assert_eq!(
        (&report["zone"], &report["priority"], &report["weight"]),
        (&Value::Null, &json!(0), &json!(2.0))
    );
    for wrong in [
        json!({"zone": "two words"}),
        json!({"priority": 101}),
        json!({"priority": -1}),
    ] {
        let body = wrong.to_string();
        let reply = admin(&gateway, Method::POST, "/admin/backends/a", &body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn a_backend_that_is_added_brings_its_zone_and_priority() {
    let (first, second) = (backend().await, backend().await);
    let gateway = start_in(Some("east"), &[(&first, "west", 0)]).await;
    let added = json!({"id": "b", "url": second.url(), "zone": "east", "priority": 3});
    let body = added.to_string();
    let reply = admin(&gateway, Method::POST, "/admin/add-backend", &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let health = get(&gateway, "/health").await.json();
    let report = &health["load_balancer"]["backends"][1];
    assert_eq!(
        (&report["zone"], &report["priority"]),
        (&json!("east"), &json!(3))
    );
    assert_eq!(used(&gateway).await, these(&["a"]));
}
