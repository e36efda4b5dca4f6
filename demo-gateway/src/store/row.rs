//! One line of the log: as it is made, as it is written, and as it is read.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, StatusCode};
use palisade::classify::{Usage, Verdict};
use serde::{Serialize, Serializer};
use sqlx::{
    AssertSqlSafe, ColumnIndex, Decode, FromRow, Sqlite, Type, query::Query,
    sqlite::SqliteArguments,
};

use super::database::{Conn, Dialect};
use crate::{
    clock::rfc3339,
    exchange::Operation,
    identity::Caller,
    record::{Part, Record},
};

/// The longest model that is logged, in bytes. Callers name them as they like.
const LONGEST_MODEL: usize = 256;

/// The rows of one statement: more would hardly be faster.
const AT_ONCE: usize = 64;

/// All columns but `id`, with what makes their types of text.
pub(super) const COLUMNS: [(&str, &str); 18] = [
    ("request_id", "TEXT"),
    ("client_id", "TEXT"),
    ("backend_id", "TEXT"),
    ("model", "TEXT"),
    ("operation", "TEXT"),
    ("stream", "BOOLEAN"),
    ("status", "INTEGER"),
    ("success", "BOOLEAN"),
    ("verdict", "TEXT"),
    ("reason", "TEXT"),
    ("rule", "TEXT"),
    ("why", "TEXT"),
    ("attempts", "INTEGER"),
    ("processing_time_ms", "DOUBLE PRECISION"),
    ("first_token_ms", "DOUBLE PRECISION"),
    ("input_tokens", "BIGINT"),
    ("output_tokens", "BIGINT"),
    ("timestamp", ""),
];

/// What is kept of a request until it is written. Made without an allocation, unless something went wrong.
#[derive(Clone, Debug)]
pub(super) struct Row {
    request_id: HeaderValue,
    caller: Arc<Caller>,
    backend: Option<Arc<str>>,
    model: Option<Arc<str>>,
    operation: Operation,
    stream: bool,
    status: StatusCode,
    verdict: Verdict,
    reason: Option<&'static str>,
    rule: Option<Arc<str>>,
    why: Option<Box<str>>,
    attempts: u32,
    took: Duration,
    first_token: Option<Duration>,
    usage: Option<Usage>,
    ended: SystemTime,
}

impl Row {
    /// `None` for what asked nothing of a model, and for a batch, whose requests are logged one by one.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let (Some(operation), Some(caller)) = (record.operation, &record.caller) else {
            return None;
        };
        if record.part == Part::Batch {
            return None;
        }
        Some(Self {
            request_id: record.id.clone(),
            caller: caller.clone(),
            backend: record.backend.clone(),
            model: record.model.as_ref().map(bounded),
            operation,
            stream: record.stream,
            status: record.status,
            verdict: record.verdict,
            reason: record.reason,
            rule: record.rule.clone(),
            why: record.why.as_deref().map(Box::from),
            attempts: record.attempts,
            took: record.took,
            first_token: record.first_token,
            usage: record.usage,
            ended: record.received + record.took,
        })
    }

    /// As the columns want it.
    fn written(&self) -> Written<'_> {
        Written {
            // A header has no text in it that is none, or it would not have been kept.
            request_id: Text(String::from_utf8_lossy(self.request_id.as_bytes())),
            client_id: Text(self.caller.shown()),
            backend_id: self.backend.as_deref().map(Text::of),
            model: self.model.as_deref().map(Text::of),
            operation: self.operation.name(),
            stream: self.stream,
            status: self.status.as_u16(),
            success: self.verdict == Verdict::Success,
            verdict: self.verdict.name(),
            reason: self.reason,
            rule: self.rule.as_deref().map(Text::of),
            why: self.why.as_deref().map(Text::of),
            attempts: self.attempts,
            processing_time_ms: millis(self.took),
            first_token_ms: self.first_token.map(millis),
            input_tokens: self.usage.map(|usage| count(usage.prompt)),
            output_tokens: self.usage.map(|usage| count(usage.completion)),
            timestamp: rfc3339(self.ended),
        }
    }
}

/// A text that is no longer than it may be. One that is too long is not kept alive either.
fn bounded(text: &Arc<str>) -> Arc<str> {
    match &text[..text.floor_char_boundary(LONGEST_MODEL)] {
        whole if whole.len() == text.len() => text.clone(),
        short => short.into(),
    }
}

/// To the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// As far as a database counts.
fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// A text as PostgreSQL takes it: it cannot hold a zero, and would refuse all rows that are written with it.
struct Text<'a>(Cow<'a, str>);

impl<'a> Text<'a> {
    fn of(text: &'a str) -> Self {
        Self(text.into())
    }

    fn clean(self) -> Cow<'a, str> {
        match self.0.contains('\0') {
            true => self.0.replace('\0', "\u{fffd}").into(),
            false => self.0,
        }
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Text::of(&self.0).clean())
    }
}

#[derive(Serialize)]
struct Written<'a> {
    request_id: Text<'a>,
    client_id: Text<'a>,
    backend_id: Option<Text<'a>>,
    model: Option<Text<'a>>,
    operation: &'a str,
    stream: bool,
    status: u16,
    success: bool,
    verdict: &'a str,
    reason: Option<&'a str>,
    rule: Option<Text<'a>>,
    why: Option<Text<'a>>,
    attempts: u32,
    processing_time_ms: f64,
    first_token_ms: Option<f64>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    timestamp: String,
}

impl Written<'_> {
    /// In the order of the columns.
    fn bind(self, query: Query<'_, Sqlite, SqliteArguments>) -> Query<'_, Sqlite, SqliteArguments> {
        query
            .bind(self.request_id.clean())
            .bind(self.client_id.clean())
            .bind(self.backend_id.map(Text::clean))
            .bind(self.model.map(Text::clean))
            .bind(self.operation)
            .bind(self.stream)
            .bind(self.status)
            .bind(self.success)
            .bind(self.verdict)
            .bind(self.reason)
            .bind(self.rule.map(Text::clean))
            .bind(self.why.map(Text::clean))
            .bind(self.attempts)
            .bind(self.processing_time_ms)
            .bind(self.first_token_ms)
            .bind(self.input_tokens)
            .bind(self.output_tokens)
            .bind(self.timestamp)
    }
}

/// Writes rows, all or as many as came before an error.
pub(super) async fn write(conn: &mut Conn, dialect: &Dialect, rows: &[Row]) -> sqlx::Result<()> {
    match conn {
        Conn::Sqlite(conn) => {
            let mut rest = rows;
            while !rest.is_empty() {
                // Of few lengths, each of which is prepared once.
                let many = AT_ONCE.min(1 << rest.len().ilog2());
                let (first, others) = rest.split_at(many);
                let query = sqlx::query(AssertSqlSafe(insert(many)));
                let query = first
                    .iter()
                    .fold(query, |query, row| row.written().bind(query));
                query.execute(&mut *conn).await?;
                rest = others;
            }
        }
        Conn::Postgres(conn) => {
            let insert = AssertSqlSafe(insert_document(dialect));
            let query = sqlx::query(insert).bind(document(rows)?);
            query.execute(conn).await?;
        }
    }
    Ok(())
}

/// Rows as one parameter of a statement, for which PostgreSQL is asked once. SQLite, which is not asked over a network,
/// would read each of them anew for each column.
fn document(rows: &[Row]) -> sqlx::Result<String> {
    let rows: Vec<_> = rows.iter().map(Row::written).collect();
    serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// What writes all rows of a document.
fn insert_document(dialect: &Dialect) -> String {
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let values = COLUMNS.map(|(name, kind)| {
        let text = format!("value->>'{name}'");
        match kind {
            "TEXT" => text,
            "" => dialect.at(&format!("({text})")),
            kind => format!("CAST({text} AS {kind})"),
        }
    });
    let values = values.join(", ");
    format!(
        "INSERT INTO request_metrics ({names}) SELECT {values} \
         FROM jsonb_array_elements(CAST($1 AS JSONB))"
    )
}

/// What writes so many rows, column by column.
fn insert(many: usize) -> String {
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let row = format!("({})", ["?"; COLUMNS.len()].join(", "));
    let rows = vec![row; many].join(", ");
    format!("INSERT INTO request_metrics ({names}) VALUES {rows}")
}

/// A row that was written, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Logged {
    /// Counts up as rows are written.
    pub(crate) id: i64,
    pub(crate) request_id: String,
    pub(crate) client_id: String,
    /// `None` where no backend was reached.
    pub(crate) backend_id: Option<String>,
    /// `None` where none was read.
    pub(crate) model: Option<String>,
    pub(crate) operation: String,
    pub(crate) stream: bool,
    pub(crate) status: i32,
    pub(crate) success: bool,
    pub(crate) verdict: String,
    pub(crate) reason: Option<String>,
    pub(crate) rule: Option<String>,
    pub(crate) why: Option<String>,
    pub(crate) attempts: i32,
    pub(crate) processing_time_ms: f64,
    pub(crate) first_token_ms: Option<f64>,
    pub(crate) input_tokens: Option<i64>,
    pub(crate) output_tokens: Option<i64>,
    /// When its answer ended.
    pub(crate) timestamp: String,
}

/// What reads them, up to the conditions.
pub(super) fn select(dialect: &Dialect) -> String {
    let names = COLUMNS.map(|(name, _)| match name {
        "timestamp" => format!("{} AS shown", dialect.shown_time),
        name => name.into(),
    });
    format!("SELECT id, {} FROM request_metrics", names.join(", "))
}

impl<'r, R: sqlx::Row> FromRow<'r, R> for Logged
where
    &'static str: ColumnIndex<R>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
    i32: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            request_id: row.try_get("request_id")?,
            client_id: row.try_get("client_id")?,
            backend_id: row.try_get("backend_id")?,
            model: row.try_get("model")?,
            operation: row.try_get("operation")?,
            stream: row.try_get("stream")?,
            status: row.try_get("status")?,
            success: row.try_get("success")?,
            verdict: row.try_get("verdict")?,
            reason: row.try_get("reason")?,
            rule: row.try_get("rule")?,
            why: row.try_get("why")?,
            attempts: row.try_get("attempts")?,
            processing_time_ms: row.try_get("processing_time_ms")?,
            first_token_ms: row.try_get("first_token_ms")?,
            input_tokens: row.try_get("input_tokens")?,
            output_tokens: row.try_get("output_tokens")?,
            timestamp: row.try_get("shown")?,
        })
    }
}

#[cfg(test)]
impl Row {
    /// A success that ended then.
    pub(super) fn sample(request_id: &str, ended: SystemTime) -> Self {
        let identities = crate::identity::Identities::new(&crate::config::Config::default());
        let peer = (std::net::Ipv4Addr::LOCALHOST, 4711).into();
        Self {
            request_id: request_id.parse().unwrap(),
            caller: Arc::new(identities.unknown(peer, &http::HeaderMap::new())),
            backend: Some("a".into()),
            model: Some("m".into()),
            operation: Operation::Chat,
            stream: true,
            status: StatusCode::OK,
            verdict: Verdict::Success,
            reason: None,
            rule: None,
            why: None,
            attempts: 1,
            took: Duration::from_micros(12_345),
            first_token: Some(Duration::from_millis(5)),
            usage: Some(Usage {
                prompt: 3,
                completion: 4,
            }),
            ended,
        }
    }

    /// A failure of this model, with this sentence.
    pub(super) fn failing(mut self, model: &str, why: &str) -> Self {
        self.verdict = Verdict::Failure;
        self.status = StatusCode::BAD_GATEWAY;
        self.model = Some(model.into());
        self.why = Some(why.into());
        self.reason = Some("bad_gateway");
        (self.backend, self.usage, self.first_token) = (None, None, None);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        database::Use,
        schema,
        tests::{Folder, ids, rows_at},
    };
    use super::*;

    #[tokio::test]
    async fn any_number_of_rows_is_written_whole_and_in_order() {
        for many in [1, 2, 3, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 7] {
            let folder = Folder::new();
            let file = folder.database();
            let mut conn = file.connect(Use::Write).await.unwrap();
            schema::migrate(&mut conn, file.dialect()).await.unwrap();
            let rows = rows_at(vec![SystemTime::UNIX_EPOCH; many]);
            write(&mut conn, file.dialect(), &rows).await.unwrap();
            let expected: Vec<_> = (0..many).map(|number| format!("r-{number}")).collect();
            assert_eq!(ids(&mut conn).await, expected);
        }
    }
}
