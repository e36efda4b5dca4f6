//! Counts in Redis, for several processes together.

mod batch;
mod breaker;
mod config;
mod held;
mod link;
mod metrics;
mod node;
mod script;
mod shared;
mod slots;
mod tally;
#[cfg(feature = "testing")]
pub mod testing;
mod upkeep;
mod wire;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use palisade_core::key::Key;
use tokio::sync::mpsc;

use self::shared::Shared;
pub use self::{
    config::{RedisConfig, RedisConfigError},
    tally::StoreState,
    upkeep::Upkeep,
};
use crate::central::{Answers, Ask, Central, Change, Course, Ends, Grant, Job, Pending, Subject};

/// Jobs that wait for the upkeep.
const JOBS: usize = 10_000;

/// A Redis server or cluster that counts for several processes.
///
/// Each decision is one script with the server's clock, so that processes admit together exactly what one would. All
/// that is kept expires by itself when nothing is used any more, and callers are kept as hashes.
///
/// A script is never sent again once it may have run. What has no answer within the
/// [deadline](RedisConfig::deadline) is decided by the policy of the rule, and stands as used if the server got it. Of
/// a server that fails five times in a row, or half of at least 20 times in a second, nothing is asked but whether a
/// key can be written: after 250 ms, and then after twice as long each time, up to 5 s. A connection that breaks is
/// replaced at once.
///
/// When more than four decisions are under way they share scripts, up to 32 each, which makes 1.2 to 2.2 times as many of
/// one rule, and 1.1 to 1.5 times as many of four, with the same server. A place in flight whose process is gone is free
/// after 30 seconds.
///
/// In a cluster the rules of one subject are in one place and decided in one script; a rule for all is elsewhere, and
/// decided beside them: if the others refuse, it gets back what it took, and until then counts too much, never too
/// little. Each server fails on its own.
///
/// Clones share everything.
#[derive(Clone)]
pub struct RedisStore {
    handle: Arc<Handle>,
}

/// Goes with the last store, upon which the upkeep ends.
struct Handle {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

impl RedisStore {
    /// The store at `redis://user:password@host:port/database`, and what keeps it up: a future to be spawned, which
    /// connects, probes and reconnects, and settles what has ended. Nothing is sent before it runs, and until it has
    /// connected the rules' policies decide. It ends when the last store is gone and its jobs are done, or a second
    /// later.
    ///
    /// # Errors
    ///
    /// If the URL is none; see [`RedisConfig`], which also has what else can be chosen.
    pub fn open(url: &str) -> Result<(Self, Upkeep), RedisConfigError> {
        RedisConfig::new(url)?.open()
    }

    /// How it stands.
    pub fn state(&self) -> StoreState {
        self.handle.shared.tally.state()
    }

    fn with(config: RedisConfig) -> Result<(Self, Upkeep), RedisConfigError> {
        let (jobs, queue) = mpsc::channel(JOBS);
        let heartbeat = config.heartbeat;
        let shared = Arc::new(Shared::new(config, jobs.downgrade())?);
        let upkeep = Upkeep::new(shared.clone(), queue, heartbeat);
        let handle = Arc::new(Handle { shared, jobs });
        Ok((Self { handle }, upkeep))
    }

    fn shared(&self) -> Arc<Shared> {
        self.handle.shared.clone()
    }
}

impl Central for RedisStore {
    fn is_up(&self) -> bool {
        self.handle.shared.tally.is_up()
    }

    fn replicas(&self) -> u64 {
        self.handle.shared.tally.replicas.load(Relaxed)
    }

    fn subject(&self, key: &Key<'_>) -> Subject {
        self.handle.shared.subject(key)
    }

    fn take(&self, asks: Vec<Ask>) -> Pending<Answers> {
        let shared = self.shared();
        Box::pin(async move { shared.take(asks).await })
    }

    fn peek(&self, asks: Vec<Ask>) -> Pending<Answers> {
        let shared = self.shared();
        Box::pin(async move { shared.peek(asks).await })
    }

    fn lease(&self, ask: Ask, want: u64) -> Pending<Grant> {
        let shared = self.shared();
        Box::pin(async move { shared.lease(ask, want).await })
    }

    fn settle(&self, changes: Vec<Change>) -> Pending<()> {
        let shared = self.shared();
        // Now, not when it is first polled, which may be never: a place that nobody gives back is not renewed either.
        shared.let_go(&changes);
        Box::pin(async move { shared.settle(changes).await })
    }

    fn reset(&self, asks: Vec<Ask>) -> Pending<Vec<bool>> {
        let shared = self.shared();
        Box::pin(async move { shared.reset(asks).await })
    }

    fn adapt(&self, rule: Arc<str>, ends: Ends, course: Course) -> Pending<u64> {
        let shared = self.shared();
        Box::pin(async move { shared.adapt(&rule, ends, &course).await })
    }

    fn run(&self, job: Job) -> bool {
        let has_room = self.handle.jobs.try_send(job).is_ok();
        if !has_room {
            self.handle.shared.tally.lost_a_job();
        }
        has_room
    }

    fn lease_for(&self) -> Duration {
        self.handle.shared.lease_for
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::central::Plan;

    #[tokio::test]
    async fn a_place_whose_settlement_is_lost_is_not_renewed() {
        let (store, _upkeep) = RedisStore::open("redis://127.0.0.1:1").unwrap();
        let change = Change {
            rule: "r".into(),
            subject: Subject::SHARED,
            plan: Plan::InFlight { limit: 1 },
            ticket: 7,
            at: 0,
            reserved: 1,
            used: 0,
            drain: false,
        };
        let shared = store.shared();
        let key = wire::key(&shared.prefix, change.subject, &change.rule, &change.plan);
        shared.held.insert(key, change.ticket, 1);
        assert_eq!(shared.held.all().len(), 1);
        drop(store.settle(vec![change]));
        assert!(shared.held.all().is_empty());
    }
}
