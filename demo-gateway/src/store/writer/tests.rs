use std::{sync::atomic::Ordering::Relaxed, time::SystemTime};

use super::{
    super::tests::{Folder, count, ids, rows_at},
    *,
};

/// A writer into a file of its own, and what its rows come through.
struct Bench {
    folder: Folder,
    rows: mpsc::Sender<Row>,
    books: Arc<Books>,
    closing: watch::Sender<Option<Instant>>,
    writer: Writer,
}

impl Bench {
    async fn new() -> Self {
        let folder = Folder::new();
        let (rows, queue) = mpsc::channel(1000);
        let (closing, closes) = watch::channel(None);
        let books = Arc::new(Books::new());
        let config = config::Store::default();
        let database = folder.database();
        let mut writer = Writer::new(database, &config, queue, books.clone(), closes);
        writer.open().await.unwrap();
        Self {
            folder,
            rows,
            books,
            closing,
            writer,
        }
    }

    async fn look(&self) -> Conn {
        self.folder.database().connect(Use::Write).await.unwrap()
    }

    fn dropped(&self) -> [u64; 3] {
        Dropped::ALL.map(|why| self.books.dropped(why))
    }
}

fn samples(many: u64) -> Vec<Row> {
    let start = SystemTime::UNIX_EPOCH;
    rows_at((0..many).map(|number| start + Duration::from_millis(number)))
}

#[tokio::test]
async fn a_batch_whose_end_was_not_heard_of_is_not_written_twice() {
    let mut bench = Bench::new().await;
    let rows = samples(10);
    bench.writer.number = 1;
    for _ in 0..2 {
        // The second time after a connection that broke when all was done.
        assert!(bench.writer.attempt(&rows).await.is_ok());
        bench.writer.conn = None;
    }
    bench.writer.number = 2;
    assert!(bench.writer.attempt(&rows[..3]).await.is_ok());
    assert_eq!(count(&mut bench.look().await).await, 13);
}

#[tokio::test]
async fn a_row_that_is_refused_takes_no_other_with_it() {
    let mut bench = Bench::new().await;
    let mut look = bench.look().await;
    look.run(
        "CREATE TRIGGER refuse BEFORE INSERT ON request_metrics WHEN NEW.request_id IN ('r-0', 'r-77', 'r-78') \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    )
    .await
    .unwrap();
    let mut batch = samples(100);
    let goes_on = bench.writer.write(&mut batch).await;
    assert!(goes_on.is_continue() && batch.is_empty());
    assert_eq!(bench.dropped(), [0, 3, 0]);
    assert_eq!(bench.books.written.load(Relaxed), 97);
    let mut expected: Vec<_> = (0..100).map(|number| format!("r-{number}")).collect();
    expected.retain(|id| !matches!(&**id, "r-0" | "r-77" | "r-78"));
    // In the order in which they came.
    assert_eq!(ids(&mut look).await, expected);
}

#[tokio::test]
async fn rows_wait_for_a_database_that_is_locked_and_are_written_then() {
    let bench = Bench::new().await;
    let mut lock = bench.look().await;
    lock.run("BEGIN IMMEDIATE").await.unwrap();
    let writer = tokio::spawn(bench.writer.run());
    // Of now: older ones would be deleted as soon as they are written.
    for row in rows_at([wall_clock(); 20]) {
        bench.rows.try_send(row).unwrap();
    }
    let mut standing = bench.books.standing.subscribe();
    let down = standing.wait_for(|standing| standing.up == Some(false));
    let error = down.await.unwrap().last_error.clone().unwrap();
    assert!(error.contains("locked"), "{error}");
    lock.run("ROLLBACK").await.unwrap();
    let up = standing.wait_for(|standing| standing.up == Some(true));
    drop(up.await.unwrap());
    let until = time::now() + Duration::from_secs(60);
    bench.closing.send(Some(until)).unwrap();
    writer.await.unwrap();
    assert_eq!(count(&mut lock).await, 20);
    assert_eq!(bench.books.written.load(Relaxed), 20);
}

#[tokio::test]
async fn a_database_that_is_back_is_told_of_also_where_nobody_asks_anything() {
    let mut bench = Bench::new().await;
    let gone = late(ATTEMPT).into();
    bench.books.stands(Err(&gone));
    let mut lock = bench.look().await;
    lock.run("BEGIN IMMEDIATE").await.unwrap();
    bench.writer.retain().await;
    assert_eq!(bench.books.standing.borrow().up, Some(false));
    lock.run("ROLLBACK").await.unwrap();
    bench.writer.retain().await;
    assert_eq!(bench.books.standing.borrow().up, Some(true));
}

#[tokio::test]
async fn a_shutdown_gives_up_in_time_and_counts_what_it_leaves() {
    let bench = Bench::new().await;
    let mut lock = bench.look().await;
    lock.run("BEGIN IMMEDIATE").await.unwrap();
    for row in samples(700) {
        bench.rows.try_send(row).unwrap();
    }
    let until = time::now() + Duration::from_millis(300);
    bench.closing.send(Some(until)).unwrap();
    let closes = timeout(Duration::from_secs(10), bench.writer.run());
    closes.await.expect("long after its time");
    assert_eq!(bench.books.dropped(Dropped::Shutdown), 700);
    assert!(bench.rows.is_closed());
    lock.run("ROLLBACK").await.unwrap();
    assert_eq!(count(&mut lock).await, 0);
}

#[tokio::test]
async fn all_that_was_accepted_is_written_before_it_ends() {
    let bench = Bench::new().await;
    for row in samples(999) {
        bench.rows.try_send(row).unwrap();
    }
    let until = time::now() + Duration::from_secs(60);
    bench.closing.send(Some(until)).unwrap();
    let writer = tokio::spawn(bench.writer.run());
    writer.await.unwrap();
    let mut look = bench.folder.database().connect(Use::Read).await.unwrap();
    assert_eq!(count(&mut look).await, 999);
    assert_eq!(Dropped::ALL.map(|why| bench.books.dropped(why)), [0, 0, 0]);
}

#[test]
fn halves_are_all_of_it_and_end_with_one() {
    fn check(part: Range<usize>) -> usize {
        match halves(&part) {
            None => {
                assert_eq!(part.len(), 1);
                1
            }
            Some([first, second]) => {
                assert_eq!(
                    (first.start, first.end, second.end),
                    (part.start, second.start, part.end)
                );
                check(first) + check(second)
            }
        }
    }
    for many in 1..40 {
        assert_eq!(check(7..7 + many), many);
    }
}
