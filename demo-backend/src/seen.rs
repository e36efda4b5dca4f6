//! What came in, and how it ended.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::{sync::Notify, time::Instant};

/// A request that a backend has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path, with the query if it had one.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
    /// When its head came.
    pub at: Instant,
    /// How it ended, if it has.
    pub ended: Ended,
    /// When it ended.
    pub ended_at: Option<Instant>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It has not.
    InFlight,
    /// The whole answer was handed to the connection.
    Completed {
        /// The status of the answer.
        status: StatusCode,
        /// How many tokens were handed to the connection.
        tokens_sent: u32,
    },
    /// The client went away before.
    ClientLeft {
        /// How many tokens were handed to the connection until then.
        tokens_sent: u32,
    },
    /// A fault, a crash or a stop that could wait no longer broke it off.
    Broken {
        /// How many tokens were handed to the connection until then.
        tokens_sent: u32,
    },
}

/// The bodies that are kept, together.
const BODIES: usize = 64 << 20;

/// The latest requests.
#[derive(Debug)]
pub(crate) struct Record {
    capacity: usize,
    log: Mutex<Log>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Log {
    /// The number of the first that is still there.
    first: u64,
    seen: VecDeque<Seen>,
    /// Bytes of their bodies.
    bytes: usize,
}

impl Record {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            log: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Writes down what `make` gives, unless nothing is to be written down. Returns its number.
    pub(crate) fn open(&self, make: impl FnOnce() -> Seen) -> Option<u64> {
        if self.capacity == 0 {
            return None;
        }
        let mut log = self.lock();
        let seen = make();
        log.bytes += seen.body.len();
        log.seen.push_back(seen);
        while log.seen.len() > self.capacity || log.bytes > BODIES {
            let Some(old) = log.seen.pop_front() else {
                break;
            };
            log.bytes -= old.body.len();
            log.first += 1;
        }
        let number = log.first + log.seen.len() as u64 - 1;
        drop(log);
        self.changed.notify_waiters();
        Some(number)
    }

    pub(crate) fn close(&self, number: u64, ended: Ended, at: Instant) {
        let mut log = self.lock();
        let index = number.checked_sub(log.first).map(|index| index as usize);
        if let Some(seen) = index.and_then(|index| log.seen.get_mut(index)) {
            (seen.ended, seen.ended_at) = (ended, Some(at));
        }
    }

    /// Tells those who wait that something has ended.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        self.lock().seen.iter().cloned().collect()
    }

    pub(crate) async fn until(&self, mut holds: impl FnMut() -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before looking, so that no change falls in between.
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;

    use super::*;

    fn seen(length: usize) -> Seen {
        Seen {
            method: Method::GET,
            path: length.to_string(),
            headers: HeaderMap::new(),
            body: vec![0; length].into(),
            at: time::now(),
            ended: Ended::InFlight,
            ended_at: None,
        }
    }

    #[test]
    fn the_oldest_make_room_and_their_end_is_no_longer_heard() {
        let record = Record::new(2);
        let numbers: Vec<_> = (1..=3).map(|length| record.open(|| seen(length))).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2)]);
        let ended = Ended::ClientLeft { tokens_sent: 7 };
        record.close(0, ended, time::now());
        record.close(2, ended, time::now());
        let ends: Vec<_> = record.all().iter().map(|seen| seen.ended).collect();
        assert_eq!(ends, [Ended::InFlight, ended]);
    }

    #[test]
    fn bodies_are_kept_up_to_a_bound() {
        let record = Record::new(1000);
        for _ in 0..5 {
            record.open(|| seen(BODIES / 3));
        }
        assert_eq!(record.all().len(), 3);
    }

    #[tokio::test]
    async fn who_waits_hears_of_each_change() {
        let record = Record::new(10);
        let add = async {
            for length in 1..=3 {
                tokio::task::yield_now().await;
                record.open(|| seen(length));
            }
        };
        let mut looks = 0;
        let wait = record.until(|| {
            looks += 1;
            record.all().len() == 3
        });
        tokio::join!(wait, add);
        assert!((2..=4).contains(&looks), "it does not spin: {looks}");
    }
}
