//! A request from its head to the end of its answer.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use palisade_core::time;
use tokio::time::Instant;

use crate::{
    instance::Instance,
    reply::What,
    seen::{Ended, Seen},
};

/// What a handler knows of its request.
#[derive(Debug)]
pub(crate) struct Call {
    /// Its number among those to `/generate` and `/v1`.
    pub(crate) nth: u64,
    pub(crate) at: Instant,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) request_id: HeaderValue,
    /// What the script says.
    pub(crate) what: What,
    /// Tokens that were handed to the connection.
    pub(crate) sent: Arc<AtomicU32>,
}

/// Keeps the books for one request; dropped when the request is over, however it ends.
pub(crate) struct Ticket {
    instance: Arc<Instance>,
    at: Instant,
    /// Whether it is one to `/generate` or `/v1`.
    work: bool,
    seen: Option<u64>,
    sent: Arc<AtomicU32>,
    end: End,
}

enum End {
    Open,
    Completed(StatusCode),
    Broken,
}

impl Ticket {
    pub(crate) fn new(instance: &Arc<Instance>, work: bool, at: Instant) -> Self {
        if work {
            instance.enter();
        }
        Self {
            instance: Arc::clone(instance),
            at,
            work,
            seen: None,
            sent: Arc::default(),
            end: End::Open,
        }
    }

    pub(crate) fn record(&mut self, make: impl FnOnce() -> Seen) {
        self.seen = self.instance.record.open(make);
    }

    pub(crate) fn sent(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.sent)
    }

    /// The whole answer was handed over.
    pub(crate) fn complete(&mut self, status: StatusCode) {
        if let End::Open = self.end {
            self.end = End::Completed(status);
        }
    }

    /// The answer ends here on purpose.
    pub(crate) fn break_off(&mut self) {
        self.end = End::Broken;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = time::now();
        let tokens_sent = self.sent.load(Relaxed);
        let instance = &self.instance;
        let ended = match self.end {
            End::Completed(status) => Ended::Completed {
                status,
                tokens_sent,
            },
            End::Open if !instance.is_down() => Ended::ClientLeft { tokens_sent },
            End::Open | End::Broken => Ended::Broken { tokens_sent },
        };
        if self.work {
            let meters = &instance.meters;
            meters.duration(now.saturating_duration_since(self.at));
            let failed = match ended {
                Ended::Completed { status, .. } => status.as_u16() >= 500,
                Ended::Broken { .. } => true,
                _ => false,
            };
            if failed {
                instance.failed(now);
            }
            match ended {
                Ended::Completed { status, .. } if status.as_u16() >= 400 => meters.error(),
                Ended::Broken { .. } => meters.error(),
                Ended::ClientLeft { .. } => meters.client_left(),
                _ => {}
            }
            instance.exit();
        }
        if let Some(number) = self.seen {
            instance.record.close(number, ended, now);
        }
        instance.record.wake();
    }
}
