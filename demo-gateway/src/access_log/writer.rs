//! Lines on their way to where they are kept.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use metrics::{Counter, counter, describe_counter};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::config::Target;

/// Lines that wait; beyond it they are dropped. Each is about half a kilobyte.
const WAITING: usize = 8192;

/// Written together.
const TOGETHER: usize = 64 * 1024;

/// Between two looks for a place in a queue that is full.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const DROPPED: &str = "palisade_gateway_access_log_dropped_total";

/// Takes lines, without waiting.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
    dropped: Counter,
    reopens: Arc<AtomicBool>,
}

enum Message {
    Line(Vec<u8>),
    /// Everything before it is to be written.
    Flush(oneshot::Sender<()>),
    /// There is something to look at.
    Wake,
}

/// Opens anew what is written to.
type Reopen<W> = Box<dyn FnMut() -> io::Result<W> + Send>;

/// The thread that writes lines. It ends with the last of those who give it lines.
pub(super) struct Writer<W> {
    output: W,
    /// `None` where there is nothing to open.
    reopen: Option<Reopen<W>>,
    reopens: Arc<AtomicBool>,
    queue: Receiver<Message>,
    /// Lines that are written next, and how many.
    next: Vec<u8>,
    lines: u64,
    failed: Counter,
    /// Whether it could write lately: what goes on is logged once.
    works: bool,
}

impl Writer<()> {
    pub(super) fn open(target: &Target) -> io::Result<Lines> {
        match target {
            Target::Stderr => Writer::start(io::stderr(), None, WAITING),
            Target::Stdout => Writer::start(io::stdout(), None, WAITING),
            Target::File(path) => {
                let path = path.clone();
                let open = move || OpenOptions::new().create(true).append(true).open(&path);
                Writer::start(open()?, Some(Box::new(open)), WAITING)
            }
        }
    }
}

impl<W: Write + Send + 'static> Writer<W> {
    fn start(output: W, reopen: Option<Reopen<W>>, waiting: usize) -> io::Result<Lines> {
        describe_counter!(
            DROPPED,
            "Lines of the access log that were not written, by why."
        );
        let (lines, queue) = sync_channel(waiting);
        let reopens = Arc::new(AtomicBool::new(false));
        let writer = Self {
            output,
            reopen,
            reopens: reopens.clone(),
            queue,
            next: Vec::with_capacity(TOGETHER),
            lines: 0,
            failed: counter!(DROPPED, "reason" => "write_failed"),
            works: true,
        };
        thread::Builder::new()
            .name("access-log".into())
            .spawn(|| writer.run())?;
        Ok(Lines {
            queue: lines,
            dropped: counter!(DROPPED, "reason" => "queue_full"),
            reopens,
        })
    }

    fn run(mut self) {
        while let Ok(message) = self.queue.recv() {
            self.take(message);
            // As many as there are go out in one write.
            while self.next.len() < TOGETHER
                && let Ok(message) = self.queue.try_recv()
            {
                self.take(message);
            }
            self.write();
            if self.reopens.swap(false, Relaxed) {
                self.open_anew();
            }
        }
    }

    /// What could be written is not given up for what cannot.
    fn open_anew(&mut self) {
        let Some(reopen) = &mut self.reopen else {
            return;
        };
        match reopen() {
            Ok(output) => {
                self.output = output;
                tracing::info!("the access log was opened anew");
            }
            Err(error) => {
                tracing::warn!(%error, "the access log cannot be opened anew: it goes on where it was");
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => {
                self.next.extend_from_slice(&line);
                self.lines += 1;
            }
            Message::Wake => {}
            Message::Flush(done) => {
                self.write();
                // It only fails when nobody waits any more.
                let _late = done.send(());
            }
        }
    }

    fn write(&mut self) {
        if self.next.is_empty() {
            return;
        }
        let written = self.output.write_all(&self.next);
        let written = written.and_then(|()| self.output.flush());
        if let Err(error) = &written {
            self.failed.increment(self.lines);
            if self.works {
                tracing::warn!(%error, "the access log cannot be written; requests go on");
            }
        }
        self.works = written.is_ok();
        self.next.clear();
        self.lines = 0;
    }
}

impl Lines {
    pub(super) fn write(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.increment(1);
        }
    }

    /// Opens the file anew, after the lines that are just being written.
    pub(super) fn reopen(&self) {
        self.reopens.store(true, Relaxed);
        // Where there is no room the writer is at work, and looks when it has written.
        let _works = self.queue.try_send(Message::Wake);
    }

    /// Whether all lines so far were written in time.
    pub(super) async fn flush(&self, longest: Duration) -> bool {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            let mut message = Message::Flush(done);
            // A full queue empties, or the time is over.
            while let Err(error) = self.queue.try_send(message) {
                message = match error {
                    std::sync::mpsc::TrySendError::Full(message) => message,
                    std::sync::mpsc::TrySendError::Disconnected(_) => return false,
                };
                sleep(LOOK_AGAIN).await;
            }
            flushed.await.is_ok()
        };
        timeout(longest, flush).await.unwrap_or(false)
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, MutexGuard};

    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
    use palisade::time;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Counts what the test registers, apart from other tests.
    fn counting() -> (
        metrics_exporter_prometheus::PrometheusRecorder,
        PrometheusHandle,
    ) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        (recorder, handle)
    }

    fn dropped(metrics: &PrometheusHandle, reason: &str) -> u64 {
        let line = format!("{DROPPED}{{reason=\"{reason}\"}} ");
        let page = metrics.render();
        let found = page.lines().find_map(|text| text.strip_prefix(&*line));
        found.map_or(0, |count| count.parse().unwrap())
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes nothing until somebody lets it.
    struct Stuck(Receiver<()>, Kept);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Let go of, it says so at once.
            let _free = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_are_written_in_order_and_none_is_lost() {
        let kept = Kept::default();
        let lines = Writer::start(kept.clone(), None, 100_000).unwrap();
        for number in 0..50_000 {
            lines.write(format!("{number}\n").into_bytes());
        }
        assert!(lines.flush(LONG).await);
        let text = String::from_utf8(kept.lock().clone()).unwrap();
        assert!(
            text.lines()
                .map(|line| line.parse::<u32>().unwrap())
                .eq(0..50_000)
        );
    }

    #[tokio::test]
    async fn whoever_cannot_write_delays_nobody_and_what_is_lost_is_counted() {
        let (recorder, metrics) = counting();
        let kept = Kept::default();
        let (stuck, free) = sync_channel(0);
        let output = Stuck(free, kept.clone());
        let lines =
            metrics::with_local_recorder(&recorder, || Writer::start(output, None, 10)).unwrap();
        let start = time::now();
        for number in 0..1000 {
            lines.write(format!("{number}\n").into_bytes());
        }
        assert!(
            !lines.flush(Duration::from_millis(20)).await,
            "nothing can be written"
        );
        assert!(start.elapsed() < LONG);
        drop(stuck);
        assert!(lines.flush(LONG).await);
        let written = kept.lock().iter().filter(|byte| **byte == b'\n').count() as u64;
        assert!(written >= 10, "{written}");
        assert_eq!(written + dropped(&metrics, "queue_full"), 1000);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_line_by_line() {
        let (recorder, metrics) = counting();
        let lines =
            metrics::with_local_recorder(&recorder, || Writer::start(Full, None, 100)).unwrap();
        for _ in 0..7 {
            lines.write(b"line\n".to_vec());
        }
        assert!(lines.flush(LONG).await);
        assert_eq!(dropped(&metrics, "write_failed"), 7);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_anew_goes_on_where_it_was() {
        let (old, new) = (Kept::default(), Kept::default());
        let outputs = [Err(io::ErrorKind::NotFound.into()), Ok(new.clone())];
        let mut outputs = outputs.into_iter();
        let (opens, opened) = sync_channel(2);
        let reopen: Reopen<Kept> = Box::new(move || {
            opens.send(()).unwrap();
            outputs.next().unwrap()
        });
        let lines = Writer::start(old.clone(), Some(reopen), 100).unwrap();
        for number in 0..3 {
            lines.write(format!("{number}\n").into_bytes());
            assert!(lines.flush(LONG).await);
            if number < 2 {
                lines.reopen();
                // Nothing is taken before it has what it opens.
                opened.recv_timeout(LONG).unwrap();
            }
        }
        assert_eq!(*old.lock(), b"0\n1\n");
        assert_eq!(*new.lock(), b"2\n");
    }
}
