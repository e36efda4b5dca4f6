//! A database that is locked, hangs or is gone harms no request, and what is not logged is counted.

use std::{collections::BTreeSet, time::Duration};

use demo_gateway::{Config, Gateway, config::Store};
use http::{Method, StatusCode};
use serde_json::Value;
use sqlx::Executor;
use tokio::time::timeout;

use super::{Folder, ask_undisturbed, ids, logged, logging, settled, sqlite, status};
use crate::{
    postgres::Postgres,
    support::{admin, backend, config, eventually, metric},
};

/// Room for few, so that it does not take long to fill it.
fn narrow(url: String) -> Store {
    Store {
        queue: 100,
        batch: 50,
        ..Store::at(url)
    }
}

/// Requests before, while and after the log cannot be written.
async fn out_of_order(
    gateway: &Gateway,
    breaks: impl AsyncFnOnce(),
    mends: impl AsyncFnOnce(),
) -> BTreeSet<String> {
    let mut told = ask_undisturbed(gateway, "before", 20).await;
    settled(gateway, 20).await;
    let counted = metric(gateway, "palisade_store_dropped_total{reason=\"full\"}").await;
    breaks().await;
    told.append(&mut ask_undisturbed(gateway, "while", 300).await);
    eventually("it is told that it is down", async || {
        status(gateway).await["up"] == false
    })
    .await;
    let dropped = status(gateway).await["dropped"]["full"].as_u64().unwrap();
    // A hundred wait, and fifty at most are in the writer's hands.
    assert!((150..=200).contains(&dropped), "{dropped}");
    let counts = metric(gateway, "palisade_store_dropped_total{reason=\"full\"}").await;
    assert!(counts - counted >= dropped as f64);
    mends().await;
    eventually("there is room again", async || {
        status(gateway).await["queued"] == 0
    })
    .await;
    told.append(&mut ask_undisturbed(gateway, "after", 20).await);
    let (written, dropped_then) = settled(gateway, 340).await;
    assert_eq!(dropped_then, dropped);
    let logged = ids(&logged(gateway).await);
    assert_eq!(logged.len() as u64, written);
    assert!(logged.is_subset(&told));
    assert!(logged.iter().filter(|id| id.starts_with("after")).count() == 20);
    assert_eq!(status(gateway).await["up"], true);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_that_is_locked_harms_no_request() {
    let folder = Folder::new();
    let backend = backend().await;
    let url = format!("sqlite:{}", folder.file().display());
    let gateway = logging(&[&backend], narrow(url)).await;
    let mut lock = sqlite(&folder.file()).await;
    let lock = tokio::sync::Mutex::new(&mut lock);
    out_of_order(
        &gateway,
        async || {
            lock.lock().await.execute("BEGIN EXCLUSIVE").await.unwrap();
        },
        async || {
            lock.lock().await.execute("ROLLBACK").await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_postgres_that_is_locked_harms_no_request() {
    let postgres = Postgres::start().await;
    let backend = backend().await;
    let gateway = logging(&[&backend], narrow(postgres.url())).await;
    let lock = tokio::sync::Mutex::new(postgres.connect().await);
    out_of_order(
        &gateway,
        async || {
            let mut lock = lock.lock().await;
            let sql = "BEGIN; LOCK TABLE request_metrics IN SHARE MODE";
            sqlx::raw_sql(sql).execute(&mut *lock).await.unwrap();
        },
        async || {
            lock.lock().await.execute("ROLLBACK").await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_hangs_or_dies_harms_no_request() {
    let mut postgres = Postgres::start().await;
    let backend = backend().await;
    let gateway = logging(&[&backend], narrow(postgres.url())).await;
    out_of_order(
        &gateway,
        async || postgres.signal("-STOP"),
        async || {
            // Who looks into it is told in time.
            let looking = admin(&gateway, Method::GET, "/admin/requests", "");
            let reply = timeout(Duration::from_secs(15), looking).await.unwrap();
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(reply.json()["reason"], "store_unavailable");
            assert_eq!(reply.header("retry-after"), "1");
            postgres.signal("-CONT");
        },
    )
    .await;
    postgres.kill();
    let told = ask_undisturbed(&gateway, "dead", 60).await;
    postgres.restart().await;
    let dropped = status(&gateway).await["dropped"]["full"].as_u64().unwrap();
    assert_eq!(settled(&gateway, 400).await, (400 - dropped, dropped));
    assert!(told.is_subset(&ids(&logged(&gateway).await)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_postgres_and_two_make_the_tables_when_it_comes() {
    let mut postgres = Postgres::start().await;
    postgres.kill();
    let backend = backend().await;
    let store = Store::at(postgres.url());
    let one = logging(&[&backend], store.clone()).await;
    let two = logging(&[&backend], store.clone()).await;
    let mut told = ask_undisturbed(&one, "one", 10).await;
    told.append(&mut ask_undisturbed(&two, "two", 10).await);
    postgres.restart().await;
    for gateway in [&one, &two] {
        assert_eq!(settled(gateway, 10).await, (10, 0));
    }
    assert_eq!(ids(&logged(&one).await), told);
    // What an autoscaler writes is shown.
    let mut conn = postgres.connect().await;
    conn.execute(
        "INSERT INTO scaling_events (event_type, old_instances, new_instances, trigger_metrics) \
         VALUES ('scale_up', 1, 3, '{\"in_flight\": 12}')",
    )
    .await
    .unwrap();
    let events = admin(&one, Method::GET, "/admin/scaling-events", "")
        .await
        .json();
    let event = &events["scaling_events"][0];
    assert_eq!(event["event_type"], "scale_up");
    assert_eq!(event["trigger_metrics"]["in_flight"], 12);
    assert_eq!(events["next"], Value::Null);
    // Who is not who it says is told at once, without the password.
    let url = postgres.url().replace("/postgres", "/nothing");
    let url = url.replace("//nothing@", "//nobody:hunter2@");
    let refused = Gateway::start(Config {
        store: Store::at(url),
        ..config(&[&backend])
    });
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("nobody"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_asks_anything_it_is_noticed_that_the_log_cannot_be_written() {
    let mut postgres = Postgres::start().await;
    let folder = Folder::new();
    let backend = backend().await;
    let url = format!("sqlite:{}", folder.file().display());
    let gateways = [
        logging(&[&backend], Store::at(url)).await,
        logging(&[&backend], Store::at(postgres.url())).await,
    ];
    let stand = async |up: bool| {
        for gateway in &gateways {
            eventually("it is told how it stands", async || {
                status(gateway).await["up"] == up
            })
            .await;
        }
    };
    stand(true).await;
    let mut lock = sqlite(&folder.file()).await;
    lock.execute("BEGIN EXCLUSIVE").await.unwrap();
    postgres.kill();
    stand(false).await;
    lock.execute("ROLLBACK").await.unwrap();
    postgres.restart().await;
    stand(true).await;
}
