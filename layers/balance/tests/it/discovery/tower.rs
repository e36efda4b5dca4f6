use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use http::Request;
use palisade_balance::{Endpoint, Endpoints};
use palisade_core::BoxError;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tower::{Service, discover::Change};

use super::{serving, until};
use crate::support::{Fake, MS, balance, load, of, send};

type Said = Result<Change<u32, Fake>, BoxError>;

struct Told(mpsc::UnboundedReceiver<Said>);

impl Stream for Told {
    type Item = Said;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        self.0.poll_recv(cx)
    }
}

fn told() -> (mpsc::UnboundedSender<Said>, Told) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Told(receiver))
}

fn make(key: &u32, service: Fake) -> Endpoint<Fake> {
    Endpoint::new(key.to_string(), service)
}

#[tokio::test(start_paused = true)]
async fn services_come_are_replaced_and_go() {
    let endpoints = Endpoints::default();
    let (sender, discover) = told();
    let follower = endpoints.follow_discover(discover, make);
    let mut seen = follower.watch();
    let running = tokio::spawn(follower);
    let (old, new) = (Fake::new(1), Fake::new(1));
    sender.send(Ok(Change::Insert(1, old.clone()))).unwrap();
    sender.send(Ok(Change::Insert(2, Fake::new(1)))).unwrap();
    let first = until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!((first.targets, first.changes.added.len()), (2, 2));
    sender.send(Ok(Change::Remove(2))).unwrap();
    sender.send(Ok(Change::Insert(1, new.clone()))).unwrap();
    sender.send(Ok(Change::Remove(7))).unwrap();
    let second = until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!(
        (second.changes.removed.len(), second.changes.replaced.len()),
        (1, 1)
    );
    assert_eq!(serving(&endpoints), ["1"]);
    send(&balance(&endpoints)).await.unwrap();
    assert_eq!((old.calls(), new.calls()), (0, 1));
    drop(sender);
    timeout(MS, running).await.unwrap().unwrap();
    assert_eq!(serving(&endpoints), ["1"], "the set outlives the stream");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_stream_changes_nothing_and_the_stream_is_asked_again() {
    let endpoints = Endpoints::default();
    let (sender, discover) = told();
    let follower = endpoints.follow_discover(discover, make);
    let mut seen = follower.watch();
    tokio::spawn(follower);
    sender.send(Ok(Change::Insert(1, Fake::new(1)))).unwrap();
    sender.send(Err("down".into())).unwrap();
    sender.send(Ok(Change::Insert(2, Fake::new(1)))).unwrap();
    let failed = until(&mut seen, |seen| seen.failing == 1).await;
    assert_eq!(
        (failed.lists, failed.error.unwrap().to_string()),
        (1, "down".to_owned())
    );
    assert_eq!(serving(&endpoints), ["1"]);
    let back = until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!((back.failing, back.errors), (0, 1));
    assert_eq!(serving(&endpoints), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn names_of_others_stay_theirs_and_the_next_follower_takes_over() {
    let endpoints = Endpoints::default();
    let mine = endpoints.insert(Endpoint::new("1", Fake::new(1)));
    let (sender, discover) = told();
    let follower = endpoints.follow_discover(discover, make);
    let mut seen = follower.watch();
    let running = tokio::spawn(follower);
    for key in [1, 2] {
        sender.send(Ok(Change::Insert(key, Fake::new(1)))).unwrap();
    }
    let list = until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!((list.changes.taken.len(), list.targets), (1, 1));
    sender.send(Ok(Change::Remove(1))).unwrap();
    until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!(of(&endpoints, "1").id, mine);
    running.abort();
    running.await.unwrap_err();

    let (sender, discover) = told();
    let follower = endpoints.follow_discover(discover, make);
    let mut seen = follower.watch();
    tokio::spawn(follower);
    let before = of(&endpoints, "2").id;
    sender.send(Ok(Change::Insert(2, Fake::new(1)))).unwrap();
    until(&mut seen, |seen| seen.lists == 1).await;
    assert_ne!(of(&endpoints, "2").id, before);
    assert_eq!(serving(&endpoints), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_changes_its_name_leaves_nothing_behind() {
    let endpoints = Endpoints::default();
    let (sender, discover) = told();
    let mut made = 0;
    let follower = endpoints.follow_discover(discover, move |key: &u32, service| {
        made += 1;
        if *key == 9 {
            return Err("no such key");
        }
        Ok(Endpoint::new(format!("{key}-{made}"), service))
    });
    let mut seen = follower.watch();
    tokio::spawn(follower);
    for key in [1, 1, 9, 1] {
        sender.send(Ok(Change::Insert(key, Fake::new(1)))).unwrap();
    }
    let list = until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!(serving(&endpoints), ["1-4"]);
    assert_eq!(
        (list.targets, list.errors, list.error.unwrap().to_string()),
        (1, 1, "no such key".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_set() {
    let endpoints = Endpoints::<Fake>::default();
    let (_sender, discover) = told();
    let running = tokio::spawn(endpoints.follow_discover(discover, make));
    sleep(MS).await;
    drop(endpoints);
    timeout(MS, running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_while_it_becomes_ready_is_out_of_choice_and_not_of_the_set() {
    let endpoints = Endpoints::default();
    let broken = Arc::new(AtomicBool::new(false));
    let first = Fake::new(1);
    let services = (0..3).map(|key| {
        let service = if key == 0 {
            Fragile(first.clone(), broken.clone())
        } else {
            Fragile(Fake::new(1), Arc::default())
        };
        Ok::<_, BoxError>(Change::Insert(key, service))
    });
    let discover = futures_util::stream::iter(services.collect::<Vec<_>>());
    let make = |key: &u32, service| Endpoint::new(key.to_string(), service);
    endpoints.follow_discover(discover, make).await;
    broken.store(true, SeqCst);
    let service = balance(&endpoints);
    assert_eq!(load(&service, 100, MS).await, 0, "requests go elsewhere");
    let fragile = of(&endpoints, "0");
    assert!(
        fragile.failures >= 1 && fragile.in_flight == 0,
        "{fragile:?}"
    );
    assert_eq!((first.calls(), endpoints.len()), (0, 3));
}

#[derive(Clone)]
struct Fragile(Fake, Arc<AtomicBool>);

impl Service<Request<()>> for Fragile {
    type Response = <Fake as Service<Request<()>>>::Response;
    type Error = BoxError;
    type Future = <Fake as Service<Request<()>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.1.load(SeqCst) {
            return Poll::Ready(Err("connection lost".into()));
        }
        Service::<Request<()>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_while_services_come_and_go() {
    let endpoints = Endpoints::default();
    let (sender, discover) = told();
    let follower = endpoints.follow_discover(discover, make);
    let mut seen = follower.watch();
    tokio::spawn(follower);
    sender.send(Ok(Change::Insert(0, Fake::new(10)))).unwrap();
    until(&mut seen, |seen| seen.lists == 1).await;
    let service = balance(&endpoints);
    let requests = tokio::spawn(async move { load(&service, 3000, MS).await });
    for key in 1..200 {
        sleep(MS * 10).await;
        sender.send(Ok(Change::Insert(key, Fake::new(10)))).unwrap();
        sender.send(Ok(Change::Remove(key - 1))).unwrap();
    }
    assert_eq!(requests.await.unwrap(), 0);
    assert_eq!(serving(&endpoints), ["199"]);
}
