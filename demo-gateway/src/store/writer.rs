//! Writes rows, off the path of requests.

use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
    time::Duration,
};

use palisade::time::{self, wall_clock};
use sqlx::AssertSqlSafe;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Books, Dropped,
    database::{Conn, Database, Use, is_refusal, late, with},
    retention::Retention,
    row::{self, Row},
    schema::{self, SchemaError},
};
use crate::{clock::rfc3339, config};

/// How long a batch may take; more than the database itself works on it.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Between two attempts, at first and at most.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The same when there is not much time left.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// How often a database that nothing is written to is asked whether it could be.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// The end of everything that is to be written, once that is known.
pub(super) type Closing = watch::Receiver<Option<Instant>>;

/// Writes rows in batches, in the order in which they came.
///
/// A batch is written once, or not at all, whatever happens to the connection: it has a number, which is written with
/// it. Whoever never heard how a batch ended asks by the number, and the database answers when it is done with it.
pub(super) struct Writer {
    database: Database,
    conn: Option<Conn>,
    rows: mpsc::Receiver<Row>,
    books: Arc<Books>,
    closing: Closing,
    most: usize,
    every: Duration,
    retention: Retention,
    /// Its name in the database, and the number of its last batch.
    name: String,
    number: i64,
}

/// How an attempt ended that did not write.
enum Failed {
    /// Nothing that can be said of this batch in particular.
    Unable(SchemaError),
    /// The database does not take what is in it.
    Refused(sqlx::Error),
}

impl Writer {
    pub(super) fn new(
        database: Database,
        config: &config::Store,
        rows: mpsc::Receiver<Row>,
        books: Arc<Books>,
        closing: Closing,
    ) -> Self {
        Self {
            database,
            conn: None,
            rows,
            books,
            closing,
            most: config.batch,
            every: config.every,
            retention: Retention::new(config.keep, config.max_rows, time::now()),
            name: format!("{:032x}", rand::random::<u128>()),
            number: 0,
        }
    }

    /// Opens the database and makes its tables.
    pub(super) async fn open(&mut self) -> Result<(), SchemaError> {
        let opened = timeout(ATTEMPT, self.connection()).await;
        let opened = opened
            .unwrap_or_else(|_| Err(late(ATTEMPT).into()))
            .map(drop);
        if opened.is_ok() {
            self.books.stands(Ok(()));
        }
        opened
    }

    /// Writes until it is told to end and nothing is left, or the time for that is over.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(self.most);
        let mut goes_on = ControlFlow::Continue(());
        while goes_on.is_continue() && self.closing.borrow().is_none() {
            tokio::select! {
                // Cancelled, it has taken none.
                first = self.rows.recv() => match first {
                    Some(row) => batch.push(row),
                    None => break,
                },
                _ = self.closing.changed() => break,
                () = sleep_until(self.retention.due()) => {
                    self.retain().await;
                    continue;
                }
                () = sleep(LOOK_EVERY) => {
                    self.look().await;
                    continue;
                }
            }
            // Rows that come now wake nobody, unless there are many.
            tokio::select! {
                () = sleep(self.every) => {}
                () = self.books.many.notified() => {}
                _ = self.closing.changed() => {}
            }
            goes_on = self.write_all(&mut batch).await;
        }
        // What comes from now on is counted by who sends it.
        self.rows.close();
        if goes_on.is_continue() {
            goes_on = self.write_all(&mut batch).await;
        }
        if goes_on.is_break() {
            let mut lost = batch.len();
            while self.rows.try_recv().is_ok() {
                lost += 1;
            }
            self.books.lost(Dropped::Shutdown, lost as u64);
        }
        if let Some(conn) = self.conn.take() {
            // What is written stays written.
            let _impolite = timeout(GOODBYE, conn.close()).await;
        }
    }

    /// Writes all that waits. What it leaves in the batch was not written.
    async fn write_all(&mut self, batch: &mut Vec<Row>) -> ControlFlow<()> {
        loop {
            while batch.len() < self.most
                && let Ok(row) = self.rows.try_recv()
            {
                batch.push(row);
            }
            if batch.is_empty() {
                self.books.is_full(false);
                return ControlFlow::Continue(());
            }
            self.write(batch).await?;
            // Also when there is always more to write.
            if self.retention.due() <= time::now() && self.closing.borrow().is_none() {
                self.retain().await;
            }
        }
    }

    /// Writes a batch, as often as it takes.
    async fn write(&mut self, batch: &mut Vec<Row>) -> ControlFlow<()> {
        let whole = 0..batch.len();
        let mut parts = vec![whole];
        while let Some(part) = parts.pop() {
            let written = match self.insist(&batch[part.clone()]).await {
                ControlFlow::Continue(written) => written,
                ControlFlow::Break(()) => {
                    // From here on nothing is written.
                    batch.drain(..part.start);
                    return ControlFlow::Break(());
                }
            };
            if written {
                self.books.wrote(part.len() as u64);
                continue;
            }
            match halves(&part) {
                // Only what is refused is lost, not what was to be written with it.
                Some([first, second]) => parts.extend([second, first]),
                None => self.books.lost(Dropped::Refused, 1),
            }
        }
        batch.clear();
        ControlFlow::Continue(())
    }

    /// Tries until the rows are written (`true`) or refused (`false`), or the time is over.
    async fn insist(&mut self, rows: &[Row]) -> ControlFlow<(), bool> {
        self.number += 1;
        let mut wait = SHORTEST_WAIT;
        loop {
            self.books.meters.queued.set(self.rows.len() as f64);
            let closing = self.closing.clone();
            let began = time::now();
            let attempt = tokio::select! {
                attempt = timeout(ATTEMPT, self.attempt(rows)) => attempt,
                () = over(closing.clone()) => return ControlFlow::Break(()),
            };
            match attempt {
                Ok(Ok(())) => {
                    self.books.meters.seconds.record(time::now() - began);
                    self.books.stands(Ok(()));
                    return ControlFlow::Continue(true);
                }
                Ok(Err(Failed::Refused(error))) => {
                    self.books.refused(&error);
                    self.conn = None;
                    return ControlFlow::Continue(false);
                }
                Ok(Err(Failed::Unable(error))) => self.books.stands(Err(&error)),
                Err(_) => self.books.stands(Err(&late(ATTEMPT).into())),
            }
            // Nobody knows in which state it is; what it has begun is undone or done, and asked about.
            self.conn = None;
            let is_closing = closing.borrow().is_some();
            let pause = if is_closing { LAST_WAIT } else { wait };
            tokio::select! {
                () = sleep(pause) => {}
                () = begun(closing.clone()), if !is_closing => {}
                () = over(closing) => return ControlFlow::Break(()),
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// One attempt, all or nothing.
    async fn attempt(&mut self, rows: &[Row]) -> Result<(), Failed> {
        let dialect = self.database.dialect();
        let claim = AssertSqlSafe(format!(
            "INSERT INTO log_writers (writer, batch, seen) VALUES ($1, $2, {}) ON CONFLICT (writer) \
             DO UPDATE SET batch = excluded.batch, seen = excluded.seen WHERE log_writers.batch < excluded.batch",
            dialect.at("$3")
        ));
        let (name, number) = (self.name.clone(), self.number);
        let conn = self.connection().await.map_err(Failed::Unable)?;
        conn.run(dialect.begin).await?;
        let seen = rfc3339(wall_clock());
        // Waits for a connection before, which may still be at this very batch.
        let claimed = with!(conn, conn => {
            let claim = sqlx::query(claim).bind(name).bind(number).bind(seen);
            claim.execute(conn).await?.rows_affected() > 0
        });
        if claimed {
            row::write(conn, dialect, rows).await?;
        }
        conn.run("COMMIT").await?;
        Ok(())
    }

    /// Finds out whether rows could be written, where there are none that would tell.
    async fn look(&mut self) {
        let begin = self.database.dialect().begin;
        let look = async {
            let conn = Self::connect(&mut self.conn, &self.database).await?;
            conn.run(begin).await?;
            conn.run("ROLLBACK").await?;
            Ok::<_, SchemaError>(())
        };
        let looked = tokio::select! {
            looked = timeout(ATTEMPT, look) => Some(looked.unwrap_or_else(|_| Err(late(ATTEMPT).into()))),
            // What it has begun is undone with its connection.
            () = begun(self.closing.clone()) => None,
        };
        if !matches!(looked, Some(Ok(()))) {
            self.conn = None;
        }
        if let Some(looked) = looked {
            self.books.stands(looked.as_ref().copied());
        }
    }

    async fn retain(&mut self) {
        let (now, date) = (time::now(), wall_clock());
        let dialect = self.database.dialect();
        let step = async {
            let conn = Self::connect(&mut self.conn, &self.database).await?;
            let deleted = self.retention.step(conn, dialect, now, date).await?;
            Ok::<_, SchemaError>(deleted)
        };
        let step = tokio::select! {
            step = timeout(ATTEMPT, step) => step.map_err(drop),
            // It can wait, and what is to be written cannot.
            () = begun(self.closing.clone()) => Err(()),
        };
        match step {
            Ok(Ok(deleted)) => {
                self.books.meters.deleted.increment(deleted);
                // It has written. Where nobody asks anything, nothing else tells that the database is back.
                self.books.stands(Ok(()));
            }
            // Tried again at the next look. That rows cannot be written is told by writing them.
            Ok(Err(_)) | Err(_) => {
                self.conn = None;
                self.retention.put_off(now);
            }
        }
    }

    async fn connection(&mut self) -> Result<&mut Conn, SchemaError> {
        Self::connect(&mut self.conn, &self.database).await
    }

    async fn connect<'a>(
        held: &'a mut Option<Conn>,
        database: &Database,
    ) -> Result<&'a mut Conn, SchemaError> {
        if held.is_none() {
            let mut conn = database.connect(Use::Write).await?;
            schema::migrate(&mut conn, database.dialect()).await?;
            *held = Some(conn);
        }
        Ok(held.as_mut().expect("just put there"))
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        if is_refusal(&error) {
            Self::Refused(error)
        } else {
            Self::Unable(error.into())
        }
    }
}

/// Both halves of what has more than one.
fn halves(part: &Range<usize>) -> Option<[Range<usize>; 2]> {
    let middle = part.start + part.len() / 2;
    (part.len() > 1).then_some([part.start..middle, middle..part.end])
}

/// Ready when it is to end.
async fn begun(mut closing: Closing) {
    // If nobody is left who could say so, too.
    let _either = closing.wait_for(Option::is_some).await;
}

/// Ready when the time for what is left is over.
async fn over(mut closing: Closing) {
    let until = closing.wait_for(Option::is_some).await.map(|until| *until);
    // If nobody is left who could say so, it is over too.
    if let Ok(Some(until)) = until {
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests;
