//! A cluster of three, with slots that move and servers that fail.

use std::time::Duration;

use palisade_core::time::now;
use palisade_rate_limit::{
    RedisConfig, RedisStore, StoreError,
    testing::{self, Ask, Plan},
};
use tokio::time::sleep;

use crate::support::{Server, connected, free_port, refused, until, window};

struct Cluster(Vec<Server>);

impl Cluster {
    async fn start() -> Self {
        let cluster = Self((0..3).map(|_| Self::server()).collect());
        let ranges = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        for (server, (first, last)) in cluster.0.iter().zip(ranges) {
            assert_eq!(server.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]), "OK");
        }
        for server in &cluster.0[1..] {
            cluster.meet(server);
        }
        cluster.is_whole().await;
        cluster
    }

    fn server() -> Server {
        let bus = free_port().to_string();
        Server::with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            "1000",
            // The others go on without one.
            "--cluster-require-full-coverage",
            "no",
        ])
    }

    fn meet(&self, server: &Server) {
        let bus = server.cli(&["CONFIG", "GET", "cluster-port"]);
        let bus = bus.lines().last().unwrap();
        let port = server.port.to_string();
        let met = self.0[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        assert_eq!(met, "OK");
    }

    /// Waits until all know all.
    async fn is_whole(&self) {
        for server in &self.0 {
            until(|| {
                let slots = server.cli(&["CLUSTER", "INFO"]);
                let nodes = server.cli(&["CLUSTER", "NODES"]);
                slots.contains("cluster_slots_ok:16384")
                    && slots.contains("cluster_state:ok")
                    && nodes.lines().count() == self.0.len()
                    && !nodes.contains("handshake")
            })
            .await;
        }
    }

    fn config(&self) -> RedisConfig {
        RedisConfig::cluster([self.0[1].url().as_str(), self.0[0].url().as_str()]).unwrap()
    }

    /// Connected to all.
    async fn store(&self) -> RedisStore {
        self.store_within(Duration::from_secs(10)).await
    }

    async fn store_within(&self, deadline: Duration) -> RedisStore {
        let store = connected(self.config().deadline(deadline)).await;
        for number in 0..64 {
            let ask = [one(&store, &format!("warm {number}"), 10)];
            while testing::take(&store, &ask).await.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        store
    }

    /// Which has the key of `rule`.
    fn keeper(&self, rule: &str) -> (usize, String) {
        let pattern = format!("*:{rule}:*");
        let mut keepers = self.0.iter().enumerate().filter_map(|(at, server)| {
            let keys = server.cli(&["KEYS", &pattern]);
            let key = keys.lines().next().filter(|key| !key.is_empty())?;
            Some((at, key.to_owned()))
        });
        let keeper = keepers.next().expect("one has it");
        assert_eq!(keepers.next(), None);
        keeper
    }

    fn id(&self, at: usize) -> String {
        self.0[at].cli(&["CLUSTER", "MYID"])
    }
}

fn one(store: &RedisStore, rule: &str, limit: u64) -> Ask {
    Ask::new(store, rule, Some(rule), Plan::fixed_window(limit, window()))
}

async fn left(store: &RedisStore, ask: &Ask) -> u64 {
    let answers = testing::peek(store, std::slice::from_ref(ask))
        .await
        .unwrap();
    answers[0].remaining
}

#[tokio::test]
async fn every_server_of_a_cluster_decides_about_its_keys() {
    let cluster = Cluster::start().await;
    let store = cluster.store().await;
    for number in 0..100 {
        let rules = ["a", "b"].map(|rule| {
            let key = format!("k{number}");
            Ask::new(
                &store,
                rule,
                Some(&key),
                Plan::sliding_window(2, window(), 1000),
            )
        });
        assert!(!refused(&store, &rules).await);
        assert!(!refused(&store, &rules).await);
        assert!(refused(&store, &rules).await);
        let was = testing::reset(&store, &rules).await.unwrap();
        assert_eq!(was, [true, true]);
        assert!(!refused(&store, &rules).await);
    }
    for server in &cluster.0 {
        let keys = server.cli(&["DBSIZE"]).parse::<u64>().unwrap();
        assert!(keys > 20, "{keys}");
        server.cli(&["SCRIPT", "FLUSH"]);
    }
    for number in 0..100 {
        assert!(!refused(&store, &[one(&store, &format!("later {number}"), 1)]).await);
    }
    assert_eq!(store.state().errors, 0);
}

#[tokio::test]
async fn rules_that_a_cluster_keeps_apart_are_taken_from_together_or_given_back() {
    let cluster = Cluster::start().await;
    let store = cluster.store().await;
    let all = Ask::new(
        &store,
        "all",
        None,
        Plan::sliding_window(100, window(), 1000),
    );
    let mut admitted = 0;
    for number in 0..10 {
        let user = one(&store, &format!("user {number}"), 3);
        for attempt in 0..5 {
            let answers = testing::take(&store, &[all.clone(), user.clone()])
                .await
                .unwrap();
            assert_eq!(answers[0].full, None);
            assert_eq!(answers[1].full.is_some(), attempt >= 3);
            admitted += u64::from(answers[1].full.is_none());
            if attempt >= 3 {
                assert_eq!(answers[0].remaining, 100 - admitted, "as if never taken");
            }
            while left(&store, &all).await != 100 - admitted {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
    assert_eq!(admitted, 30);
}

#[tokio::test]
async fn a_key_that_moves_to_another_server_is_counted_on() {
    let cluster = Cluster::start().await;
    let store = cluster.store().await;
    let ask = one(&store, "mover", 100);
    let mut admitted = 0;
    let mut take = async |times: usize| {
        for _ in 0..times {
            let answers = testing::take(&store, std::slice::from_ref(&ask))
                .await
                .unwrap();
            admitted += u64::from(answers[0].full.is_none());
        }
        admitted
    };
    take(20).await;
    let (from, key) = cluster.keeper("mover");
    let to = (from + 1) % 3;
    let slot = cluster.0[from].cli(&["CLUSTER", "KEYSLOT", &key]);
    let set = |at: usize, how: &[&str]| {
        let command = [&["CLUSTER", "SETSLOT", &slot], how].concat();
        assert_eq!(cluster.0[at].cli(&command), "OK");
    };
    set(to, &["IMPORTING", &cluster.id(from)]);
    set(from, &["MIGRATING", &cluster.id(to)]);
    take(20).await;
    let port = cluster.0[to].port.to_string();
    let moved = cluster.0[from].cli(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
    assert_eq!(moved, "OK");
    // The one sends to the other now, for this key.
    take(20).await;
    assert_eq!(cluster.keeper("mover").0, to);
    for at in [to, from, 3 - from - to] {
        set(at, &["NODE", &cluster.id(to)]);
    }
    // And now for the slot.
    assert_eq!(take(80).await, 100, "no more and no fewer");
    assert_eq!(store.state().errors, 0);
    let asked = || cluster.0[from].cli(&["INFO", "commandstats"]);
    sleep(Duration::from_millis(500)).await;
    let before = asked();
    assert_eq!(take(10).await, 100);
    let count = |stats: String| {
        let line = stats
            .lines()
            .find(|line| line.starts_with("cmdstat_evalsha:"));
        line.map(str::to_owned)
    };
    let rejected = |line: Option<String>| {
        let line = line.unwrap();
        line.split("rejected_calls=")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .to_owned()
    };
    let (before, after) = (rejected(count(before)), rejected(count(asked())));
    assert_eq!(before, after, "it is known where the slot is");
}

#[tokio::test]
async fn of_a_cluster_only_the_server_that_fails_is_not_asked() {
    let mut cluster = Cluster::start().await;
    let store = cluster.store_within(Duration::from_millis(200)).await;
    let mut asks = Vec::new();
    for number in 0..30 {
        let rule = format!("r{number}");
        let ask = one(&store, &rule, 1000);
        testing::take(&store, std::slice::from_ref(&ask))
            .await
            .unwrap();
        asks.push((cluster.keeper(&rule).0, ask));
    }
    cluster.0[2].hang();
    for _ in 0..20 {
        for (keeper, ask) in &asks {
            let answers = testing::take(&store, std::slice::from_ref(ask)).await;
            assert_eq!(answers.is_err(), *keeper == 2, "{answers:?}");
        }
    }
    let state = store.state();
    assert!(state.up);
    assert_eq!(state.trips, 1);
    let began = now();
    for (keeper, ask) in &asks {
        let answers = testing::take(&store, std::slice::from_ref(ask)).await;
        assert_eq!(answers == Err(StoreError::Down), *keeper == 2);
    }
    assert!(began.elapsed() < Duration::from_millis(200), "nobody waits");
    cluster.0[2].go_on();
    for (_, ask) in &asks {
        while testing::take(&store, std::slice::from_ref(ask))
            .await
            .is_err()
        {
            sleep(Duration::from_millis(1)).await;
        }
    }
    for server in &mut cluster.0 {
        server.kill();
    }
    until(|| !store.state().up).await;
}

#[tokio::test]
async fn a_replica_that_takes_over_is_found() {
    let mut cluster = Cluster::start().await;
    let replica = Cluster::server();
    cluster.meet(&replica);
    cluster.0.push(replica);
    cluster.is_whole().await;
    let store = cluster.store().await;
    let ask = one(&store, "kept", 100);
    for _ in 0..10 {
        testing::take(&store, std::slice::from_ref(&ask))
            .await
            .unwrap();
    }
    let keeper = cluster.keeper("kept").0;
    let replica = &cluster.0[3];
    assert_eq!(
        replica.cli(&["CLUSTER", "REPLICATE", &cluster.id(keeper)]),
        "OK"
    );
    until(|| {
        replica
            .cli(&["INFO", "replication"])
            .contains("master_link_status:up")
    })
    .await;
    assert_eq!(replica.cli(&["CLUSTER", "FAILOVER"]), "OK");
    until(|| {
        replica
            .cli(&["INFO", "replication"])
            .contains("role:master")
    })
    .await;
    let mut admitted = 10;
    while admitted < 20 {
        match testing::take(&store, std::slice::from_ref(&ask)).await {
            Ok(_) => admitted += 1,
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
    let unclear = store.state().maybe_charged;
    let counted = 100 - left(&store, &ask).await;
    assert!((20..=20 + unclear).contains(&counted), "{counted}");
}

#[tokio::test]
async fn a_server_that_is_not_in_the_cluster_any_more_is_not_believed_to_be_all_of_it() {
    let cluster = Cluster::start().await;
    let stranger = Cluster::server();
    let urls = [stranger.url(), cluster.0[0].url()];
    let config = RedisConfig::cluster(urls.iter().map(String::as_str)).unwrap();
    let store = connected(config.deadline(Duration::from_secs(10))).await;
    for number in 0..30 {
        let ask = [one(&store, &format!("r{number}"), 10)];
        while testing::take(&store, &ask).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(store.state().up);
}

#[tokio::test]
async fn processes_that_share_a_cluster_are_counted() {
    let cluster = Cluster::start().await;
    let (first, second) = (cluster.store().await, cluster.store().await);
    until(|| first.state().replicas == 2 && second.state().replicas == 2).await;
}
