//! Connections that only read, apart from the one that writes.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sqlx::{AssertSqlSafe, FromRow, postgres::PgRow, sqlite::SqliteRow};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    database::{Conn, Database, Use, late, with},
    filter::Arg,
    schema::{self, SchemaError},
};

/// How many read at once.
const MANY: usize = 2;

/// How long a look may take, with the wait for a place.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be read from both databases.
pub(super) trait Readable:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Readable for T where
    T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

/// Runs a statement that reads.
pub(super) async fn select<T: Readable>(
    conn: &mut Conn,
    sql: &str,
    args: &[Arg],
) -> sqlx::Result<Vec<T>> {
    let sql = AssertSqlSafe(sql.to_owned());
    with!(conn, conn => {
        let mut query = sqlx::query_as(sql);
        for arg in args.iter().cloned() {
            query = match arg {
                Arg::Text(text) => query.bind(text),
                Arg::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(conn).await
    })
}

/// Opens a database to read what this version writes.
pub(super) async fn open(database: &Database) -> Result<Conn, SchemaError> {
    let mut conn = database.connect(Use::Read).await?;
    schema::check(&mut conn).await?;
    Ok(conn)
}

/// The log cannot be read now.
#[derive(Debug)]
pub(super) struct Unreadable;

/// Connections that only read, at most two.
///
/// Not a pool of sqlx: that waits for connections which it tidies up after a read was given up, for as long as a
/// database hangs, and then for those that hang with it. Here a read that was given up takes its connection with it.
pub(super) struct Readers {
    database: Database,
    places: Semaphore,
    idle: Mutex<Vec<Conn>>,
}

impl Readers {
    pub(super) fn new(database: Database) -> Self {
        Self {
            database,
            places: Semaphore::new(MANY),
            idle: Mutex::default(),
        }
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Runs a statement that reads, within 5 s. Dropped, it closes its connection.
    pub(super) async fn read<T: Readable>(
        &self,
        sql: &str,
        args: &[Arg],
    ) -> Result<Vec<T>, Unreadable> {
        let read = async {
            let _place = self.places.acquire().await.map_err(|_| Unreadable)?;
            let idle = self.idle().pop();
            if let Some(mut conn) = idle
                && let Ok(rows) = select(&mut conn, sql, args).await
            {
                self.idle().push(conn);
                return Ok(rows);
            }
            // The one before may have been closed since.
            let mut conn = open(&self.database).await.map_err(Unreadable::told)?;
            let rows = select(&mut conn, sql, args).await;
            let rows = rows.map_err(|error| Unreadable::told(error.into()))?;
            self.idle().push(conn);
            Ok(rows)
        };
        let late = || Err(Unreadable::told(late(PATIENCE).into()));
        timeout(PATIENCE, read).await.unwrap_or_else(|_| late())
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Conn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unreadable {
    /// The caller hears that it is so, the log hears why.
    fn told(error: SchemaError) -> Self {
        tracing::warn!(%error, "the request log cannot be read");
        Self
    }
}
