//! Servers that hang, die, come back, refuse, or are slow.

use std::time::Duration;

use palisade_core::time::now;
use palisade_rate_limit::{
    RedisConfig, RedisStore, StoreError,
    testing::{self, Ask, Plan},
};
use tokio::time::{sleep, timeout};

use crate::support::{Server, connected, free_port, patient, store, until, window};

const DEADLINE: Duration = Duration::from_millis(20);

/// For a test that is late because the machine is busy, not because the store is.
const SLACK: Duration = Duration::from_millis(5);

fn ask(store: &RedisStore) -> [Ask; 1] {
    [Ask::new(
        store,
        "r",
        Some("k"),
        Plan::fixed_window(1_000_000, window()),
    )]
}

/// As it is without being asked to be patient.
async fn prompt(server: &Server) -> RedisStore {
    let store = connected(RedisConfig::new(&server.url()).unwrap()).await;
    while testing::peek(&store, &ask(&store)).await.is_err() {}
    store
}

async fn used(store: &RedisStore) -> u64 {
    let answers = testing::peek(store, &ask(store)).await.unwrap();
    1_000_000 - answers[0].remaining
}

/// How long the slowest took, of 99 in 100.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

#[tokio::test]
async fn of_a_server_that_hangs_five_decisions_wait_for_the_deadline_and_the_rest_for_nothing() {
    let server = Server::start();
    let store = prompt(&server).await;
    server.hang();
    let (mut errors, mut times, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..500 {
        let began = now();
        let error = testing::take(&store, &ask(&store)).await.unwrap_err();
        times.push(began.elapsed());
        if error == StoreError::Down {
            open.push(began.elapsed());
        }
        errors.push(error);
    }
    let most = times.iter().max().copied().unwrap();
    let (all, open) = (p99(times), p99(open));
    println!("of 500 decisions p99 {all:?}, most {most:?}; once it is known {open:?}");
    assert!(all <= DEADLINE + SLACK);
    assert!(open < SLACK);
    let (waited, rest) = errors.split_at(5);
    // The upkeep may have been one of the five.
    assert!(
        waited[..4]
            .iter()
            .all(|error| *error == StoreError::TimedOut)
    );
    assert!(rest.iter().all(|error| *error == StoreError::Down));
    let state = store.state();
    assert!(!state.up && !testing::is_up(&store));
    assert_eq!(state.trips, 1);
    let unclear = errors
        .iter()
        .filter(|error| **error == StoreError::TimedOut)
        .count() as u64;
    assert_eq!(
        (state.maybe_charged, state.timeouts),
        (unclear, state.timeouts.max(unclear))
    );

    server.go_on();
    until(|| store.state().up).await;
    assert_eq!(
        used(&store).await,
        unclear,
        "each was counted, though nobody heard"
    );
}

#[tokio::test]
async fn while_a_server_hangs_nothing_is_sent_but_probes() {
    let server = Server::start();
    let store = prompt(&server).await;
    server.hang();
    while testing::is_up(&store) {
        testing::take(&store, &ask(&store)).await.unwrap_err();
    }
    let sent = store.state().maybe_charged;
    for _ in 0..1_000 {
        testing::take(&store, &ask(&store)).await.unwrap_err();
    }
    server.go_on();
    until(|| store.state().up).await;
    assert_eq!(used(&store).await, sent);
}

#[tokio::test]
async fn a_server_that_dies_is_found_out_at_once_and_one_that_comes_back_is_asked_again() {
    let mut server = Server::start();
    let store = store(&server).await;
    for round in 1..3 {
        testing::take(&store, &ask(&store)).await.unwrap();
        server.kill();
        let mut times = Vec::new();
        for _ in 0..200 {
            let began = now();
            let error = testing::take(&store, &ask(&store)).await.unwrap_err();
            times.push(began.elapsed());
            assert_ne!(error, StoreError::TimedOut);
            tokio::task::yield_now().await;
        }
        assert!(p99(times) < SLACK);
        assert!(!store.state().up);
        assert!(store.state().last_error.is_some());
        server.restart();
        until(|| store.state().up).await;
        assert_eq!(used(&store).await, 0, "it has forgotten, round {round}");
    }
    assert_eq!(store.state().trips, 0, "no count was needed");
}

#[tokio::test]
async fn a_server_may_come_after_the_store() {
    let port = free_port();
    let config = RedisConfig::new(&format!("redis://127.0.0.1:{port}")).unwrap();
    let (store, upkeep) = config.open().unwrap();
    tokio::spawn(upkeep);
    until(|| store.state().errors > 0).await;
    assert_eq!(
        testing::take(&store, &ask(&store)).await,
        Err(StoreError::Down)
    );
    let _server = Server::on(port);
    until(|| store.state().up).await;
    testing::take(&store, &ask(&store)).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_closed_is_replaced_and_nothing_is_sent_twice() {
    let server = Server::start();
    let store = store(&server).await;
    let mut answered = 0;
    // A connection that has lasted for a second is replaced at once.
    sleep(Duration::from_millis(1_100)).await;
    for round in 0..300 {
        if round == 100 {
            server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        answered += u64::from(testing::take(&store, &ask(&store)).await.is_ok());
        if round > 100 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(answered > 250, "{answered}");
    let counted = used(&store).await;
    let unclear = store.state().maybe_charged;
    assert!((answered..=answered + unclear).contains(&counted));
}

#[tokio::test]
async fn a_server_that_is_slow_for_a_moment_is_asked_on() {
    let server = Server::start();
    let store = prompt(&server).await;
    server.cli(&["CLIENT", "PAUSE", "60", "ALL"]);
    let began = now();
    assert_eq!(
        testing::take(&store, &ask(&store)).await,
        Err(StoreError::TimedOut)
    );
    assert!(began.elapsed() >= DEADLINE);
    assert!(store.state().up);
    sleep(Duration::from_millis(100)).await;
    testing::take(&store, &ask(&store)).await.unwrap();
    assert_eq!(used(&store).await, 2, "late, it was counted");
    assert_eq!((store.state().maybe_charged, store.state().trips), (1, 0));
}

#[tokio::test]
async fn a_server_that_has_become_a_replica_is_not_asked_until_it_can_be_written_again() {
    let (server, master) = (Server::start(), Server::start());
    let store = store(&server).await;
    server.cli(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    let error = testing::take(&store, &ask(&store)).await.unwrap_err();
    // If the upkeep was first to find out, it is down.
    assert!(
        matches!(&error, StoreError::Failed(_) | StoreError::Down),
        "{error:?}"
    );
    assert!(!store.state().up);
    until(|| store.state().errors > 2).await;
    let what = store.state().last_error.unwrap();
    assert!(what.contains("read only replica"), "{what}");
    assert!(
        !store.state().up,
        "a probe that only reads would not have seen it"
    );
    assert_eq!(store.state().maybe_charged, 0);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    until(|| store.state().up).await;
    testing::take(&store, &ask(&store)).await.unwrap();
}

#[tokio::test]
async fn a_server_without_memory_is_not_asked_until_it_has_some() {
    let server = Server::with(&["--maxmemory-policy", "noeviction"]);
    let store = store(&server).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut refused = 0;
    loop {
        match testing::take(&store, &ask(&store)).await.unwrap_err() {
            StoreError::Failed(what) if what.contains("OOM") => refused += 1,
            StoreError::Down => break,
            error => panic!("{error:?}"),
        }
    }
    // The upkeep may have been one of the five.
    assert!((4..=5).contains(&refused), "{refused}");
    assert_eq!(store.state().trips, 1);
    let errors = store.state().errors;
    until(|| store.state().errors > errors).await;
    assert!(!store.state().up);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    until(|| store.state().up).await;
    assert_eq!(used(&store).await, 0);
}

#[tokio::test]
async fn users_passwords_databases_and_sockets_are_reached_by_their_urls() {
    let socket = std::env::temp_dir().join(format!("palisade-{}.sock", free_port()));
    let socket = socket.to_str().unwrap();
    let server = Server::with(&[
        "--requirepass",
        "p@ss",
        "--user",
        "limits",
        "on",
        ">secret",
        "~*",
        "&*",
        "+@all",
        "--unixsocket",
        socket,
    ]);
    let port = server.port;
    for url in [
        format!("redis://:p%40ss@127.0.0.1:{port}"),
        format!("redis://limits:secret@127.0.0.1:{port}/3"),
        format!("unix://{socket}?pass=p%40ss&db=2"),
    ] {
        let store = patient(&url).await;
        testing::take(&store, &ask(&store)).await.unwrap();
        assert_eq!(used(&store).await, 1, "each has a database of its own");
    }
    for url in [
        format!("redis://:wrong@127.0.0.1:{port}"),
        format!("redis://limits:wrong@127.0.0.1:{port}"),
        format!("redis://127.0.0.1:{port}"),
    ] {
        let (store, upkeep) = RedisStore::open(&url).unwrap();
        tokio::spawn(upkeep);
        until(|| store.state().errors > 1).await;
        let state = store.state();
        assert!(!state.up);
        let shown = format!("{store:?}");
        assert!(
            !shown.contains("wrong@") && !shown.contains(":wrong"),
            "{shown}"
        );
        assert!(state.last_error.is_some());
    }
    drop(server);
    std::fs::remove_file(socket).unwrap();
}

#[tokio::test]
async fn a_server_that_repeats_what_it_was_sent_shows_no_password() {
    let server = Server::with(&["--requirepass", "hunter2", "--rename-command", "HELLO", ""]);
    let url = format!("redis://:hunter2@127.0.0.1:{}?protocol=resp3", server.port);
    let (store, upkeep) = RedisStore::open(&url).unwrap();
    tokio::spawn(upkeep);
    until(|| store.state().errors > 0).await;
    let what = store.state().last_error.unwrap();
    assert!(what.contains("unknown command"), "{what}");
    assert!(!what.contains("hunter2"), "{what}");
}

#[tokio::test]
async fn who_may_not_load_scripts_ahead_sends_them_whole() {
    let server = Server::with(&[
        "--user",
        "limits",
        "on",
        ">secret",
        "~*",
        "&*",
        "+@all",
        "-script|load",
    ]);
    let url = format!("redis://limits:secret@127.0.0.1:{}", server.port);
    let store = patient(&url).await;
    for _ in 0..3 {
        testing::take(&store, &ask(&store)).await.unwrap();
    }
    assert_eq!(used(&store).await, 3);
}

#[tokio::test]
async fn the_upkeep_ends_with_the_last_store_and_does_its_jobs_first() {
    let server = Server::start();
    let (store, upkeep) = RedisStore::open(&server.url()).unwrap();
    let upkeep = tokio::spawn(upkeep);
    until(|| store.state().up).await;
    let (done, mut jobs) = tokio::sync::mpsc::unbounded_channel();
    let other = store.clone();
    for _ in 0..1_000 {
        let done = done.clone();
        assert!(testing::run(&store, async move { done.send(()).unwrap() }));
    }
    // One that never ends does not keep it.
    assert!(testing::run(&store, std::future::pending()));
    drop(store);
    tokio::task::yield_now().await;
    assert!(!upkeep.is_finished());
    drop(other);
    timeout(Duration::from_secs(10), upkeep)
        .await
        .unwrap()
        .unwrap();
    drop(done);
    assert_eq!(jobs.len(), 1_000);
    jobs.close();
    assert_eq!(
        server.cli(&["ZCARD", "palisade:{replicas}"]),
        "0",
        "it has signed off"
    );
}

#[tokio::test]
async fn jobs_that_find_no_room_are_counted_and_without_upkeep_there_is_none() {
    let (store, upkeep) = RedisStore::open("redis://127.0.0.1:1").unwrap();
    for _ in 0..10_000 {
        assert!(testing::run(&store, async {}));
    }
    assert!(!testing::run(&store, async {}));
    assert_eq!(store.state().jobs_lost, 1);
    drop(upkeep);
    assert!(!testing::run(&store, async {}));
    assert_eq!(store.state().jobs_lost, 2);
}

#[tokio::test]
async fn without_its_upkeep_a_store_is_down() {
    let server = Server::start();
    let (store, upkeep) = RedisStore::open(&server.url()).unwrap();
    let upkeep = tokio::spawn(upkeep);
    until(|| store.state().up).await;
    upkeep.abort();
    until(|| !store.state().up).await;
    assert_eq!(
        testing::take(&store, &ask(&store)).await,
        Err(StoreError::Down)
    );
}

#[tokio::test]
async fn processes_that_share_a_store_are_counted_and_the_last_number_is_kept() {
    let mut server = Server::start();
    let config = RedisConfig::new(&server.url()).unwrap();
    let config = config.heartbeat(Duration::from_millis(100));
    let first = connected(config.clone()).await;
    let second = connected(config.clone()).await;
    let (third, upkeep) = config.open().unwrap();
    let upkeep = tokio::spawn(upkeep);
    until(|| {
        [&first, &second, &third]
            .iter()
            .all(|store| store.state().replicas == 3)
    })
    .await;
    drop(third);
    upkeep.await.unwrap();
    until(|| first.state().replicas == 2).await;
    server.kill();
    until(|| !first.state().up).await;
    assert_eq!(first.state().replicas, 2);
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn a_store_that_was_never_up_is_reported_as_down() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (_store, _upkeep) = RedisStore::open("redis://127.0.0.1:1").unwrap();
    let all = recorder.snapshotter().snapshot().into_vec();
    let up = all
        .iter()
        .find(|(key, ..)| key.key().name() == "palisade_rate_limit_store_up");
    assert_eq!(up.unwrap().3, DebugValue::Gauge(0.0.into()));
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn a_store_reports_how_it_stands() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut server = Server::start();
    let config = RedisConfig::new(&server.url())
        .unwrap()
        .named("orders")
        .deadline(Duration::from_millis(200));
    let store = connected(config).await;
    for _ in 0..3 {
        testing::take(&store, &ask(&store)).await.unwrap();
    }
    let read = || {
        let snapshot = recorder.snapshotter().snapshot().into_vec();
        let mut all: Vec<_> = snapshot
            .into_iter()
            .map(|(key, _, _, value)| {
                let labels: Vec<_> = key.key().labels().collect();
                assert_eq!((labels[0].key(), labels[0].value()), ("store", "orders"));
                assert_eq!(labels.len(), 1);
                let value = match value {
                    DebugValue::Counter(count) => count as f64,
                    DebugValue::Gauge(value) => value.0,
                    DebugValue::Histogram(values) => values.len() as f64,
                };
                (key.key().name().to_owned(), value)
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let name = |name: &str| format!("palisade_rate_limit_store_{name}");
    assert_eq!(
        read(),
        [
            (name("jobs_lost_total"), 0.0),
            (name("latency_seconds"), 3.0),
            (name("maybe_charged_total"), 0.0),
            (name("trips_total"), 0.0),
            (name("up"), 1.0),
        ]
    );
    server.hang();
    while testing::is_up(&store) {
        testing::take(&store, &ask(&store)).await.unwrap_err();
    }
    let after = read();
    assert_eq!(after[2].1, store.state().maybe_charged as f64);
    assert_eq!((after[3].1, after[4].1), (1.0, 0.0));
    server.kill();
}

#[cfg(feature = "serde")]
#[tokio::test]
async fn a_state_can_be_serialised() {
    let (store, _upkeep) = RedisStore::open("redis://127.0.0.1:1").unwrap();
    let state = serde_json::to_value(store.state()).unwrap();
    assert_eq!(state["up"], false);
    assert_eq!(state["replicas"], 1);
}
