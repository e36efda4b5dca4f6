//! SQLite and PostgreSQL, as far as they differ.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::task::spawn_blocking;

/// How long a statement waits for a lock of somebody else. Shorter than any caller waits for a statement, so that it
/// is over in the database too when nobody waits for it any more.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long PostgreSQL works on one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// Which database.
#[derive(Clone)]
pub(super) enum Database {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

/// Where two databases say the same in other words.
pub(super) struct Dialect {
    pub(super) name: &'static str,
    /// Opens a transaction that writes, before it has read.
    pub(super) begin: &'static str,
    /// The type of a key that counts up and is never used twice.
    pub(super) id: &'static str,
    /// The type of a point in time.
    pub(super) time: &'static str,
    /// The present.
    pub(super) now: &'static str,
    /// The type of a document.
    pub(super) json: &'static str,
    /// Makes a point in time of the text between.
    pub(super) to_time: [&'static str; 2],
    /// Makes a text after RFC 3339 of the column `timestamp`.
    pub(super) shown_time: &'static str,
    /// Keeps others from changing the tables, until the transaction ends.
    pub(super) lock: Option<&'static str>,
}

static SQLITE: Dialect = Dialect {
    name: "sqlite",
    begin: "BEGIN IMMEDIATE",
    id: "INTEGER PRIMARY KEY AUTOINCREMENT",
    // SQLite has no type for it: texts of one form sort as the times do.
    time: "TEXT",
    now: "(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
    json: "TEXT",
    to_time: ["", ""],
    shown_time: "timestamp",
    // `BEGIN IMMEDIATE` has done it.
    lock: None,
};

static POSTGRES: Dialect = Dialect {
    name: "postgres",
    begin: "BEGIN",
    id: "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    time: "TIMESTAMP WITH TIME ZONE",
    now: "now()",
    json: "JSONB",
    to_time: ["CAST(", " AS TIMESTAMP WITH TIME ZONE)"],
    shown_time: r#"to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#,
    // Any number will do that nobody else locks.
    lock: Some("SELECT pg_advisory_xact_lock(7021968415)"),
};

impl Dialect {
    /// A statement with what differs filled in, for `{id}` and the like.
    pub(super) fn fill(&self, sql: &str) -> String {
        sql.replace("{id}", self.id)
            .replace("{time}", self.time)
            .replace("{now}", self.now)
            .replace("{json}", self.json)
            .replace("{shown_time}", self.shown_time)
    }

    /// Makes a point in time of an expression.
    pub(super) fn at(&self, text: &str) -> String {
        let [before, after] = self.to_time;
        format!("{before}{text}{after}")
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Changes what is there, and makes the file if there is none.
    Write,
    /// Only reads what is there.
    Read,
}

/// A connection. Dropped, it is closed, and what it had not committed is undone.
pub(super) enum Conn {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Does the same with a connection of either kind.
macro_rules! with {
    ($conn:expr, $inner:ident => $body:expr) => {
        match $conn {
            $crate::store::database::Conn::Sqlite($inner) => $body,
            $crate::store::database::Conn::Postgres($inner) => $body,
        }
    };
}
pub(super) use with;

impl Database {
    pub(super) fn dialect(&self) -> &'static Dialect {
        match self {
            Self::Sqlite(_) => &SQLITE,
            Self::Postgres(_) => &POSTGRES,
        }
    }

    pub(super) async fn connect(&self, r#use: Use) -> sqlx::Result<Conn> {
        match self {
            Self::Sqlite(path) => {
                if r#use == Use::Write {
                    make(path).await;
                }
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .busy_timeout(LOCK_TIMEOUT)
                    .disable_statement_logging();
                let options = match r#use {
                    Use::Write => options
                        .create_if_missing(true)
                        .journal_mode(SqliteJournalMode::Wal)
                        // A crash of the machine may cost the newest rows, never the file.
                        .synchronous(SqliteSynchronous::Normal),
                    Use::Read => options.pragma("query_only", "on"),
                };
                Ok(Conn::Sqlite(options.connect().await?))
            }
            Self::Postgres(options) => {
                let options = options.as_ref().clone();
                let options = match options.get_application_name() {
                    Some(_) => options,
                    None => options.application_name("demo-gateway"),
                };
                let mut conn = options.disable_statement_logging().connect().await?;
                let read_only = match r#use {
                    Use::Write => "",
                    Use::Read => "SET default_transaction_read_only = on; ",
                };
                // Not as options of the connection, which poolers before the server refuse.
                let settings = format!(
                    "{read_only}SET lock_timeout = {}; SET statement_timeout = {}",
                    LOCK_TIMEOUT.as_millis(),
                    STATEMENT_TIMEOUT.as_millis(),
                );
                sqlx::raw_sql(AssertSqlSafe(settings))
                    .execute(&mut conn)
                    .await?;
                Ok(Conn::Postgres(conn))
            }
        }
    }
}

/// Makes the file if there is none, for nobody else to read: it tells who has asked for what. SQLite gives the files
/// beside it the same mode.
async fn make(path: &Path) {
    let path = path.to_owned();
    let make = move || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    };
    // One that is there stays as it is; why one cannot be made is told by whoever opens it.
    let _made = spawn_blocking(make).await;
}

impl Conn {
    /// Runs statements that have no parameters.
    pub(super) async fn run(&mut self, sql: impl Into<String>) -> sqlx::Result<()> {
        let sql = AssertSqlSafe(sql.into());
        with!(self, conn => sqlx::raw_sql(sql).execute(conn).await.map(drop))
    }

    /// Says goodbye, and so lets SQLite tidy up its files.
    pub(super) async fn close(self) -> sqlx::Result<()> {
        with!(self, conn => conn.close().await)
    }
}

/// Whether the database will never take what it was given, however often it is.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return matches!(error, sqlx::Error::Encode(_));
    };
    let code = error.code().unwrap_or_default();
    match i32::from_str(&code) {
        // SQLite: too big, a constraint, a wrong type; the rest of the code says which.
        Ok(number) if code.len() != 5 => matches!(number & 0xff, 18..=20),
        // PostgreSQL: data exceptions and constraints.
        _ => code.starts_with("22") || code.starts_with("23"),
    }
}

/// Whether a person has to do something before it can work.
pub(super) fn is_misconfiguration(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            // PostgreSQL: who or which database is not known, or may not. SQLite: cannot be opened, is read only, is
            // something else.
            matches!(&*code, "28000" | "28P01" | "3D000" | "42501")
                || code.len() != 5
                    && i32::from_str(&code).is_ok_and(|number| matches!(number & 0xff, 8 | 14 | 26))
        }
        _ => false,
    }
}

/// The database has not answered for so long.
pub(super) fn late(within: Duration) -> sqlx::Error {
    let text = format!("no answer within {} s", within.as_secs());
    std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
}
