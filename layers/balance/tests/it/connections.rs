//! The connections of the client of an endpoint: when they are made, and when they end.

use std::{
    io::{self, Read, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use http_body_util::BodyExt;
use palisade_balance::{Endpoint, Endpoints, TooManyConnections};
use palisade_core::{
    classify::Verdict,
    reject::{Reason, Rejected},
    time::now,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_test::{assert_pending, task};
use tower::ServiceExt;

use crate::{
    server::{Server, TestClient, get, plain, send, until},
    support::{balance, of},
};

const SECOND: Duration = Duration::from_secs(1);
/// As long as no machine is slow.
const PATIENT: Duration = Duration::from_secs(600);

fn open(client: &TestClient) -> usize {
    client.connections().open
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_the_server_would() {
    let server = Server::start().await;
    for (client, most) in [
        (server.client(), 8),
        (server.client().idle_timeout(SECOND), 2),
    ] {
        send(&client).await.unwrap();
        tokio::time::pause();
        let start = now();
        server.until(|counts| counts.open == 0).await;
        let took = start.elapsed();
        assert!(
            took >= SECOND * most / 2 && took <= SECOND * (most + 1),
            "{took:?}"
        );
        tokio::time::resume();
        until(|| open(&client) == 0).await;
    }
}

#[tokio::test]
async fn never_more_connections_are_open_than_there_are_places() {
    let server = Server::start().await;
    let client = server.client().max_connections(2);
    let mut sent = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        sent.spawn(async move { send(&client).await.unwrap() });
    }
    sent.join_all().await;
    let counts = server.counts();
    assert_eq!((counts.most, counts.requests), (2, 50));
}

#[tokio::test]
async fn a_request_that_finds_no_connection_is_refused_and_leaves_nothing_behind() {
    let server = Server::start().await;
    server.hold();
    let client = server.client().max_connections(2).connect_timeout(PATIENT);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(client.clone().oneshot(get("/")).await.unwrap());
    }
    tokio::time::pause();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let start = now();
    let many = || {
        (0..100)
            .map(|_| client.clone().oneshot(get("/")))
            .collect::<JoinSet<_>>()
    };
    for refused in many().join_all().await {
        let error = refused.unwrap_err();
        let rejected = Rejected::find(&*error).unwrap();
        assert_eq!(rejected.reason(), Reason::Overloaded);
        let source = std::error::Error::source(rejected).unwrap();
        assert_eq!(source.downcast_ref::<TooManyConnections>().unwrap().most, 2);
    }
    assert_eq!(start.elapsed().as_secs(), PATIENT.as_secs());
    assert_eq!(tasks(), before);
    assert_eq!(server.counts().requests, 2);

    // Those that get a connection of another instead give up their wait for a place, in time.
    tokio::time::resume();
    let sent = many();
    tokio::task::yield_now().await;
    server.answer(|_| plain(200, "ok"));
    server.release();
    drop(held);
    for answered in sent.join_all().await {
        answered.unwrap();
    }
    tokio::time::pause();
    tokio::time::sleep(PATIENT + SECOND).await;
    assert!(tasks() <= before, "{} > {before}", tasks());
    assert_eq!(server.counts().most, 2);
}

#[tokio::test]
async fn who_leaves_gives_the_connection_back_whenever_that_is() {
    let server = Server::start().await;
    let client = server.client().max_connections(1);

    // Before the head.
    server.keep_silent();
    let mut waits = tokio::spawn(client.clone().oneshot(get("/")));
    server.until(|counts| counts.requests == 1).await;
    waits.abort();
    assert!((&mut waits).await.unwrap_err().is_cancelled());
    server.until(|counts| counts.open == 0).await;

    // In the body.
    server.hold();
    let mut response = client.clone().oneshot(get("/")).await.unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "first");
    drop(response);

    // Nobody has it any more.
    server.answer(|_| plain(200, "ok"));
    assert_eq!(send(&client).await.unwrap(), "ok");
    assert_eq!(server.counts().most, 1);
}

#[tokio::test]
async fn with_http2_who_leaves_does_not_disturb_the_others() {
    let server = Server::start().await;
    server.hold();
    let client = server.client().http2();
    let stays = client.clone().oneshot(get("/")).await.unwrap();
    let leaves = client.clone().oneshot(get("/")).await.unwrap();
    drop(leaves);
    let mut waits = Box::pin(client.clone().oneshot(get("/")));
    tokio::select! {
        biased;
        _ = &mut waits => panic!("the server holds its answer"),
        () = tokio::task::yield_now() => drop(waits),
    }
    server.release();
    assert_eq!(
        stays.into_body().collect().await.unwrap().to_bytes(),
        "first"
    );
    server.answer(|_| plain(200, "ok"));
    assert_eq!(send(&client).await.unwrap(), "ok");
    assert_eq!(server.counts().accepted, 1);
}

#[tokio::test]
async fn with_http2_who_leaves_while_it_connects_takes_nobody_along() {
    let server = Server::start().await;
    let client = server.client().http2();
    let [mut leaves, mut waits, mut bored] =
        [(); 3].map(|()| task::spawn(client.clone().oneshot(get("/"))));
    assert_pending!(leaves.poll());
    assert_pending!(waits.poll());
    assert_pending!(bored.poll());
    drop(bored);
    drop(leaves);
    waits.await.unwrap();
    let counts = server.counts();
    assert_eq!((counts.accepted, counts.requests), (1, 1));
    let counted = client.connections();
    assert_eq!((counted.opened, counted.failed), (1, 0));
}

#[tokio::test]
async fn with_http2_who_leaves_alone_leaves_one_connection_behind_at_most() {
    let server = Server::start().await;
    let client = server.client().http2();
    let mut leaves = task::spawn(client.clone().oneshot(get("/")));
    assert_pending!(leaves.poll());
    drop(leaves);
    drop(client.clone().oneshot(get("/")));
    until(|| open(&client) == 1).await;
    send(&client).await.unwrap();
    let counts = server.counts();
    assert_eq!((counts.accepted, counts.requests), (1, 1));
    drop(client);
    server.until(|counts| counts.open == 0).await;
}

#[tokio::test]
async fn a_restarted_server_is_reached_again() {
    for http2 in [false, true] {
        let server = Server::start().await;
        let client = server.client();
        let client = if http2 { client.http2() } else { client };
        send(&client).await.unwrap();
        let address = server.stop().await;
        until(|| open(&client) == 0).await;
        let error = send(&client).await.unwrap_err();
        assert_eq!(Verdict::of(&*error), Verdict::Unsent, "{error:?}");
        let server = Server::again(address).await;
        assert_eq!(send(&client).await.unwrap(), "ok");
        let counted = client.connections();
        assert_eq!((counted.open, counted.opened, counted.failed), (1, 2, 1));
        drop(server);
    }
}

/// Answers one request, hangs up when it is told to, and says so; returns the port.
fn hangs_up(
    listener: std::net::TcpListener,
    told: mpsc::Receiver<()>,
    tell: mpsc::Sender<()>,
) -> std::net::TcpListener {
    let (mut stream, _) = listener.accept().unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        heard.push(byte[0]);
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    stream.write_all(answer).unwrap();
    told.recv().unwrap();
    drop(stream);
    tell.send(()).unwrap();
    listener
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_its_connection_is_sent_once_at_most() {
    for (hears_first, verdict) in [(true, Verdict::Unsent), (false, Verdict::Failure)] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = TestClient::new(url).unwrap();
        let (hang_up, told) = mpsc::channel();
        let (tell, hung_up) = mpsc::channel();
        let server = thread::spawn(|| hangs_up(listener, told, tell));
        assert_eq!(send(&client).await.unwrap(), "ok");
        hang_up.send(()).unwrap();
        // Blocks the thread, so that nothing here hears of the end.
        hung_up.recv().unwrap();
        if hears_first {
            // The connection is told of the end, and the request is there before it can do anything about it.
            tokio::task::yield_now().await;
        }
        // Otherwise the request is written, and may have arrived for all that is known.
        let error = send(&client).await.unwrap_err();
        assert_eq!(Verdict::of(&*error), verdict, "{error:?}");
        let listener = server.join().unwrap();
        listener.set_nonblocking(true).unwrap();
        let again = listener.accept().unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(client.connections().opened, 1);
    }
}

#[tokio::test]
async fn with_the_last_clone_go_idle_connections_and_bodies_are_read_to_their_ends() {
    let server = Server::start().await;
    let client = server.client().idle_timeout(SECOND * 3600);
    server.hold();
    let held = client.clone().oneshot(get("/")).await.unwrap();
    server.answer(|_| plain(200, "ok"));
    send(&client).await.unwrap();
    assert_eq!(server.counts().open, 2);

    drop(client);
    server.until(|counts| counts.open == 1).await;
    server.release();
    let body = held.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "first");
    server.until(|counts| counts.open == 0).await;
}

#[tokio::test]
async fn an_endpoint_that_is_drained_has_no_connections_left() {
    let server = Server::start().await;
    let endpoints = Endpoints::default();
    let client = server.client().idle_timeout(SECOND * 3600);
    endpoints.insert(Endpoint::new("a", client));
    let service = balance(&endpoints);
    server.hold();
    let held = service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(of(&endpoints, "a").in_flight, 1);
    let drained = tokio::spawn({
        let endpoints = endpoints.clone();
        async move { endpoints.drain("a").await }
    });
    until(|| endpoints.is_empty()).await;
    assert!(!drained.is_finished());
    server.release();
    let body = held.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "first");
    assert!(drained.await.unwrap());
    server.until(|counts| counts.open == 0).await;
}

#[tokio::test]
async fn with_http2_a_long_answer_goes_on_beside_a_second_connection() {
    let server = Server::start().await;
    server.hold();
    let client = server.client().http2();
    let held = client.clone().oneshot(get("/")).await.unwrap();
    tokio::time::pause();
    tokio::time::sleep(SECOND * 10).await;
    tokio::time::resume();
    server.answer(|_| plain(200, "ok"));
    assert_eq!(send(&client).await.unwrap(), "ok");
    assert_eq!((server.counts().open, open(&client)), (2, 2));
    server.release();
    let body = held.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "first");
    until(|| open(&client) == 1).await;
}

#[tokio::test]
async fn an_endpoint_without_a_free_connection_is_not_asked_for_one() {
    let servers = [Server::start().await, Server::start().await];
    let endpoints = Endpoints::default();
    for (at, server) in servers.iter().enumerate() {
        server.hold();
        let client = server.client().max_connections(1);
        endpoints.insert(Endpoint::new(at.to_string(), client).max_in_flight(1));
    }
    let service = balance(&endpoints);
    let mut held = Vec::new();
    for _ in &servers {
        held.push(service.clone().oneshot(get("/")).await.unwrap());
    }
    assert_eq!(
        servers.each_ref().map(|server| server.counts().requests),
        [1, 1]
    );
    let waits = tokio::spawn(service.clone().oneshot(get("/")));
    until(|| !waits.is_finished()).await;
    for server in &servers {
        server.answer(|_| plain(200, "ok"));
        server.release();
    }
    for response in held {
        response.into_body().collect().await.unwrap();
    }
    waits.await.unwrap().unwrap();
    assert_eq!(
        servers.each_ref().map(|server| server.counts().most),
        [1, 1]
    );
}

#[tokio::test]
async fn with_pings_a_peer_that_vanishes_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TestClient::new(format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let client = client.http2().ping(SECOND * 10, SECOND * 5);
    let answer = tokio::spawn(client.clone().oneshot(get("/")));
    let (mut peer, _) = listener.accept().await.unwrap();
    // Empty SETTINGS, and the acknowledgement of the other side's; then nothing more.
    peer.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0")
        .await
        .unwrap();
    let mut heard = Vec::new();
    // Until the HEADERS of the request, of type 1 with END_STREAM and END_HEADERS.
    while !heard.windows(5).any(|bytes| bytes == [1, 5, 0, 0, 0]) {
        assert_ne!(peer.read_buf(&mut heard).await.unwrap(), 0);
    }
    tokio::time::pause();
    let start = now();
    let error = answer.await.unwrap().unwrap_err();
    let took = start.elapsed().as_secs();
    assert!((14..=16).contains(&took), "{took}");
    // It may have arrived.
    assert_ne!(Verdict::of(&*error), Verdict::Unsent);
    until(|| open(&client) == 0).await;
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn connections_are_told_by_the_name_of_the_endpoint() {
    use metrics_util::debugging::DebuggingRecorder;

    use crate::{metrics::seen, server::dead};

    let server = Server::start().await;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let named = server.client().named("a");
    let address = dead().await;
    let refuses = TestClient::new(format!("http://{address}")).unwrap();
    // Handles are registered with the first request, or look.
    metrics::with_local_recorder(&recorder, || {
        named.connections();
        refuses.connections();
    });
    send(&named).await.unwrap();
    send(&refuses).await.unwrap_err();
    let expected = [
        "connections{endpoint=a}".to_owned(),
        format!("connects_total{{endpoint={address},result=failed}}"),
        "connects_total{endpoint=a,result=opened}".to_owned(),
    ];
    let told = seen(&snapshotter);
    assert_eq!(told, expected.map(|key| (key, 1.0)).into());
    server.stop().await;
    until(|| open(&named) == 0).await;
    // A look at a gauge sets it to zero.
    assert_eq!(seen(&snapshotter)["connections{endpoint=a}"], -1.0);
}
