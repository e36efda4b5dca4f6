//! What is deleted again, and when.

use std::time::{Duration, SystemTime};

use sqlx::{AssertSqlSafe, Row};
use tokio::time::Instant;

use super::database::{Conn, Dialect, with};
use crate::clock::rfc3339;

/// How often it is looked for rows that are too old or too many.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Between two steps, so that rows are written in between.
const PAUSE: Duration = Duration::from_millis(20);

/// How many rows one step deletes, which takes some milliseconds.
const STEP: i64 = 1000;

/// How long a gateway is remembered that does not write any more. It asks about its last batch within seconds.
const REMEMBER: Duration = Duration::from_secs(86_400);

/// Deletes what is too old or too much, a step at a time.
pub(super) struct Retention {
    keep: Option<Duration>,
    max_rows: Option<i64>,
    due: Instant,
    /// The newest row that is too many, since the last look.
    last: Option<i64>,
    /// Whether a look has begun and not ended.
    is_busy: bool,
}

impl Retention {
    /// 0 is for no bound.
    pub(super) fn new(keep: Duration, max_rows: u64, now: Instant) -> Self {
        Self {
            keep: (!keep.is_zero()).then_some(keep),
            max_rows: i64::try_from(max_rows).ok().filter(|max| *max > 0),
            // A gateway that starts again may have been away for long.
            due: now,
            last: None,
            is_busy: false,
        }
    }

    /// When the next step is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Leaves it until the next look.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.due = now + LOOK_EVERY;
        self.is_busy = false;
    }

    /// One step. Returns how many rows it has deleted.
    pub(super) async fn step(
        &mut self,
        conn: &mut Conn,
        dialect: &Dialect,
        now: Instant,
        date: SystemTime,
    ) -> sqlx::Result<u64> {
        if !self.is_busy {
            self.last = match self.max_rows {
                Some(max) => too_many(conn, max).await?,
                None => None,
            };
            forget(conn, dialect, date).await?;
            self.is_busy = true;
        }
        let mut deleted = 0;
        if let Some(last) = self.last {
            let sql = format!(
                "DELETE FROM request_metrics WHERE id IN \
                 (SELECT id FROM request_metrics WHERE id <= $1 ORDER BY id LIMIT {STEP})"
            );
            let sql = AssertSqlSafe(sql);
            deleted = with!(conn, conn => sqlx::query(sql).bind(last).execute(conn).await?.rows_affected());
        }
        if let Some(oldest) = self.keep.and_then(|keep| date.checked_sub(keep))
            && deleted < STEP as u64
        {
            let sql = format!(
                "DELETE FROM request_metrics WHERE id IN \
                 (SELECT id FROM request_metrics WHERE timestamp < {} ORDER BY timestamp LIMIT {STEP})",
                dialect.at("$1")
            );
            let sql = AssertSqlSafe(sql);
            let oldest = rfc3339(oldest);
            deleted += with!(conn, conn => sqlx::query(sql).bind(oldest).execute(conn).await?.rows_affected());
        }
        self.put_off(now);
        if deleted >= STEP as u64 {
            (self.is_busy, self.due) = (true, now + PAUSE);
        }
        Ok(deleted)
    }
}

/// The newest row beyond so many.
async fn too_many(conn: &mut Conn, max: i64) -> sqlx::Result<Option<i64>> {
    // Counted: numbers are left out where rows were refused, and where gateways share a table.
    let sql = "SELECT id FROM request_metrics ORDER BY id DESC LIMIT 1 OFFSET $1";
    with!(conn, conn => {
        let row = sqlx::query(sql).bind(max).fetch_optional(conn).await?;
        row.map(|row| row.try_get(0)).transpose()
    })
}

async fn forget(conn: &mut Conn, dialect: &Dialect, date: SystemTime) -> sqlx::Result<()> {
    let sql = AssertSqlSafe(format!(
        "DELETE FROM log_writers WHERE seen < {}",
        dialect.at("$1")
    ));
    let seen = rfc3339(date - REMEMBER);
    with!(conn, conn => sqlx::query(sql).bind(seen).execute(conn).await.map(drop))
}

#[cfg(test)]
mod tests {
    use super::super::{
        database::Use,
        schema,
        tests::{Folder, count, rows_at, write},
    };
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// Steps until there is nothing left to do, as the writer does. Returns how many rows each has deleted.
    async fn run(
        retention: &mut Retention,
        conn: &mut Conn,
        dialect: &Dialect,
        mut now: Instant,
        date: SystemTime,
    ) -> Vec<u64> {
        let mut steps = Vec::new();
        loop {
            now = now.max(retention.due());
            steps.push(retention.step(conn, dialect, now, date).await.unwrap());
            if retention.due() >= now + LOOK_EVERY {
                return steps;
            }
            assert_eq!(retention.due(), now + PAUSE);
        }
    }

    #[tokio::test]
    async fn rows_go_when_they_are_too_old_and_not_a_millisecond_before() {
        let folder = Folder::new();
        let file = folder.database();
        let dialect = file.dialect();
        let mut conn = file.connect(Use::Write).await.unwrap();
        schema::migrate(&mut conn, dialect).await.unwrap();
        let start = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let dates = (0..2500).map(|number| start + Duration::from_millis(number));
        write(&mut conn, dialect, &rows_at(dates)).await;
        let now = palisade::time::now();
        let mut retention = Retention::new(DAY, 0, now);
        // The oldest is as old as it may be.
        let steps = run(&mut retention, &mut conn, dialect, now, start + DAY).await;
        assert_eq!((steps, count(&mut conn).await), (vec![0], 2500));
        let later = start + DAY + Duration::from_millis(1);
        let steps = run(&mut retention, &mut conn, dialect, now, later).await;
        assert_eq!((steps, count(&mut conn).await), (vec![1], 2499));
        // In small steps, between which others write.
        let later = start + DAY + Duration::from_millis(2100);
        let steps = run(&mut retention, &mut conn, dialect, now, later).await;
        assert_eq!(steps, [1000, 1000, 99]);
        assert_eq!(count(&mut conn).await, 400);
        // For ever.
        let mut retention = Retention::new(Duration::ZERO, 0, now);
        let steps = run(&mut retention, &mut conn, dialect, now, start + 999 * DAY).await;
        assert_eq!((steps, count(&mut conn).await), (vec![0], 400));
    }

    #[tokio::test]
    async fn the_newest_are_kept_however_the_numbers_run() {
        let folder = Folder::new();
        let file = folder.database();
        let dialect = file.dialect();
        let mut conn = file.connect(Use::Write).await.unwrap();
        schema::migrate(&mut conn, dialect).await.unwrap();
        let date = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        write(
            &mut conn,
            dialect,
            &rows_at(std::iter::repeat_n(date, 3000)),
        )
        .await;
        // Holes.
        conn.run("DELETE FROM request_metrics WHERE id % 2 = 0")
            .await
            .unwrap();
        let now = palisade::time::now();
        let mut retention = Retention::new(Duration::ZERO, 200, now);
        let steps = run(&mut retention, &mut conn, dialect, now, date).await;
        assert_eq!(steps, [1000, 300]);
        assert_eq!(count(&mut conn).await, 200);
        let sql = "SELECT MIN(id) FROM request_metrics";
        let first: i64 =
            with!(&mut conn, conn => sqlx::query(sql).fetch_one(conn).await.unwrap().get(0));
        assert_eq!(first, 2601, "the oldest have gone");
    }

    #[tokio::test]
    async fn a_gateway_that_has_not_written_for_a_day_is_forgotten() {
        let folder = Folder::new();
        let file = folder.database();
        let dialect = file.dialect();
        let mut conn = file.connect(Use::Write).await.unwrap();
        schema::migrate(&mut conn, dialect).await.unwrap();
        let date = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        for (name, seen) in [("old", date - DAY * 2), ("new", date - DAY / 2)] {
            let seen = rfc3339(seen);
            conn.run(format!(
                "INSERT INTO log_writers VALUES ('{name}', 1, '{seen}')"
            ))
            .await
            .unwrap();
        }
        let now = palisade::time::now();
        let mut retention = Retention::new(DAY, 0, now);
        run(&mut retention, &mut conn, dialect, now, date).await;
        let sql = "SELECT writer FROM log_writers";
        let left: String =
            with!(&mut conn, conn => sqlx::query(sql).fetch_one(conn).await.unwrap().get(0));
        assert_eq!(left, "new");
    }
}
