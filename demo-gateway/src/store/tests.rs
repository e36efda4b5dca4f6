//! The log without a gateway around it, in a file of its own.

use std::{net::Ipv4Addr, time::SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use palisade::{
    classify::{Usage, Verdict},
    rate_limit::Tokens,
};
use palisade_core::testing::CountingAllocator;

use super::{
    database::{Conn, Dialect, Use, with},
    filter::{Filter, Table},
    row::Logged,
    *,
};
use crate::{
    config,
    exchange::{Ended, Exchange, Operation},
    identity::Identities,
    record::{Entry, Observers, Recording},
};

/// A folder with a database.
pub(super) struct Folder(super::folder::Folder);

impl Folder {
    pub(super) fn new() -> Self {
        Self(super::folder::Folder::new().unwrap())
    }

    pub(super) fn database(&self) -> Database {
        Database::Sqlite(self.0.path().join("requests.db"))
    }

    /// With tables in it.
    async fn tables(&self) -> Conn {
        let mut conn = self.database().connect(Use::Write).await.unwrap();
        schema::migrate(&mut conn, self.database().dialect())
            .await
            .unwrap();
        conn
    }
}

pub(super) fn rows_at(dates: impl IntoIterator<Item = SystemTime>) -> Vec<Row> {
    let dates = dates.into_iter().enumerate();
    dates
        .map(|(number, date)| Row::sample(&format!("r-{number}"), date))
        .collect()
}

/// Writes rows as the writer does.
pub(super) async fn write(conn: &mut Conn, dialect: &Dialect, rows: &[Row]) {
    row::write(conn, dialect, rows).await.unwrap();
}

pub(super) async fn count(conn: &mut Conn) -> i64 {
    use sqlx::Row;

    let sql = "SELECT COUNT(*) FROM request_metrics";
    with!(conn, conn => sqlx::query(sql).fetch_one(conn).await.unwrap().get(0))
}

/// The request ids, oldest first.
pub(super) async fn ids(conn: &mut Conn) -> Vec<String> {
    use sqlx::Row;

    let sql = "SELECT request_id FROM request_metrics ORDER BY id";
    with!(conn, conn => {
        let rows = sqlx::query(sql).fetch_all(conn).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    })
}

/// What becomes of a request, told to this observer.
fn request(observer: Arc<dyn Observe>, id: &'static str, end: Ended) -> Recording {
    let peer = (Ipv4Addr::LOCALHOST, 4711).into();
    let uri = Uri::from_static("/v1/chat/completions");
    let id = HeaderValue::from_static(id);
    let entry = Arc::new(Entry::new(id, peer, Method::POST, uri));
    let identities = Identities::new(&Config::default());
    let caller = identities.unknown(peer, &HeaderMap::new());
    let exchange = Arc::new(Exchange::new(
        Arc::new(caller),
        Operation::Chat,
        palisade::time::now(),
    ));
    exchange.asked_for(&Tokens::new("gpt-4o", 3), true);
    exchange.ended(end);
    entry.asks(&exchange);
    let mut observers = Observers::default();
    observers.add(observer);
    let mut recording = Recording::new(entry, observers);
    recording.answered(StatusCode::OK);
    recording.is_whole();
    recording
}

fn success() -> Ended {
    Ended {
        verdict: Verdict::Success,
        usage: Some(Usage {
            prompt: 3,
            completion: 4,
        }),
        first_data: Some(Duration::from_millis(5)),
    }
}

// The allocator of these tests is set where metrics are tested.
#[test]
fn a_request_that_ends_well_leaves_its_row_without_an_allocation() {
    /// Counts what the log adds to what a record costs.
    struct Counting(Log, AtomicU64);

    impl Observe for Counting {
        fn ended(&self, record: &Record) {
            let before = CountingAllocator::count();
            self.0.ended(record);
            self.1
                .fetch_add(CountingAllocator::count() - before, Relaxed);
        }
    }

    let (rows, mut queue) = mpsc::channel(100);
    let log = Log {
        rows,
        books: Arc::new(Books::new()),
        half: 50,
    };
    let counting = Arc::new(Counting(log, AtomicU64::new(0)));
    let mut send = |many: u64| {
        for _ in 0..many {
            drop(request(counting.clone(), "r-1", success()));
        }
        for _ in 0..many {
            queue.try_recv().unwrap();
        }
        counting.1.swap(0, Relaxed)
    };
    assert!(CountingAllocator::count() > 0, "it counts");
    // The queue takes what it needs once.
    send(90);
    for _ in 0..50 {
        assert_eq!(send(40), 0);
    }
}

#[tokio::test]
async fn every_column_is_read_back_as_it_was_written() {
    let folder = Folder::new();
    let mut conn = folder.tables().await;
    let database = folder.database();
    let dialect = database.dialect();
    let ended = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_348_800_123);
    let good = Row::sample("r-1", ended);
    let bad = Row::sample("r-2", ended).failing("\0\"\u{1f980}'", "it said \"no\\\";\n--");
    write(&mut conn, dialect, &[good, bad]).await;
    let sql = format!("{} ORDER BY id", row::select(dialect));
    let rows: Vec<Logged> = reader::select(&mut conn, &sql, &[]).await.unwrap();
    let good = Logged {
        id: 1,
        request_id: "r-1".into(),
        client_id: "ip:127.0.0.1".into(),
        backend_id: Some("a".into()),
        model: Some("m".into()),
        operation: "chat".into(),
        stream: true,
        status: 200,
        success: true,
        verdict: "success".into(),
        reason: None,
        rule: None,
        why: None,
        attempts: 1,
        processing_time_ms: 12.345,
        first_token_ms: Some(5.0),
        input_tokens: Some(3),
        output_tokens: Some(4),
        timestamp: "2026-11-22T12:00:00.123Z".into(),
    };
    let bad = Logged {
        id: 2,
        request_id: "r-2".into(),
        backend_id: None,
        // PostgreSQL could not take the zero.
        model: Some("\u{fffd}\"\u{1f980}'".into()),
        status: 502,
        success: false,
        verdict: "failure".into(),
        reason: Some("bad_gateway".into()),
        why: Some("it said \"no\\\";\n--".into()),
        first_token_ms: None,
        input_tokens: None,
        output_tokens: None,
        ..good.clone()
    };
    assert_eq!(rows, [good, bad]);
}

fn filter(query: &str) -> Result<Filter, String> {
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800);
    Filter::of_query(query, Table::Requests, date).map_err(|error| error.detail().to_owned())
}

/// Which rows a query finds, newest first.
async fn found(conn: &mut Conn, query: &str) -> Vec<Logged> {
    let folder = Folder::new();
    let database = folder.database();
    let dialect = database.dialect();
    let filter = filter(query).unwrap();
    let (sql, args) = filter.newest_first(&row::select(dialect), dialect);
    reader::select(conn, &sql, &args).await.unwrap()
}

#[tokio::test]
async fn filters_find_what_a_look_at_every_row_finds() {
    type Fits = fn(&Logged) -> bool;
    let folder = Folder::new();
    let mut conn = folder.tables().await;
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800 - 3600);
    let rows: Vec<_> = (0..120)
        .map(|number| {
            let row = Row::sample(
                &format!("r-{}", number % 40),
                start + Duration::from_secs(number * 60),
            );
            match number % 3 {
                0 => row.failing(if number % 2 == 0 { "a b" } else { "a+b" }, "no"),
                _ => row,
            }
        })
        .collect();
    write(&mut conn, folder.database().dialect(), &rows).await;
    let all = found(&mut conn, "limit=1000").await;
    assert_eq!(all.len(), 120);
    assert!(all.is_sorted_by(|one, next| one.id > next.id));
    let queries: [(&str, Fits); 14] = [
        ("success=false", |row| !row.success),
        ("success=true", |row| row.success),
        ("verdict=failure", |row| row.verdict == "failure"),
        ("status=502", |row| row.status == 502),
        ("backend=a", |row| row.backend_id.as_deref() == Some("a")),
        ("model=a+b", |row| row.model.as_deref() == Some("a b")),
        ("model=a%2Bb", |row| row.model.as_deref() == Some("a+b")),
        ("model=%27%20OR%201%3D1--", |_| false),
        ("client=ip:127.0.0.1&success=false&status=502", |row| {
            !row.success
        }),
        ("request_id=r-7", |row| row.request_id == "r-7"),
        ("since=2026-11-22T11:30:00Z", |row| {
            &*row.timestamp >= "2026-11-22T11:30:00.000Z"
        }),
        ("since=2026-11-22T13:30:00+02:00&until=45s", |row| {
            &*row.timestamp >= "2026-11-22T11:30:00.000Z"
                && &*row.timestamp < "2026-11-22T11:59:15.000Z"
        }),
        ("since=30m", |row| {
            &*row.timestamp >= "2026-11-22T11:30:00.000Z"
        }),
        ("before=50", |row| row.id < 50),
    ];
    for (query, fits) in queries {
        let expected: Vec<_> = all.iter().filter(|row| fits(row)).cloned().collect();
        let rows = found(&mut conn, &format!("{query}&limit=1000")).await;
        assert_eq!(rows, expected, "{query}");
        assert!(
            query.contains("OR") || !rows.is_empty() && rows.len() < 120,
            "{query}"
        );
    }
    // One more than asked for tells that there are more.
    assert_eq!(found(&mut conn, "limit=7").await.len(), 8);
    assert_eq!(found(&mut conn, "").await.len(), 101);
}

#[test]
fn a_filter_that_is_wrong_is_named() {
    for (query, says) in [
        ("colour=red", "`colour` is no filter"),
        ("limit=0", "`limit` is not a number"),
        ("limit=1001", "from 1 to 1000"),
        ("before=-1", "`before`"),
        ("status=ok", "`status`"),
        ("success=yes", "`success`"),
        ("verdict=bad", "`timed_out`"),
        ("since=yesterday", "`since`"),
        ("until=2026-02-30T00:00:00Z", "`until`"),
        ("model=%ff", "`model` is not UTF-8"),
        ("model=", "`model` says nothing"),
        ("model", "`model` says nothing"),
        ("model=a&model=b", "`model` is there twice"),
    ] {
        let error = filter(query).unwrap_err();
        assert!(error.contains(says), "{query}: {error}");
    }
    let date = SystemTime::UNIX_EPOCH;
    assert!(Filter::of_query("limit=5", Table::ScalingEvents, date).is_ok());
    assert!(Filter::of_query("model=m", Table::ScalingEvents, date).is_err());
}

#[test]
fn every_verdict_can_be_asked_for() {
    use palisade::Reason;

    for verdict in [
        Verdict::Success,
        Verdict::Failure,
        Verdict::Overload { retry_after: None },
        Verdict::CallerFault,
        Verdict::TimedOut,
        Verdict::Unsent,
        Verdict::Refused(Reason::RateLimited),
        Verdict::Canceled,
    ] {
        filter(&format!("verdict={}", verdict.name())).unwrap();
    }
}

#[tokio::test]
async fn a_queue_that_is_full_drops_and_counts_and_says_so() {
    let folder = Folder::new();
    let mut lock = folder.tables().await;
    lock.run("BEGIN IMMEDIATE").await.unwrap();
    let Database::Sqlite(path) = folder.database() else {
        unreachable!("it is a file");
    };
    let mut config = Config {
        store: config::Store::at(format!("sqlite:{}", path.display())),
        ..Config::default()
    };
    config.store.queue = 10;
    config.store.batch = 5;
    let (store, observer, running) = open(&config).await.unwrap().unwrap();
    for _ in 0..1000 {
        drop(request(observer.clone(), "r-1", success()));
    }
    let full = store.status().dropped.full;
    // Ten wait, and five at most are in the writer's hands.
    assert!((985..=990).contains(&full), "{full}");
    let writing = store.writing();
    assert!(writing.is_full, "{writing:?}");
    assert_eq!((writing.lost, store.dropped()), (full, full));
    let mut standings = store.books.standing.subscribe();
    lock.run("ROLLBACK").await.unwrap();
    let fine = standings.wait_for(|it| it.up == Some(true) && !it.is_full);
    drop(fine.await.unwrap());
    assert!(store.writing().up);
    drop(observer);
    running.close().await;
    let status = store.status();
    assert_eq!(status.written + status.dropped.full, 1000);
    assert_eq!(count(&mut lock).await as u64, status.written);
    assert_eq!((status.dropped.refused, status.dropped.shutdown), (0, 0));
}

#[tokio::test]
async fn the_temporary_folder_goes_with_the_log_and_nobody_else_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt;

    let (store, observer, running) = open(&Config::default()).await.unwrap().unwrap();
    let file = store.shown.strip_prefix("sqlite:").unwrap().to_owned();
    let folder = Path::new(&file).parent().unwrap().to_owned();
    let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(Path::new(&file).exists());
    drop(request(observer, "r-1", success()));
    running.close().await;
    assert_eq!(store.status().written, 1);
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_somebody_has_to_put_right_is_told_at_the_start() {
    let folder = Folder::new();
    let at = |url: String| Config {
        store: config::Store::at(url),
        ..Config::default()
    };
    let told = async |config: Config| open(&config).await.err().unwrap();
    let mut conn = folder.tables().await;
    conn.run("UPDATE log_schema SET version = 7").await.unwrap();
    let Database::Sqlite(path) = folder.database() else {
        unreachable!("it is a file");
    };
    let error = told(at(format!("sqlite:{}", path.display()))).await;
    assert!(error.contains("version 7"), "{error}");
    let text = path.with_file_name("text.db");
    std::fs::write(
        &text,
        "this is no database, but long enough to be looked at as one".repeat(20),
    )
    .unwrap();
    let error = told(at(format!("sqlite:{}", text.display()))).await;
    assert!(error.contains("not a database"), "{error}");
    let below = text.join("requests.db");
    let error = told(at(format!("sqlite:{}", below.display()))).await;
    assert!(error.contains("text.db"), "{error}");
    let off = open(&at("off".into())).await.unwrap();
    assert!(off.is_none());
}

#[tokio::test]
async fn a_new_file_is_for_its_owner_alone_and_one_that_is_there_stays_as_it_is() {
    use std::{fs, os::unix::fs::PermissionsExt};

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = Folder::new();
    let data_dir = folder.0.path().join("made");
    let config = Config {
        data_dir: Some(data_dir.clone()),
        ..Config::default()
    };
    let (_, observer, running) = open(&config).await.unwrap().unwrap();
    for name in ["requests.db", "requests.db-wal", "requests.db-shm"] {
        assert_eq!(mode(&data_dir.join(name)), 0o600, "{name}");
    }
    drop(observer);
    running.close().await;
    let file = data_dir.join("requests.db");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let (_, observer, running) = open(&config).await.unwrap().unwrap();
    assert_eq!(mode(&file), 0o640);
    drop(observer);
    running.close().await;
}

#[test]
fn a_request_that_tells_late_that_there_was_no_room_does_not_hide_that_there_is() {
    let books = Books::new();
    // It has seen that there is none, and the writer is faster to say that there is.
    books.full.store(true, Relaxed);
    books.is_full(false);
    books.tell_full();
    assert!(!books.standing.borrow().is_full);
    books.is_full(true);
    assert!(books.standing.borrow().is_full);
}
