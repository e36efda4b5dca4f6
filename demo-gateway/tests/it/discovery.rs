//! Backends that nobody has named.

use std::path::PathBuf;

use demo_backend::MockBackend;
use demo_gateway::{Config, Gateway, config::Discovery};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    CHAT_STREAM, PROMPT, admin, backend, config, eventually, get, open, post, posting, start,
};
use demo_backend::{Fault, Reply};
use http_body_util::BodyExt;

/// A file that is gone after the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("palisade-{name}-{}.toml", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        // As editors and configuration management do, so that nobody reads half of it.
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &self.0).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn listed(backends: &[(&str, &MockBackend)]) -> String {
    let mut text = String::new();
    for (name, backend) in backends {
        text += &format!(
            "[[targets]]\nname = \"{name}\"\naddress = \"{}\"\n",
            backend.url()
        );
    }
    text
}

fn found_in(file: &File) -> Config {
    Config {
        discovery: Some(Discovery {
            file: Some(file.0.clone()),
            ..Discovery::default()
        }),
        ..config(&[])
    }
}

async fn ids(gateway: &Gateway) -> Vec<String> {
    let health = get(gateway, "/health").await.json();
    let backends = health["load_balancer"]["backends"].as_array().unwrap();
    let ids = backends.iter().map(|it| it["id"].as_str().unwrap().into());
    let mut ids: Vec<String> = ids.collect();
    ids.sort_unstable();
    ids
}

async fn discovery(gateway: &Gateway) -> Value {
    get(gateway, "/status").await.json()["discovery"].take()
}

#[tokio::test]
async fn a_file_of_backends_is_followed_and_streams_of_those_that_go_come_to_their_end() {
    let (first, second) = (backend().await, backend().await);
    let file = File::new("followed", &listed(&[("one", &first)]));
    let gateway = start(found_in(&file)).await;
    // They are there when it has started, and none is embedded.
    assert_eq!(ids(&gateway).await, ["one"]);
    assert_eq!(
        post(&gateway, "/generate", PROMPT)
            .await
            .header("x-backend-id"),
        "one"
    );
    first.script([Reply::tokens(8).fault(Fault::stall(3))]);
    let stream = open(posting(&gateway, "/v1/chat/completions", CHAT_STREAM)).await;
    let mut stream = stream.into_body();
    stream.frame().await.unwrap().unwrap();

    let place = "zone = \"east\"\npriority = 2\nweight = 3.0\nmax_in_flight = 7\n";
    file.write(&(listed(&[("two", &second)]) + place));
    eventually("the new one is there and the old one leaves", async || {
        let health = get(&gateway, "/health").await.json();
        let backends = &health["load_balancer"]["backends"];
        backends
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["id"] == "two")
            && backends
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["state"] == "draining")
    })
    .await;
    let health = get(&gateway, "/health").await.json();
    let backends = health["load_balancer"]["backends"].as_array().unwrap();
    let two = backends.iter().find(|it| it["id"] == "two").unwrap();
    assert_eq!(
        (
            &two["zone"],
            &two["priority"],
            &two["weight"],
            &two["max_connections"]
        ),
        (&json!("east"), &json!(2), &json!(3.0), &json!(7))
    );
    assert_eq!(first.in_flight(), 1, "its stream goes on");
    drop(stream);
    eventually("the old one is gone", async || {
        ids(&gateway).await == ["two"]
    })
    .await;
    let status = discovery(&gateway).await;
    assert_eq!(
        (&status["backends"], &status["error"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(status["source"], format!("file:{}", file.0.display()));
    assert!(status["last_list"].is_string(), "{status}");
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing_and_says_so() {
    let (first, second) = (backend().await, backend().await);
    let file = File::new("wrong", &listed(&[("one", &first)]));
    let gateway = start(found_in(&file)).await;
    for (text, says) in [
        (listed(&[("two", &second)]) + "weigth = 2\n", "weigth"),
        ("[[targets]\n".into(), ""),
    ] {
        file.write(&text);
        eventually("the mistake is told", async || {
            let status = discovery(&gateway).await;
            let error = status["error"].as_str();
            error.is_some_and(|error| error.contains(says))
        })
        .await;
        assert_eq!(ids(&gateway).await, ["one"]);
        file.write(&listed(&[("one", &first)]));
        eventually("all is well again", async || {
            discovery(&gateway).await["error"].is_null()
        })
        .await;
    }
    // One that cannot be is left out, and the others are not.
    let odd = "[[targets]]\nname = \"odd\"\naddress = \"ftp://10.0.0.1\"\n";
    file.write(&(listed(&[("two", &second)]) + odd));
    eventually("the other one is there", async || {
        ids(&gateway).await == ["two"]
    })
    .await;
    let status = discovery(&gateway).await;
    assert_eq!(status["wrong"][0]["id"], "odd", "{status}");
    let error = status["wrong"][0]["error"].as_str().unwrap();
    assert!(error.contains("http://"), "{status}");
}

#[tokio::test]
async fn backends_that_were_named_or_added_stay_whatever_a_list_says() {
    let (named, added, listed_one) = (backend().await, backend().await, backend().await);
    let file = File::new("beside", &listed(&[("a", &listed_one), ("c", &listed_one)]));
    let gateway = start(Config {
        backends: config(&[&named]).backends,
        ..found_in(&file)
    })
    .await;
    let body = json!({"id": "b", "url": added.url()}).to_string();
    let reply = admin(&gateway, Method::POST, "/admin/add-backend", &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(ids(&gateway).await, ["a", "b", "c"]);
    // The name was taken.
    let status = discovery(&gateway).await;
    assert_eq!(status["taken"], json!(["a"]));
    let health = get(&gateway, "/health").await.json();
    let backends = health["load_balancer"]["backends"].as_array().unwrap();
    let a = backends.iter().find(|it| it["id"] == "a").unwrap();
    assert_eq!(a["url"], named.url());
    file.write("targets = []\n");
    eventually("what was listed is gone", async || {
        ids(&gateway).await == ["a", "b"]
    })
    .await;
}

#[tokio::test]
async fn a_backend_without_a_name_is_called_by_its_address() {
    let (first, second) = (backend().await, backend().await);
    let text = format!(
        "[[targets]]\naddress = \"{}\"\n[[targets]]\naddress = \"{}\"\n",
        first.url(),
        second.addr()
    );
    let file = File::new("unnamed", &text);
    let gateway = start(found_in(&file)).await;
    let mut addresses = [first.addr().to_string(), second.addr().to_string()];
    addresses.sort_unstable();
    assert_eq!(ids(&gateway).await, addresses);
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
}

#[tokio::test]
async fn a_name_is_looked_up_and_its_addresses_are_backends() {
    let backend = backend().await;
    // Told by the hosts of every system, so that no server is asked.
    let gateway = start(Config {
        discovery: Some(
            format!("dns:localhost:{}", backend.addr().port())
                .parse()
                .unwrap(),
        ),
        ..config(&[])
    })
    .await;
    eventually("it is found", async || {
        let found = ids(&gateway).await;
        found.contains(&backend.addr().to_string())
    })
    .await;
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(reply.header("x-backend-id"), backend.addr().to_string());
}

#[tokio::test]
async fn a_source_that_cannot_be_asked_keeps_the_gateway_from_nothing() {
    let backend = backend().await;
    let gateway = start(Config {
        discovery: Some("file:/nowhere/at/all.toml".parse().unwrap()),
        ..config(&[&backend])
    })
    .await;
    let reply = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(reply.status, StatusCode::OK);
    let status = discovery(&gateway).await;
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("/nowhere/at/all.toml"), "{status}");
}
