//! What keeps a store up, in one future that the user spawns.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use palisade_core::time::now;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{script, shared::Shared, wire};
use crate::central::Job;

/// Jobs that are done at the same time.
const AT_ONCE: usize = 64;

/// For what is left when the last store has gone.
const LAST: Duration = Duration::from_secs(1);

/// Of the time that a place in flight lasts, a third.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Until a store that is down is looked at again, so that it knows who shares it as soon as it is up.
const SOON: Duration = Duration::from_millis(20);

/// A process is counted for as many heartbeats.
const HEARTBEATS: u32 = 3;

/// Keeps a [`RedisStore`](super::RedisStore) up: see [`RedisStore::open`](super::RedisStore::open).
#[must_use = "a store is down unless its upkeep is spawned"]
pub struct Upkeep {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Upkeep {
    pub(super) fn new(shared: Arc<Shared>, jobs: mpsc::Receiver<Job>, heartbeat: Duration) -> Self {
        Self {
            future: Box::pin(keep(shared, jobs, heartbeat)),
        }
    }
}

impl Future for Upkeep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.future.as_mut().poll(context)
    }
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upkeep").finish_non_exhaustive()
    }
}

/// Whatever ends the upkeep, nobody asks servers that nobody tends.
struct Abandon(Arc<Shared>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.link.abandon();
    }
}

async fn keep(shared: Arc<Shared>, jobs: mpsc::Receiver<Job>, heartbeat: Duration) {
    let abandon = Abandon(shared);
    let shared = &*abandon.0;
    shared.tally.metrics.turned(false);
    let name = rand::random::<u128>().to_be_bytes();
    let forever = async {
        tokio::join!(
            shared.link.tend(),
            count(shared, &name, heartbeat),
            renew(shared),
            shared.batch.tend(shared),
        )
    };
    tokio::select! {
        () = work(jobs) => {}
        _ = forever => {}
    }
    let _ = timeout(LAST, leave(shared, &name)).await;
}

/// Does jobs until there is no store left, and then those that are queued.
async fn work(mut jobs: mpsc::Receiver<Job>) {
    let mut busy = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = busy.next() => {}
            job = jobs.recv(), if busy.len() < AT_ONCE => match job {
                Some(job) => busy.push(job),
                None => break,
            }
        }
    }
    let rest = async { while busy.next().await.is_some() {} };
    let _ = timeout(LAST, rest).await;
}

/// Counts the processes that share the store, this one among them.
async fn count(shared: &Shared, name: &[u8], every: Duration) {
    let span = (every * HEARTBEATS).as_micros().to_string();
    loop {
        if shared.tally.is_up() {
            let keys = [replicas(shared)];
            let until = now() + shared.deadline;
            let arguments = [name, span.as_bytes()];
            let reply = shared.link.run(&script::REPLICAS, &keys, &arguments, until);
            if let Ok(value) = reply.await
                && let Some(replicas) = wire::integer(&value)
            {
                shared.tally.replicas.store(replicas.max(1), Relaxed);
            }
            sleep(every).await;
        } else {
            sleep(every.min(SOON)).await;
        }
    }
}

/// No more of this process.
async fn leave(shared: &Shared, name: &[u8]) {
    let until = now() + shared.deadline;
    let _ = shared
        .link
        .run(&script::LEAVE, &[replicas(shared)], &[name], until)
        .await;
}

fn replicas(shared: &Shared) -> Vec<u8> {
    format!("{}:{{replicas}}", shared.prefix).into_bytes()
}

/// Keeps the places in flight that this process holds.
async fn renew(shared: &Shared) {
    loop {
        sleep(RENEW_EVERY).await;
        // Many at once, or of a server that is far away they would not all be renewed in time.
        let places = stream::iter(shared.held.all());
        places
            .for_each_concurrent(AT_ONCE, async |(key, places)| {
                let until = now() + shared.deadline;
                let _ = shared
                    .link
                    .run(&script::RENEW, &[key], &[&places], until)
                    .await;
            })
            .await;
    }
}
