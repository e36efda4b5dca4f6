//! What a decision of the Redis store costs, beside a bare `PING` in the same run. Prints; asserts nothing.
//!
//! Starts a server of its own. Times are medians of rounds that take turns, so that what else the machine does is in
//! all of them alike; the processor time of the server is its own count.

#[path = "../tests/redis/support.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests need it so")]
mod support;

use std::time::Duration;

use futures_util::future::join_all;
use palisade_core::{
    gate::{Admit, Gate},
    key,
    time::now,
};
use palisade_rate_limit::{
    Headers, Quota, RateLimit, RedisConfig, RedisStore, Rule,
    testing::{self, Ask, Plan},
};
use redis::aio::MultiplexedConnection;
use support::Server;
use tokio::runtime::Builder;

const MINUTE: u64 = 60_000_000_000;
const ROUNDS: usize = 9;
const SUBJECTS: usize = 1_000;

/// For as long, each round.
const ROUND: Duration = Duration::from_millis(400);

fn main() {
    let server = Server::start();
    let threads = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = threads.expect("a runtime");
    runtime.block_on(async {
        // Nothing is left out because it was late.
        let config = RedisConfig::new(&server.url()).expect("a url");
        let store = support::connected(config.deadline(Duration::from_secs(1))).await;
        let bench = Bench {
            ping: support::connection(&server).await,
            store,
        };
        bench.latency().await;
        for batch in [32, 128] {
            bench.leases(batch).await;
        }
        for tasks in [1, 64, 256] {
            bench.throughput(tasks, &server).await;
        }
    });
}

struct Bench {
    ping: MultiplexedConnection,
    store: RedisStore,
}

/// What is asked for.
#[derive(Clone, Copy)]
enum What {
    Ping,
    Rules(usize),
}

impl Bench {
    fn asks(&self, rules: usize) -> Vec<Vec<Ask>> {
        let plans = [
            Plan::sliding_window(1_000_000, MINUTE, 1000),
            Plan::token_bucket(MINUTE / 1_000_000, 1_000_000),
            Plan::fixed_window(1_000_000, MINUTE),
            Plan::sliding_window(2_000_000, 2 * MINUTE, 1000),
        ];
        let names = ["user", "key", "model", "all"];
        let of = |subject: usize| {
            let rules = plans.iter().zip(names).take(rules);
            let key = format!("k{subject}");
            rules
                .map(|(&plan, rule)| Ask::new(&self.store, rule, Some(&key), plan))
                .collect()
        };
        (0..SUBJECTS).map(of).collect()
    }

    /// One after the other, in microseconds.
    async fn latency(&self) {
        let (one, four) = (self.asks(1), self.asks(4));
        let [mut ping, mut first, mut all] = [Vec::new(), Vec::new(), Vec::new()];
        for at in 0..20_000 {
            let began = now();
            self.ping().await;
            ping.push(began.elapsed());
            for (asks, times) in [(&one, &mut first), (&four, &mut all)] {
                let began = now();
                let answers = testing::take(&self.store, &asks[at % SUBJECTS]).await;
                times.push(began.elapsed());
                answers.expect("the store answers");
            }
        }
        let [ping, one, four] = [ping, first, all].map(|mut times| {
            times.sort();
            times[times.len() / 2].as_nanos() as f64 / 1e3
        });
        println!("one after the other, p50   PING {ping:.1} us");
        println!("  1 rule   {one:.1} us   {:.2} x PING", one / ping);
        println!("  4 rules  {four:.1} us   {:.2} x PING", four / ping);
    }

    /// What the layer asks the store for when it leases so many at once, and how long a request takes then.
    async fn leases(&self, batch: u32) {
        const REQUESTS: usize = 200_000;

        let rule = Rule::new("leased", Quota::per_hour(10_000_000))
            .key(key::header("x-user-id"))
            .leased(batch);
        let limit = RateLimit::rules([rule]).and_then(|limit| limit.store(&self.store));
        let limit = limit.expect("a rule").headers(Headers::Off);
        let request = http::Request::builder().header("x-user-id", format!("leased-{batch}"));
        let request = request.body(()).expect("a request");
        let before = self.store.state().checks;
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let began = now();
            match limit.admit(&(&request).into(), began) {
                Admit::Now(decided) => drop(decided.expect("there is enough")),
                Admit::Later(decided) => drop(decided.await.expect("there is enough")),
            }
            times.push(began.elapsed());
            // As the service would, whose answer is waited for.
            if times.len().is_multiple_of(8) {
                tokio::task::yield_now().await;
            }
        }
        times.sort();
        let trips = (self.store.state().checks - before) as f64 / REQUESTS as f64;
        println!(
            "leases of {batch}: {trips:.4} trips each, p50 {:?}",
            times[REQUESTS / 2]
        );
    }

    async fn throughput(&self, tasks: usize, server: &Server) {
        let kinds = [
            ("PING", What::Ping, false),
            ("1 rule, each on its own", What::Rules(1), false),
            ("1 rule, coalesced", What::Rules(1), true),
            ("4 rules, each on its own", What::Rules(4), false),
            ("4 rules, coalesced", What::Rules(4), true),
        ];
        let mut rounds = [const { Vec::new() }; 5];
        for _ in 0..ROUNDS {
            for (at, (_, what, together)) in kinds.into_iter().enumerate() {
                testing::coalesce(&self.store, together);
                let before = processor(server);
                let (count, took) = self.round(tasks, what).await;
                let cost = (processor(server) - before) / count * 1e6;
                rounds[at].push((count / took, cost));
            }
        }
        println!("{tasks} tasks");
        let mut ping = 0.0;
        for ((name, ..), mut rounds) in kinds.into_iter().zip(rounds) {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (rate, cost) = rounds[ROUNDS / 2];
            if ping == 0.0 {
                ping = rate;
            }
            println!(
                "  {name:26} {:6.1} k/s   {:.2} x PING   server {cost:.2} us each",
                rate / 1e3,
                rate / ping
            );
        }
    }

    /// How many, and in how many seconds.
    async fn round(&self, tasks: usize, what: What) -> (f64, f64) {
        let asks = match what {
            What::Ping => Vec::new(),
            What::Rules(rules) => self.asks(rules),
        };
        let began = now();
        let task = async |first: usize| {
            let mut count = 0;
            while began.elapsed() < ROUND {
                match what {
                    What::Ping => self.ping().await,
                    What::Rules(_) => {
                        let asks = &asks[(first * 7 + count) % SUBJECTS];
                        testing::take(&self.store, asks)
                            .await
                            .expect("the store answers");
                    }
                }
                count += 1;
            }
            count
        };
        let counts = join_all((0..tasks).map(task)).await;
        (
            counts.iter().sum::<usize>() as f64,
            began.elapsed().as_secs_f64(),
        )
    }

    async fn ping(&self) {
        let mut wire = self.ping.clone();
        let pong: String = redis::cmd("PING")
            .query_async(&mut wire)
            .await
            .expect("a pong");
        assert_eq!(pong, "PONG");
    }
}

/// Seconds that the server has computed for.
fn processor(server: &Server) -> f64 {
    let info = server.cli(&["INFO", "cpu"]);
    let of = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|seconds| seconds.trim().parse::<f64>().ok())
            .unwrap_or_default()
    };
    of("used_cpu_user:") + of("used_cpu_sys:")
}
