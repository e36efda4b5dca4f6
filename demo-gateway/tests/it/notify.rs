//! Who is told when something breaks.

use std::time::Duration;

use demo_backend::{Fault, MockBackend};
use demo_gateway::{
    Config, Gateway,
    config::{MinSeverity, Notify, NotifyFormat, NotifyKind},
};
use http::{Method, StatusCode};
use tokio::net::TcpListener;

use crate::{
    receiver::{Act, Message, Receiver},
    support::{PROMPT, admin, backend, config, eventually, get, limited, metric, post, start},
};

fn told(backends: &[&MockBackend], notify: Notify) -> Config {
    let mut config = config(backends);
    // Without attempts beyond the first, a failure is one.
    config.retry.attempts = 1;
    config.notify = Some(Notify {
        group: Duration::from_millis(100),
        ..notify
    });
    config
}

/// Opens the circuit of the only backend by hand, which is told of at the next look.
async fn hold(gateway: &Gateway, state: &str) {
    let body = format!(r#"{{"state":"{state}"}}"#);
    let held = admin(gateway, Method::POST, "/admin/circuit-breaker/a", &body).await;
    assert_eq!(held.status, 200, "{}", held.text());
}

#[tokio::test]
async fn an_outage_is_told_when_it_begins_and_when_it_is_over() {
    let backend = backend().await;
    let receiver = Receiver::new(&[]).await;
    let mut config = told(
        &[&backend],
        Notify {
            secret: Some("0123456789abcdef".into()),
            ..Notify::new(format!("{}/hook?team=a", receiver.url))
        },
    );
    // Windows of 30 s and 2.5 s instead of an hour and 5 minutes.
    config.objective.period = Duration::from_secs(6 * 3600);
    config.circuit_breaker.cooldown = Duration::from_millis(200);
    config.circuit_breaker.longest_cooldown = Duration::from_millis(200);
    let gateway = start(config).await;
    // An alert wants 50 requests, the first of them a minute ago: half a second here.
    let asking = async {
        loop {
            post(&gateway, "/generate", PROMPT).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let outage = async {
        eventually("there is traffic", async || {
            gateway_requests(&gateway).await > 60.0
        })
        .await;
        backend.chaos([Fault::error(StatusCode::INTERNAL_SERVER_ERROR)]);
        for alert in ["firing bad endpoint/a", "firing bad burn/availability page"] {
            eventually(alert, async || {
                receiver.alerts().iter().any(|it| it == alert)
            })
            .await;
        }
        backend.chaos([]);
        for alert in [
            "resolved ok endpoint/a",
            "resolved ok burn/availability page",
        ] {
            eventually(alert, async || {
                receiver.alerts().iter().any(|it| it == alert)
            })
            .await;
        }
    };
    tokio::select! {
        () = outage => {}
        () = asking => {}
    }
    let messages = receiver.messages();
    for message in &messages {
        assert_eq!(message.path, "/hook?team=a");
        assert_eq!(message.body["gateway"], gateway.url());
        let key = message.header("idempotency-key");
        assert_eq!(key, message.body["id"].as_str());
        let signature = message.header("x-palisade-signature").unwrap();
        assert!(
            signature.starts_with("t=") && signature.contains(",v1="),
            "{signature}"
        );
    }
    let page = receiver.alerts();
    let count = |alert: &str| page.iter().filter(|it| *it == alert).count();
    assert_eq!(count("firing bad burn/availability page"), 1, "{page:?}");
    gateway.shutdown().await;
}

async fn gateway_requests(gateway: &Gateway) -> f64 {
    metric(
        gateway,
        r#"llm_requests_total{backend="a",status="success"}"#,
    )
    .await
}

#[tokio::test]
async fn troubles_that_come_together_are_told_together() {
    let (first, second) = (backend().await, backend().await);
    let receiver = Receiver::new(&[]).await;
    let notify = Notify {
        min_severity: MinSeverity::Info,
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&first, &second], notify)).await;
    // The first look is over when something is told of the second.
    hold(&gateway, "open").await;
    eventually("a is told of", async || !receiver.messages().is_empty()).await;
    let drained = admin(
        &gateway,
        Method::POST,
        "/admin/backends/b",
        r#"{"drain":true}"#,
    )
    .await;
    assert_eq!(drained.status, 200);
    eventually("nothing is left", async || receiver.alerts().len() == 3).await;
    assert_eq!(receiver.messages().len(), 2);
    assert_eq!(
        receiver.alerts(),
        [
            "firing warn endpoint/a",
            "firing bad service/gateway",
            "told info endpoint/b",
        ]
    );
    let text = receiver.messages()[1].body["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        text,
        format!(
            "demo-gateway at {}\nFIRING all 2 backends are out: all requests are refused\nINFO b drains: it finishes what it has",
            gateway.url()
        )
    );
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_receiver_that_is_down_is_asked_again_with_the_same_message() {
    let backend = backend().await;
    // A port where nobody listens yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gateway = start(told(&[&backend], Notify::new(format!("http://{address}")))).await;
    hold(&gateway, "open").await;
    let listener = {
        let mut bound = None;
        eventually("the port is free", async || {
            bound = TcpListener::bind(address).await.ok();
            bound.is_some()
        })
        .await;
        bound.unwrap()
    };
    let receiver = Receiver::on(listener, &[Act::Status(500), Act::Status(503)]);
    eventually("it is taken at last", async || {
        receiver.messages().len() == 3
    })
    .await;
    let messages = receiver.messages();
    assert!(
        messages.iter().all(|it| it.body == messages[0].body),
        "{messages:?}"
    );
    assert_eq!(
        receiver.alerts()[..2],
        ["firing bad service/gateway", "firing warn endpoint/a"]
    );
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_receiver_that_was_down_for_longer_than_all_attempts_ends_in_the_right_state() {
    const DOWN: usize = 4;
    let backend = backend().await;
    let receiver = Receiver::new(&[Act::Status(503); DOWN]).await;
    let notify = Notify {
        attempts: 1,
        timeout: Duration::from_millis(300),
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&backend], notify)).await;
    hold(&gateway, "open").await;
    eventually("it begins", async || !receiver.messages().is_empty()).await;
    hold(&gateway, "auto").await;
    eventually("it is told to be over, and nothing else", async || {
        let messages = receiver.messages();
        let taken = messages.iter().skip(DOWN);
        let alerts = taken.flat_map(|it| it.body["alerts"].as_array().unwrap().clone());
        let mut states = std::collections::BTreeMap::new();
        for alert in alerts {
            let text = |name: &str| alert[name].as_str().unwrap().to_owned();
            states.insert(text("key"), text("status"));
        }
        states.len() == 2 && states.values().all(|status| status == "resolved")
    })
    .await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_a_receiver_fails_on_each_time_does_not_hold_up_the_rest() {
    let (first, second) = (backend().await, backend().await);
    let receiver = Receiver::failing_on("endpoint/b").await;
    let notify = Notify {
        attempts: 1,
        timeout: Duration::from_millis(300),
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&first, &second], notify)).await;
    for id in ["b", "a"] {
        let path = format!("/admin/circuit-breaker/{id}");
        let held = admin(&gateway, Method::POST, &path, r#"{"state":"open"}"#).await;
        assert_eq!(held.status, 200, "{}", held.text());
    }
    let keys = |message: &Message| -> Vec<String> {
        let alerts = message.body["alerts"].as_array().unwrap();
        let keys = alerts.iter().map(|it| it["key"].as_str().unwrap().into());
        keys.collect()
    };
    eventually("all others are taken", async || {
        let taken: Vec<_> = receiver.messages().iter().map(keys).collect();
        let others = taken
            .iter()
            .filter(|keys| !keys.contains(&"endpoint/b".into()));
        let others: Vec<_> = others.flatten().collect();
        others.contains(&&"endpoint/a".into()) && others.contains(&&"service/gateway".into())
    })
    .await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_receiver_that_hangs_is_left_and_requests_go_on() {
    let backend = backend().await;
    let receiver = Receiver::new(&[Act::Hang]).await;
    let notify = Notify {
        timeout: Duration::from_millis(200),
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&backend], notify)).await;
    hold(&gateway, "open").await;
    eventually("the receiver has the message", async || {
        !receiver.messages().is_empty()
    })
    .await;
    hold(&gateway, "auto").await;
    let answer = post(&gateway, "/generate", PROMPT).await;
    assert_eq!(answer.status, 200);
    eventually("what is over is told after it", async || {
        receiver
            .alerts()
            .iter()
            .any(|it| it == "resolved ok endpoint/a")
    })
    .await;
    let messages = receiver.messages();
    assert_eq!(messages[0].body, messages[1].body);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_message_that_is_refused_is_not_sent_again() {
    let backend = backend().await;
    let receiver = Receiver::new(&[Act::Status(404)]).await;
    let notify = Notify {
        format: NotifyFormat::Slack,
        kinds: vec![NotifyKind::Endpoint],
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&backend], notify)).await;
    hold(&gateway, "open").await;
    eventually("it is refused", async || !receiver.messages().is_empty()).await;
    hold(&gateway, "closed").await;
    eventually("the next one comes", async || {
        receiver.messages().len() == 2
    })
    .await;
    let texts: Vec<_> = receiver
        .messages()
        .iter()
        .map(|it| it.body["text"].as_str().unwrap().to_owned())
        .collect();
    let head = format!("demo-gateway at {}", gateway.url());
    assert_eq!(
        texts,
        [
            format!("{head}\nFIRING a is held open by hand"),
            format!("{head}\nRESOLVED a reinstated: breaker closed"),
        ]
    );
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_gateway_stops_while_a_receiver_hangs() {
    let backend = backend().await;
    let receiver = Receiver::new(&[Act::Hang; 8]).await;
    let notify = Notify {
        timeout: Duration::from_secs(60),
        ..Notify::new(&*receiver.url)
    };
    let gateway = start(told(&[&backend], notify)).await;
    hold(&gateway, "open").await;
    eventually("the receiver has the message", async || {
        !receiver.messages().is_empty()
    })
    .await;
    let stopped = tokio::time::timeout(Duration::from_secs(20), gateway.shutdown()).await;
    assert!(stopped.is_ok());
}

#[tokio::test]
async fn a_rule_that_refuses_is_told_of_also_when_no_body_was_read_for_it() {
    let backend = backend().await;
    let receiver = Receiver::new(&[]).await;
    let mut config = limited(
        &[&backend],
        "[[rate_limits]]\nname = \"per_ip\"\nidentifier = \"ip\"\nmax_requests = 1\nwindow = \"1h\"\n",
    );
    config.notify = Some(Notify {
        group: Duration::ZERO,
        ..Notify::new(&*receiver.url)
    });
    let gateway = start(config).await;
    assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 200);
    assert_eq!(post(&gateway, "/generate", PROMPT).await.status, 429);
    eventually("it is told", async || {
        receiver.alerts() == ["firing warn limit/per_ip"]
    })
    .await;
    let status = get(&gateway, "/status").await.json();
    assert_eq!(status["rate_limit"]["rules"][0]["refused"], 1);
    gateway.shutdown().await;
}
