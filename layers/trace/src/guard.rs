use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use palisade_core::settle::{End, Settle};
use tokio::time::Instant;
use tracing::Span;

use crate::span::{Kind, record_end, record_first_data, record_status};

/// A span, and what was answered.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) span: Span,
    /// 0 for nothing yet.
    status: AtomicU16,
}

impl Traced {
    pub(crate) fn new(span: Span) -> Arc<Self> {
        let status = AtomicU16::new(0);
        Arc::new(Self { span, status })
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Relaxed);
        record_status(&self.span, status);
    }
}

/// Says on a span what happens to its request.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) traced: Arc<Traced>,
    pub(crate) kind: Kind,
    pub(crate) judges: bool,
    pub(crate) since: Instant,
    is_stream: bool,
}

impl Guard {
    pub(crate) fn new(traced: Arc<Traced>, kind: Kind, judges: bool, since: Instant) -> Self {
        Self {
            traced,
            kind,
            judges,
            since,
            is_stream: false,
        }
    }

    fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

impl Settle for Guard {
    fn hear(&mut self, headers: &HeaderMap) {
        let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
        self.is_stream |= kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
    }

    fn first_data(&mut self, now: Instant) {
        if self.judges && self.is_stream {
            record_first_data(&self.traced.span, self.took(now));
        }
    }

    fn settle(&mut self, end: &End, _: Instant) {
        if self.judges {
            let status = StatusCode::from_u16(self.traced.status.load(Relaxed)).ok();
            record_end(&self.traced.span, self.kind, status, end);
        }
    }
}
