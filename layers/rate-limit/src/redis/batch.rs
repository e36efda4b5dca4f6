//! Decisions that wait for others go to the server with them, in one script.
//!
//! A script has a cost of its own, about as much as three rules: so when more decisions are under way than a
//! connection is good for, those that come then are queued, and sent together when one of the scripts before them has
//! been answered. Nobody waits for a timer, and while there are few, none waits at all.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::{StreamExt, stream::FuturesUnordered};
use palisade_core::time::now;
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{node::Miss, script, shared::Shared, wire};

/// Decisions under way that go on their own. Measured with 8 tasks on a server of the same machine: with the others
/// together half as many decisions again, and a third less of the server's time for each.
const ALONE: usize = 4;

/// Groups in a script, which keeps the server from others for as long.
const GROUPS: usize = 32;

/// Scripts under way, meanwhile the next is gathered; full ones do not wait.
const AT_ONCE: usize = 4;

/// Groups that wait; beyond them, each goes on its own.
const QUEUE: usize = 4_096;

#[derive(Debug)]
pub(super) struct Batch {
    under_way: AtomicUsize,
    queue: mpsc::Sender<Group>,
    /// For the upkeep.
    queued: Mutex<mpsc::Receiver<Group>>,
    /// Rung when there are enough for a script.
    bell: Notify,
    #[cfg(feature = "testing")]
    pub(super) off: std::sync::atomic::AtomicBool,
}

/// Asks of which all pass or none.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) plans: Vec<u8>,
    /// Numbers that answer it.
    pub(super) width: usize,
    pub(super) reply: oneshot::Sender<Result<Vec<u64>, Miss>>,
}

/// A decision under way.
pub(super) struct UnderWay<'a>(&'a AtomicUsize);

impl Batch {
    pub(super) fn new() -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        Self {
            under_way: AtomicUsize::new(0),
            queue,
            queued: Mutex::new(queued),
            bell: Notify::new(),
            #[cfg(feature = "testing")]
            off: Default::default(),
        }
    }

    /// Counts a decision, and says whether it should go with others.
    pub(super) fn begin(&self) -> (UnderWay<'_>, bool) {
        let before = self.under_way.fetch_add(1, Relaxed);
        #[cfg(feature = "testing")]
        if self.off.load(Relaxed) {
            return (UnderWay(&self.under_way), false);
        }
        (UnderWay(&self.under_way), before >= ALONE)
    }

    /// Has a group decided with others: `None` if there is no room to wait.
    pub(super) async fn decide(
        &self,
        keys: &[Vec<u8>],
        plans: &[u8],
        width: usize,
        until: Instant,
    ) -> Option<Result<Vec<u64>, Miss>> {
        let (reply, answer) = oneshot::channel();
        let room = self.queue.try_reserve().ok()?;
        room.send(Group {
            keys: keys.to_vec(),
            plans: plans.to_vec(),
            width,
            reply,
        });
        if QUEUE - self.queue.capacity() >= GROUPS {
            self.bell.notify_one();
        }
        Some(match timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Miss::Down),
            Err(_) => Err(Miss::TimedOut),
        })
    }

    /// Sends what is queued. Never ends.
    pub(super) async fn tend(&self, shared: &Shared) {
        let mut queued = self.queued.lock().await;
        let (mut sent, mut groups) = (FuturesUnordered::new(), Vec::with_capacity(GROUPS));
        loop {
            tokio::select! {
                Some(()) = sent.next() => {}
                count = queued.recv_many(&mut groups, GROUPS), if sent.len() < AT_ONCE => {
                    if count == 0 {
                        return;
                    }
                    sent.push(send(shared, std::mem::take(&mut groups)));
                }
                // On a long way to the server, a few scripts at once would carry too little.
                () = self.bell.notified(), if sent.len() >= AT_ONCE => {
                    while queued.len() >= GROUPS {
                        let gathered = queued.recv_many(&mut groups, GROUPS).await;
                        sent.push(send(shared, groups.drain(..gathered).collect()));
                    }
                }
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn send(shared: &Shared, mut groups: Vec<Group>) {
    // Who has left is not charged.
    groups.retain(|group| !group.reply.is_closed());
    if groups.is_empty() {
        return;
    }
    let mut plans = wire::head(true, 1, shared.now());
    let mut keys = Vec::with_capacity(groups.len());
    for group in &mut groups {
        keys.append(&mut group.keys);
        plans.append(&mut group.plans);
    }
    let until = now() + shared.deadline;
    let reply = shared
        .link
        .run(&script::TAKE, &keys, &[&plans], until)
        .await;
    let numbers = reply.map(|value| wire::integers(value).unwrap_or_default());
    let mut at = 1;
    for group in groups {
        let answer = match &numbers {
            Ok(numbers) => {
                let mut own = Vec::with_capacity(group.width + 1);
                own.extend(numbers.first());
                own.extend(numbers.get(at..at + group.width).unwrap_or_default());
                Ok(own)
            }
            Err(miss) => Err(miss.clone()),
        };
        at += group.width;
        // Who has left meanwhile was charged, as with a script of its own.
        let _ = group.reply.send(answer);
    }
}
