//! The request log as a file: `demo-gateway export`.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use palisade::time::wall_clock;
use sqlx::FromRow;
use sqlx::{ColumnIndex, Decode, Row, Type};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    database::Database,
    filter::{Filter, instant},
    reader,
    row::{self, Logged},
    whole::Whole,
};
use crate::config::{Place, Secret, without_password};

/// How many rows are read at once.
const STEP: u32 = 1000;

/// The options of `export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// The database, as `postgres://...` or `sqlite:PATH`.
    // No parser that could fail: its error would show the password.
    #[arg(
        long,
        env = "PALISADE_STORE",
        value_name = "URL",
        hide_env_values = true,
        required_unless_present = "data_dir"
    )]
    pub store: Option<Secret>,
    /// The folder of a gateway that logs into a file, if no database is named.
    #[arg(long, env = "PALISADE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How rows are written.
    #[arg(long, value_enum)]
    pub format: Format,
    /// Only requests that ended then or later: a date after RFC 3339, or how long ago, such as `12h`.
    #[arg(long, value_name = "DATE|DURATION")]
    pub since: Option<String>,
    /// Only requests that ended before.
    #[arg(long, value_name = "DATE|DURATION")]
    pub until: Option<String>,
    /// Where to, instead of the standard output. What is there stays until all is written.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With a line of names, after RFC 4180. For spreadsheets: a text that one would take for a formula begins with `'`.
    Csv,
    /// One JSON object a line, exactly as logged.
    Jsonl,
}

/// Writes the log, oldest first, as far as it went when this began.
///
/// # Errors
///
/// In a sentence, without passwords. Also on SIGINT, SIGTERM and SIGHUP while a file is written: without all rows there is no
/// new one.
///
/// # Cancellation
///
/// Dropped, it leaves a file as it was.
pub async fn export(options: &Export) -> Result<u64, String> {
    let date = wall_clock();
    let read = |name: &str, text: &Option<String>| match text {
        Some(text) => instant(text, date)
            .map(Some)
            .map_err(|error| format!("--{name} `{text}` {error}")),
        None => Ok(None),
    };
    let filter = Filter {
        since: read("since", &options.since)?,
        until: read("until", &options.until)?,
        limit: STEP,
        ..Filter::default()
    };
    let database = match Place::of(options.store.as_ref(), options.data_dir.as_deref()) {
        Ok(Place::File(path)) => Database::Sqlite(path),
        Ok(Place::Postgres(options)) => Database::Postgres(options),
        Ok(Place::Off | Place::Temporary) => return Err("--store names no database".into()),
        Err(error) => return Err(format!("--store {error}")),
    };
    let written = match &options.output {
        Some(path) => {
            let file = Whole::create(path);
            let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
            let copied = copy(&database, &filter, options.format, &file);
            let written = match file.is_beside() {
                true => tokio::select! {
                    // Listens before anything is asked of the database.
                    biased;
                    stopped = stopped(path) => return Err(stopped),
                    written = copied => written,
                },
                // Nothing to tidy up: it ends as programs do, also while nobody reads from a pipe.
                false => copied.await,
            };
            written.and_then(|written| {
                file.finish()?;
                Ok(written)
            })
        }
        None => copy(&database, &filter, options.format, io::stdout()).await,
    };
    written.map_err(|error| {
        let shown = options
            .store
            .as_ref()
            .map(|url| without_password(url.reveal()));
        match (shown, error) {
            (_, Failure::Output(error)) => format!("cannot write: {error}"),
            (Some(shown), Failure::Database(error)) => format!("{shown}: {error}"),
            (None, Failure::Database(error)) => match &database {
                Database::Sqlite(path) => format!("{}: {error}", path.display()),
                Database::Postgres(_) => error,
            },
        }
    })
}

/// Waits for a signal that would end the program, which then can still tidy up.
async fn stopped(path: &Path) -> String {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let signals = kinds.map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
        // Then it ends as programs do.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    format!("stopped: {} is as it was", path.display())
}

enum Failure {
    Output(io::Error),
    Database(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.to_string())
    }
}

/// The newest row there is.
struct Last(i64);

impl<'r, R: Row> FromRow<'r, R> for Last
where
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        row.try_get(0).map(Self)
    }
}

/// A page at a time, so that no memory is needed for the whole and no gateway is kept from deleting.
async fn copy(
    database: &Database,
    filter: &Filter,
    format: Format,
    output: impl Write,
) -> Result<u64, Failure> {
    let mut output = BufWriter::new(output);
    let conn = reader::open(database).await;
    let mut conn = conn.map_err(|error| Failure::Database(error.to_string()))?;
    let dialect = database.dialect();
    let sql = "SELECT COALESCE(MAX(id), 0) FROM request_metrics";
    let last: Vec<Last> = reader::select(&mut conn, sql, &[]).await?;
    // Rows that come meanwhile would let it never end.
    let last = last.first().map_or(0, |Last(id)| *id);
    if format == Format::Csv {
        let names = row::COLUMNS.map(|(name, _)| name);
        write!(output, "id,{}\r\n", names.join(","))?;
    }
    let (mut after, mut written) = (0, 0);
    loop {
        let (sql, args) = filter.oldest_first(&row::select(dialect), dialect, after, last);
        let rows: Vec<Logged> = reader::select(&mut conn, &sql, &args).await?;
        for row in &rows {
            match format {
                Format::Csv => write_csv(&mut output, row)?,
                Format::Jsonl => {
                    serde_json::to_writer(&mut output, row).map_err(io::Error::from)?;
                    output.write_all(b"\n")?;
                }
            }
        }
        written += rows.len() as u64;
        match rows.last() {
            Some(row) if rows.len() == STEP as usize => after = row.id,
            _ => break,
        }
    }
    output.flush()?;
    Ok(written)
}

/// One line in the order of the columns.
fn write_csv(output: &mut impl Write, row: &Logged) -> io::Result<()> {
    fn shown<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }

    let texts = |text: &Option<String>| cell(text.as_deref().unwrap_or_default());
    let fields = [
        row.id.to_string(),
        cell(&row.request_id),
        cell(&row.client_id),
        texts(&row.backend_id),
        texts(&row.model),
        cell(&row.operation),
        row.stream.to_string(),
        row.status.to_string(),
        row.success.to_string(),
        cell(&row.verdict),
        texts(&row.reason),
        texts(&row.rule),
        texts(&row.why),
        row.attempts.to_string(),
        row.processing_time_ms.to_string(),
        shown(row.first_token_ms),
        shown(row.input_tokens),
        shown(row.output_tokens),
        cell(&row.timestamp),
    ];
    write!(output, "{}\r\n", fields.join(","))
}

/// A text as a field. Callers choose ids and models, and spreadsheets run what begins like a formula.
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        "'"
    } else {
        ""
    };
    if text.contains(['"', ',', '\r', '\n']) {
        return format!("\"{guard}{}\"", text.replace('"', "\"\""));
    }
    format!("{guard}{text}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fields of one record, read by the letter of RFC 4180.
    fn fields(line: &str) -> Vec<String> {
        let mut fields = vec![String::new()];
        let mut chars = line.chars().peekable();
        let mut quoted = false;
        while let Some(char) = chars.next() {
            let field = fields.last_mut().unwrap();
            match char {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(String::new()),
                '\r' | '\n' if !quoted => panic!("a line of its own in {line:?}"),
                char => field.push(char),
            }
        }
        assert!(!quoted, "{line:?}");
        fields
    }

    proptest! {
        #[test]
        fn any_texts_come_back_from_a_line_and_none_is_a_formula(
            texts in prop::collection::vec("[=+@a\\-\",'\r\n\t\u{e9}]{0,6}", 1..5),
        ) {
            let line = texts.iter().map(|text| cell(text)).collect::<Vec<_>>().join(",");
            let back = fields(&line);
            prop_assert_eq!(back.len(), texts.len());
            for (text, back) in texts.iter().zip(back) {
                prop_assert!(!back.starts_with(['=', '+', '-', '@', '\t', '\r']));
                prop_assert!(back == *text || back == format!("'{text}"), "{:?} {:?}", text, back);
            }
        }
    }

    #[test]
    fn plain_texts_stay_as_they_are() {
        for text in [
            "",
            "gpt-4o",
            "user:alice",
            "2026-11-22T12:00:00.000Z",
            "it's",
        ] {
            assert_eq!(cell(text), text);
        }
        assert_eq!(
            cell("=HYPERLINK(\"http://x\")"),
            "\"'=HYPERLINK(\"\"http://x\"\")\""
        );
    }
}
