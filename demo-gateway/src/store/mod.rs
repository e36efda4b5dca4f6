//! The request log: every request that asked for a model, in SQLite or PostgreSQL.
//!
//! A request that ends leaves a row in a bounded queue, and never waits. A task writes rows in batches, keeps them
//! while the database is away, and comes back by itself. Rows for which there is no room are dropped and counted.

mod database;
pub mod export;
mod filter;
mod folder;
mod reader;
mod retention;
mod routes;
mod row;
mod schema;
mod whole;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use palisade::time;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

pub(crate) use self::routes::routes;
use self::{
    database::{Database, is_misconfiguration, late},
    folder::Folder,
    reader::Readers,
    row::Row,
    schema::SchemaError,
    writer::Writer,
};
use crate::{
    config::{Config, Place, without_password},
    record::{Observe, Record},
};

const WRITTEN: &str = "palisade_store_written_total";
const DROPPED: &str = "palisade_store_dropped_total";
const DELETED: &str = "palisade_store_deleted_total";
const QUEUED: &str = "palisade_store_queued";
const UP: &str = "palisade_store_up";
const SECONDS: &str = "palisade_store_write_seconds";

/// How long a start waits for the database. Then it goes on without.
const LONGEST_OPEN: Duration = Duration::from_secs(2);

/// What a shutdown allows beyond the time for the last rows: to close the database.
const SLACK: Duration = Duration::from_secs(2);

/// What it is called where changes are told.
pub(crate) const SUBJECT: &str = "request log";

/// The log as requests and routes see it.
pub(crate) struct Store {
    /// Which database, without its password.
    pub(crate) shown: String,
    kind: &'static str,
    rows: mpsc::WeakSender<Row>,
    books: Arc<Books>,
    readers: Readers,
}

/// What keeps the log going. Dropped, it ends at once.
pub(crate) struct Running {
    writer: JoinHandle<()>,
    closing: watch::Sender<Option<Instant>>,
    books: Arc<Books>,
    flush_timeout: Duration,
    _folder: Option<Folder>,
}

/// Opens the log of a configuration, if there is one. The observer is to hear of every request.
///
/// # Errors
///
/// What somebody has to put right: a database that is not there for now is none of it.
pub(crate) async fn open(
    config: &Config,
) -> Result<Option<(Store, Arc<dyn Observe>, Running)>, String> {
    let place = Place::of(config.store.url.as_ref(), config.data_dir.as_deref())?;
    let (database, folder) = match place {
        Place::Off => return Ok(None),
        Place::Postgres(options) => (Database::Postgres(options), None),
        Place::File(path) => (Database::Sqlite(path), None),
        Place::Temporary => {
            let folder = Folder::new().map_err(|error| format!("a temporary folder: {error}"))?;
            (
                Database::Sqlite(folder.path().join("requests.db")),
                Some(folder),
            )
        }
    };
    let shown = match (&database, &config.store.url) {
        (Database::Sqlite(path), _) => {
            if let Some(folder) = path.parent().filter(|path| *path != Path::new("")) {
                std::fs::create_dir_all(folder)
                    .map_err(|error| format!("{}: {error}", folder.display()))?;
            }
            format!("sqlite:{}", path.display())
        }
        (_, Some(url)) => without_password(url.reveal()),
        (_, None) => String::new(),
    };
    let (rows, queue) = mpsc::channel(config.store.queue);
    let (closing, closes) = watch::channel(None);
    let books = Arc::new(Books::new());
    let kind = database.dialect().name;
    let readers = Readers::new(database.clone());
    let mut writer = Writer::new(database, &config.store, queue, books.clone(), closes);
    match timeout(LONGEST_OPEN, writer.open()).await {
        Ok(Ok(())) => {}
        Ok(Err(error @ SchemaError::Newer(_))) => return Err(format!("{shown}: {error}")),
        Ok(Err(SchemaError::Sql(error))) if is_misconfiguration(&error) => {
            return Err(format!("{shown}: {error}"));
        }
        Ok(Err(error)) => books.stands(Err(&error)),
        Err(_) => books.stands(Err(&late(LONGEST_OPEN).into())),
    }
    let log = Log {
        half: config.store.queue / 2,
        books: books.clone(),
        rows,
    };
    let store = Store {
        shown,
        kind,
        rows: log.rows.downgrade(),
        books: books.clone(),
        readers,
    };
    let running = Running {
        writer: tokio::spawn(writer.run()),
        closing,
        books,
        flush_timeout: config.store.flush_timeout,
        _folder: folder,
    };
    Ok(Some((store, Arc::new(log), running)))
}

impl Store {
    pub(crate) fn status(&self) -> Status {
        let standing = self.books.standing.borrow().clone();
        let queued = self.rows.upgrade();
        let queued = queued.map_or(0, |rows| rows.max_capacity() - rows.capacity());
        Status {
            kind: self.kind,
            up: standing.up == Some(true),
            last_error: standing.last_error,
            queued,
            written: self.books.written.load(Relaxed),
            dropped: DroppedRows {
                full: self.books.dropped(Dropped::Full),
                refused: self.books.dropped(Dropped::Refused),
                shutdown: self.books.dropped(Dropped::Shutdown),
            },
        }
    }

    /// Rows that are lost because the database did not take them in time, or at all.
    pub(crate) fn dropped(&self) -> u64 {
        Dropped::ALL.map(|why| self.books.dropped(why)).iter().sum()
    }

    /// Whether rows get into the database now.
    pub(crate) fn writing(&self) -> Writing {
        let standing = self.books.standing.borrow();
        Writing {
            up: standing.up != Some(false),
            is_full: standing.is_full,
            lost: self.books.dropped(Dropped::Full),
            last_error: standing.last_error.clone(),
        }
    }
}

/// Whether rows get into the database.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    /// Until it was tried as well.
    pub(crate) up: bool,
    /// There is no room for more.
    pub(crate) is_full: bool,
    /// Rows for which there was no room.
    pub(crate) lost: u64,
    pub(crate) last_error: Option<Arc<str>>,
}

impl Running {
    /// Writes what is left, as long as there is time for it.
    pub(crate) async fn close(mut self) {
        let until = time::now() + self.flush_timeout;
        // It only fails when the writer has ended already.
        let _ended = self.closing.send(Some(until));
        let bound = self.flush_timeout + SLACK;
        match timeout(bound, &mut self.writer).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!("{SUBJECT}: its writer has failed: {error}"),
            Err(_) => tracing::error!("{SUBJECT}: its writer does not end"),
        }
        let lost = self.books.dropped(Dropped::Shutdown);
        if lost > 0 {
            let error = self.books.standing.borrow().last_error.clone();
            let error = error.as_deref().unwrap_or("there was no time");
            tracing::error!("{SUBJECT}: {lost} rows were not written: {error}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// How the log stands.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    kind: &'static str,
    up: bool,
    last_error: Option<Arc<str>>,
    queued: usize,
    written: u64,
    dropped: DroppedRows,
}

#[derive(Debug, Serialize)]
struct DroppedRows {
    full: u64,
    refused: u64,
    shutdown: u64,
}

/// Takes rows from requests.
struct Log {
    rows: mpsc::Sender<Row>,
    books: Arc<Books>,
    half: usize,
}

impl Observe for Log {
    fn ended(&self, record: &Record) {
        let Some(row) = Row::of(record) else {
            return;
        };
        match self.rows.try_send(row) {
            Ok(()) if self.rows.capacity() <= self.half => self.books.many.notify_one(),
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.books.lost(Dropped::Full, 1);
                self.books.is_full(true);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => self.books.lost(Dropped::Shutdown, 1),
        }
    }
}

/// Why a row is not in the log.
#[derive(Clone, Copy)]
enum Dropped {
    /// Too many wait already.
    Full,
    /// The database does not take it.
    Refused,
    /// The gateway stopped before the database was back.
    Shutdown,
}

impl Dropped {
    const ALL: [Self; 3] = [Self::Full, Self::Refused, Self::Shutdown];

    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What has become of rows, and how the database stands.
struct Books {
    written: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
    /// Said when many rows wait.
    many: Notify,
    full: AtomicBool,
    standing: watch::Sender<Standing>,
    meters: Meters,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// `None` until it was tried.
    up: Option<bool>,
    is_full: bool,
    last_error: Option<Arc<str>>,
}

impl Books {
    fn new() -> Self {
        Self {
            written: AtomicU64::new(0),
            dropped: Default::default(),
            many: Notify::new(),
            full: AtomicBool::new(false),
            standing: watch::Sender::default(),
            meters: Meters::new(),
        }
    }

    fn wrote(&self, rows: u64) {
        self.written.fetch_add(rows, Relaxed);
        self.meters.written.increment(rows);
    }

    fn lost(&self, why: Dropped, rows: u64) {
        self.dropped[why as usize].fetch_add(rows, Relaxed);
        self.meters.dropped[why as usize].increment(rows);
    }

    fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].load(Relaxed)
    }

    /// Whether the database answers.
    fn stands(&self, answer: Result<(), &SchemaError>) {
        let up = answer.is_ok();
        self.meters.up.set(if up { 1.0 } else { 0.0 });
        self.standing.send_if_modified(|standing| {
            let changed = standing.up != Some(up);
            standing.up = Some(up);
            if let Err(error) = answer {
                standing.last_error = Some(error.to_string().into());
            }
            changed
        });
    }

    fn refused(&self, error: &sqlx::Error) {
        let error = error.to_string();
        tracing::warn!("{SUBJECT}: the database does not take a row: {error}");
        self.standing
            .send_modify(|standing| standing.last_error = Some(error.into()));
    }

    /// Whether there is no room for more.
    fn is_full(&self, is_full: bool) {
        // Requests that find it full do not queue up to say so.
        if self.full.swap(is_full, Relaxed) != is_full {
            self.tell_full();
        }
    }

    /// Tells what holds by now: who has changed it last need not come here last.
    fn tell_full(&self) {
        self.standing.send_if_modified(|standing| {
            let is_full = self.full.load(Relaxed);
            std::mem::replace(&mut standing.is_full, is_full) != is_full
        });
    }
}

/// Ready-made handles.
struct Meters {
    written: Counter,
    dropped: [Counter; Dropped::ALL.len()],
    deleted: Counter,
    queued: Gauge,
    up: Gauge,
    seconds: Histogram,
}

impl Meters {
    fn new() -> Self {
        metrics::describe_counter!(WRITTEN, "Rows of the request log that were written.");
        metrics::describe_counter!(
            DROPPED,
            "Rows of the request log that were not written, by why: the queue was full, the database refused them, or the gateway stopped."
        );
        metrics::describe_counter!(
            DELETED,
            "Rows of the request log that were deleted for their age or number."
        );
        metrics::describe_gauge!(QUEUED, "Rows of the request log that wait to be written.");
        metrics::describe_gauge!(
            UP,
            "Whether the database of the request log answered last time."
        );
        metrics::describe_histogram!(SECONDS, "What writing a batch of the request log takes.");
        Self {
            written: counter!(WRITTEN),
            dropped: Dropped::ALL.map(|why| counter!(DROPPED, "reason" => why.name())),
            deleted: counter!(DELETED),
            queued: gauge!(QUEUED),
            up: gauge!(UP),
            seconds: histogram!(SECONDS),
        }
    }
}

#[cfg(test)]
mod tests;
