//! One line for each HTTP request, written past the requests.

mod line;
mod writer;

use std::{io, time::Duration};

use self::{
    line::Line,
    writer::{Lines, Writer},
};
use crate::{
    config::{self, Format},
    record::{Observe, Part, Record},
    telemetry::spans,
};

/// Writes a line for each request that has ended.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: Format,
    sample: Share,
    lines: Lines,
}

impl AccessLog {
    /// `None` if there is to be none.
    ///
    /// # Errors
    ///
    /// If the file cannot be written to.
    pub(crate) fn open(config: &config::AccessLog) -> io::Result<Option<Self>> {
        if config.format == Format::Off {
            return Ok(None);
        }
        Ok(Some(Self {
            format: config.format,
            sample: Share::new(config.sample),
            lines: Writer::open(&config.target())?,
        }))
    }

    /// Opens its file anew, which somebody may have moved away.
    pub(crate) fn reopen(&self) {
        self.lines.reopen();
    }

    /// Waits until all lines so far are written, for so long at most.
    pub(crate) async fn flush(&self, longest: Duration) {
        if !self.lines.flush(longest).await {
            tracing::warn!("gave up on the last lines of the access log: writing takes too long");
        }
    }
}

impl Observe for AccessLog {
    fn ended(&self, record: &Record) {
        // Those of a batch came in one request.
        let is_told = record.part != Part::Item
            && (line::is_failure(record) || self.sample.takes(record.id.as_bytes()));
        if is_told {
            let trace = spans::current().map(|trace| trace.trace_id());
            self.lines
                .write(Line::new(record, trace).print(self.format));
        }
    }
}

/// A share of all requests, the same ones in every gateway.
#[derive(Clone, Copy, Debug)]
struct Share(u64);

impl Share {
    fn new(share: f64) -> Self {
        // Of 2^32, so that 1 is all of them.
        Self((share.clamp(0.0, 1.0) * 4_294_967_296.0) as u64)
    }

    fn takes(self, id: &[u8]) -> bool {
        // FNV-1a, and its upper half, in which ids that count up differ too once it is mixed.
        let hash = id.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed >> 32 < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_whatever_ids_look_like() {
        let ids = || (0..20_000).map(|number| format!("request-{number}"));
        let taken = |share: f64| {
            let share = Share::new(share);
            ids().filter(|id| share.takes(id.as_bytes())).count()
        };
        assert_eq!(taken(0.0), 0);
        assert_eq!(taken(1.0), 20_000);
        for share in [0.01, 0.1, 0.5, 0.9] {
            let off = taken(share) as f64 / 20_000.0 - share;
            assert!(off.abs() < 0.02, "{share}: {off}");
        }
        // What a small share takes, a larger one does.
        let (tenth, half) = (Share::new(0.1), Share::new(0.5));
        assert!(ids().all(|id| !tenth.takes(id.as_bytes()) || half.takes(id.as_bytes())));
    }
}
