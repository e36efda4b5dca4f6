//! Connections that are made, or not, without a network.

use std::{
    future::pending,
    pin::{Pin, pin},
};

use palisade_core::{classify::Verdict, time::now};
use tokio_test::{assert_pending, assert_ready, task};

use super::*;

type Dialled = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

#[derive(Clone)]
struct Fake(fn() -> Dialled);

impl Service<Uri> for Fake {
    type Response = ();
    type Error = BoxError;
    type Future = Dialled;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Dialled {
        (self.0)()
    }
}

const TIMEOUT: Duration = Duration::from_secs(2);

fn connector(dial: fn() -> Dialled, most: Option<usize>) -> (Connector<Fake>, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::new("a".into()));
    let connector = Connector::through(Fake(dial), TIMEOUT, most, ledger.clone());
    (connector, ledger)
}

fn uri() -> Uri {
    Uri::from_static("http://a")
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_comes_is_given_up_in_time_and_counted() {
    let (mut connector, ledger) = connector(|| Box::pin(pending()), Some(1));
    let start = now();
    let error = connector.call(uri()).await.unwrap_err();
    assert_eq!(start.elapsed(), TIMEOUT);
    let late = error.downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
    let counted = ledger.read();
    assert_eq!((counted.open, counted.opened, counted.failed), (0, 0, 1));
    // Its place is free.
    let mut next = task::spawn(connector.call(uri()));
    assert_pending!(next.poll());
    tokio::time::advance(TIMEOUT).await;
    let error = assert_ready!(next.poll()).unwrap_err();
    assert!(error.is::<std::io::Error>());
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_waits_for_one_until_the_timeout() {
    let (mut connector, ledger) = connector(|| Box::pin(async { Ok(()) }), Some(2));
    let first = connector.call(uri()).await.unwrap();
    let second = connector.call(uri()).await.unwrap();

    let mut third = task::spawn(connector.call(uri()));
    assert_pending!(third.poll());
    drop(first);
    assert!(third.is_woken());
    let third = assert_ready!(third.poll()).unwrap();
    assert_eq!(ledger.read().open, 2);

    let start = now();
    let error = connector.call(uri()).await.unwrap_err();
    assert_eq!(start.elapsed(), TIMEOUT);
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::Overloaded);
    let source = Error::source(rejected).unwrap();
    assert_eq!(source.downcast_ref(), Some(&TooManyConnections { most: 2 }));
    // It is not the endpoint's fault.
    assert_eq!(Verdict::of(&*error), Verdict::Refused(Reason::Overloaded));
    let counted = ledger.read();
    assert_eq!((counted.open, counted.opened, counted.failed), (2, 3, 0));
    drop((second, third));
    assert_eq!(ledger.read().open, 0);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_waiting_or_connecting_takes_no_place_along() {
    let (mut connector, ledger) = connector(|| Box::pin(pending()), Some(1));
    let mut connecting = task::spawn(connector.call(uri()));
    assert_pending!(connecting.poll());
    let mut waiting = task::spawn(connector.call(uri()));
    assert_pending!(waiting.poll());
    drop(waiting);
    drop(connecting);
    assert_eq!(ledger.read(), Connections::default());

    let start = now();
    let error = connector.call(uri()).await.unwrap_err();
    assert_eq!(start.elapsed(), TIMEOUT);
    // It was connecting, and not waiting for a place.
    assert!(error.is::<std::io::Error>());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_place_and_connecting_share_one_timeout() {
    let (mut connector, _) = connector(
        || {
            Box::pin(async {
                tokio::time::sleep(TIMEOUT * 3 / 4).await;
                Ok(())
            })
        },
        Some(1),
    );
    let start = now();
    let mut second = connector.clone();
    let (first, second) = tokio::join!(
        async {
            let connection = connector.call(uri()).await;
            drop(connection.unwrap());
            start.elapsed()
        },
        async {
            let mut late = pin!(second.call(uri()));
            late.as_mut().await.unwrap_err();
            start.elapsed()
        }
    );
    assert_eq!((first, second), (TIMEOUT * 3 / 4, TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn times_and_numbers_of_any_size_are_taken() {
    let ever = Duration::MAX;
    let endless = Client::<http_body_util::Empty<bytes::Bytes>>::new("http://127.0.0.1:1").unwrap();
    let mut endless = endless
        .connect_timeout(ever)
        .idle_timeout(ever)
        .ping(ever, ever)
        .max_connections(usize::MAX)
        .max_idle(0);
    endless
        .call(Request::new(Default::default()))
        .await
        .unwrap_err();
    let hasty = Client::<http_body_util::Empty<bytes::Bytes>>::new("http://127.0.0.1:1").unwrap();
    let mut hasty = hasty
        .connect_timeout(Duration::ZERO)
        .idle_timeout(Duration::ZERO)
        .ping(Duration::ZERO, Duration::ZERO)
        .max_connections(0);
    hasty
        .call(Request::new(Default::default()))
        .await
        .unwrap_err();
}
