//! Readers on real sockets who take nothing.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    time::timeout,
};

use super::*;
use crate::{
    config::{Config, Switch},
    server,
    workers::Workers,
};

const ASKS: &[u8] = b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n";

/// Asks, and reads the first line of the answer.
async fn ask(address: std::net::SocketAddr) -> (String, BufReader<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    // What the kernel takes for somebody who reads nothing.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = BufReader::new(socket.connect(address).await.unwrap());
    stream.write_all(ASKS).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    (line, stream)
}

#[tokio::test]
async fn silent_readers_lose_their_places_and_connections_and_one_who_reads_does_not() {
    let config = Config {
        rate_limit: Switch::Off,
        ..Config::default()
    };
    let app = Arc::new(App::new(config, "token".into(), None).unwrap());
    let listening = TcpSocket::new_v4().unwrap();
    // On loopback the kernel would take megabytes for somebody who reads nothing, elsewhere some ten kilobytes.
    listening.set_send_buffer_size(16 * 1024).unwrap();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(128).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let workers = Workers::start(1).unwrap();
    let server = tokio::spawn(server::serve(listener, app.clone(), workers, stopped));

    let (_, mut reader) = ask(address).await;
    let mut silent = Vec::new();
    for _ in 1..VIEWERS {
        let (line, stream) = ask(address).await;
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        silent.push(stream);
    }
    let (line, _) = ask(address).await;
    assert!(line.starts_with("HTTP/1.1 503"), "{line}");

    // A second passes as soon as who reads has read what it brought.
    let mut looks = 0;
    let mut line = Vec::new();
    while app.dashboard.messages.receiver_count() > 1 {
        looks += 1;
        assert!(looks < 5000, "all places stay taken");
        app.dashboard.look(&app, EVERY, Vec::new());
        while !line.starts_with(b"event: tick") {
            line.clear();
            let read = timeout(EVERY * 20, reader.read_until(b'\n', &mut line)).await;
            assert!(read.unwrap().unwrap() > 0, "who reads goes on");
        }
        line.clear();
    }
    assert!(looks > 30, "{looks}");
    let (line, _new) = ask(address).await;
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    // They hear of it, whatever they have not read.
    let mut rest = Vec::new();
    for mut stream in silent {
        let closed = timeout(EVERY * 20, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a silent reader keeps its connection");
    }
    app.dashboard.close();
    stop.send(()).unwrap();
    server.await.unwrap();
}
