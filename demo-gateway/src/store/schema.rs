//! The tables, and how those of an older version become those of this one.

use std::fmt;

use sqlx::{AssertSqlSafe, Row};

use super::database::{Conn, Dialect, with};

/// What makes each version of the one before, for both databases: see [`Dialect::fill`].
///
/// Not those of sqlx, which have no lock for SQLite, two texts for two databases, and words of their own for a schema
/// that is newer.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/1.sql")];

/// The version that this program writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Why a database cannot be used as it is.
#[derive(Debug)]
pub(crate) enum SchemaError {
    /// The database says so.
    Sql(sqlx::Error),
    /// A newer program has been here.
    Newer(i64),
    /// No gateway of this version has written here yet.
    Older(i64),
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql(error) => error.fmt(f),
            Self::Newer(found) => write!(
                f,
                "its tables have version {found}, and this program knows {VERSION}: a newer one has written there"
            ),
            Self::Older(0) => f.write_str("there is no request log in it"),
            Self::Older(found) => write!(
                f,
                "its tables have version {found} and not {VERSION}: a gateway of this version has to write there first"
            ),
        }
    }
}

impl std::error::Error for SchemaError {}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// Brings the tables to this version: all of it or nothing, and one gateway after the other.
pub(super) async fn migrate(conn: &mut Conn, dialect: &Dialect) -> Result<(), SchemaError> {
    // Usually there is nothing to do, and nothing to lock for it.
    if let Ok(VERSION) = version(conn).await {
        return Ok(());
    }
    conn.run(dialect.begin).await?;
    if let Some(lock) = dialect.lock {
        conn.run(lock).await?;
    }
    conn.run("CREATE TABLE IF NOT EXISTS log_schema (version BIGINT NOT NULL)")
        .await?;
    let found = version(conn).await?;
    let Some(missing) = usize::try_from(found)
        .ok()
        .and_then(|found| MIGRATIONS.get(found..))
    else {
        return Err(SchemaError::Newer(found));
    };
    for migration in missing {
        conn.run(dialect.fill(migration)).await?;
    }
    conn.run(format!(
        "DELETE FROM log_schema; INSERT INTO log_schema VALUES ({VERSION}); COMMIT"
    ))
    .await?;
    Ok(())
}

/// Whether the tables are those of this version, without changing any.
pub(super) async fn check(conn: &mut Conn) -> Result<(), SchemaError> {
    match version(conn).await {
        Ok(VERSION) => Ok(()),
        Ok(found) if found > VERSION => Err(SchemaError::Newer(found)),
        Ok(found) => Err(SchemaError::Older(found)),
        // There is no such table.
        Err(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("42P01" | "1")) =>
        {
            Err(SchemaError::Older(0))
        }
        Err(error) => Err(error.into()),
    }
}

async fn version(conn: &mut Conn) -> sqlx::Result<i64> {
    let sql = AssertSqlSafe("SELECT COALESCE(MAX(version), 0) FROM log_schema");
    with!(conn, conn => sqlx::query(sql).fetch_one(conn).await?.try_get(0))
}

#[cfg(test)]
mod tests {
    use super::super::{
        database::{Database, Use},
        tests::Folder,
    };
    use super::*;

    async fn open(file: &Database) -> Conn {
        file.connect(Use::Write).await.unwrap()
    }

    #[tokio::test]
    async fn gateways_that_start_at_once_make_the_tables_once() {
        let folder = Folder::new();
        let file = folder.database();
        let starts = (0..4).map(|_| {
            let file = file.clone();
            tokio::spawn(async move {
                let mut conn = open(&file).await;
                migrate(&mut conn, file.dialect()).await
            })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap().unwrap();
        }
        let mut conn = open(&file).await;
        assert_eq!(version(&mut conn).await.unwrap(), VERSION);
        check(&mut conn).await.unwrap();
    }

    #[tokio::test]
    async fn tables_that_are_newer_are_told_and_left_alone() {
        let folder = Folder::new();
        let file = folder.database();
        let mut conn = open(&file).await;
        assert!(matches!(check(&mut conn).await, Err(SchemaError::Older(0))));
        migrate(&mut conn, file.dialect()).await.unwrap();
        conn.run("UPDATE log_schema SET version = 99")
            .await
            .unwrap();
        let mut conn = open(&file).await;
        let refused = migrate(&mut conn, file.dialect()).await.unwrap_err();
        assert!(refused.to_string().contains("version 99"), "{refused}");
        let mut conn = open(&file).await;
        let refused = check(&mut conn).await.unwrap_err();
        assert!(refused.to_string().contains("newer"), "{refused}");
        assert_eq!(version(&mut conn).await.unwrap(), 99);
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing() {
        let folder = Folder::new();
        let file = folder.database();
        let mut conn = open(&file).await;
        // In its way.
        conn.run("CREATE TABLE scaling_events (id INTEGER)")
            .await
            .unwrap();
        migrate(&mut conn, file.dialect()).await.unwrap_err();
        drop(conn);
        let mut conn = open(&file).await;
        let left = conn.run("SELECT * FROM request_metrics").await;
        assert!(left.unwrap_err().to_string().contains("no such table"));
        conn.run("DROP TABLE scaling_events").await.unwrap();
        migrate(&mut conn, file.dialect()).await.unwrap();
    }
}
