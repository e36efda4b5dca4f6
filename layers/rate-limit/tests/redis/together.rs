//! Many tasks and several processes on one limit.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
};

use futures_util::{FutureExt, future::join_all};
use palisade_rate_limit::{
    RedisConfig,
    testing::{self, Ask, Plan},
};

use crate::support::{Server, connected, patient, refused, until, window};

const TASKS: usize = 64;
const PROCESSES: usize = 4;

/// Where a child process finds the server.
const URL: &str = "PALISADE_TEST_URL";
const WINDOW: &str = "PALISADE_TEST_WINDOW";
const STRATEGY: &str = "PALISADE_TEST_STRATEGY";

fn plan(strategy: &str, limit: u64, window: u64) -> Plan {
    match strategy {
        "token_bucket" => Plan::token_bucket(window / limit, limit),
        "fixed_window" => Plan::fixed_window(limit, window),
        "sliding_window" => Plan::sliding_window(limit, window, 1000),
        _ => Plan::sliding_log(limit, window),
    }
}

/// What each of the processes does.
fn child(url: &str) {
    let [window, strategy] = [WINDOW, STRATEGY].map(|name| std::env::var(name).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let admitted: usize = runtime.block_on(async {
        let store = patient(url).await;
        let plan = plan(&strategy, 100, window.parse().unwrap());
        let task = |_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut admitted = 0;
                for _ in 0..10 {
                    let ask = [Ask::new(&store, "r", Some("k"), plan)];
                    admitted += usize::from(!refused(&store, &ask).await);
                }
                admitted
            })
        };
        let tasks = join_all((0..TASKS).map(task)).await;
        tasks.into_iter().map(Result::unwrap).sum()
    });
    println!("admitted={admitted}");
}

#[test]
fn processes_with_many_tasks_admit_exactly_the_limit_together() {
    if let Ok(url) = std::env::var(URL) {
        return child(&url);
    }
    for strategy in [
        "token_bucket",
        "fixed_window",
        "sliding_window",
        "sliding_log",
    ] {
        let server = Server::start();
        for run in 0..5 {
            server.cli(&["FLUSHALL"]);
            let spawn = |_| {
                let mut child = Command::new(std::env::current_exe().unwrap());
                let this = "together::processes_with_many_tasks_admit_exactly_the_limit_together";
                child.args(["--exact", this, "--nocapture"]);
                child.env(URL, server.url()).env(STRATEGY, strategy);
                child.env(WINDOW, window().to_string());
                child.stdout(Stdio::piped()).spawn().unwrap()
            };
            let children: Vec<_> = (0..PROCESSES).map(spawn).collect();
            let admitted = children.into_iter().map(|child| {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success());
                let text = String::from_utf8(output.stdout).unwrap();
                let count = text.split("admitted=").nth(1).unwrap();
                let count = count.split_whitespace().next().unwrap();
                count.parse::<usize>().unwrap()
            });
            let admitted: Vec<_> = admitted.collect();
            assert_eq!(
                admitted.iter().sum::<usize>(),
                100,
                "{strategy}, {run}: {admitted:?}"
            );
        }
    }
}

/// Scripts that the server has run.
fn scripts(server: &Server) -> u64 {
    let stats = server.cli(&["INFO", "commandstats"]);
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn decisions_that_go_together_are_decided_as_one_after_the_other() {
    let server = Server::start();
    let store = patient(&server.url()).await;
    let before = scripts(&server);
    // Each of ten users has ten, and all have seventy.
    let all = || Ask::new(&store, "all", None, plan("sliding_window", 70, window()));
    let user = |at: usize| {
        let key = format!("u{}", at % 10);
        Ask::new(
            &store,
            "user",
            Some(&key),
            plan("token_bucket", 10, window()),
        )
    };
    let model = |at: usize| {
        let key = format!("m{}", at % 3);
        Ask::new(
            &store,
            "model",
            Some(&key),
            plan("sliding_log", 50, window()),
        )
    };
    let decide = async |at: usize| {
        let asks = [all(), user(at), model(at)];
        let answers = testing::take(&store, &asks).await.unwrap();
        let passes = answers.iter().all(|answer| answer.full.is_none());
        (at, passes, answers)
    };
    let mut used: HashMap<String, u64> = HashMap::new();
    let mut admitted = 0;
    for (at, passes, answers) in join_all((0..300).map(decide)).await {
        assert_eq!(answers.len(), 3);
        if passes {
            admitted += 1;
            *used.entry(format!("u{}", at % 10)).or_default() += 1;
            *used.entry(format!("m{}", at % 3)).or_default() += 1;
        }
    }
    assert_eq!(admitted, 70);
    for at in 0..10 {
        let left = testing::peek(&store, &[all(), user(at), model(at)])
            .await
            .unwrap();
        let left: Vec<_> = left.iter().map(|answer| answer.remaining).collect();
        let of = |key: String| used.get(&key).copied().unwrap_or_default();
        let expected = [
            0,
            10 - of(format!("u{at}")),
            50 - of(format!("m{}", at % 3)),
        ];
        assert_eq!(left, expected);
    }
    let sent = scripts(&server) - before;
    assert!(sent < 100, "{sent} scripts for 300 decisions");
}

#[tokio::test]
async fn a_decision_that_is_dropped_before_it_was_sent_is_not_charged() {
    let server = Server::start();
    let store = patient(&server.url()).await;
    let ask = [Ask::new(
        &store,
        "r",
        None,
        plan("fixed_window", 10_000, window()),
    )];
    let mut pending: Vec<_> = (0..200)
        .map(|_| Box::pin(testing::take(&store, &ask)))
        .collect();
    for decision in &mut pending {
        assert!(decision.as_mut().now_or_never().is_none());
    }
    // The first were sent on their own, the others wait for the upkeep, which had no turn yet.
    let others = pending.split_off(4);
    drop(others);
    let answers = join_all(pending).await;
    assert!(answers.iter().all(Result::is_ok));
    let left = testing::peek(&store, &ask).await.unwrap()[0].remaining;
    assert_eq!(left, 10_000 - 4);
}

#[tokio::test]
async fn decisions_that_go_together_each_hear_that_the_server_hangs() {
    let server = Server::start();
    let store = connected(RedisConfig::new(&server.url()).unwrap()).await;
    let ask = [Ask::new(
        &store,
        "r",
        None,
        plan("fixed_window", 10_000, window()),
    )];
    server.hang();
    let answers = join_all((0..500).map(|_| testing::take(&store, &ask))).await;
    assert!(answers.iter().all(Result::is_err));
    // The last scripts have the deadline from when they were sent.
    until(|| !store.state().up).await;
    server.go_on();
}

#[tokio::test]
async fn what_many_reserve_and_settle_adds_up() {
    let server = Server::start();
    let store = patient(&server.url()).await;
    for strategy in ["fixed_window", "sliding_window", "sliding_log"] {
        let plan = plan(strategy, 9_000, window());
        let task = async |at: u64| {
            let ask = Ask::new(&store, strategy, Some("k"), plan).cost(1 + at % 7);
            let answers = testing::take(&store, std::slice::from_ref(&ask))
                .await
                .unwrap();
            assert_eq!(answers[0].full, None);
            let used = at % 11;
            // A log only gives back.
            let used = if strategy == "sliding_log" {
                used.min(1 + at % 7)
            } else {
                used
            };
            testing::settle(&store, &[ask.used(answers[0].at, used)])
                .await
                .unwrap();
            used
        };
        let used: u64 = join_all((0..500).map(task)).await.into_iter().sum();
        let ask = [Ask::new(&store, strategy, Some("k"), plan)];
        let left = testing::peek(&store, &ask).await.unwrap()[0].remaining;
        assert_eq!(left, 9_000 - used, "{strategy}");
    }
}

#[tokio::test]
async fn leases_of_several_stores_grant_no_more_than_there_is() {
    let server = Server::start();
    let stores = [patient(&server.url()).await, patient(&server.url()).await];
    for strategy in [
        "token_bucket",
        "fixed_window",
        "sliding_window",
        "sliding_log",
    ] {
        let lease = async |at: usize| {
            let store = &stores[at % 2];
            let ask = Ask::new(store, strategy, Some("k"), plan(strategy, 1_000, window()));
            let mut granted = 0;
            for _ in 0..40 {
                granted += testing::lease(store, &ask, 32).await.unwrap().0;
            }
            granted
        };
        let granted: u64 = join_all((0..32).map(lease)).await.into_iter().sum();
        assert_eq!(granted, 1_000, "{strategy}");
    }
}
