//! A warning that repeats itself is told a few times a second, and how often it was left out.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::{Counter, counter, describe_counter};
use palisade::time;
use tokio::time::Instant;
use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Lines of one place in the code.
const MOST: u32 = 10;
const EVERY: Duration = Duration::from_secs(1);

const LEFT_OUT: &str = "palisade_gateway_log_lines_left_out_total";

/// Writes what another format writes, except for warnings and errors that come too often.
#[derive(Debug)]
pub(super) struct Repeats<F> {
    format: F,
    /// As many as there are places that warn.
    places: Mutex<HashMap<Identifier, Place>>,
    left_out: Counter,
}

impl<F> Repeats<F> {
    pub(super) fn new(format: F) -> Self {
        describe_counter!(
            LEFT_OUT,
            "Warnings that were not written, as too many like them were."
        );
        Self {
            format,
            places: Mutex::default(),
            left_out: counter!(LEFT_OUT),
        }
    }

    fn write(&self, place: Identifier) -> Option<u64> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(place).or_default().write(time::now())
    }
}

impl<S, N, F> FormatEvent<S, N> for Repeats<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        cx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // What is less than a warning was asked for.
        if *event.metadata().level() > Level::WARN {
            return self.format.format_event(cx, writer, event);
        }
        match self.write(event.metadata().callsite()) {
            None => {
                self.left_out.increment(1);
                Ok(())
            }
            Some(left_out) => {
                self.format.format_event(cx, writer.by_ref(), event)?;
                match left_out {
                    0 => Ok(()),
                    many => writeln!(writer, "    and {many} like it before, which were left out"),
                }
            }
        }
    }
}

/// What one place in the code has written lately.
#[derive(Debug, Default)]
struct Place {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Place {
    /// Whether to write a line now, and how many were left out since the last one.
    fn write(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= EVERY {
            self.since = Some(now);
            self.written = 0;
        }
        if self.written == MOST {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::{fmt, layer::SubscriberExt};

    use super::*;

    #[test]
    fn ten_lines_a_second_are_written_and_the_others_counted() {
        let start = time::now();
        let mut place = Place::default();
        for _ in 0..MOST {
            assert_eq!(place.write(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(place.write(start + EVERY - Duration::from_nanos(1)), None);
        }
        assert_eq!(place.write(start + EVERY), Some(7));
        for _ in 1..MOST {
            assert_eq!(place.write(start + EVERY), Some(0));
        }
        assert_eq!(place.write(start + EVERY), None);
        assert_eq!(place.write(start + 100 * EVERY), Some(1));
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_warning_that_repeats_itself_leaves_room_for_others() {
        let written = Written::default();
        let writer = written.clone();
        let log = fmt::layer()
            .event_format(Repeats::new(fmt::format().without_time()))
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(log);
        let warn = || tracing::warn!("it is broken");
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..1000 {
                warn();
                tracing::info!("asked for");
            }
            tracing::error!("another thing");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(count("it is broken"), 10);
        assert_eq!(count("asked for"), 1000);
        assert_eq!(count("another thing"), 1);
        assert_eq!(text.lines().count(), 1011, "{text}");
    }
}
